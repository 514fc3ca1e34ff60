from __future__ import annotations

import csv
import io
import json
import logging
import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.utils.agg_runs import agg_batch, agg_runs

from glem_graphgym.report import aggregate
from glem_graphgym.report.aggregate import AggregateRow, aggregate_seeds, aggregate_summaries, print_aggregate
from glem_graphgym.report.stats import write_stats


@pytest.fixture
def graphgym() -> Iterator[Any]:
    """GraphGym's global cfg, put back afterwards."""
    keys = ("metric_agg", "round", "tensorboard_agg")
    before = {key: cfg[key] for key in keys}
    cfg.metric_agg, cfg.round, cfg.tensorboard_agg = "argmax", 4, False
    yield cfg
    for key, value in before.items():
        cfg[key] = value


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def best_of(dir: Path, split: str) -> dict[str, Any]:
    (row,) = read_rows(dir / "agg" / split / "best.json")
    return row


def save_seed(dir: Path, seed: int, val: Sequence[float], test: Sequence[float] | None = None) -> None:
    """The same epochs in each split: train is validation + 0.1, test is 1 - validation unless given."""
    test = [1 - v for v in val] if test is None else test
    values = {"train": [v + 0.1 for v in val], "val": val, "test": test}
    for split, accuracies in values.items():
        rows = [{"epoch": e, "loss": 1 - a, "accuracy": a} for e, a in enumerate(accuracies)]
        write_rows(dir / str(seed) / split / "stats.json", rows)


def save_stock_seed(dir: Path, seed: int, val: Sequence[float], test: float) -> None:
    """As stock GraphGym leaves it: the sanity check as a first epoch 0, test once at max_epoch."""
    folder = dir / str(seed)
    columns = {"lr": 0.01, "params": 1234, "time_iter": 0.0123 + seed / 7}
    train = [{"epoch": e, "eta": 9.0 - e, "loss": 1 / (e + 3), **columns, "accuracy": a} for e, a in enumerate(val)]
    valid = [{"epoch": e, "loss": 1 / (e + 2), **columns, "accuracy": a} for e, a in enumerate(val)]
    write_rows(folder / "train" / "stats.json", train)
    write_rows(folder / "val" / "stats.json", [valid[0] | {"loss": 7.7}, *valid])
    write_rows(folder / "test" / "stats.json", [{"epoch": len(val), "loss": 0.5, **columns, "accuracy": test}])
    (folder / "ckpt").mkdir()
    (folder / "config.yaml").write_text("seed: 0\n")


# --- like GraphGym's own -----------------------------------------------------------------------------------


def graphgyms_own(dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What GraphGym's agg_runs writes over ``dir``, by file."""
    with monkeypatch.context() as patch:
        listdir = os.listdir
        patch.setattr(os, "listdir", lambda path: sorted(listdir(path)))  # it takes `epoch` from the first listed
        agg_runs(str(dir))
    return {
        f"{split}/{name}": read_rows(dir / "agg" / split / name)
        for split in ("train", "val")
        for name in ("stats.json", "best.json")
    }


@pytest.mark.parametrize("which", ["argmax", "argmin"])
def test_train_and_val_are_those_of_graphgyms_agg_runs_on_stock_runs(
    tmp_path: Path, graphgym: Any, monkeypatch: pytest.MonkeyPatch, which: Any
) -> None:
    graphgym.metric_agg = which
    save_stock_seed(tmp_path, 0, [0.31, 0.55, 0.52, 0.55], test=0.50)
    save_stock_seed(tmp_path, 1, [0.61, 0.33, 0.62, 0.11], test=0.60)
    save_stock_seed(tmp_path, 12, [0.07, 0.21, 0.35, 0.43], test=0.40)
    expected = graphgyms_own(tmp_path, monkeypatch)
    assert [row["epoch"] for row in expected["val/stats.json"]] == [0, 1, 2, 3]

    aggregate_seeds(tmp_path, best=which)

    found = {name: read_rows(tmp_path / "agg" / name) for name in expected}
    assert found == expected


def test_our_runs_give_the_same_numbers_in_graphgyms_agg_runs(
    tmp_path: Path, graphgym: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, scores in {0: (0.7, 0.8), 1: (0.72, 0.75), 2: (0.6, 0.9)}.items():
        run = tmp_path / str(seed)
        for index, (model, score) in enumerate(zip(("LM", "GNN"), scores, strict=True)):
            folder = run / "stages" / f"{index:02d}_{model.lower()}"
            folder.mkdir(parents=True)
            stage = {
                "index": index,
                "name": model.lower(),
                "model": model,
                "method": model,
                "em_iteration": 0,
            }
            costs = {
                "seconds": 1.5,
                "peak_memory_mb": 10.0,
                "params": 7,
                "lr": 1e-3,
                "epochs": 1,
                "best_epoch": 1,
            }
            split = {"accuracy": score, "loss": 1 - score}
            scores_of = {"train": split, "valid": split, "test": split}
            text = json.dumps({**stage, **costs, "scores": scores_of, "diagnostics": {}})
            (folder / "stage.json").write_text(text)
        (run / "run.json").write_text('{"metric": "accuracy"}')
        write_stats(run)
    expected = graphgyms_own(tmp_path, monkeypatch)

    aggregate_seeds(tmp_path)

    assert {name: read_rows(tmp_path / "agg" / name) for name in expected} == expected
    assert best_of(tmp_path, "val")["accuracy"] == round((0.8 + 0.75 + 0.9) / 3, 4)
    assert best_of(tmp_path, "test")["gnn_accuracy"] == round((0.8 + 0.75 + 0.9) / 3, 4)


# --- epoch of best validation ------------------------------------------------------------------------------


def test_every_split_is_taken_at_the_seeds_first_best_validation_epoch(tmp_path: Path) -> None:
    save_seed(tmp_path, 2, val=[0.2, 0.5, 0.5], test=[0.9, 0.4, 0.8])
    save_seed(tmp_path, 10, val=[0.7, 0.1, 0.3], test=[0.6, 0.9, 0.9])
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val") == {
        "epoch": 1,
        "loss": 0.4,
        "loss_std": 0.1,
        "accuracy": 0.6,
        "accuracy_std": 0.1,
    }
    assert (best_of(tmp_path, "train")["accuracy"], best_of(tmp_path, "train")["accuracy_std"]) == (0.7, 0.1)
    assert (best_of(tmp_path, "test")["accuracy"], best_of(tmp_path, "test")["accuracy_std"]) == (0.5, 0.1)


def save_glem_seed(dir: Path, seed: int, val: Sequence[float], iterations: Sequence[int]) -> None:
    """A row a stage; the test score is 1 - validation."""
    for split, scores in (("val", val), ("test", [1 - v for v in val])):
        rows = [{"epoch": e, "accuracy": a, "em_iteration": i, "params": 100 * (e + 1)}
                for e, (a, i) in enumerate(zip(scores, iterations, strict=True))]  # fmt: skip
        write_rows(dir / str(seed) / split / "stats.json", rows)


def test_of_a_glem_run_only_stages_of_em_compete(tmp_path: Path) -> None:
    """GLEM is shown as it is where its own cascade is better on validation; the stages' rows all stay."""
    save_glem_seed(tmp_path, 0, [0.5, 0.9, 0.7, 0.8], [0, 0, 1, 1])
    save_glem_seed(tmp_path, 1, [0.5, 0.6, 0.7, 0.8], [0, 0, 1, 1])
    aggregate_seeds(tmp_path)
    assert (best_of(tmp_path, "val")["accuracy"], best_of(tmp_path, "val")["em_iteration"]) == (0.8, 1)
    assert best_of(tmp_path, "test")["accuracy"] == 0.2
    assert (best_of(tmp_path, "val")["params"], best_of(tmp_path, "val")["params_std"]) == (400, 0)
    assert [row["accuracy"] for row in read_rows(tmp_path / "agg" / "val" / "stats.json")] == [0.5, 0.75, 0.7, 0.8]


def test_of_a_cascade_only_the_gnn_competes(tmp_path: Path) -> None:
    """Its LM is a method of its own; an experiment's best row is that of its last model."""
    save_glem_seed(tmp_path, 0, [0.9, 0.5], [0, 0])
    aggregate_seeds(tmp_path)
    assert (best_of(tmp_path, "val")["accuracy"], best_of(tmp_path, "val")["params"]) == (0.5, 200)


def test_a_test_row_written_once_under_another_epoch_counts(tmp_path: Path) -> None:
    save_stock_seed(tmp_path, 0, [0.3, 0.5, 0.2], test=0.44)
    save_stock_seed(tmp_path, 1, [0.6, 0.5], test=0.66)
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "test")["accuracy"] == 0.55
    assert [row["epoch"] for row in read_rows(tmp_path / "agg" / "test" / "stats.json")] == [2, 3]


def test_seeds_of_different_length_are_averaged_where_they_have_the_epoch(tmp_path: Path) -> None:
    save_seed(tmp_path, 0, val=[0.1, 0.2, 0.9])
    save_seed(tmp_path, 1, val=[0.3])
    save_seed(tmp_path, 2, val=[0.5, 0.4])
    aggregate_seeds(tmp_path, digits=3)
    rows = read_rows(tmp_path / "agg" / "val" / "stats.json")
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert [row["accuracy"] for row in rows] == [0.3, 0.3, 0.9]
    assert [row["accuracy_std"] for row in rows] == [0.163, 0.1, 0.0]
    assert best_of(tmp_path, "val")["accuracy"] == round((0.9 + 0.3 + 0.5) / 3, 3)


def test_of_rows_with_the_same_epoch_the_first_counts(tmp_path: Path) -> None:
    rows = [{"epoch": e, "accuracy": a} for e, a in [(0, 0.2), (1, 0.4), (0, 0.9), (1, 0.8)]]
    write_rows(tmp_path / "0" / "val" / "stats.json", rows)
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val") == {"epoch": 1, "accuracy": 0.4, "accuracy_std": 0.0}
    assert not (tmp_path / "agg" / "train").exists()


@pytest.mark.parametrize(
    ("metric", "best", "epoch"),
    [("auto", "argmax", 0), ("accuracy", "argmax", 1), ("loss", "argmin", 2), ("auc", "argmin", 1)],
)
def test_the_metric_and_its_direction_choose_the_epoch(tmp_path: Path, metric: str, best: Any, epoch: int) -> None:
    values = [(0.9, 0.1, 3.0), (0.5, 0.8, 2.0), (0.6, 0.3, 1.0)]
    rows = [{"epoch": e, "auc": u, "accuracy": a, "loss": x} for e, (u, a, x) in enumerate(values)]
    write_rows(tmp_path / "0" / "val" / "stats.json", rows)
    aggregate_seeds(tmp_path, metric=metric, best=best)
    assert best_of(tmp_path, "val")["epoch"] == epoch


def test_a_metric_that_is_not_there_names_the_keys_found(tmp_path: Path) -> None:
    write_rows(tmp_path / "0" / "val" / "stats.json", [{"epoch": 0, "mae": 0.5, "loss": 1.0}])
    with pytest.raises(ValueError, match=r"'auto' means auc or accuracy.*\['epoch', 'loss', 'mae'\]"):
        aggregate_seeds(tmp_path)
    with pytest.raises(ValueError, match=r"no value of metric 'f1'.*\['epoch', 'loss', 'mae'\]"):
        aggregate_seeds(tmp_path, metric="f1")
    with pytest.raises(ValueError, match="expected 'argmax' or 'argmin'"):
        aggregate_seeds(tmp_path, metric="mae", best="min")  # type: ignore[arg-type]
    assert not (tmp_path / "agg").exists()


def test_an_epoch_that_diverged_is_never_the_best_and_stays_nan(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"epoch": 0, "accuracy": 0.3, "loss": 1.0},
        {"epoch": 1, "accuracy": math.nan, "loss": math.inf},
        {"epoch": 2, "accuracy": None, "loss": 2.0},
    ]
    write_rows(tmp_path / "0" / "val" / "stats.json", rows)
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val")["epoch"] == 0
    stats = read_rows(tmp_path / "agg" / "val" / "stats.json")
    assert [math.isnan(row["accuracy"]) for row in stats] == [False, True, True]


def test_keys_of_some_seeds_are_averaged_over_those_and_text_is_left_out(tmp_path: Path) -> None:
    rows: dict[int, dict[str, Any]] = {
        0: {"accuracy": 0.4, "gpu_memory": 100.0, "note": "x"},
        1: {"accuracy": 0.6},
    }
    for seed, row in rows.items():
        write_rows(tmp_path / str(seed) / "val" / "stats.json", [{"epoch": 0, **row}])
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val") == {
        "epoch": 0,
        "accuracy": 0.5,
        "accuracy_std": 0.1,
        "gpu_memory": 100.0,
        "gpu_memory_std": 0.0,
    }


# --- what killed and stray runs leave ----------------------------------------------------------------------


def test_a_half_written_last_line_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_seed(tmp_path, 0, val=[0.2, 0.4])
    file = tmp_path / "0" / "val" / "stats.json"
    file.write_text(file.read_text() + '{"epoch": 2, "loss": 0.1, "accu')
    with caplog.at_level(logging.WARNING):
        aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val")["accuracy"] == 0.4
    assert [record.getMessage().startswith(f"{file}: the last line") for record in caplog.records] == [True]


def test_a_damaged_line_before_the_last_is_an_error_that_names_it(tmp_path: Path) -> None:
    save_seed(tmp_path, 0, val=[0.2, 0.4])
    file = tmp_path / "0" / "val" / "stats.json"
    file.write_text('{"epoch": 0, "lo\n' + file.read_text())
    with pytest.raises(ValueError, match=r"0.val.stats\.json, line 1: not a JSON object with an epoch"):
        aggregate_seeds(tmp_path)


def test_killed_between_validation_and_training_rows_takes_the_last_training_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_seed(tmp_path, 0, val=[0.2, 0.4, 0.6])
    write_rows(tmp_path / "0" / "train" / "stats.json", [{"epoch": e, "accuracy": e / 10} for e in range(2)])
    with caplog.at_level(logging.WARNING):
        aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "train")["accuracy"] == 0.1
    assert "no row of epoch 2" in caplog.text


def test_only_seed_folders_with_validation_rows_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_seed(tmp_path, 42, val=[0.4])
    for stray in ("ckpt", "stages", "1_old", "01", "seed1"):
        write_rows(tmp_path / stray / "val" / "stats.json", [{"epoch": 0, "accuracy": 0.9}])
    (tmp_path / "7").write_text("a file")
    write_rows(tmp_path / "8" / "train" / "stats.json", [{"epoch": 0, "accuracy": 0.9}])
    write_rows(tmp_path / "9" / "val" / "stats.json", [])
    with caplog.at_level(logging.WARNING):
        aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "val")["accuracy"] == 0.4
    assert best_of(tmp_path, "train")["accuracy"] == 0.5
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [8, 9]


def test_no_seed_at_all_is_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "glem_debian").mkdir()
    with pytest.raises(ValueError, match=r"no seed folder.*val/stats\.json, found \['glem_debian'\]"):
        aggregate_seeds(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        aggregate_seeds(tmp_path / "nowhere")


# --- replacing an old agg ----------------------------------------------------------------------------------


def agg_files(dir: Path) -> dict[str, bytes]:
    return {str(file.relative_to(dir)): file.read_bytes() for file in (dir / "agg").rglob("*") if file.is_file()}


def test_an_old_agg_is_replaced_as_a_whole(tmp_path: Path) -> None:
    save_seed(tmp_path, 0, val=[0.4])
    (tmp_path / "agg" / "val").mkdir(parents=True)
    (tmp_path / "agg" / "val" / "outdated.json").write_text("{}")
    aggregate_seeds(tmp_path)
    first = agg_files(tmp_path)
    assert sorted(first) == [f"agg/{s}/{n}.json" for s in ("test", "train", "val") for n in ("best", "stats")]
    aggregate_seeds(tmp_path)
    assert agg_files(tmp_path) == first
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["0", "agg"]


def test_an_old_agg_survives_a_failure_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_seed(tmp_path, 0, val=[0.4])
    aggregate_seeds(tmp_path)
    before = agg_files(tmp_path)
    save_seed(tmp_path, 0, val=[0.9])
    write_lines = aggregate._write_lines

    def disk_full(file: Path, rows: Any) -> None:
        if file.parent.name == "test":
            raise OSError("No space left on device")
        write_lines(file, rows)

    monkeypatch.setattr(aggregate, "_write_lines", disk_full)
    with pytest.raises(OSError, match="No space left"):
        aggregate_seeds(tmp_path)
    assert agg_files(tmp_path) == before
    assert not (tmp_path / ".agg.part").exists()


def test_an_agg_that_was_moved_aside_by_a_killed_process_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_seed(tmp_path, 0, val=[0.4])
    aggregate_seeds(tmp_path)
    before = agg_files(tmp_path)
    (tmp_path / "agg").rename(tmp_path / ".agg.old")

    def fail(file: Path, rows: Any) -> None:
        raise OSError

    monkeypatch.setattr(aggregate, "_write_lines", fail)
    with pytest.raises(OSError):
        aggregate_seeds(tmp_path)
    assert agg_files(tmp_path) == before


def test_jobs_that_aggregate_at_once_take_turns(tmp_path: Path) -> None:
    for seed in range(3):
        save_seed(tmp_path, seed, val=[0.1 * seed, 0.2])
    aggregate_seeds(tmp_path)
    expected = agg_files(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(aggregate_seeds, [tmp_path] * 12)) == [None] * 12
    assert agg_files(tmp_path) == expected


# --- TensorBoard -------------------------------------------------------------------------------------------


def test_tensorboard_events_are_written_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    save_seed(tmp_path, 0, val=[0.4, 0.5])
    aggregate_seeds(tmp_path, tensorboard=True)
    for split in ("train", "val", "test"):
        (events,) = (tmp_path / "agg" / split).glob("events.out.tfevents.*")
        assert b"accuracy_std" in events.read_bytes()


def test_nothing_is_lost_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_seed(tmp_path, 0, val=[0.4, 0.5])
    aggregate_seeds(tmp_path)
    expected = agg_files(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with caplog.at_level(logging.WARNING):
        aggregate_seeds(tmp_path, tensorboard=True)
    assert agg_files(tmp_path) == expected
    assert [record.getMessage()[:29] for record in caplog.records] == ["no TensorBoard events written"]


# --- summaries over seeds ----------------------------------------------------------------------------------


def save_summary(dir: Path, seed: int, **scores: tuple[float, float]) -> None:
    rows = [
        {
            "method": method.replace("_", "-"),
            "valid": valid,
            "test": test,
            "params": 100,
            "seconds": 10.0 + seed,
            "peak_memory_mb": 50.0 + seed,
        }
        for method, (valid, test) in scores.items()
    ]
    (dir / str(seed)).mkdir(parents=True)
    (dir / str(seed) / "summary.json").write_text(json.dumps(rows))


def test_summaries_have_unbiased_std_and_none_for_a_single_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_summary(tmp_path, 0, GLEM_GNN=(0.80, 0.79), LM=(0.70, 0.71))
    save_summary(tmp_path, 1, GLEM_GNN=(0.82, 0.80))
    save_summary(tmp_path, 2, GLEM_GNN=(0.81, 0.84))
    (tmp_path / "3").mkdir()  # still training

    with caplog.at_level(logging.WARNING):
        lm, glem = aggregate_summaries(tmp_path)

    assert lm == AggregateRow("LM", 1, 0.70, None, 0.71, None, 100, 10.0, 50.0)
    assert (glem.method, glem.seeds, glem.params, glem.seconds_mean, glem.peak_memory_mb) == (
        "GLEM-GNN",
        3,
        100,
        11.0,
        52.0,
    )
    assert glem.valid_mean == pytest.approx(0.81, abs=1e-12)
    assert glem.valid_std == pytest.approx(0.01, abs=1e-12)  # sqrt((1 + 1 + 0) / 2) points, not sqrt(2 / 3)
    assert glem.test_std == pytest.approx(math.sqrt(7 / 10000), abs=1e-12)  # squares 4, 1, 9 points over n - 1
    assert "no summary.json" in caplog.text
    written = json.loads((tmp_path / "summary.json").read_text())
    assert [AggregateRow(**row) for row in written] == [lm, glem]


def test_a_damaged_or_missing_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    with pytest.raises(ValueError, match=r"no seed folder.*summary\.json, found \['5'\]"):
        aggregate_summaries(tmp_path)
    for content in ('[{"method": "LM"', '[{"method": "LM"}]', '["LM"]', "3"):
        (tmp_path / "5" / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"5.summary\.json is damaged"):
            aggregate_summaries(tmp_path)


def test_aggregate_table_shows_mean_and_std_in_percent() -> None:
    output = io.StringIO()
    rows = [
        AggregateRow("LM", 1, 0.7, None, 0.71004, None, 1000, 60.0, 512.0),
        AggregateRow("GLEM-GNN", 3, 0.80126, 0.00099, 0.79934, 0.00206, 22713216, 1234.5, 2048.4),
    ]
    print_aggregate(rows, "debian", Console(file=output, width=120))
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in output.getvalue().splitlines() if "│" in line]
    assert cells == [
        ["LM", "1", "70.00", "71.00", "1,000", "60", "512"],
        ["GLEM-GNN", "3", "80.13 ± 0.10", "79.93 ± 0.21", "22,713,216", "1,234", "2,048"],
    ]


def test_aggregate_table_of_the_largest_runs_fits_80_columns() -> None:
    output = io.StringIO()
    costs = (435_061_760, 123_456.0, 70_000.0)
    rows = [AggregateRow(method, 3, 0.8, 0.001, 0.8, 0.001, *costs) for method in ("GLEM-GNN+C&S", "GLEM-LM+GNN")]
    print_aggregate(rows, "x", Console(file=output, width=80))
    lines = output.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("│")]) == len(rows)  # none is folded
    assert "435,061,760" in lines[-2] and "seeds" not in output.getvalue()


# --- GraphGym's agg_batch ----------------------------------------------------------------------------------


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open() as handle:
        return list(csv.DictReader(handle))


def test_graphgyms_agg_batch_runs_unchanged_over_what_we_aggregated(tmp_path: Path, graphgym: Any) -> None:
    low, high = tmp_path / "glem_debian-lr=1e-05-alpha=0.3", tmp_path / "glem_debian-lr=0.001-alpha=0.7"
    save_seed(low, 0, val=[0.2, 0.5, 0.3], test=[0.9, 0.4, 0.8])
    save_seed(low, 1, val=[0.7, 0.1], test=[0.6, 0.9])
    save_seed(high, 0, val=[0.1, 0.8], test=[0.3, 0.7])
    for dir in (low, high):
        for seed in (0, 1) if dir == low else (0,):
            row = {"valid": 0.5, "test": 0.5, "params": 1, "seconds": 1.0, "peak_memory_mb": 1.0}
            (dir / str(seed) / "summary.json").write_text(json.dumps([{"method": "LM", **row}]))
        aggregate_seeds(dir, tensorboard=True)
        aggregate_summaries(dir)

    agg_batch(str(tmp_path))

    kinds = ("", "_best", "_bestepoch")
    files = {f"{split}{kind}.csv" for split in ("train", "val", "test") for kind in kinds}
    assert {path.name for path in (tmp_path / "agg").iterdir()} == files
    test = read_csv(tmp_path / "agg" / "test_best.csv")
    assert [(row["lr"], row["alpha"]) for row in test] == [("1e-05", "0.3"), ("0.001", "0.7")]
    assert [float(row["accuracy"]) for row in test] == [0.5, 0.7]
    assert [float(row["accuracy_std"]) for row in test] == [0.1, 0.0]
    assert [float(row["loss"]) for row in test] == [0.5, 0.3]
    val = read_csv(tmp_path / "agg" / "val_best.csv")
    assert [float(row["accuracy"]) for row in val] == [0.6, 0.8]
    train = read_csv(tmp_path / "agg" / "train_best.csv")
    assert [float(row["accuracy"]) for row in train] == [0.7, 0.9]
    bestepoch = read_csv(tmp_path / "agg" / "val_bestepoch.csv")
    expected = statistics.fmean([0.2, 0.7])  # epoch 0 has the best mean over seeds
    assert [float(row["accuracy"]) for row in bestepoch] == [pytest.approx(expected, abs=1e-9), 0.8]
