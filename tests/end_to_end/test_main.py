"""run/main.py as a user types it: what a run leaves, resumes from, refuses and repeats. Tiny model, generated graph."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.utils.agg_runs import agg_batch

from glem_graphgym.build.run_folder import RunError, lock_run_folder
from glem_graphgym.config import ConfigError, load_config
from glem_graphgym.data.text_graph import DataError
from glem_graphgym.report.stats import FURTHER, SUMMARY
from tests.bad_inputs.conftest import load_program, logging_taken_back
from tests.small import CLASSES, NODES, write_config

MAIN = Path(__file__).resolve().parents[2] / "run" / "main.py"
STAGES = ["00_lm_gold", "01_gnn_gold", "02_e_step_1", "03_m_step_1"]
# What is measured rather than computed.
MEASURED = ("time_iter", "eta", "peak_memory_mb")

Runner = Callable[..., int]


@pytest.fixture
def config(tmp_path: Path, tiny_lm: Path) -> Path:
    return write_config(tmp_path / "synth.yaml", tiny_lm)


def start(config: Path, *options: object) -> subprocess.Popen[str]:
    """The program as a user starts it, who wants no traceback."""
    environment = {name: value for name, value in os.environ.items() if name != "GLEM_TRACEBACK"}
    command = [sys.executable, str(MAIN), "--cfg", str(config), *map(str, options)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=config.parent,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, err = process.communicate(timeout=300)
    return out, err


def run_dir(config: Path, seed: int = 0) -> Path:
    return config.parent / "results" / config.stem / str(seed)


def all_logits(run: Path) -> dict[str, np.ndarray]:
    return {path.parent.name: np.load(path) for path in sorted(run.glob("stages/[0-9]*/logits.npy"))}


def rows(run: Path, split: str) -> list[dict[str, float]]:
    """Rows of a stats file without what is measured."""
    lines = [json.loads(line) for line in (run / split / "stats.json").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in lines]


def summary(run: Path) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in json.loads((run / "summary.json").read_text())}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("glem_gcn", []),
        ("glem_mlp", []),
        ("glem_gat", ["gnn.att_heads", 2, "gnn.attention_dropout", 0.1, "glem.label_input", True]),
        ("glem_revgat", ["gnn.att_heads", 2, "gnn.layers_mp", 3, "gnn.edge_drop", 0.3]),
        ("glem_sgc", []),
        ("glem_sign", ["gnn.batch_size", 20]),
        ("glem_sagn", ["glem.label_input", True, "gnn.att_heads", 2]),
        ("glem_gamlp", ["glem.label_input", True, "gnn.batch_size", 20]),
        ("glem_gamlp", ["glem.setting", "inductive", "gnn.precision", "bf16"]),
    ],
)
def test_every_network_trains_and_predicts_again_from_its_weights(
    model: str, options: list[object], config: Path, main: Runner
) -> None:
    options = ["train.mode", "glem_gnn", "glem.node_features", "static", "model.type", model, *options]
    assert main(config, *options) == 0
    found = summary(run_dir(config))
    assert list(found) == ["GNN"]
    assert found["GNN"]["valid"] > 1.2 / CLASSES
    assert main(config, *options, program="predict") == 0
    again = json.loads((run_dir(config) / "predictions.json").read_text())
    assert again["GNN"]["test"]["accuracy"] == pytest.approx(found["GNN"]["test"], abs=0.03)


def test_networks_without_labels_as_input_say_so(config: Path, main: Runner) -> None:
    with pytest.raises(ValueError, match=r"glem\.label_input is True, but model\.type glem_sign takes no labels"):
        main(config, "model.type", "glem_sign", "glem.label_input", True)
    assert not (run_dir(config) / "stages").exists()


def test_runs_share_the_lm_that_is_fine_tuned_on_gold(config: Path, main: Runner) -> None:
    shared = ["glem.share_lm_gold", True]
    assert main(config, *shared, "train.mode", "glem_lm", "out_dir", f"{config.parent}/one") == 0
    (kept,) = (config.parent / "datasets" / "lm_gold").glob("[0-9a-f]*")
    before = (kept / "stage.json").stat().st_mtime_ns
    assert main(config, *shared, "out_dir", f"{config.parent}/two") == 0
    assert main(config, "out_dir", f"{config.parent}/three") == 0
    assert (kept / "stage.json").stat().st_mtime_ns == before
    runs = [config.parent / name / config.stem / "0" for name in ("one", "two", "three")]
    logits = [(run / "stages" / STAGES[0] / "logits.npy").read_bytes() for run in runs]
    assert logits[0] == logits[1] == logits[2]
    assert_same_run(runs[1], runs[2])
    # Other settings, another seed or another graph are another LM.
    for other in (["lm.lr", 1e-3], ["seed", 1], ["dataset.tag_seed", 1]):
        assert main(config, *shared, *other, "train.mode", "glem_lm", "out_dir", f"{config.parent}/{other[0]}") == 0
    assert len(list((config.parent / "datasets" / "lm_gold").glob("[0-9a-f]*"))) == 4


def test_rows_that_need_no_training_come_when_asked_for(config: Path, main: Runner) -> None:
    assert main(config, "glem.correct_and_smooth", True, "glem.ensemble", True) == 0
    found = summary(run_dir(config))
    assert list(found) == ["LM", "Cascade", "GLEM-LM", "GLEM-GNN", "GLEM-GNN+C&S", "GLEM-LM+GNN"]
    assert found["GLEM-LM+GNN"]["valid"] >= max(found["GLEM-LM"]["valid"], found["GLEM-GNN"]["valid"])
    assert found["GLEM-LM+GNN"]["params"] == found["GLEM-GNN"]["params"]
    stats = rows(run_dir(config), "val")
    assert [row["em_iteration"] for row in stats] == [0, 0, 1, 1, 1, 1]
    assert stats[-1]["gnn_accuracy"] == stats[3]["accuracy"]  # the latest GNN is still the EM's
    # The ensemble may be asked for, or no longer be asked for, when a finished run is looked at again.
    before = all_logits(run_dir(config))
    assert main(config, "glem.correct_and_smooth", True) == 0
    assert list(summary(run_dir(config))) == ["LM", "Cascade", "GLEM-LM", "GLEM-GNN", "GLEM-GNN+C&S"]
    assert all_logits(run_dir(config)).keys() == before.keys()


def assert_same_run(one: Path, other: Path) -> None:
    """Logits of all stages bit for bit, and every number of the tables that is computed."""
    logits, others = all_logits(one), all_logits(other)
    assert list(logits) == list(others)
    for stage in logits:
        assert logits[stage].tobytes() == others[stage].tobytes(), stage
    for split in ("train", "val", "test"):
        assert rows(one, split) == rows(other, split)
    for method, row in summary(one).items():
        again = summary(other)[method]
        assert [row[key] for key in ("valid", "test", "params")] == [again[key] for key in ("valid", "test", "params")]


def times(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(run.glob("stages/[0-9]*/*"))}


# ---- a whole run, as a user sees it -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> tuple[Path, str]:
    """A finished run of the program in a process of its own: its configuration, and what it printed."""
    config = write_config(tmp_path_factory.mktemp("finished") / "synth.yaml", tiny_lm)
    process = start(config, "e_step.epochs", 8)
    out, err = finish(process)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return config, out


def test_a_run_leaves_graphgyms_files(finished: tuple[Path, str]) -> None:
    config, _ = finished
    run = run_dir(config)
    assert [path.name for path in sorted((run / "stages").iterdir())] == STAGES
    for split in ("train", "val", "test"):
        assert [row["epoch"] for row in rows(run, split)] == [0, 1, 2, 3]
        assert [row["epoch"] for row in rows(run.parent / "agg", f"{split}")] == [0, 1, 2, 3]
        best = json.loads((run.parent / "agg" / split / "best.json").read_text())
        chosen = int(np.argmax([row["accuracy"] for row in rows(run, "val")]))
        assert best["accuracy"] == rows(run, split)[chosen]["accuracy"]
    assert json.loads((run / "run.json").read_text())["finished"] is True
    log = (run / "logging.log").read_text().splitlines()
    for number in range(1, 5):
        begun, done = [line for line in log if line.startswith(f"stage {number} of 4")]
        assert " learn" in begun and "; took " in done


def test_a_finished_run_is_exported_by_its_folder_alone(
    finished: tuple[Path, str], main: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_dir(finished[0])
    assert load_program("export").main(["--dir", str(run), "--out", str(tmp_path / "out")]) == 0
    assert "/out, with embeddings.npy, gnn, gnn_logits.npy, lm, lm_logits.npy" in capsys.readouterr().out
    found, kept = tmp_path / "out" / "gnn_logits.npy", run / "stages" / STAGES[3] / "logits.npy"
    assert found.read_bytes() == kept.read_bytes()
    assert main(finished[0], "e_step.epochs", 8, "--stage", "lm_gold", program="export") == 0
    assert (run / "export" / "lm_logits.npy").read_bytes() == (run / "stages" / STAGES[0] / "logits.npy").read_bytes()
    with pytest.raises(RunError, match="export is not empty"):
        main(finished[0], "e_step.epochs", 8, program="export")


def test_the_summary_has_a_row_a_method(finished: tuple[Path, str]) -> None:
    run = run_dir(finished[0])
    found = json.loads((run / "summary.json").read_text())
    assert [row["method"] for row in found] == ["LM", "Cascade", "GLEM-LM", "GLEM-GNN"]
    for stage in STAGES:  # what the leaderboard's page shows of each class, and of calibration
        told = json.loads((run / "stages" / stage / "predictions.json").read_text())
        record = json.loads((run / "stages" / stage / "stage.json").read_text())
        assert told["test"]["accuracy"] == pytest.approx(record["scores"]["test"]["accuracy"])
    for row, stage in zip(found, STAGES, strict=True):
        assert set(row) == {*SUMMARY, "texts", *FURTHER} - {"valid_accuracy", "test_accuracy", "valid_auc", "test_auc"}
        record = json.loads((run / "stages" / stage / "stage.json").read_text())
        assert row["valid"] == record["scores"]["valid"]["accuracy"]
        assert row["test"] == record["scores"]["test"]["accuracy"]
    lm = sum(value.numel() for value in load_file(run / "stages/00_lm_gold/weights.safetensors").values())
    assert found[0]["params"] == lm
    # Batch norm's running statistics are kept with the weights and are no parameters.
    assert found[3]["params"] - lm == 32 * 2 * 16 + 16 + 16 * 2 + 16 * 2 * 3 + 3


def test_scores_are_those_of_the_logits_on_disk(finished: tuple[Path, str]) -> None:
    from glem_graphgym.data.synthetic import make_synthetic

    graph = make_synthetic(
        num_nodes=NODES,
        num_classes=CLASSES,
        avg_degree=5.0,
        words_per_text=4,
        text_signal=0.8,
        structure_signal=0.8,
        shares=(0.3, 0.2, 0.3),
    )
    run = run_dir(finished[0])
    for stage, logits in all_logits(run).items():
        assert logits.shape == (NODES, CLASSES)
        assert logits.dtype == np.float16
        scores = json.loads((run / "stages" / stage / "stage.json").read_text())["scores"]
        for split, nodes in graph.split.items():
            right = logits[nodes].argmax(1) == graph.label[nodes]
            assert scores[split]["accuracy"] == pytest.approx(right.mean())


def test_the_final_table_is_printed(finished: tuple[Path, str]) -> None:
    config, out = finished
    table = out[out.rindex("synth, seed 0") :]
    for method, row in summary(run_dir(config)).items():
        line = next(line for line in table.splitlines() if f" {method} " in line)
        assert f"{100 * row['test']:.2f}" in line
        assert f"{row['params']:,}" in line


@pytest.mark.slow
def test_the_last_lines_say_where_the_results_are_and_how_to_see_them(finished: tuple[Path, str]) -> None:
    config, out = finished
    results, command = out.splitlines()[-2:]
    assert results == f"Results: {run_dir(config) / 'summary.json'}"
    assert (run_dir(config) / "summary.json").is_file()
    program, *arguments = shlex.split(command.removeprefix("To see and compare them: "))
    shown = subprocess.run([program, *arguments], capture_output=True, text=True, cwd=config.parent, timeout=300)
    assert shown.returncode == 0, shown.stderr
    assert " · GNN " in shown.stdout


def test_no_line_is_wider_than_80_columns_but_for_paths(finished: tuple[Path, str], tiny_lm: Path) -> None:
    config, out = finished
    lines = out.replace(str(config.parent), ".").replace(str(tiny_lm), "all-MiniLM-L6-v2").splitlines()
    assert [line for line in lines if len(line) > 80 and "leaderboard.py" not in line] == []


@pytest.mark.parametrize(
    ("mode", "seeds", "last"),
    [
        ("glem", range(3, 4), "Results: results/x/3/summary.json"),
        ("glem", range(3, 5), "Results: results/x/summary.json"),
        ("standard", range(1), "Results: results/x/agg/test/best.json"),
    ],
)
def test_every_mode_says_where_its_results_are(
    mode: str, seeds: range, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    load_program("main").say_where(mode, Path("results/x"), seeds)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == last
    assert [line.endswith("run/leaderboard.py --dir results/x") for line in rest] == [True]


def test_the_written_config_loads_again(finished: tuple[Path, str]) -> None:
    config, _ = finished
    written = run_dir(config).parent / "config.yaml"
    load_config(cfg, written)
    assert cfg.train.mode == "glem"
    assert cfg.e_step.epochs == 8
    assert cfg.lm.precision == "32"
    assert cfg.seed == 0
    assert cfg.out_dir == str(run_dir(config).parent)


def test_a_finished_run_is_not_recomputed(finished: tuple[Path, str], main: Runner) -> None:
    config, _ = finished
    before, table = times(run_dir(config)), summary(run_dir(config))
    assert main(config, "e_step.epochs", 8) == 0
    assert times(run_dir(config)) == before
    assert summary(run_dir(config)) == table


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    """Until a path appears; fails where the process ends before."""
    deadline = time.monotonic() + 240
    while not any(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_and_interrupted_it_ends_with_the_same_numbers(
    finished: tuple[Path, str], tmp_path: Path, tiny_lm: Path
) -> None:
    config = write_config(tmp_path / "synth.yaml", tiny_lm)
    run = run_dir(config)
    killed = start(config, "e_step.epochs", 8)
    wait_for("stages/01_*/stage.json", run, killed)
    killed.kill()
    finish(killed)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(all_logits(run)) == STAGES[:2]
    done = times(run)
    assert not (run / "summary.json").exists()
    assert "finished" not in json.loads((run / "run.json").read_text())

    # What the kill left of stage 2 is removed before the stage is begun anew.
    shutil.rmtree(run / "stages/.02_e_step_1.part", ignore_errors=True)
    interrupted = start(config, "e_step.epochs", 8)
    wait_for("stages/.02_e_step_1.part", run, interrupted)
    interrupted.send_signal(signal.SIGINT)
    _, err = finish(interrupted)
    assert interrupted.returncode == 1, err
    assert sorted(all_logits(run)) == STAGES[:2]

    resumed = start(config, "e_step.epochs", 8)
    _, err = finish(resumed)
    assert resumed.returncode == 0, err
    assert {path: time for path, time in times(run).items() if path in done} == {
        path: time for path, time in done.items() if "01_gnn_gold/weights" not in path
    }
    assert_same_run(run_dir(finished[0]), run)


# ---- resuming, overwriting, repeating, in this process ------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """The configuration of a run that was done once in this process, with all its weights kept."""
    config = write_config(tmp_path_factory.mktemp("plain") / "synth.yaml", tiny_lm)
    with logging_taken_back():
        assert load_program("main").main(["--cfg", str(config), "glem.keep_weights", "all"]) == 0
    return config


def test_the_same_seed_gives_the_same_run_and_another_seed_another(plain: Path, config: Path, main: Runner) -> None:
    assert main(config, "seed", 1) == 0
    assert main(config, "seed", 0) == 0
    assert_same_run(run_dir(plain), run_dir(config, 0))
    for stage, logits in all_logits(run_dir(config, 1)).items():
        assert (logits != all_logits(run_dir(plain))[stage]).any()


def test_overwrite_does_it_anew(config: Path, main: Runner) -> None:
    assert main(config) == 0
    run = run_dir(config)
    before, logits = times(run), all_logits(run)
    (run / "stray.txt").write_text("of the earlier run")
    assert main(config, "--overwrite") == 0
    assert not (run / "stray.txt").exists()
    assert all(after > before[path] for path, after in times(run).items() if path in before)
    for stage, again in all_logits(run).items():
        assert again.tobytes() == logits[stage].tobytes()


def test_overwrite_takes_another_configuration(config: Path, main: Runner) -> None:
    assert main(config, "train.mode", "glem_lm") == 0
    assert main(config, "train.mode", "glem_lm", "lm.lr", "1e-4", "--overwrite") == 0
    assert json.loads((run_dir(config) / "run.json").read_text())["settings"]["lm.lr"] == 1e-4


def test_overwrite_leaves_no_seeds_of_different_configurations(config: Path, main: Runner) -> None:
    assert main(config, "train.mode", "glem_lm", "--repeat", 2) == 0
    before, other = times(run_dir(config, 1)), ("train.mode", "glem_lm", "lm.lr", "1e-4", "--overwrite")
    with pytest.raises(RunError, match=r"/0 holds a run with another configuration: lm.lr was .* Seeds of one exp"):
        main(config, *other, "seed", 1)
    assert times(run_dir(config, 1)) == before
    assert main(config, *other, "--repeat", 2) == 0


def test_a_folder_that_another_process_works_on_is_left_alone(config: Path, main: Runner) -> None:
    run_dir(config).mkdir(parents=True)
    with lock_run_folder(run_dir(config)), pytest.raises(RunError, match=r"another process is working on .*/0; wait"):
        main(config, "train.mode", "glem_lm")
    assert list(run_dir(config).iterdir()) == []
    assert main(config, "train.mode", "glem_lm") == 0


def test_repeat_runs_seed_after_seed(plain: Path, config: Path, main: Runner) -> None:
    assert main(config, "--repeat", 2, "seed", 4) == 0
    experiment = run_dir(config).parent
    assert sorted(path.name for path in experiment.iterdir() if path.name.isdigit()) == ["4", "5"]
    for seed in (4, 5):
        assert json.loads((run_dir(config, seed) / "run.json").read_text())["seed"] == seed
    both = {seed: rows(run_dir(config, seed), "test") for seed in (4, 5)}
    aggregated = rows(experiment / "agg", "test")
    for epoch, row in enumerate(aggregated):
        scores = [both[seed][epoch]["accuracy"] for seed in (4, 5)]
        assert row["accuracy"] == pytest.approx(np.mean(scores), abs=1e-4)
        assert row["accuracy_std"] == pytest.approx(np.std(scores), abs=1e-4)
    over_seeds = {row["method"]: row for row in json.loads((experiment / "summary.json").read_text())}
    tests = [summary(run_dir(config, seed))["GLEM-GNN"]["test"] for seed in (4, 5)]
    assert over_seeds["GLEM-GNN"]["test_mean"] == pytest.approx(np.mean(tests))
    assert over_seeds["GLEM-GNN"]["test_std"] == pytest.approx(np.std(tests, ddof=1))
    # The dumped configuration is the one that was typed.
    load_config(cfg, experiment / "config.yaml")
    assert cfg.seed == 4


def test_options_override_the_file(config: Path, main: Runner) -> None:
    assert main(config, "glem.alpha", 0.3, "seed", 7, "out_dir", config.parent / "elsewhere") == 0
    run = config.parent / "elsewhere" / "synth" / "7"
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["glem.alpha"] == 0.3
    assert settings["glem.beta"] == 0.05
    assert len(all_logits(run)) == 4


def test_mark_done_renames_the_file(config: Path, main: Runner) -> None:
    assert main(config, "train.mode", "glem_gnn", "glem.node_features", "static", "--mark_done") == 0
    assert not config.exists()
    assert config.with_name("synth.yaml_done").exists()


def test_a_file_that_changed_meanwhile_is_not_marked_done(config: Path, main: Runner) -> None:
    """A grid that is made anew while its jobs run: the new settings have not been run."""
    options = ("train.mode", "glem_gnn", "glem.node_features", "static", "--mark_done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("glem_graphgym.processes.leave", lambda: config.write_text(config.read_text() + "round: 3\n"))
        with pytest.raises(ValueError, match=r"synth\.yaml has changed since the run began"):
            main(config, *options)
    assert config.exists()
    assert main(config, *options) == 0


def test_more_iterations_continue_a_finished_run(config: Path, main: Runner) -> None:
    assert main(config) == 0
    run = run_dir(config)
    before = times(run)
    assert main(config, "glem.em_iterations", 2) == 0
    after = times(run)
    assert {path: after[path] for path in before if path in after} == {
        path: time for path, time in before.items() if path in after
    }
    forgotten = {str(run / "stages" / stage / "weights.safetensors") for stage in ("02_e_step_1", "03_m_step_1")}
    assert {path for path in before if path not in after} <= forgotten
    assert sorted(all_logits(run)) == [*STAGES, "04_e_step_2", "05_m_step_2"]
    assert [row["epoch"] for row in rows(run, "val")] == list(range(6))


# ---- modes and knobs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "stages", "methods"),
    [
        (["train.mode", "glem_lm"], ["00_lm_gold"], ["LM"]),
        (
            ["train.mode", "glem_gnn", "glem.node_features", "static"],
            ["00_gnn_gold"],
            ["GNN"],
        ),
        (["train.mode", "glem_cascade"], ["00_lm_gold", "01_gnn_gold"], ["LM", "Cascade"]),
        (["glem.em_iterations", 0], ["00_lm_gold", "01_gnn_gold"], ["LM", "Cascade"]),
        (
            ["glem.order", "gnn_first"],
            ["00_lm_gold", "01_gnn_gold", "02_m_step_1", "03_e_step_1"],
            ["LM", "Cascade", "GLEM-LM", "GLEM-GNN"],
        ),
    ],
)
def test_modes_and_what_they_do(
    options: list[object], stages: list[str], methods: list[str], config: Path, main: Runner
) -> None:
    assert main(config, *options) == 0
    assert sorted(all_logits(run_dir(config))) == stages
    assert f"stage {len(stages)} of {len(stages)}: accuracy" in (run_dir(config) / "logging.log").read_text()
    assert list(summary(run_dir(config))) == methods


def test_parts_alone_equal_the_parts_of_glem(plain: Path, config: Path, main: Runner) -> None:
    """The baselines are the stages of GLEM itself, not something like them."""
    glem = all_logits(run_dir(plain))
    assert main(config, "train.mode", "glem_cascade") == 0
    cascade = all_logits(run_dir(config))
    assert cascade["00_lm_gold"].tobytes() == glem["00_lm_gold"].tobytes()
    assert cascade["01_gnn_gold"].tobytes() == glem["01_gnn_gold"].tobytes()


# ---- prediction from a finished run -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["train.mode", "glem_cascade"],
        ["train.mode", "glem_gnn", "glem.node_features", "static", "glem.label_input", True],
        ["glem.em_iterations", 2, "glem.order", "gnn_first", "glem.label_input", True],
        ["glem.order", "gnn_first", "glem.label_input", True, "glem.first_predictions", "{first}"],
        ["glem.setting", "inductive", "glem.node_features", "text+static"],
    ],
    ids=["glem", "cascade", "gnn", "gnn-first", "first-predictions", "inductive"],
)
def test_prediction_gives_all_nodes_and_the_same_scores(options: list[object], config: Path, main: Runner) -> None:
    first = config.parent / "first.npy"
    np.save(first, np.random.default_rng(0).normal(size=(NODES, CLASSES)).astype(np.float32))
    options = [str(option).format(first=first) for option in options]
    assert main(config, *options) == 0
    run = run_dir(config)
    assert main(config, *options, program="predict") == 0
    table = pd.read_csv(run / "predictions.csv.gz")
    assert table["node"].tolist() == list(range(NODES))
    scores = json.loads((run / "predictions.json").read_text())
    methods = set(summary(run))
    assert set(scores) == (methods if "GLEM-LM" not in methods else {"GLEM-LM", "GLEM-GNN"})
    for method, found in scores.items():
        expected = summary(run)[method]
        assert found["valid"]["accuracy"] == expected["valid"]
        assert found["test"]["accuracy"] == expected["test"]
        logits = next(
            np.load(path.parent / "logits.npy")
            for path in sorted(run.glob("stages/[0-9]*/stage.json"))
            if (record := json.loads(path.read_text()))["method"] == method
            and record["scores"]["valid"]["accuracy"] == expected["valid"]
        )
        assert table[method].tolist() == [f"class {c}" for c in logits.argmax(1)]
        top = torch.from_numpy(logits.astype(np.float32)).softmax(-1).amax(-1).numpy()
        np.testing.assert_allclose(table[f"{method} probability"], top, atol=1e-4)


def test_prediction_changes_nothing_of_the_run(plain: Path, main: Runner) -> None:
    before, stats = times(run_dir(plain)), rows(run_dir(plain), "test")
    written = (run_dir(plain).parent / "config.yaml").read_text()
    assert main(plain, "glem.keep_weights", "all", program="predict") == 0
    assert times(run_dir(plain)) == before
    assert rows(run_dir(plain), "test") == stats
    assert (run_dir(plain).parent / "config.yaml").read_text() == written


def test_prediction_needs_a_finished_run(config: Path, main: Runner) -> None:
    with pytest.raises(RunError, match="holds no finished run; train first"):
        main(config, program="predict")


# ---- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_expected_error_is_one_line(config: Path) -> None:
    process = start(config, "glem.aplha", 0.3)
    out, err = finish(process)
    assert process.returncode == 1
    assert err == "error: command line: unknown key 'glem.aplha'; did you mean 'glem.alpha'?\n"
    assert out == "Loading PyTorch, PyTorch Geometric and Lightning ...\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dataset.name", "nowhere"], "dataset.name is 'nowhere', expected one of: debian, "),
        (["dataset.name", "table"], "dataset.tag_source is empty"),
        (["dataset.tag_split", "[0.5, 0.5]"], "[0.5, 0.5]"),
        (["dataset.synthetic_degree", 500], "dataset.synthetic_degree is 500.0"),
        (["train.mode", "glemm"], "train.mode is 'glemm', expected one of: standard, "),
        (["lm.model", "/nowhere/at/all"], "lm.model '/nowhere/at/all' could not be loaded"),
        (["optim.optimizer", "adamm"], "optim.optimizer is 'adamm', expected one of: adam, "),
        (["optim.scheduler", "linear_warmdown"], "optim.scheduler is 'linear_warmdown', expected one of: none, "),
        (["model.type", "glem_sgae"], "model.type is 'glem_sgae', expected one of: "),
        (["model.type", "gnn", "gnn.layer_type", "gncconv"], "gnn.layer_type is 'gncconv', expected one of: linear, "),
        (["gnn.layers_mp", 0], "gnn.layers_mp is 0"),
        (["glem.first_predictions", "nowhere.npy"], "glem.first_predictions: nowhere.npy cannot be read"),
        (["accelerator", "cuda:99"], "accelerator is 'cuda:99', expected auto, cpu"),
        (["print", "loudly"], "print is 'loudly', expected one of: stdout, file, both"),
        (["glem.alpha", "null"], "glem.alpha is 'null', expected a number"),
        (["seed"], "options must be pairs 'key value'; 'seed' stands alone"),
    ],
)
def test_what_is_wrong_is_said_before_any_stage(
    options: list[object],
    message: str,
    config: Path,
    main: Runner,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK")
    assert main(config, *options) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not any((config.parent / "results").rglob("stage.json"))


def test_a_mistake_can_be_corrected_with_the_same_out_dir(config: Path, main: Runner) -> None:
    """A run that never did a stage binds nobody to its configuration."""
    with pytest.raises(ValueError, match=r"lm\.model"):
        main(config, "lm.model", config.parent / "nowhere")
    with pytest.raises(DataError, match=r"glem\.first_predictions"):
        main(config, "glem.first_predictions", "nowhere.npy")
    assert main(config) == 0


def test_a_missing_yaml(tmp_path: Path, main: Runner) -> None:
    with pytest.raises(ConfigError, match=r"--cfg .*nowhere\.yaml: cannot be read \(No such file"):
        main(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("arguments", [[], ["--cfg", "x.yaml", "--repeat", "0"], ["--cfg", "x.yaml", "--overwite"]])
def test_a_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        load_program("main").main(arguments)
    assert exit.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_changed_configuration_is_refused_and_leaves_everything(plain: Path, main: Runner) -> None:
    before = times(run_dir(plain))
    written = (run_dir(plain).parent / "config.yaml").read_text()
    with pytest.raises(RunError, match=r"glem\.alpha was 0\.8, now 0\.3.*--overwrite"):
        main(plain, "glem.keep_weights", "all", "glem.alpha", 0.3)
    assert times(run_dir(plain)) == before
    assert (run_dir(plain).parent / "config.yaml").read_text() == written


# ---- GraphGym's own training, through our program -----------------------------------------------------------------

TEXT_GNN = [
    *("train.mode", "standard", "model.type", "gnn", "gnn.layer_type", "sageconv", "gnn.dim_inner", "16"),
    *("dataset.node_encoder", "True", "dataset.node_encoder_name", "glem_text", "optim.base_lr", "0.003"),
]


def test_a_stock_gnn_trains_end_to_end_on_text(config: Path, tiny_lm: Path, main: Runner) -> None:
    from transformers import AutoModel

    assert main(config, *TEXT_GNN, "optim.max_epoch", 12) == 0
    run = run_dir(config)
    losses = [row["loss"] for row in rows(run, "train")]
    assert len(losses) == 12
    assert losses[-1] < 0.9 * losses[0]
    assert [row["epoch"] for row in rows(run, "val")] == list(range(12))
    # The transformer was trained: what the checkpoint holds is near its pretrained weights, and none of them.
    (checkpoint,) = run.glob("ckpt/*.ckpt")
    trained = torch.load(checkpoint, weights_only=False)["state_dict"]
    pretrained = AutoModel.from_pretrained(tiny_lm).state_dict()
    prefix = "model.encoder.node_encoder.texts.encoder.backbone."
    matrices = [name for name in pretrained if prefix + name in trained and pretrained[name].ndim == 2]
    assert len(matrices) == 3 + 2 * 6
    for name in matrices:
        moved = (trained[prefix + name] - pretrained[name]).abs().max()
        assert 0 < moved < 0.2, name


def test_the_lm_network_in_standard_mode(config: Path, main: Runner) -> None:
    options = ["train.mode", "standard", "model.type", "glem_lm", "optim.base_lr", 0.002]
    assert main(config, *options, "optim.max_epoch", 12) == 0
    losses = [row["loss"] for row in rows(run_dir(config), "train")]
    assert losses[-1] < 0.9 * losses[0]


def test_a_finished_standard_run_is_kept(config: Path, main: Runner) -> None:
    options = ["train.mode", "standard", "glem.node_features", "static"]
    assert main(config, *options, "--repeat", 2) == 0
    assert (run_dir(config) / "logging.log").read_text().count("; fingerprint ") == 1
    stats = run_dir(config) / "train" / "stats.json"
    before = stats.stat().st_mtime_ns
    assert main(config, *options) == 0
    assert stats.stat().st_mtime_ns == before
    assert main(config, *options, "--overwrite") == 0
    assert stats.stat().st_mtime_ns > before
    load_config(cfg, run_dir(config).parent / "config.yaml")
    assert (cfg.accelerator, cfg.devices) == ("auto", 1)


def test_a_standard_run_with_another_configuration_is_refused(config: Path, main: Runner) -> None:
    options = ["train.mode", "standard", "glem.node_features", "static"]
    assert main(config, *options) == 0
    with pytest.raises(RunError, match=r"optim\.base_lr was 0\.01, now 0\.5"):
        main(config, *options, "optim.base_lr", 0.5)
    # Settings that only GraphGym's own code or the loader refuses, once the data is read.
    before = times(run_dir(config))
    with pytest.raises(ConfigError, match=r"train\.sampler cluster"):
        main(config, *options, "train.sampler", "cluster", "--overwrite")
    with pytest.raises(DataError, match=r"glem\.node_features is 'text'"):
        main(config, *options[:2], "--overwrite")
    assert times(run_dir(config)) == before


def test_seeds_of_two_configurations_are_not_aggregated(config: Path, main: Runner) -> None:
    assert main(config, "train.mode", "glem_lm") == 0
    with pytest.raises(RunError, match=r"lm\.lr was 0\.004, now 0\.0001"):
        main(config, "train.mode", "glem_lm", "seed", 1, "lm.lr", "1e-4")


def test_a_folder_belongs_to_one_mode(config: Path, main: Runner) -> None:
    standard = ["train.mode", "standard", "glem.node_features", "static"]
    assert main(config, *standard) == 0
    with pytest.raises(RunError, match=r"train\.mode standard, now glem_lm"):
        main(config, "train.mode", "glem_lm")
    with pytest.raises(RunError, match=r"seeds of one experiment"):
        main(config, "train.mode", "glem_lm", "seed", 1)
    elsewhere = ["out_dir", config.parent / "elsewhere"]
    assert main(config, "train.mode", "glem_lm", *elsewhere) == 0
    with pytest.raises(RunError, match=r"train\.mode glem_lm, now standard"):
        main(config, *standard, *elsewhere)


def test_graphgyms_agg_batch_reads_our_results(tmp_path: Path, tiny_lm: Path, main: Runner) -> None:
    for alpha in ("0.2", "0.9"):
        config = write_config(tmp_path / f"synth-alpha={alpha}.yaml", tiny_lm)
        assert main(config, "glem.alpha", alpha, "--repeat", 2) == 0
    agg_batch(str(tmp_path / "results"), metric_best="accuracy")
    for split in ("train", "val", "test"):
        table = pd.read_csv(tmp_path / "results" / "agg" / f"{split}_best.csv")
        assert table["alpha"].tolist() == [0.2, 0.9]
        for alpha, accuracy in zip(("0.2", "0.9"), table["accuracy"], strict=True):
            best = tmp_path / "results" / f"synth-alpha={alpha}" / "agg" / split / "best.json"
            assert accuracy == json.loads(best.read_text())["accuracy"]
