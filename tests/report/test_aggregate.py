from __future__ import annotations

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

import pandas as pd
import pytest
from rich.console import Console
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.utils.agg_runs import agg_batch, agg_runs

from glem_graphgym.report import aggregate
from glem_graphgym.report.aggregate import aggregate_seeds, aggregate_summaries, print_aggregate
from glem_graphgym.report.blind import blinding
from glem_graphgym.report.experiments import Row, Spread
from tests.report.conftest import save_run

SPLITS = ("train", "val", "test")


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


def save_val(dir: Path, *values: float | None, seed: int = 0, key: str = "accuracy", **more: Sequence[Any]) -> Path:
    """Validation rows of one seed: a value of ``key`` per epoch, and of others."""
    rows = [{"epoch": e, key: v, **{k: m[e] for k, m in more.items()}} for e, v in enumerate(values)]
    write_rows(dir / str(seed) / "val" / "stats.json", rows)
    return dir / str(seed) / "val" / "stats.json"


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def stats_of(dir: Path, split: str, key: str) -> list[Any]:
    return [row[key] for row in read_rows(dir / "agg" / split / "stats.json")]


def best_of(dir: Path, split: str = "val") -> dict[str, Any]:
    (row,) = read_rows(dir / "agg" / split / "best.json")
    return row


def mean_and_std(dir: Path, split: str) -> tuple[float, float]:
    return best_of(dir, split)["accuracy"], best_of(dir, split)["accuracy_std"]


def save_seed(dir: Path, seed: int, val: Sequence[float], test: Sequence[float] | None = None) -> None:
    """The same epochs in each split: train is validation + 0.1, test is 1 - validation unless given."""
    test = [1 - v for v in val] if test is None else test
    for split, accuracies in {"train": [v + 0.1 for v in val], "val": val, "test": test}.items():
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


def graphgyms_own(dir: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """What GraphGym's agg_runs writes over ``dir``, by file."""
    with monkeypatch.context() as patch:
        listdir = os.listdir
        patch.setattr(os, "listdir", lambda path: sorted(listdir(path)))  # it takes `epoch` from the first listed
        agg_runs(str(dir))
    names = [f"{split}/{name}.json" for split in ("train", "val") for name in ("stats", "best")]
    return {name: read_rows(dir / "agg" / name) for name in names}


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
    assert {name: read_rows(tmp_path / "agg" / name) for name in expected} == expected


def test_our_runs_give_the_same_numbers_in_graphgyms_agg_runs(
    tmp_path: Path, graphgym: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0: (0.7, 0.8), 1: (0.72, 0.75), 2: (0.6, 0.9)}
    for seed, pair in scores.items():
        save_run(tmp_path, seed, [(score, score) for score in pair])
    expected = graphgyms_own(tmp_path, monkeypatch)
    aggregate_seeds(tmp_path)
    assert {name: read_rows(tmp_path / "agg" / name) for name in expected} == expected
    assert best_of(tmp_path)["accuracy"] == best_of(tmp_path, "test")["gnn_accuracy"] == round(2.45 / 3, 4)


def test_every_split_is_taken_at_the_seeds_first_best_validation_epoch(tmp_path: Path) -> None:
    save_seed(tmp_path, 2, val=[0.2, 0.5, 0.5], test=[0.9, 0.4, 0.8])
    save_seed(tmp_path, 10, val=[0.7, 0.1, 0.3], test=[0.6, 0.9, 0.9])
    found = aggregate_seeds(tmp_path)
    expected = {"epoch": 1, "loss": 0.4, "loss_std": 0.1, "accuracy": 0.6, "accuracy_std": 0.1}
    assert best_of(tmp_path) == found.best["val"] == expected
    assert (mean_and_std(tmp_path, "train"), mean_and_std(tmp_path, "test")) == ((0.7, 0.1), (0.5, 0.1))
    assert found.seeds == [2, 10]
    assert found.stats == {split: read_rows(tmp_path / "agg" / split / "stats.json") for split in SPLITS}


def save_glem_seed(dir: Path, seed: int, val: Sequence[float], iterations: Sequence[int]) -> None:
    """A row per stage; the test score is 1 - validation."""
    for split, scores in (("val", val), ("test", [1 - v for v in val])):
        rows = [{"epoch": e, "accuracy": a, "em_iteration": i, "params": 100 * (e + 1)}
                for e, (a, i) in enumerate(zip(scores, iterations, strict=True))]  # fmt: skip
        write_rows(dir / str(seed) / split / "stats.json", rows)


def test_of_a_glem_run_only_stages_of_em_compete(tmp_path: Path) -> None:
    """GLEM is shown as it is where its own cascade is better on validation; the stages' rows all stay."""
    save_glem_seed(tmp_path, 0, [0.5, 0.9, 0.7, 0.8], [0, 0, 1, 1])
    save_glem_seed(tmp_path, 1, [0.5, 0.6, 0.7, 0.8], [0, 0, 1, 1])
    aggregate_seeds(tmp_path)
    expected = {"accuracy": 0.8, "em_iteration": 1, "params": 400, "params_std": 0}
    assert {key: best_of(tmp_path)[key] for key in expected} == expected
    assert best_of(tmp_path, "test")["accuracy"] == 0.2
    assert stats_of(tmp_path, "val", "accuracy") == [0.5, 0.75, 0.7, 0.8]


def test_of_a_cascade_only_the_gnn_competes(tmp_path: Path) -> None:
    """Its LM is a method of its own; an experiment's best row is that of its last model."""
    save_glem_seed(tmp_path, 0, [0.9, 0.5], [0, 0])
    aggregate_seeds(tmp_path)
    assert (best_of(tmp_path)["accuracy"], best_of(tmp_path)["params"]) == (0.5, 200)


def test_a_test_row_written_once_under_another_epoch_counts(tmp_path: Path) -> None:
    save_stock_seed(tmp_path, 0, [0.3, 0.5, 0.2], test=0.44)
    save_stock_seed(tmp_path, 1, [0.6, 0.5], test=0.66)
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "test")["accuracy"] == 0.55
    assert stats_of(tmp_path, "test", "epoch") == [2, 3]


def test_seeds_of_different_length_are_averaged_where_they_have_the_epoch(tmp_path: Path) -> None:
    for seed, val in enumerate(([0.1, 0.2, 0.9], [0.3], [0.5, 0.4])):
        save_val(tmp_path, *val, seed=seed)
    aggregate_seeds(tmp_path, digits=3)
    keys = ("epoch", "accuracy", "accuracy_std")
    expected = [[0, 1, 2], [0.3, 0.3, 0.9], [0.163, 0.1, 0.0]]
    assert [stats_of(tmp_path, "val", key) for key in keys] == expected
    assert not (tmp_path / "agg" / "train").exists()
    assert best_of(tmp_path)["accuracy"] == round((0.9 + 0.3 + 0.5) / 3, 3)


def test_the_metric_and_its_direction_choose_the_epoch(tmp_path: Path) -> None:
    save_val(tmp_path, 0.1, 0.8, 0.3, auc=[0.9, 0.5, 0.6], loss=[3.0, 2.0, 1.0])
    cases = (("auto", "argmax", 0), ("accuracy", "argmax", 1), ("loss", "argmin", 2), ("auc", "argmin", 1))
    for metric, best, epoch in cases:
        aggregate_seeds(tmp_path, metric=metric, best=best)
        assert best_of(tmp_path)["epoch"] == epoch, metric


def test_a_metric_that_is_not_there_names_the_keys_found(tmp_path: Path) -> None:
    save_val(tmp_path, 0.5, key="mae", loss=[1.0])
    with pytest.raises(ValueError, match=r"metric 'auto', which means auc or accuracy.*\['epoch', 'loss', 'mae'\]"):
        aggregate_seeds(tmp_path)
    with pytest.raises(ValueError, match=r"no value of metric 'f1'.*\['epoch', 'loss', 'mae'\]"):
        aggregate_seeds(tmp_path, metric="f1")
    with pytest.raises(ValueError, match="expected 'argmax' or 'argmin'"):
        aggregate_seeds(tmp_path, metric="mae", best="min")
    assert not (tmp_path / "agg").exists()


def test_an_epoch_that_diverged_is_never_the_best_and_stays_nan(tmp_path: Path) -> None:
    save_val(tmp_path, 0.3, math.nan, None, loss=[1.0, math.inf, 2.0])
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path)["epoch"] == 0
    assert list(map(math.isnan, stats_of(tmp_path, "val", "accuracy"))) == [False, True, True]


def test_keys_of_some_seeds_are_averaged_over_those_and_text_is_left_out(tmp_path: Path) -> None:
    save_val(tmp_path, 0.4, gpu_memory=[100.0], note=["x"])
    save_val(tmp_path, 0.6, seed=1)
    aggregate_seeds(tmp_path)
    numbers = {"accuracy": 0.5, "accuracy_std": 0.1, "gpu_memory": 100.0, "gpu_memory_std": 0.0}
    assert best_of(tmp_path) == {"epoch": 0, **numbers}


def test_a_half_written_last_line_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = save_val(tmp_path, 0.2, 0.4)
    whole = file.read_text()
    file.write_text(whole + '{"epoch": 2, "loss": 0.1, "accu')
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path)["accuracy"] == 0.4
    assert [record.getMessage().startswith(f"{file}: the last line") for record in caplog.records] == [True]
    file.write_text('{"epoch": 0, "lo\n' + whole)
    with pytest.raises(ValueError, match=r"0.val.stats\.json, line 1: not a JSON object with an epoch"):
        aggregate_seeds(tmp_path)


def test_killed_between_validation_and_training_rows_takes_the_last_training_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_seed(tmp_path, 0, val=[0.2, 0.4, 0.6])
    write_rows(tmp_path / "0" / "train" / "stats.json", [{"epoch": e, "accuracy": e / 10} for e in range(2)])
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path, "train")["accuracy"] == 0.1
    assert "no row of epoch 2" in caplog.text


def test_only_seed_folders_with_validation_rows_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_seed(tmp_path, 42, val=[0.4])
    for stray in ("ckpt", "stages", "1_old", "01", "seed1"):
        write_rows(tmp_path / stray / "val" / "stats.json", [{"epoch": 0, "accuracy": 0.9}])
    (tmp_path / "7").write_text("a file")
    write_rows(tmp_path / "8" / "train" / "stats.json", [{"epoch": 0, "accuracy": 0.9}])
    save_val(tmp_path, seed=9)
    aggregate_seeds(tmp_path)
    assert best_of(tmp_path)["accuracy"] == 0.4
    assert best_of(tmp_path, "train")["accuracy"] == 0.5
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [8, 9]


def test_no_seed_at_all_is_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "glem_debian").mkdir()
    with pytest.raises(ValueError, match=r"no seed folder.*val/stats\.json, found \['glem_debian'\]"):
        aggregate_seeds(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        aggregate_seeds(tmp_path / "nowhere")


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
    (tmp_path / "agg").rename(tmp_path / ".agg.old")  # moved aside by a process that was killed then
    with pytest.raises(OSError, match="No space left"):
        aggregate_seeds(tmp_path)
    assert agg_files(tmp_path) == before


def test_jobs_that_aggregate_at_once_take_turns(tmp_path: Path) -> None:
    for seed in range(3):
        save_seed(tmp_path, seed, val=[0.1 * seed, 0.2])
    aggregate_seeds(tmp_path)
    expected = agg_files(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(aggregate_seeds, [tmp_path] * 12))) == 12
    assert agg_files(tmp_path) == expected


def test_tensorboard_events_are_written_where_it_is_installed_and_else_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboardX")
    save_seed(tmp_path, 0, val=[0.4, 0.5])
    aggregate_seeds(tmp_path)
    expected = agg_files(tmp_path)
    aggregate_seeds(tmp_path, tensorboard=True)
    for split in SPLITS:
        (events,) = (tmp_path / "agg" / split).glob("events.out.tfevents.*")
        assert b"accuracy_std" in events.read_bytes()
    blinding(tmp_path, True, False)
    aggregate_seeds(tmp_path, tensorboard=True)
    assert {events.parent.name for events in tmp_path.glob("agg/*/events.*")} == {"train", "val"}
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with caplog.at_level(logging.WARNING):
        aggregate_seeds(tmp_path, tensorboard=True)
    assert agg_files(tmp_path) == expected
    assert [record.getMessage()[:29] for record in caplog.records] == ["no TensorBoard events written"]


def save_summary(dir: Path, seed: int, **scores: tuple[float, float]) -> None:
    costs = {"params": 100, "seconds": 10.0 + seed, "peak_memory_mb": 50.0 + seed}
    rows = [{"method": method.replace("_", "-"), "valid": valid, "test": test, **costs}
            for method, (valid, test) in scores.items()]  # fmt: skip
    (dir / str(seed)).mkdir(parents=True, exist_ok=True)
    (dir / str(seed) / "summary.json").write_text(json.dumps(rows))


def test_summaries_have_unbiased_std_and_none_for_a_single_seed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_summary(tmp_path, 0, GLEM_GNN=(0.80, 0.79), LM=(0.70, 0.71))
    save_summary(tmp_path, 1, GLEM_GNN=(0.82, 0.80))
    save_summary(tmp_path, 2, GLEM_GNN=(0.81, 0.84))
    (tmp_path / "3").mkdir()  # still training
    lm, glem = aggregate_summaries(tmp_path)
    assert lm == Row("LM", 1, Spread(0.70), Spread(0.71), (0,), 100, 10.0, 50.0)
    found = (glem.method, glem.runs, glem.seeds, glem.params, glem.seconds, glem.peak_memory_mb)
    assert found == ("GLEM-GNN", 3, (0, 1, 2), 100, 11.0, 52.0)
    assert glem.valid.mean == pytest.approx(0.81, abs=1e-12)
    assert glem.valid.std == pytest.approx(0.01, abs=1e-12)  # sqrt((1 + 1 + 0) / 2) points, not sqrt(2 / 3)
    assert glem.test.std == pytest.approx(math.sqrt(7 / 10000), abs=1e-12)  # squares 4, 1, 9 points over n - 1
    assert "no summary.json" in caplog.text
    first, second = json.loads((tmp_path / "summary.json").read_text())
    costs = {"params": 100, "seconds_mean": 10.0, "peak_memory_mb": 50.0}
    scores = {"seeds": 1, "valid_mean": 0.7, "valid_std": None, "test_mean": 0.71, "test_std": None}
    assert first == {"method": "LM", **scores, **costs}
    assert (second["seeds"], second["test_std"], list(second)) == (3, glem.test.std, list(first))


def test_a_damaged_or_missing_summary_is_named(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    with pytest.raises(ValueError, match=r"no seed folder.*summary\.json, found \['5'\]"):
        aggregate_summaries(tmp_path)
    row = '{"method": "LM", "valid": 0.5, "test": 0.5, "params": 9, "seconds": 1, "peak_memory_mb": 1}'
    for content in (f"[{row}, {row}]", '[{"method": "LM"', '[{"method": "LM"}]', '["LM"]', "3"):
        (tmp_path / "5" / "summary.json").write_text(content)
        with pytest.raises(ValueError, match=r"5.summary\.json is damaged"):
            aggregate_summaries(tmp_path)


def test_aggregate_table_shows_mean_and_std_in_percent_and_fits_80_columns() -> None:
    output = io.StringIO()
    rows = [
        Row("LM", 1, Spread(0.7), Spread(0.71004), (0,), 1000, 60.0, 512.0),
        Row("GLEM-GNN", 3, Spread(0.80126, 0.00099), Spread(0.79934, 0.00206), (0, 1, 2), 22713216, 1234.5, 2048.4),
    ]
    print_aggregate(rows, "debian", console=Console(file=output, width=120))
    cells = [[c.strip() for c in line.strip("│").split("│")] for line in output.getvalue().splitlines() if "│" in line]
    assert cells == [
        ["LM", "1", "70.00", "71.00", "1,000", "60", "512"],
        ["GLEM-GNN", "3", "80.13 ± 0.10", "79.93 ± 0.21", "22,713,216", "1,234", "2,048"],
    ]
    output = io.StringIO()
    print_aggregate(rows, "debian", console=Console(file=output, width=120), blind=True)
    assert "hidden" in output.getvalue() and "79.93" not in output.getvalue() and "71.00" not in output.getvalue()
    output = io.StringIO()
    score, costs = Spread(0.8, 0.001), (435_061_760, 123_456.0, 70_000.0)
    largest = [Row(method, 3, score, score, (0, 1, 2), *costs) for method in ("GLEM-GNN+C&S", "GLEM-LM+GNN")]
    print_aggregate(largest, "x", console=Console(file=output, width=80))
    lines = output.getvalue().splitlines()
    assert len([line for line in lines if line.startswith("│")]) == len(largest)  # none is folded
    assert "435,061,760" in lines[-2] and "seeds" not in output.getvalue()


def test_graphgyms_agg_batch_runs_unchanged_over_what_we_aggregated(tmp_path: Path, graphgym: Any) -> None:
    low, high = tmp_path / "glem_debian-lr=1e-05-alpha=0.3", tmp_path / "glem_debian-lr=0.001-alpha=0.7"
    save_seed(low, 0, val=[0.2, 0.5, 0.3], test=[0.9, 0.4, 0.8])
    save_seed(low, 1, val=[0.7, 0.1], test=[0.6, 0.9])
    save_seed(high, 0, val=[0.1, 0.8], test=[0.3, 0.7])
    for dir, seeds in ((low, (0, 1)), (high, (0,))):
        for seed in seeds:
            save_summary(dir, seed, LM=(0.5, 0.5))
        aggregate_seeds(dir, tensorboard=True)
        aggregate_summaries(dir)

    agg_batch(str(tmp_path))

    files = {f"{split}{kind}.csv" for split in SPLITS for kind in ("", "_best", "_bestepoch")}
    assert {path.name for path in (tmp_path / "agg").iterdir()} == files
    tables = {name.removesuffix(".csv"): pd.read_csv(tmp_path / "agg" / name) for name in files}
    test = tables["test_best"]
    assert test[["lr", "alpha"]].values.tolist() == [[1e-05, 0.3], [0.001, 0.7]]
    assert [test[key].tolist() for key in ("accuracy", "accuracy_std", "loss")] == [[0.5, 0.7], [0.1, 0.0], [0.5, 0.3]]
    assert tables["val_best"]["accuracy"].tolist() == [0.6, 0.8]
    assert tables["train_best"]["accuracy"].tolist() == [0.7, 0.9]
    expected = statistics.fmean([0.2, 0.7])  # epoch 0 has the best mean over seeds
    assert tables["val_bestepoch"]["accuracy"].tolist() == [pytest.approx(expected, abs=1e-9), 0.8]
