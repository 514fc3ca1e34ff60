"""Bad YAML: what is no text of keys and values, what stands twice, and values that another type would swallow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import ConfigError, dump_config, load_config
from tests import checks


def refused(text: str | bytes, folder: Path, *names: str) -> None:
    """A YAML is refused in one line, which holds ``names``."""
    file = folder / "bad.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    checks.refused(lambda: load_config(cfg, file), *names, error=ConfigError)


# ---- no YAML of keys and values -------------------------------------------------------------------------------------

NO_KEYS = {
    "empty": ("", ["empty"]),
    "blank": (" \n\n", ["empty"]),
    "a comment alone": ("# lm: {epochs: 1}\n", ["empty"]),
    "three dashes alone": ("---\n", ["key: value"]),
    "a list": ("- lm\n- gnn\n", ["key: value", "list"]),
    "a word": ("glem\n", ["key: value", "glem"]),
    "nothing": ("null\n", ["key: value"]),
    "keys without values": ("seed\nout_dir\n", ["key: value"]),
    "JSON that is cut": ('{"lm": {"epochs": 1', ["line 1"]),
    "binary": (b"\x80\x04\x95\x00\x01" + bytes(range(256)), ["line 1", "UTF-8", "0x80"]),
    "NUL": (b"seed: 1\nout_dir: a\x00b\n", ["line 2", "0x0"]),
    "Latin-1": ("seed: 1\nout_dir: caf\xe9\n".encode("latin-1"), ["line 2", "UTF-8", "0xe9"]),
    "UTF-16": ("seed: 1\n".encode("utf-16"), ["UTF-8"]),
    "too large": (b"seed: 1 # " + b"x" * (1 << 20), ["1,048,576 bytes"]),
    "a tab": ("lm:\n\tepochs: 1\n", ["line 2", "blanks"]),
    "a tab in the line": ("lm:\n  epochs: 1\n\n\tlr: 1\n", ["line 4"]),
    "a bracket that is not closed": ("dataset:\n  tag_split: [0.1, 0.1\nseed: 1\n", ["line 3"]),
    "a quote that is not closed": ("out_dir: 'results\nseed: 1\n", ["line"]),
    "uneven indentation": ("lm:\n   epochs: 1\n  lr: 0.1\n", ["line 3"]),
    "a colon in a value": ("lm:\n  model: a: b\n", ["line 2"]),
    "an at sign": ("lm:\n  model: @me\n", ["line 2"]),
    "a percent sign": ("%out_dir: x\n", ["line 1"]),
    "two documents": ("seed: 1\n---\nseed: 2\n", ["document"]),
    "a document and its end": ("seed: 1\n...\nseed: 2\n", ["line 3"]),
    "an unknown alias": ("lm: *base\n", ["line 1", "base"]),
    "an alias of itself": ("lm: &lm\n  model: *lm\n", ["deep"]),
    "deep lists": ("gnn:\n  fan_out: " + "[" * 5000 + "]" * 5000, ["deep"]),
    "a Python object": ("seed: !!python/object/apply:os.system ['touch marker']\n", ["line 1", "python/object"]),
    "a Python name": ("lm: !!python/name:os.system\n", ["line 1", "python/name"]),
    "a tuple": ("gnn:\n  fan_out: !!python/tuple [1, 2]\n", ["line 2", "python/tuple"]),
    "a set": ("gnn:\n  fan_out: !!set {1, 2}\n", ["line 2", "!!set"]),
    "binary data": ("out_dir: !!binary aGk=\n", ["line 1", "!!binary"]),
    "a tag of one's own": ("lm: !include lm.yaml\n", ["line 1", "!include"]),
    "a tag of a key": ("!x lm: {epochs: 1}\n", ["line 1"]),
    "a list as key": ("? [a, b]\n: 1\n", ["line 1", "key"]),
    "a merged value": ("lm:\n  <<: 3\n", ["line 2", "<<"]),
    "a merged list of values": ("lm:\n  <<: [1, 2]\n", ["line 2", "<<"]),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_a_file_that_is_no_yaml_of_keys(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = NO_KEYS[case]
    refused(text, tmp_path, "bad.yaml", *names)
    assert not (tmp_path / "marker").exists()


def test_a_billion_laughs(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    refused("\n".join(lines), tmp_path, "100,000 values")


@pytest.mark.parametrize("what", ["missing", "folder", "unreadable", "a name too long", "a file as folder", "endless"])
def test_a_file_that_cannot_be_read(what: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    if what == "folder":
        file.mkdir()
    elif what == "unreadable":
        file.write_text("seed: 1\n")
        file.chmod(0)
        if os.access(file, os.R_OK):
            pytest.skip("this user may read everything")
    elif what == "a name too long":
        file = tmp_path / ("x" * 300)
    elif what == "a file as folder":
        file.write_text("seed: 1\n")
        file = file / "bad.yaml"
    elif what == "endless":
        file = Path("/dev/zero")
    checks.refused(lambda: load_config(cfg, file), str(file), error=ConfigError)


# ---- what stands twice ----------------------------------------------------------------------------------------------

TWICE = {
    "a group": ("lm:\n  epochs: 1\nseed: 1\nlm:\n  lr: 0.1\n", ["'lm'", "lines 1 and 4"]),
    "a key": ("lm:\n  epochs: 1\n  lr: 0.1\n  epochs: 2\n", ["'lm.epochs'", "lines 2 and 4"]),
    "a key in one line": ("lm: {epochs: 1, epochs: 1}\n", ["'lm.epochs'", "lines 1 and 1"]),
    "a key of no group": ("seed: 1\n\nseed: 1\n", ["'seed'", "lines 1 and 3"]),
    "once with quotes": ("seed: 1\n'seed': 1\n", ["'seed'", "lines 1 and 2"]),
}


@pytest.mark.parametrize("case", TWICE)
def test_what_stands_twice_names_both_lines(case: str, tmp_path: Path) -> None:
    text, names = TWICE[case]
    refused(text, tmp_path, "bad.yaml", *names)


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    file.write_text(
        "lm: &lm {lr: 0.1, epochs: 7}\ndataset: {tag_split: &s [0.2, 0.2, 0.6], split: *s}\n"
        "optim: {base_lr: &rate 0.3, weight_decay: *rate}\n"
    )
    load_config(cfg, file)
    assert (cfg.lm.lr, cfg.lm.epochs, cfg.optim.weight_decay) == (0.1, 7, 0.3)
    assert cfg.dataset.split == cfg.dataset.tag_split == [0.2, 0.2, 0.6]
    file.write_text("lm:\n  <<: &a {lr: 0.1, epochs: 7}\n  epochs: 8\n")
    load_config(cfg, file)
    assert (cfg.lm.lr, cfg.lm.epochs) == (0.1, 8)  # the group's own value is the stronger one


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_bytes(b"\xef\xbb\xbfseed: 3\r\nround: 2\r\n")
    load_config(cfg, tmp_path / "good.yaml")
    assert (cfg.seed, cfg.round) == (3, 2)


# ---- keys -----------------------------------------------------------------------------------------------------------

UNKNOWN = {
    "glem.alpha: 0.5": ["glem.alpha", "'glem:'"],
    "share: {dim_in: 3}": ["'share'"],
    "1: 2": ["'1'"],
    "true: 2": ["'true'"],
    "~: 2": ["'~'"],
    "lm: {model: {name: x}}": ["lm.model"],
    "seed: {a: 1}": ["seed"],
    "lm: [epochs, 3]": ["'lm'"],
    "lm: {1: 2}": ["lm.1"],
    f"{'k' * 900}: 1": ["kkk"],
}


@pytest.mark.parametrize("text", UNKNOWN, ids=[text[:30] for text in UNKNOWN])
def test_keys_that_there_are_not(text: str, tmp_path: Path) -> None:
    refused(text, tmp_path, "bad.yaml", *UNKNOWN[text])


# ---- texts stand as they were typed ---------------------------------------------------------------------------------

TYPED = ["true", "True", "no", "off", "yes", "null", "Null", "None", "2024-05-01", "2024-05-01T10:00:00", "12:30"]
TYPED += ["007", "2024_05", "1e3", "1.0", "1.50", "0x10", "0o17", "010", "1_000", ".5", "5.", ".inf", ".nan", "NaN"]
TYPED += ["+1", "-1", "=", "<<"]


@pytest.mark.parametrize("text", TYPED)
def test_a_text_stands_as_it_was_typed(text: str, tmp_path: Path) -> None:
    file = tmp_path / "good.yaml"
    for written in (text, f"'{text}'", f'"{text}"'):
        file.write_text(f"out_dir: {written}\nlm: {{model: {written}}}\n")
        load_config(cfg, file)
        assert (cfg.out_dir, cfg.lm.model) == (text, text)
    dump_config(cfg, tmp_path / "dumped.yaml")
    load_config(cfg, tmp_path / "dumped.yaml")
    assert (cfg.out_dir, cfg.lm.model) == (text, text)
    for written in (text, f"'{text}'", f'"{text}"'):
        load_config(cfg, file, ["out_dir", written, "lm.model", written])
        assert (cfg.out_dir, cfg.lm.model) == (text, text)


@pytest.mark.parametrize(
    "text", ["@home", "a: b", "[0.8,0.1", "{a", "*x", "&x", "!x", "%x", "`x`", "# x", "a # b", "'x", '"']
)
def test_texts_on_the_command_line_are_no_yaml(text: str, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("seed: 1\n")
    load_config(cfg, tmp_path / "good.yaml", ["out_dir", text, "lm.model", text])
    assert (cfg.out_dir, cfg.lm.model) == (text, text)


def test_a_list_for_texts_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text("lm: {precision: 16}\ngnn: {precision: 32}\n")
    load_config(cfg, tmp_path / "good.yaml", ["custom_metrics", "[]", "optim.steps", "[3, 0x10]"])
    assert (cfg.lm.precision, cfg.gnn.precision, cfg.optim.steps) == ("16", "32", [3, 16])


@pytest.mark.parametrize("text", [r'"a\nb"', r'"a\tb"', r'"a\0b"', r'"\x1b[31m"', "|\n  a\n  b", r'"\ud800"'])
def test_control_characters_in_a_text(text: str, tmp_path: Path) -> None:
    refused(f"out_dir: {text}\n", tmp_path, "out_dir")
    refused(f"lm:\n  model: {text}\n".replace("\n  a\n  b", "\n    a\n    b"), tmp_path, "lm.model")


# ---- paths ----------------------------------------------------------------------------------------------------------

PATHS = ["out_dir", "dataset.dir", "dataset.tag_source", "lm.model", "glem.feature_file", "glem.first_predictions"]


def value_of(name: str) -> str:
    group, _, key = name.rpartition(".")
    return cfg[group][key] if group else cfg[key]


@pytest.mark.parametrize("name", PATHS)
def test_home_and_variables_in_paths(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    monkeypatch.setenv("PLACE", "/scratch/x")
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "good.yaml").write_text("seed: 1\n")
    for text, expected in {
        "~": "/somebody",
        "~/a b": "/somebody/a b",
        "$PLACE/a": "/scratch/x/a",
        "${PLACE}_1/$PLACE": "/scratch/x_1//scratch/x",
        "./~": "./~",
        "a~b": "a~b",
    }.items():
        load_config(cfg, tmp_path / "good.yaml", [name, text])
        assert value_of(name) == expected
        group, _, key = name.rpartition(".")
        (tmp_path / "one.yaml").write_text(yaml.safe_dump({group: {key: text}} if group else {key: text}))
        load_config(cfg, tmp_path / "one.yaml")
        assert value_of(name) == expected
        dump_config(cfg, tmp_path / "dumped.yaml")
        load_config(cfg, tmp_path / "dumped.yaml")
        assert value_of(name) == expected
    for text in ("$NOWHERE/a", "${NOWHERE}", "a$", "$5", "~nobody_of_that_name/x", "${PLACE"):
        with pytest.raises(ConfigError) as error:
            load_config(cfg, tmp_path / "good.yaml", [name, text])
        assert str(error.value).startswith(f"{name} is '{text}'")
    with pytest.raises(ConfigError, match="NOWHERE is not set"):
        load_config(cfg, tmp_path / "good.yaml", [name, "$NOWHERE/a"])
