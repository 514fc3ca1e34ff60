"""`run/prepare.py` as a user types it: what it makes, checks, keeps, prints and refuses."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build import preparation
from glem_graphgym.build.preparation import Prepared, check_texts, prepare_dataset
from glem_graphgym.config import load_config, reads_texts
from glem_graphgym.data.text_graph import DataError, Texts
from tests.bad_inputs.conftest import load_program, run_here
from tests.data.ogb_files import (
    arxiv_rows,
    write_amazon,
    write_arxiv,
    write_lines,
    write_paperinfo,
    write_papers100m,
    write_products,
)

TESTS = Path(__file__).resolve().parents[1]
PREPARE = TESTS.parent / "run" / "prepare.py"

CONFIG = """
dataset: {{format: TAG, name: {name}, dir: {folder}/datasets}}
lm: {{model: {tiny_lm}, max_length: 16}}
train: {{mode: glem}}
model: {{type: glem_sage}}
"""


@pytest.fixture
def script() -> ModuleType:
    return load_program("prepare")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("glem_graphgym.data.ogb.download.urlopen", refuse)


def configure(folder: Path, tiny_lm: Path, name: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(CONFIG.format(name=name, folder=folder, tiny_lm=tiny_lm))
    return file


def make_files(name: str, root: Path) -> None:
    if name == "ogbn-arxiv":
        write_arxiv(root / "ogbn_arxiv")
        write_lines(root / "ogbn_arxiv/titleabs.tsv.gz", arxiv_rows())
    elif name == "ogbn-products":
        write_products(root / "ogbn_products")
        write_amazon(root / "ogbn_products")
    elif name == "ogbn-papers100M":
        write_papers100m(root / "ogbn_papers100M")
        write_paperinfo(root / "ogbn_papers100M/paperinfo.zip")


def prepared(folder: Path, tiny_lm: Path, name: str) -> dict[str, Prepared]:
    load_config(cfg, configure(folder, tiny_lm, name))
    return {part.what: part for part in prepare_dataset(cfg)}


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-papers100M"])
def test_it_makes_all_that_a_run_reads_and_says_where_it_lies(tmp_path: Path, tiny_lm: Path, name: str) -> None:
    make_files(name, tmp_path / "datasets")
    parts = prepared(tmp_path, tiny_lm, name)
    assert list(parts) == ["graph", "texts", "structure", "labels", "features", "tokens"]
    for part in parts.values():
        assert part.where is not None
        assert part.where.exists()
        assert part.bytes > 0
    nodes = 15 if name == "ogbn-papers100M" else 12
    assert parts["texts"].holds == f"{nodes} texts, 0 of them empty"
    assert parts["structure"].holds == f"{nodes} nodes, {8 if nodes == 15 else 6} edges"
    assert "4 train, 2 valid, 6 test" in parts["labels"].holds
    assert parts["labels"].holds.endswith(f"{nodes - 12} nodes without a label")
    graph, features = parts["graph"].where, parts["features"].where
    assert features is not None
    assert features.parent == graph
    assert parts["features"].bytes == features.stat().st_size


@pytest.mark.parametrize("content", ["[1, 2]", "{", "{}"])
def test_files_that_are_called_like_those_of_a_snapshot(tmp_path: Path, tiny_lm: Path, content: str) -> None:
    (tmp_path / "datasets" / "mine").mkdir(parents=True)
    (tmp_path / "datasets" / "mine" / "graph.json").write_text(content)
    assert prepared(tmp_path, tiny_lm, "synthetic")["graph"].where is None


def test_nothing_is_made_twice(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files("ogbn-papers100M", tmp_path / "datasets")
    first = prepared(tmp_path, tiny_lm, "ogbn-papers100M")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets").rglob("*") if path.suffix != ".lock"}
    second = prepared(tmp_path, tiny_lm, "ogbn-papers100M")
    assert first == second
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "datasets").rglob("*") if path.suffix != ".lock"}
    files = {path for path in times if path.is_file()}
    assert {path: after[path] for path in files} == {path: times[path] for path in files}
    assert set(after) == set(times)


def test_after_a_kill_it_goes_on_with_what_is_missing(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files("ogbn-papers100M", tmp_path / "datasets")

    def kill(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "open_tokens", kill)
        with pytest.raises(KeyboardInterrupt):
            prepared(tmp_path, tiny_lm, "ogbn-papers100M")
    (tmp_path / "datasets/ogbn_papers100M/raw/data.npz").unlink()
    assert "tokens" in prepared(tmp_path, tiny_lm, "ogbn-papers100M")


def test_a_graph_that_is_generated_has_no_place_but_its_tokens_have(tmp_path: Path, tiny_lm: Path) -> None:
    parts = prepared(tmp_path, tiny_lm, "synthetic")
    assert [part.where for what, part in parts.items() if what != "tokens"] == [None] * 5
    assert parts["features"].holds == "none"
    assert parts["tokens"].where is not None


@pytest.mark.parametrize(
    ("settings", "reads"),
    [
        ({"train.mode": "glem"}, True),
        ({"train.mode": "glem_lm"}, True),
        ({"train.mode": "glem_gnn", "glem.node_features": "raw"}, False),
        ({"train.mode": "glem_gnn", "glem.node_features": "raw+static"}, True),
        ({"train.mode": "standard", "glem.node_features": "raw"}, False),
        ({"train.mode": "standard", "model.type": "glem_lm"}, True),
        ({"dataset.node_encoder": "True", "dataset.node_encoder_name": "glem_text", "train.mode": "standard"}, True),
    ],
)
def test_texts_are_tokenised_only_where_a_run_reads_them(
    tmp_path: Path, tiny_lm: Path, settings: dict[str, str], reads: bool
) -> None:
    file = configure(tmp_path, tiny_lm, "synthetic")
    if settings["train.mode"] == "standard" and "model.type" not in settings:
        settings = {**settings, "model.type": "gnn"}
    load_config(cfg, file, [word for pair in settings.items() for word in pair])
    assert reads_texts(cfg) is reads
    assert ("tokens" in {part.what for part in prepare_dataset(cfg)}) is reads


def test_tokens_of_other_texts_are_found(tmp_path: Path, tiny_lm: Path) -> None:
    make_files("ogbn-arxiv", tmp_path / "datasets")
    tokens = prepared(tmp_path, tiny_lm, "ogbn-arxiv")["tokens"].where
    assert tokens is not None
    ids = np.fromfile(tokens / "ids.bin", dtype=np.uint16)
    ids[20] += 1
    ids.tofile(tokens / "ids.bin")
    with pytest.raises(DataError, match=rf"the tokens of node \d are not those of its text; delete {tokens}"):
        prepared(tmp_path, tiny_lm, "ogbn-arxiv")


@pytest.mark.parametrize(
    ("buffer", "offsets", "message"),
    [
        (b"abcd", [0, 3, 2, 4], "offsets must grow from 0 to 4"),
        (b"abcd", [1, 2, 3, 4], "offsets must grow from 0 to 4"),
        (b"abcd", [0, 1, 2, 3], "offsets must grow from 0 to 4"),
        (b"ab\xe9d", [0, 2, 3, 4], "text 1 is no UTF-8"),
        ("caf\u00e9".encode(), [0, 2, 4, 5], "text 1 is no UTF-8"),
    ],
)
def test_texts_that_are_broken_are_found(buffer: bytes, offsets: list[int], message: str) -> None:
    texts = Texts(np.frombuffer(buffer, dtype=np.uint8), np.array(offsets))
    with pytest.raises(DataError, match=f"mine.* {message}.*delete its snapshot"):
        check_texts(texts, "mine")


def test_a_broken_offset_is_found_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "ROWS_AT_ONCE", 2)
    for broken in range(1, 6):
        offsets = np.arange(7)
        offsets[broken] = offsets[broken - 1] - 1 if broken % 2 else offsets[broken + 1] + 1
        with pytest.raises(DataError, match="offsets must grow"):
            check_texts(Texts(np.full(6, ord("a"), dtype=np.uint8), offsets), "mine")


def test_other_formats_are_refused(tmp_path: Path, tiny_lm: Path) -> None:
    load_config(cfg, configure(tmp_path, tiny_lm, "synthetic"), ["train.mode", "standard", "dataset.format", "PyG"])
    with pytest.raises(ValueError, match=r"dataset\.format is 'PyG', expected 'TAG'"):
        prepare_dataset(cfg)


# ---- the command --------------------------------------------------------------------------------------------------


def test_the_command_prints_a_table_of_what_lies_where(
    script: ModuleType,
    tmp_path: Path,
    tiny_lm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    make_files("ogbn-products", tmp_path / "datasets")
    config = configure(tmp_path, tiny_lm, "ogbn-products")
    assert script.main(["--cfg", str(config), "lm.max_length", "8"]) == 0
    out = capsys.readouterr().out
    assert "ogbn-products is ready" in out
    frozen = next((tmp_path / "datasets/ogbn_products/text_graph").glob("[!.]*"))
    fingerprint = json.loads((frozen / "graph.json").read_text())["fingerprint"]
    for words in (f"{frozen}/text.npy", f"fingerprint {fingerprint}", "12 nodes, 6 edges", "at most 8;"):
        assert words in out


def test_errors_are_one_line_and_status_1(tmp_path: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure(tmp_path, tiny_lm, "ogbn-products")
    write_products(tmp_path / "datasets/ogbn_products")
    missing = run_here("prepare", ["--cfg", config], capsys)
    assert missing.returncode == 1
    (line,) = missing.stderr.splitlines()
    assert line.startswith("error: the raw text of ogbn-products is missing: expected trn.json.gz")
    wrong = run_here("prepare", ["--cfg", config, "--repeat", 3], capsys)
    assert wrong.returncode == 2
    assert "unknown flag --repeat; options are written as 'key value'" in wrong.stderr


# ---- what is looked for first -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "archive", "text"),
    [
        ("ogbn-arxiv", "arxiv.zip", r"titleabs\.tsv\.gz could not be downloaded \(no network\)\. Download"),
        ("ogbn-products", "products.zip", "the raw text of ogbn-products is missing: expected trn.json.gz"),
        ("ogbn-papers100M", "papers100M-bin.zip", r"paperinfo\.zip could not be downloaded \(no network\)\. Download"),
    ],
)
def test_all_that_is_missing_is_listed_at_once(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch, name: str, archive: str, text: str
) -> None:
    monkeypatch.setattr(preparation, "load_text_graph_of", None)  # which nobody comes to
    load_config(cfg, configure(tmp_path, tiny_lm, name), ["lm.model", str(tmp_path / "none")])
    with pytest.raises(DataError) as found:
        prepare_dataset(cfg)
    head, *lines = str(found.value).splitlines()
    assert head == "3 things are missing or wrong:"
    assert re.match(
        rf"  1\. \S+{archive} could not be downloaded \(no network\)\. Download .* and unpack it so", lines[0]
    )
    assert re.match(rf"  2\. \S*{text}", lines[1])
    assert lines[2].startswith(
        f"  3. lm.model '{tmp_path}/none' could not be loaded: expected a folder with config.json"
    )
    assert len(lines) == 3
    assert not (tmp_path / "datasets").exists()


def test_a_tokenizer_alone_is_found_out_before_the_graph_is_built(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_files("ogbn-papers100M", tmp_path / "datasets")
    monkeypatch.setattr(preparation, "load_text_graph_of", None)
    options = ["lm.model", str(tmp_path / "none")]
    load_config(cfg, configure(tmp_path, tiny_lm, "ogbn-papers100M"), options)
    with pytest.raises(DataError, match=r"^lm\.model '\S+none' could not be loaded"):
        prepare_dataset(cfg)
    options += ["train.mode", "glem_gnn", "glem.node_features", "raw"]
    load_config(cfg, configure(tmp_path, tiny_lm, "ogbn-papers100M"), options)
    with pytest.raises(TypeError, match="not callable"):  # no text is read, so nobody misses the tokenizer
        prepare_dataset(cfg)


def test_files_that_are_wrong_are_listed_with_those_that_are_missing(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "datasets/ogbn_papers100M"
    write_papers100m(folder)
    write_paperinfo(folder / "paperinfo.zip", [b"a\tb"], [b"c\td"])
    with pytest.raises(
        DataError, match=r"(?s)^2 things.*1\. .*idx_title\.tsv: of its first 1 rows.*2\. .*idx_abs\.tsv: "
    ):
        prepared(tmp_path, tiny_lm, "ogbn-papers100M")
    (folder / "raw/data.npz").unlink()
    (folder / "paperinfo.zip").write_bytes(b"no archive")
    with pytest.raises(
        DataError, match=r"(?s)^2 things.*1\. .*missing raw/data\.npz; found.*2\. .*paperinfo\.zip is damaged"
    ):
        prepared(tmp_path, tiny_lm, "ogbn-papers100M")


@pytest.mark.parametrize("name", ["ogbn-products", "ogbn-papers100M"])
def test_a_snapshot_needs_no_sources(tmp_path: Path, tiny_lm: Path, name: str) -> None:
    make_files(name, tmp_path / "datasets")
    first = prepared(tmp_path, tiny_lm, name)
    for path in [*(tmp_path / "datasets").rglob("*.zip"), *(tmp_path / "datasets").rglob("*.json.gz")]:
        path.unlink()
    shutil.rmtree(next((tmp_path / "datasets").glob("ogbn_*/raw")))
    assert prepared(tmp_path, tiny_lm, name) == first


def test_a_full_disk_is_one_line_that_names_the_file(
    script: ModuleType,
    tmp_path: Path,
    tiny_lm: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_files("ogbn-arxiv", tmp_path / "datasets")
    config = str(configure(tmp_path, tiny_lm, "ogbn-arxiv"))
    monkeypatch.delenv("GLEM_TRACEBACK")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("glem_graphgym.data.text_graph.np.save", full)
        assert script.main(["--cfg", config]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"error: {tmp_path}/datasets/\S+\.npy: the disk is full; it takes .* are free; make room", line)
    assert script.main(["--cfg", config]) == 0
