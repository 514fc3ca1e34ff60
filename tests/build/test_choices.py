from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build import choices
from glem_graphgym.build.choices import choose, with_choices
from glem_graphgym.build.run import prepare
from glem_graphgym.config import load_config
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.files import read_json, write_json
from tests.small import write_config

CHOSEN = {"lm.precision": "bf16", "gnn.precision": "bf16", "lm.attention": "glem_cpu_0_64"}


@pytest.fixture
def measured(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is measured from now on; ``cfg`` leaves everything to it."""
    seen: list[str] = []

    def answer(name: str, value: str) -> Callable[..., str]:
        return lambda *_: seen.append(name) or value

    monkeypatch.delenv("GLEM_MEASURE")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(choices, "faster_precision", answer("precision", "bf16"))
    monkeypatch.setattr(choices, "faster_attention", answer("attention", "glem_cpu_0_64"))
    auto = {"lm.precision": "auto", "gnn.precision": "auto", "accelerator": "cpu"}
    load_config(cfg, write_config(tmp_path / "config.yaml", tiny_lm, auto))
    cfg.run_dir = str(tmp_path / "results" / "0")
    return seen


def test_a_choice_is_measured_once_for_a_processor(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(cfg) == choose(cfg) == CHOSEN
    assert measured == ["precision", "attention"]
    for file in (Path(cfg.dataset.dir) / "choices").glob("*.json"):
        file.write_text("{")  # damaged
    assert choose(cfg) == CHOSEN
    assert measured == ["precision", "attention"] * 2
    monkeypatch.setattr(choices, "processor", lambda: "another")
    assert choose(cfg) == CHOSEN
    assert measured == ["precision", "attention"] * 3


def test_a_choice_that_cannot_be_kept_is_measured_in_each_run(measured: list[str]) -> None:
    Path(cfg.dataset.dir).mkdir(exist_ok=True)
    (Path(cfg.dataset.dir) / "choices").touch()  # fails as a folder does that can only be read
    assert choose(cfg) == choose(cfg) == CHOSEN
    assert measured == ["precision", "attention"] * 2


def test_a_choice_that_cannot_be_written_is_measured_once(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(choices, "write_json", full)
    assert choose(cfg) == CHOSEN
    assert measured == ["precision", "attention"]


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"lm.precision": "32"}, {"gnn.precision", "lm.attention"}),
        ({"lm.precision": "32", "gnn.precision": "32"}, {"lm.attention"}),
        ({"lm.attention": "eager"}, {"lm.precision", "gnn.precision"}),
        ({"train.mode": "glem_gnn", "glem.node_features": "raw"}, {"gnn.precision"}),
    ],
)
def test_keys_that_are_set_stay(settings: dict[str, str], left: set[str], measured: list[str]) -> None:
    for name, value in settings.items():
        group, key = name.split(".")
        cfg[group][key] = value
    assert choose(cfg) == {name: CHOSEN[name] for name in left}


def test_a_run_keeps_the_choices_that_it_began_with(measured: list[str]) -> None:
    run_dir = Path(cfg.run_dir)
    write_json(run_dir / "run.json", {"choices": {"lm.precision": "32"}})
    assert choose(cfg) == CHOSEN  # nothing is finished there yet
    (run_dir / "stages" / "0_lm").mkdir(parents=True)
    assert choose(cfg) == {"lm.precision": "32"}
    assert choose(cfg, anew=True) == CHOSEN
    write_json(run_dir / "run.json", {})  # an older version's
    assert choose(cfg) == {}


def test_learners_take_the_choices_and_the_run_folder_notes_them(measured: list[str]) -> None:
    _, run = prepare(cfg)
    assert read_json(Path(cfg.run_dir) / "run.json")["choices"] == CHOSEN
    assert cfg.lm.precision == cfg.lm.attention == "auto"  # for the next seed, and for run.json's settings
    assert isinstance(run.lm_gold, LMLearner)
    assert run.lm_gold.hardware.precision == "bf16-mixed"
    backbone = run.lm_gold.build().encoder.backbone
    assert backbone.config._attn_implementation == "glem_cpu_0_64"  # type: ignore[union-attr]


def test_nothing_is_measured_where_that_is_switched_off(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLEM_MEASURE", "0")
    assert choose(cfg) == {}
    assert measured == []
    assert with_choices(cfg, {}) == cfg


@pytest.mark.parametrize("fast", ["32", "bf16"])
def test_the_faster_type_wins_by_a_margin(fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for gain, wanted in ((1.02, "32"), (2.0, fast)):
        other = "bf16" if fast == "32" else "32"
        monkeypatch.setattr(choices, "_fastest_seconds", lambda _, gain=gain, other=other: {fast: 1.0, other: gain})
        assert choices.faster_precision() == wanted


@pytest.mark.parametrize(("sdpa", "wanted"), [(0.5, "glem_cpu_16_16"), (1.0, "glem_cpu")])
def test_attention_names_the_lengths_from_which_sdpa_is_faster(
    sdpa: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        choices, "_fastest_seconds", lambda runs: [run() for run in runs.values()] and {"ours": 1, "sdpa": sdpa}
    )
    assert choices.faster_attention(2, 4, torch.float32, 0.1) == wanted
