"""The protocol of docs/science.md: every configuration of it can be run, and all methods have as many trials."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import science
import search
import yaml
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import load_config
from glem_graphgym.files import read_json, write_json
from glem_graphgym.report.stats import finish_run
from tests.report.conftest import save_run
from tests.test_readme import TEXTS


def test_settings_that_were_found_are_copied_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(science, "FOUND", tmp_path / "found")
    monkeypatch.setattr(science, "call", lambda *command: None)
    science.write(science.WORK / "lm_science_lm_best.yaml", {"seed": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="disk is full"):
            science.search("lm", "lm", {}, 1, 1)
    assert not (tmp_path / "found" / "lm.yaml").exists()
    assert science.search("lm", "lm", {}, 1, 1).read_text() == "seed: 1\n"


def test_the_protocol_can_be_run_and_is_fair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(science, "FOUND", tmp_path / "found")
    trials: dict[str, list[int]] = {}
    programs: list[str] = []

    def call(*command: Any) -> None:
        """A search ends with the first point of its space, after the space has been checked."""
        program, *words = [Path(word).name if isinstance(word, Path) and word.parent == science.RUN else word
                           for word in command[1:]]  # fmt: skip
        programs.append(str(program))
        if program != "search.py":
            return
        args = search.parse_args([str(word) for word in words])
        search.check_space(args)
        trials.setdefault(args.config.stem, []).append(args.trials)
        best = science.WORK / f"{args.config.stem}_{args.space.stem}_best.yaml"
        best.write_text(args.config.read_text())

    monkeypatch.setattr(science, "call", call)
    by_validation = ["tfidf_sage", "lm", "lora", "static_gamlp", "static_sage", "joint_sage", "cascade_gamlp"]
    by_validation += ["cascade_sage", "glem_gcn", "glem_gamlp", "glem_sage", "glem_sage_plateau"]  # best last
    monkeypatch.setattr(science, "validation", by_validation.index)
    with pytest.raises(SystemExit, match=r"lm, lora, .* not finished on the small variant"):
        science.main(["--whole"])
    assert science.main([]) == 0
    assert programs[0] == "leaderboard.py"  # blind before anything runs
    assert programs[1:] == ["search.py"] * (1 + len(science.METHODS)) + ["parallel.sh", "parallel.sh", "leaderboard.py"]
    for name, method in science.METHODS.items():
        own = [science.TRIALS // 2, science.TRIALS] if name == "lm" else [science.TRIALS // (1 + method.on_lm)]
        assert trials[name] == own
        assert f"`{name}`" in TEXTS["docs/science.md"]
    finals = {file.stem: file for file in (science.WORK / "final").glob("*.yaml")}
    assert set(finals) == {*science.METHODS, "glem_sage_plateau"}  # the best GLEM by validation
    base = yaml.safe_load((science.CONFIGS / "science" / "shared.yaml").read_text())
    for file in finals.values():
        load_config(cfg, file)
        assert (cfg.seed, cfg.out_dir, cfg.glem.search_trials) == (0, "results/science", science.TRIALS)
        assert cfg.dataset.tag_seed == base["dataset"]["tag_seed"] != 0
    load_config(cfg, finals["glem_sage_plateau"])
    assert (cfg.model.type, cfg.glem.em_iterations, cfg.train.mode) == ("glem_sage", -1, "glem")
    assert science.main(["lm", "lora"]) == 0  # found settings are not searched for again
    assert programs[-2:] == ["parallel.sh", "leaderboard.py"]
    assert programs.count("search.py") == 1 + len(science.METHODS)

    for file in finals.values():
        file.rename(file.with_name(f"{file.name}_done"))  # as run/parallel.sh marks it
    assert science.main(["--whole"]) == 0
    whole = {file.stem: file for file in (science.WORK / "whole").glob("*.yaml")}
    assert set(whole) == set(by_validation[-6:])
    load_config(cfg, whole["glem_sage_plateau"])
    assert (cfg.dataset.tag_max_nodes, cfg.out_dir, cfg.glem.em_iterations) == (0, "results/science_whole", -1)
    assert programs[-3:] == ["leaderboard.py", "parallel.sh", "leaderboard.py"]
    assert science.main(["--label_rates"]) == 0
    rates = sorted((science.WORK / "label_rates").glob("*.yaml"), key=lambda file: int(file.stem.rpartition("_")[2]))
    assert [file.stem for file in rates] == [f"glem_sage_{rate}" for rate in science.LABEL_RATES]
    load_config(cfg, rates[-1])
    assert (cfg.dataset.tag_split, cfg.out_dir) == ([0.5, 0.1, 0.4], "results/science_label_rates")


def test_the_outcome_compares_the_best_glem_by_validation_with_three_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GLEM-LM is the best by validation, though not by test; joint training is better than it in test."""
    monkeypatch.chdir(tmp_path)
    for seed in range(4):
        some = 0.001 * seed
        save_run(
            science.RESULTS / "glem_sage", seed, [(0.7, 0.71), (0.74, 0.73), (0.8 + some, 0.78 + some), (0.78, 0.9)]
        )
        save_run(science.RESULTS / "glem_gcn", seed, [(0.7, 0.71), (0.9, 0.9), (0.7, 0.7), (0.7, 0.7)])
        save_run(science.RESULTS / "cascade_sage", seed, [(0.7, 0.71), (0.75, 0.73 + 3 * some)], mode="glem_cascade")
        joint = save_run(science.RESULTS / "joint_sage", seed, [(0.76, 0.8 - some)], mode="glem_joint", finished=False)
        stage = joint / "stages" / "00_lm_gold" / "stage.json"
        write_json(stage, {**read_json(stage), "method": "Joint", "model": "GNN"})
        finish_run(joint)
    assert science.validation("glem_gcn") == pytest.approx(0.7)  # its cascade's 0.9 is no result of GLEM
    assert science.validation("glem_sage") == pytest.approx(0.8015)  # GLEM-LM's
    monkeypatch.setattr(science, "call", lambda *command: None)
    assert science.main(["--unblind"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "best GLEM by validation: glem_sage, GLEM-LM"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "against best without GLEM (joint_sage)",
        "against cascade, same GNN (cascade_sage)",
        "against joint training (joint_sage)",
    ]
    assert [line.rpartition(": ")[2] for line in lines[1:]] == ["loses", "wins", "loses"]
    assert "+4.70 points" in lines[2] and "4 seeds" in lines[2]
