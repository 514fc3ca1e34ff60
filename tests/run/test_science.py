"""The protocol of docs/science.md: every configuration of it can be run, and all methods have as many trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import science
import search
import yaml
from torch_geometric.graphgym.config import cfg

from glem_graphgym.config import load_config
from tests.test_readme import TEXTS


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
        if program == "parallel.sh":
            for place, file in enumerate(sorted((science.WORK / "final").glob("*.yaml"))):
                scores = science.RESULTS / file.stem / "agg" / "val"
                scores.mkdir(parents=True, exist_ok=True)
                (scores / "best.json").write_text(f'{{"accuracy": {place}}}')
        if program != "search.py":
            return
        args = search.parse_args([str(word) for word in words])
        search.check_space(args)
        trials.setdefault(args.config.stem, []).append(args.trials)
        best = science.WORK / f"{args.config.stem}_{args.space.stem}_best.yaml"
        best.write_text(args.config.read_text())

    monkeypatch.setattr(science, "call", call)
    assert science.main([]) == 0
    assert programs == ["search.py"] * (1 + len(science.METHODS)) + ["parallel.sh", "parallel.sh", "leaderboard.py"]
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
