from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from glem_graphgym.report.panels import DIAGNOSTICS
from glem_graphgym.report.stats import SUMMARY, Stage, finish_run, log_run, print_run, read_stages, summary_rows
from glem_graphgym.scores import BLIND

SPLITS = ("train", "val", "test")


def stage_dict(index: int, method: str, valid: float, test: float = 0.5, **changes: Any) -> dict[str, Any]:
    model = "LM" if method in ("LM", "GLEM-LM") else "GNN"
    scores = {"train": 0.9, "valid": valid, "test": test}
    costs = {
        "seconds": 10.0,
        "peak_memory_mb": 100.0,
        "params": 2000 if model == "LM" else 300,
        "lr": 2e-5,
        "epochs": 3,
    }
    parts = {split: {"accuracy": value, "loss": round(1 - value, 6)} for split, value in scores.items()}
    about = {"index": index, "name": f"{method.lower()}_{index}", "model": model, "method": method, "em_iteration": 0}
    return {**about, **costs, "best_epoch": 2.0, "scores": parts, "diagnostics": {}, **changes}


def stage(*args: Any, **changes: Any) -> Stage:
    return Stage(**stage_dict(*args, **changes))


def save(run_dir: Path, *stages: dict[str, Any], metric: str = "accuracy") -> Path:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "run.json").write_text(json.dumps({"seed": 0, "metric": metric}))
    for one in stages:
        folder = run_dir / "stages" / f"{one['index']:02d}_{one['name']}"
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps(one))
    return run_dir


def rows_of(file: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def column(run: Path, split: str, key: str) -> list[Any]:
    return [row[key] for row in rows_of(run / split / "stats.json")]


def summary(*values: Any) -> dict[str, Any]:
    return dict(zip(SUMMARY, values, strict=True))


GLEM_RUN = [
    stage_dict(0, "LM", 0.70, 0.69, seconds=100.0, peak_memory_mb=900.0),
    stage_dict(1, "Cascade", 0.72, 0.71, seconds=5.0, lr=0.01),
    stage_dict(2, "GLEM-LM", 0.74, 0.70, seconds=80.0, em_iteration=1, peak_memory_mb=1000.0),
    stage_dict(3, "GLEM-GNN", 0.76, 0.75, seconds=6.0, em_iteration=1),
    stage_dict(4, "GLEM-LM", 0.73, 0.99, seconds=80.0, em_iteration=2, peak_memory_mb=1100.0),
    stage_dict(5, "GLEM-GNN", 0.76, 0.99, seconds=7.0, em_iteration=2),
]


def test_stages_are_read_by_index_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    run = save(tmp_path, stage_dict(10, "GLEM-LM", 0.8), stage_dict(2, "LM", 0.7), stage_dict(9, "GNN", 0.6))
    (run / "stages" / "11_glem_gnn").mkdir()  # being trained
    killed = run / "stages" / ".12_lm.part"  # killed while it was written
    killed.mkdir()
    (killed / "stage.json").write_text(json.dumps(stage_dict(12, "LM", 0.1)))
    stages = read_stages(run)
    assert [s.index for s in stages] == [2, 9, 10]
    assert stages[0] == stage(2, "LM", 0.7)
    assert read_stages(tmp_path / "nothing") == []
    (run / "run.json").write_text(json.dumps({"stages": ["02_lm_2"]}))  # what the last command asked for
    assert [s.index for s in read_stages(run)] == [2]


def test_unknown_fields_and_undefined_diagnostics_are_ignored(tmp_path: Path) -> None:
    run = save(tmp_path, stage_dict(0, "LM", 0.7, diagnostics={"elbo_q": -1.5, "agreement": None}, extra=1))
    assert read_stages(run)[0].diagnostics == {"elbo_q": -1.5}


DAMAGES: list[tuple[str, str]] = [
    ("", "Expecting value"),
    ('{"index": 0, "na', "Unterminated"),
    ("[1, 2]", "expected an object, found list"),
    (json.dumps({k: v for k, v in GLEM_RUN[0].items() if k != "params"}), "no 'params'"),
    (json.dumps(GLEM_RUN[0] | {"model": "MLP"}), "\"model\" is 'MLP'"),
    (json.dumps(GLEM_RUN[0] | {"seconds": None}), "NoneType"),
    (json.dumps(GLEM_RUN[0] | {"lr": math.nan}), "finite numbers, found nan"),
    (json.dumps(GLEM_RUN[0] | {"scores": {"train": {}, "valid": {}}}), "no 'test'"),
    (json.dumps(GLEM_RUN[0] | {"diagnostics": [1.0]}), "'list'"),
]


def test_a_damaged_stage_is_named_with_the_reason(tmp_path: Path) -> None:
    file = save(tmp_path, GLEM_RUN[0]) / "stages" / "00_lm_0" / "stage.json"
    for content, reason in DAMAGES:
        file.write_text(content)
        with pytest.raises(ValueError, match="is damaged") as error:
            read_stages(tmp_path)
        assert str(file) in str(error.value) and reason in str(error.value)


def test_two_stages_of_one_index_are_both_named(tmp_path: Path) -> None:
    run = save(tmp_path, stage_dict(1, "LM", 0.7), stage_dict(1, "GNN", 0.7))
    with pytest.raises(ValueError, match=r"01_lm_1.*01_gnn_1|01_gnn_1.*01_lm_1"):
        read_stages(run)


def test_stats_rows_hold_own_scores_and_those_of_the_latest_lm_and_gnn(tmp_path: Path) -> None:
    smooth = stage_dict(4, "GLEM-GNN+C&S", 0.77, model="none", params=0, em_iteration=1)
    run = save(tmp_path, *GLEM_RUN[:4], smooth)
    finish_run(run)
    first = {"epoch": 0, "loss": 0.3, "lr": 2e-5, "params": 2000, "time_iter": 100.0, "accuracy": 0.7}
    first |= {"em_iteration": 0, "peak_memory_mb": 900.0, "lm_accuracy": 0.7, "lm_loss": 0.3}
    first |= {"gnn_accuracy": 0.0, "gnn_loss": 0.0}
    assert rows_of(run / "val" / "stats.json")[0] == first
    expected = {
        "epoch": [0, 1, 2, 3, 4],
        "em_iteration": [0, 0, 1, 1, 1],
        "accuracy": [0.70, 0.72, 0.74, 0.76, 0.77],
        "lm_accuracy": [0.70, 0.70, 0.74, 0.74, 0.74],
        "gnn_accuracy": [0.0, 0.72, 0.72, 0.76, 0.76],
        "gnn_loss": [0.0, 0.28, 0.28, 0.24, 0.24],
        "params": [2000, 2300, 2300, 2300, 2300],  # of all that was trained to get there
    }
    assert {key: column(run, "val", key) for key in expected} == expected
    assert column(run, "test", "accuracy") == [0.69, 0.71, 0.70, 0.75, 0.5]
    assert column(run, "train", "accuracy") == [0.9] * 5
    keys = {split: {tuple(row) for row in rows_of(run / split / "stats.json")} for split in SPLITS}
    assert keys["test"] == keys["val"] == {tuple(first)}
    assert keys["train"] == {("epoch", "eta", *tuple(first)[1:])}
    assert set(column(run, "train", "eta")) == {0.0}


def test_the_metric_names_the_keys_and_digits_round_all_but_lr(tmp_path: Path) -> None:
    scores = {split: {"rocauc": 0.123456, "loss": 0.98765} for split in ("train", "valid", "test")}
    run = save(tmp_path, stage_dict(0, "GNN", 0.5, seconds=1.23456, scores=scores), metric="rocauc")
    finish_run(run, digits=3)
    (row,) = rows_of(run / "test" / "stats.json")
    found = (row["rocauc"], row["gnn_rocauc"], row["lm_rocauc"], row["loss"], row["time_iter"], row["lr"])
    assert found == (0.123, 0.123, 0.0, 0.988, 1.235, 2e-5)


def test_writing_again_replaces_rows_instead_of_appending(tmp_path: Path) -> None:
    run = save(tmp_path, *GLEM_RUN[:2])
    first: dict[str, bytes] = {}
    for stages in (2, 2, 3):
        if stages == 3:
            save(run, GLEM_RUN[2])
        finish_run(run)
        for split in SPLITS:
            content = (run / split / "stats.json").read_bytes()
            assert content.startswith(first.setdefault(split, content)) and len(content.splitlines()) == stages
            assert [path.name for path in (run / split).iterdir()] == ["stats.json"]  # no temporary left
    assert json.loads((run / "run.json").read_text())["finished"] is True


def test_a_run_without_what_is_needed_is_refused_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.json.*is this the folder of a run"):
        finish_run(tmp_path / "a")
    with pytest.raises(ValueError, match=r"b.stages: no finished stage"):
        finish_run(save(tmp_path / "b"))
    run = save(tmp_path / "c", GLEM_RUN[0], metric="rocauc")
    with pytest.raises(ValueError, match=r'stage 0 \(lm_0\) has no "rocauc" on train.*accuracy'):
        finish_run(run)
    assert not (run / "train" / "stats.json").exists() and "finished" not in (run / "run.json").read_text()


def test_summary_counts_all_that_it_took_to_get_each_model(tmp_path: Path) -> None:
    run = save(tmp_path, *GLEM_RUN)
    expected = [
        summary("LM", 0.70, 0.69, 2000, 100.0, 900.0),
        summary("Cascade", 0.72, 0.71, 2300, 105.0, 900.0),
        summary("GLEM-LM", 0.74, 0.70, 2300, 185.0, 1000.0),
        # Both iterations have the same validation score: the first counts, whatever the second has on test.
        summary("GLEM-GNN", 0.76, 0.75, 2300, 191.0, 1000.0),
    ]
    assert finish_run(run) == expected == json.loads((run / "summary.json").read_text())
    stages = read_stages(run)
    stages[5] = stage(5, "GLEM-GNN", 0.77, 0.60, seconds=7.0, em_iteration=2, params=350)
    assert summary_rows(stages)[-1] == summary("GLEM-GNN", 0.77, 0.60, 2350, 278.0, 1100.0)


def two_scores(index: int, accuracy: float, macro_f1: float) -> dict[str, Any]:
    parts = {split: {"accuracy": accuracy, "macro_f1": macro_f1, "loss": 0.5} for split in ("train", "valid", "test")}
    return stage_dict(index, "GNN", accuracy, scores=parts)


def test_the_runs_metric_chooses_and_the_others_are_told_beside_it(tmp_path: Path) -> None:
    run = save(tmp_path, two_scores(0, 0.8, 0.5), two_scores(1, 0.7, 0.6), metric="macro_f1")
    (row,) = finish_run(run)
    assert row == summary("GNN", 0.6, 0.6, 300, 20.0, 100.0) | {"valid_accuracy": 0.7, "test_accuracy": 0.7}
    assert column(run, "val", "macro_f1") == column(run, "val", "gnn_macro_f1") == [0.5, 0.6]
    assert column(run, "test", "accuracy") == [0.8, 0.7]
    numbers = ["valid macro-F1 %", "test macro-F1 %", "test accuracy %"]
    assert lines_of(printed(run, 120, True))[0] == ["method", *numbers, "params", "seconds", "peak memory MB"]
    assert lines_of(printed(run, 120, True))[1][1:4] == ["60.00", "60.00", "70.00"]
    assert "accuracy" not in printed(run, 120)
    # A stage of an older version has accuracy alone: nothing is told beside that.
    old = save(tmp_path / "old", GLEM_RUN[0], two_scores(1, 0.7, 0.6))
    assert list(finish_run(old)[0]) == list(SUMMARY) and "macro_f1" not in rows_of(old / "val" / "stats.json")[1]


def test_methods_are_in_a_fixed_order_and_others_follow() -> None:
    methods = ["SAGN", "GLEM-GNN", "GNN", "MLP", "Cascade", "LM", "GLEM-LM", "MLP"]
    rows = summary_rows([stage(index, method, 0.5) for index, method in enumerate(methods)])
    assert [row["method"] for row in rows] == ["LM", "GNN", "Cascade", "GLEM-LM", "GLEM-GNN", "SAGN", "MLP"]


shares = st.sampled_from([0.1, 0.2, 0.3])
runs = st.lists(st.tuples(st.sampled_from(["LM", "Cascade", "GLEM-LM", "GLEM-GNN"]), shares, shares), min_size=1)


@given(runs, st.randoms(use_true_random=False))
def test_test_scores_never_choose_a_stage(run: list[tuple[str, float, float]], random: Any) -> None:
    stages = [stage(index, method, valid, test) for index, (method, valid, test) in enumerate(run)]
    shuffled = [one.scores["test"] for one in stages]
    random.shuffle(shuffled)
    others = [replace(one, scores=one.scores | {"test": s}) for one, s in zip(stages, shuffled, strict=True)]
    for row, other in zip(summary_rows(stages), summary_rows(others), strict=True):
        assert row | {"test": 0.0} == other | {"test": 0.0}
        assert row["valid"] == max(valid for method, valid, _ in run if method == row["method"])


def test_the_documentation_explains_every_diagnostic() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "diagnostics.md").read_text(encoding="utf-8")
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in DIAGNOSTICS.items())
    assert f"| column | meaning |\n|---|---|\n{rows}\n" in page


def lines_of(text: str) -> list[list[str]]:
    rows = [line for line in text.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in rows]


def printed(run: Path, width: int, further: bool = False) -> str:
    output = io.StringIO()
    print_run(run, "debian, seed 0", Console(file=output, width=width), further=further)
    return output.getvalue()


def test_a_run_is_printed_in_percent_with_costs_and_numbers_are_never_cut(tmp_path: Path) -> None:
    costs = {"params": 22713216, "seconds": 1234.56, "peak_memory_mb": 2345.6}
    run = save(tmp_path, stage_dict(0, "GLEM-GNN", 0.79934, 0.80006, **costs))
    assert "debian, seed 0" in printed(run, 120)
    assert lines_of(printed(run, 120)) == [
        ["method", "valid %", "test %", "params", "seconds", "peak memory MB"],
        ["GLEM-GNN", "79.93", "80.01", "22,713,216", "1,234.6", "2,346"],
    ]
    assert max(map(len, printed(run, 80).splitlines())) <= 80
    body = [cells for cells in lines_of(printed(run, 44)) if cells[1][:1].isdigit() or cells[3][:1].isdigit()]
    assert "…" not in printed(run, 44)
    assert ["".join(column) for column in zip(*body, strict=True)][1:4] == ["79.93", "80.01", "22,713,216"]


def test_in_a_blind_folder_no_test_score_is_printed(tmp_path: Path) -> None:
    run = save(tmp_path / "experiment" / "0", stage_dict(0, "GLEM-GNN", 0.79934, 0.80006))
    (tmp_path / BLIND).write_text('{"since": "2026", "unblinded": null}')
    head, row = lines_of(printed(run, 200, further=True))
    assert [cell for title, cell in zip(head, row, strict=True) if title.startswith("test")] == ["hidden"]
    assert row[head.index("valid %")] == "79.93"


def test_what_a_step_warns_of_stands_under_the_table(tmp_path: Path) -> None:
    behind = {"gain_valid": -0.06, "gain_margin": 0.02, "pseudo_classes": 2.5, "gold_classes": 5.0}
    run = save(tmp_path, stage_dict(0, "LM", 0.7), stage_dict(1, "GLEM-GNN", 0.7, em_iteration=1, diagnostics=behind))
    _, _, caption = printed(run, 120).rpartition("┘\n")
    assert " ".join(caption.split()).startswith(
        "M-step 1: the GNN is 6.0 points worse on validation than its teacher ("
    )
    assert "optim.max_epoch" in caption and "collapse" not in caption and "E-step" not in caption


def test_the_log_has_the_stages_with_the_diagnostics_that_were_reported(tmp_path: Path) -> None:
    lm = stage_dict(1, "GLEM-LM", 0.74, em_iteration=1, diagnostics={"o_q": -1.25})
    gnn = stage_dict(2, "GLEM-GNN", 0.76, em_iteration=1, diagnostics={"agreement": 0.8, "pseudo_candidates": 1234})
    run = save(tmp_path, stage_dict(0, "LM", 0.70), lm, gnn)
    (run / "logging.log").write_text("before\n")
    log_run(run, run / "logging.log")
    log = (run / "logging.log").read_text(encoding="utf-8")
    assert log.startswith("before\n") and "o_q" not in printed(run, 200)
    head = ["EM", "stage", "method", "valid %", "best epoch", "seconds", "o_q", "agreement", "pseudo_candidates"]
    assert lines_of(log) == [
        head,
        ["0", "lm_0", "LM", "70.00", "2", "10.0", "", "", ""],
        ["1", "glem-lm_1", "GLEM-LM", "74.00", "2", "10.0", "-1.2500", "", ""],
        ["1", "glem-gnn_2", "GLEM-GNN", "76.00", "2", "10.0", "", "0.8000", "1,234"],
        *lines_of(printed(run, 200)),
    ]
    assert log.count("├") == 1  # one rule: between iterations 0 and 1
