"""Grid search: what a grid spans, what is refused before anything is written, how jobs are run and tables made."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from grid import configs, jobs, space, tables, where
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.utils.agg_runs import name_to_dict

from glem_graphgym.build.run_folder import decisive_settings
from glem_graphgym.config import load_config
from glem_graphgym.disk import DiskFullError
from glem_graphgym.report import aggregate
from tests.bad_inputs.conftest import load_program

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "run"


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text)
    return file


BASE = """
dataset: {format: TAG, name: synthetic}
train: {mode: glem}
model: {type: glem_sage}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write(tmp_path, "base.yaml", BASE)


def generate(base: Path, grid: str, *flags: object) -> Path:
    """The folder of configurations that configs_gen.py makes of a grid's text."""
    file = write(base.parent, "g.txt", grid)
    out = base.parent / "configs"
    arguments = ["--config", base, "--grid", file, "--out_dir", out, *flags]
    assert load_program("configs_gen").main([str(argument) for argument in arguments]) == 0
    return out / f"{base.stem}_grid_g"


def refused(base: Path, grid: str, capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    """The message with which configs_gen.py refuses a grid; nothing has been written."""
    file = write(base.parent, "g.txt", grid)
    arguments = ["--config", base, "--grid", file, "--out_dir", base.parent / "configs", *flags]
    assert load_program("configs_gen").main([str(argument) for argument in arguments]) == 1
    assert not (base.parent / "configs").exists()
    return capsys.readouterr().err


# ---- grids --------------------------------------------------------------------------------------------------------


def test_a_grid_written_for_graphgym_works_unchanged(tmp_path: Path) -> None:
    """The rows of GraphGym's own example, for GraphGym's own training."""
    base = write(tmp_path, "example.yaml", "out_dir: results\noptim: {max_epoch: 100}\n")
    grid = """
# Format for each row: name, alias, range
dataset.format format ['PyG']
dataset.name dataset ['TU_ENZYMES','TU_PROTEINS']
dataset.task task ['graph']
dataset.transductive trans [False]
# a comment in a block does not end it
gnn.layers_pre_mp l_pre [1,2]
gnn.layers_mp l_mp [2,4]
gnn.stage_type stage ['skipsum','skipconcat']
gnn.agg agg ['add','mean','max']
"""
    files = sorted(generate(base, grid).glob("*.yaml"))
    assert len(files) == 2 * 2 * 2 * 2 * 3
    first = yaml.safe_load(files[0].read_text())
    assert files[0].stem == (
        "example-format=PyG-dataset=TU_ENZYMES-task=graph-trans=False-l_pre=1-l_mp=2-stage=skipconcat-agg=add"
    )
    assert first == {
        "out_dir": "results/example_grid_g",
        "optim": {"max_epoch": 100},
        "dataset": {"format": "PyG", "name": "TU_ENZYMES", "task": "graph", "transductive": False},
        "gnn": {"layers_pre_mp": 1, "layers_mp": 2, "stage_type": "skipconcat", "agg": "add"},
    }


BASES = {"synthetic": "synthetic", "example": "synthetic", "signal": "synthetic", "ablations": "glem_debian_small"}
BASES |= {"encoders": "glem_arxiv_2023"}


@pytest.mark.parametrize("name", BASES)
def test_our_grids_load(name: str, tmp_path: Path) -> None:
    base, grid = ROOT / f"configs_gg/{BASES[name]}.yaml", ROOT / f"configs_gg/grids/{name}.txt"
    blocks = space.read_grid(grid)
    made = configs.make_configs(str(base), str(grid), space.all_points(blocks), None)
    assert len(made) == sum(map(space.size_of, blocks))


def test_blocks_do_not_leak(base: Path) -> None:
    folder = generate(base, "glem.alpha a [0.1,0.2]\n\n\nglem.beta b [0.3]\n \nseed s [3]\n")
    found = {file.stem: yaml.safe_load(file.read_text()) for file in folder.glob("*.yaml")}
    groups = {name: (config.get("glem"), config.get("seed")) for name, config in found.items()}
    assert groups == {
        "base-a=0.1": ({"alpha": 0.1, "share_lm_gold": True}, None),
        "base-a=0.2": ({"alpha": 0.2, "share_lm_gold": True}, None),
        "base-b=0.3": ({"beta": 0.3, "share_lm_gold": True}, None),
        "base-s=3": ({"share_lm_gold": True}, 3),
    }


def test_values_keep_what_file_names_cannot(tmp_path: Path) -> None:
    base = write(tmp_path, "my-base.v2.yaml", BASE)
    models = ["org/some-model v1.5", "a=b", "50%", "./~x", "-"]
    folder = tmp_path / "configs" / "my%2Dbase%2Ev2_grid_g"
    file = write(tmp_path, "g.txt", f"lm.model lm {models}  # with / and spaces\nlm.lr lr [1e-5, 0.01]\n")
    arguments = ["--config", str(base), "--grid", str(file), "--out_dir", str(tmp_path / "configs")]
    assert load_program("configs_gen").main(arguments) == 0
    assert where.configs_folder(str(tmp_path / "configs"), str(base), str(file)) == folder
    files = sorted(folder.glob("*.yaml"))
    assert len(files) == 10
    for file in files:
        config = yaml.safe_load(file.read_text())
        assert space.axes_of(file.stem) == {"lm": config["lm"]["model"], "lr": config["lm"]["lr"]}
        assert set(name_to_dict(file.stem)) == {"lm", "lr"}  # GraphGym's own reading
        load_config(cfg, file)
        assert cfg.lm.model == config["lm"]["model"]


def test_lists_as_values(base: Path) -> None:
    folder = generate(base, "dataset.tag_split split [[0.1,0.1,0.8],(0.2, 0.2, 0.6)]\n")
    assert [file.stem for file in sorted(folder.glob("*.yaml"))] == ["base-split=0.1,0.1,0.8", "base-split=0.2,0.2,0.6"]
    config = yaml.safe_load((folder / "base-split=0.2,0.2,0.6.yaml").read_text())
    assert config["dataset"]["tag_split"] == [0.2, 0.2, 0.6]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            "# c\n\nglem.alhpa a [0.1]\n",
            "g.txt, line 3 (glem.alhpa): unknown key 'glem.alhpa'; did you mean 'glem.alpha'",
        ),
        ("glem.beta b [0.1]\nglem.alpha a [0.1,'x']\n", "line 2 (glem.alpha): glem.alpha is 'x', expected a number"),
        ("glem.alpha a [0.1,2]\n", "line 1 (glem.alpha): glem.alpha is 2.0, expected 0 to 1"),
        ("train.mode m ['glem_gnn']\n", "line 1 (train.mode): glem.node_features is 'text'"),
        ("model.type t ['glem_sgae']\n", "line 1 (model.type): model.type is 'glem_sgae', expected one of: gnn"),
        ("optim.optimizer o ['adamm']\n", "optim.optimizer is 'adamm', expected one of: adam, sgd"),
        ("optim.scheduler s ['bogus']\n", "optim.scheduler is 'bogus', expected one of: none, step, cos"),
        (
            "gnn.stage_type s ['stak']\n",
            "line 1 (gnn.stage_type): gnn.stage_type is 'stak', expected one of: skipconcat",
        ),
        ("gnn.dim_inner d [None]\n", "line 1 (gnn.dim_inner): gnn.dim_inner is 'null', expected a whole number"),
        ("lm.epochs e [1.5]\n", "line 1 (lm.epochs): lm.epochs is '1.5', expected a whole number"),
        ("lm e [1]\n", "line 1 (lm): 'lm' is a group of keys, found the value 1"),
        ("seed.x e [1]\n", "line 1 (seed.x): seed is {'x': 1}, expected a whole number"),
        ("a.b.c e [1]\n", "line 1: key 'a.b.c', expected 'name' or 'group.name'"),
        ("glem.alpha a [{1}]\n", "line 1: value {1} is a set"),
        ("glem.alpha a [0.1]\nglem.alpha b [0.1]\n", "line 2: key 'glem.alpha' stands already in line 1"),
        ("glem.alpha a [0.1]\n\nglem.beta a [0.1]\n", "the blocks at lines 1 and 3 both make 'base-a=0.1'"),
    ],
)
def test_what_is_wrong_in_a_grid_is_said(
    grid: str, message: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(base, grid, capsys)
    assert message in error
    assert error.startswith("error: ")


def test_all_that_is_wrong_is_said_at_once(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(base, "glem.alpha a [0.5,2,3]\nlm.epochs e [1,2]\n\nlm.lr lr [-1]\n", capsys)
    assert error.count("line 1 (glem.alpha)") == 2
    assert error.count("line 4 (lm.lr)") == 1
    assert error.endswith("Nothing was written.\n")


def test_missing_files(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = load_program("configs_gen").main
    assert main(["--config", str(base), "--grid", str(tmp_path / "no.txt")]) == 1
    assert "--grid" in capsys.readouterr().err
    assert "--config" in refused(tmp_path / "no.yaml", "seed s [1]\n", capsys)
    with pytest.raises(SystemExit) as exit:
        main(["--grid", "x", "--sample_num", "0"])
    assert exit.value.code == 2


SPACE = "glem.alpha a [0.1,0.2,0.3,0.4,0.5]\nglem.beta b [0.1,0.2,0.3,0.4]\n\nseed s [1,2,3,4,5]\n"


def test_random_samples_are_seeded_and_without_replacement(base: Path) -> None:
    def names(*flags: object) -> set[str]:
        return {file.stem for file in generate(base, SPACE, *flags).glob("*.yaml")}

    everything = names()
    assert len(everything) == 25
    one, again, other = names("--sample_num", 7), names("--sample_num", 7), names("--sample_num", 7, "--seed", 1)
    assert one == again != other
    assert len(one) == len(other) == 7
    assert one | other < everything
    assert len(names("--sample")) == 10
    assert names("--sample_num", 99) == everything


def test_a_sample_comes_evenly_from_all_blocks(tmp_path: Path) -> None:
    blocks = space.read_grid(write(tmp_path, "g.txt", SPACE))
    drawn = [point for seed in range(400) for point in space.random_points(blocks, 5, seed)]
    share = sum(point.block == blocks[1] for point in drawn) / len(drawn)
    assert share == pytest.approx(0.2, abs=0.03)


def test_a_controlled_sample_varies_one_axis(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aliases = write(base.parent, "aliases.txt", "b a\n")
    folder = generate(base, SPACE, "--sample", "--sample_alias", aliases, "--sample_num", 2)
    found = [space.axes_of(file.stem) for file in folder.glob("*.yaml")]
    assert len(found) == 2 * 4 + 2 * 5
    for varied, fixed, size in (("b", "a", 4), ("a", "b", 5)):
        of_alias = [axes for axes in found if axes["sample"] == varied]
        groups = [[axes[varied] for axes in of_alias if axes[fixed] == value] for value in {a[fixed] for a in of_alias}]
        assert [len(set(group)) for group in groups] == [size, size]
    write(base.parent, "aliases.txt", "c\n")
    (base.parent / "configs").rename(base.parent / "old")
    message = refused(base, SPACE, capsys, "--sample_alias", aliases)
    assert "alias 'c' is not in the grid; known there: a, b, s" in message


@pytest.mark.parametrize(("upper", "relation"), [(True, 1), (False, -1)])
def test_a_budget_fits_the_width(upper: bool, relation: int, tmp_path: Path) -> None:
    text = BASE + f"gnn: {{dim_inner: 64, layers_mp: 2}}\nmodel: {{type: glem_sage, match_upper: {upper}}}\n"
    base = write(tmp_path, "base.yaml", text.replace("model: {type: glem_sage}\n", ""))
    folder = generate(base, "gnn.layers_mp l [2,3]\nmodel.type t ['glem_sage','gnn']\n", "--config_budget", base)
    budget = configs.parameters_of(str(base))
    widths = {}
    for file in folder.glob("*.yaml"):
        width = widths[file.stem] = yaml.safe_load(file.read_text())["gnn"]["dim_inner"]
        load_config(cfg, file)
        assert cfg.gnn.dim_inner == width
        found, beyond = configs._parameters(width), configs._parameters(width - relation)
        assert found == budget or relation * (found - budget) > 0 > relation * (beyond - budget)
    assert widths["base-l=2-t=glem_sage"] == 64


def test_made_again_finished_configurations_stay_finished(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = generate(base, "glem.alpha a [0.1,0.2,0.3]\n")
    (folder / "base-a=0.1.yaml").rename(folder / "base-a=0.1.yaml_done")
    write(folder, "mine.yaml", BASE)
    assert generate(base, "glem.alpha a [0.1,0.2,0.4]\n") == folder
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["base-a=0.1.yaml_done", "base-a=0.2.yaml", "base-a=0.4.yaml", "mine.yaml"]
    out = capsys.readouterr().out
    assert "1 of them are finished already" in out
    assert "1 waiting configurations of an earlier grid or base were removed" in out
    assert "left alone, and run with the others: mine.yaml" in out
    # Other settings under the same name are another experiment.
    write(base.parent, "base.yaml", BASE + "seed: 5\n")
    generate(base, "glem.alpha a [0.1]\n")
    assert (folder / "base-a=0.1.yaml").exists()
    # The finished one's settings again: what waits beside it is of the other base, and must not run.
    write(base.parent, "base.yaml", BASE)
    generate(base, "glem.alpha a [0.1]\n")
    assert sorted(file.name for file in folder.iterdir()) == ["base-a=0.1.yaml_done", "mine.yaml"]
    assert "1 waiting configurations of an earlier grid or base were removed" in capsys.readouterr().out


def test_the_lm_fine_tuned_on_gold_is_shared_where_nobody_says_otherwise(base: Path) -> None:
    modes = ["standard", "glem", "glem_lm", "glem_cascade", "glem_joint"]
    grid = f"train.mode m {modes}\nglem.node_features f ['text+static']\ngnn.fan_out n [[5,5]]\n"
    grid += "\ntrain.mode m ['glem_gnn']\nglem.node_features f ['static']\n"
    write(base.parent, "base.yaml", BASE + "optim: {optimizer: adamw, scheduler: none}\n")
    folder = generate(base, grid + "\ntrain.mode m ['glem']\nglem.share_lm_gold s [False]\n")
    groups = {file.stem: yaml.safe_load(file.read_text())["glem"] for file in folder.glob("*.yaml")}
    shared = {name: group.get("share_lm_gold") for name, group in groups.items()}
    assert shared == {
        "base-m=standard-f=text+static-n=5,5": None,
        "base-m=glem-f=text+static-n=5,5": True,
        "base-m=glem_lm-f=text+static-n=5,5": True,
        "base-m=glem_cascade-f=text+static-n=5,5": True,
        "base-m=glem_joint-f=text+static-n=5,5": None,
        "base-m=glem_gnn-f=static": None,
        "base-m=glem-s=False": False,
    }
    write(base.parent, "base.yaml", BASE + "glem: {share_lm_gold: False}\n")
    (file,) = generate(base, "glem.alpha a [0.5]\n").glob("*.yaml")
    assert yaml.safe_load(file.read_text())["glem"] == {"share_lm_gold": False, "alpha": 0.5}


@pytest.mark.parametrize("grid", ["glem.alpha a [0.5]\n", "seed a [7]\n"])
def test_runs_that_did_not_share_the_lm_stay_finished(
    grid: str, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = generate(base, grid)
    (file,) = folder.glob("*.yaml")
    load_config(cfg, file)
    settings = decisive_settings(cfg)
    old = file.read_text().replace("  share_lm_gold: true\n", "").replace("glem:\nm", "m")
    assert "share" not in old
    file.unlink()
    done = write(folder, f"{file.name}_done", old)
    load_config(cfg, done)
    assert decisive_settings(cfg) == settings
    generate(base, grid)
    assert [file.name for file in folder.iterdir()] == [done.name]
    assert done.read_text() == old
    assert "1 of them are finished already" in capsys.readouterr().out
    write(folder, done.name, old.replace("synthetic", "table"))
    generate(base, grid)
    assert file.exists()


# ---- jobs ---------------------------------------------------------------------------------------------------------

STAND_IN = """
import argparse, json, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--cfg"); parser.add_argument("--repeat"); parser.add_argument("--mark_done", action="store_true")
parser.add_argument("rest", nargs="*")
args = parser.parse_args()
file = pathlib.Path(args.cfg)
begun = time.time()
gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
print("runs", file.stem, flush=True)
if "sleep" in file.stem:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(1)
time.sleep(0.3)
if "fail" in file.stem:
    print("error: cannot read the data\\nbye\\r\\n", file=sys.stderr)
    sys.exit(1)
if "raise" in file.stem:
    raise RuntimeError("first line\\nlast line")
if "kill" in file.stem:
    os.kill(os.getpid(), signal.SIGKILL)
with open("ran.txt", "a") as stream:
    job = {"name": file.stem, "gpu": gpu, "begun": begun, "ended": time.time(), "repeat": args.repeat}
    stream.write(json.dumps(job) + "\\n")
file.rename(f"{file}_done")
"""


class Folder:
    """A folder of configurations in an empty folder, run by parallel.sh with a stand-in for main.py."""

    def __init__(self, root: Path, *names: str, launcher: str = "local") -> None:
        self.root, self.configs, self.launcher = root, root / "my configs", launcher
        self.configs.mkdir()
        write(root, "stand_in.py", STAND_IN)
        for name in names:
            write(self.configs, f"{name}.yaml", "out_dir: results/grid\nnum_threads: 3\n")

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        given = [*map(str, arguments), *("2", "2", "0", "stand_in")[len(arguments) :]]  # repeat, jobs, sleep, main
        given += ["--launcher", self.launcher]
        return subprocess.Popen(
            ["bash", str(RUN / "parallel.sh"), str(self.configs.relative_to(self.root)), *given],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
            env={**os.environ, "PYTHON": sys.executable, "GPUS": "none", **environment},
        )

    def run(self, *arguments: object, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out + err

    def ran(self) -> dict[str, dict[str, Any]]:
        """What every job that went well noted of itself, by name."""
        file = self.root / "ran.txt"
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        assert len({job["name"] for job in found}) == len(found)
        return {job.pop("name"): job for job in found}

    def wait_for(self, name: str) -> None:
        deadline = time.monotonic() + 30
        log = self.root / "results/grid/logs" / f"{name}.log"
        while not log.exists() or "runs" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture(params=["local", "submitit"])
def launcher(request: pytest.FixtureRequest) -> str:
    if request.param == "submitit":
        pytest.importorskip("submitit", reason="the extra 'slurm' is missing")
    return request.param


def test_failed_jobs_are_reported_and_run_again(tmp_path: Path, launcher: str) -> None:
    folder = Folder(tmp_path, "good", "fail", "raise", "kill", "a b=%2F", launcher=launcher)
    status, out = folder.run(3)
    assert status == 1, out
    assert "Progress of the jobs: results/grid/logs/<job>.log\n" in out
    assert sorted(file.name for file in folder.configs.glob("*.yaml_done")) == ["a b=%2F.yaml_done", "good.yaml_done"]
    before = folder.ran()
    assert {name: job["repeat"] for name, job in before.items()} == {"good": "3", "a b=%2F": "3"}
    lines = out[out.index("2 of 5 jobs finished; 3 failed") :].splitlines()
    assert sorted(" ".join(line.split()) for line in lines[3:6]) == [
        "fail 1 error: cannot read the data",
        "kill SIGKILL (out of memory?) runs kill",
        "raise 1 last line",
    ]
    assert lines[-1] == "Whole logs: results/grid/logs/<job>.log"
    assert "bye" in (tmp_path / "results/grid/logs/fail.log").read_text()

    (folder.configs / "kill.yaml").unlink()
    (folder.configs / "raise.yaml").unlink()
    write(folder.root, "stand_in.py", STAND_IN.replace('if "fail"', 'if "no"'))
    status, out = folder.run(3)
    assert status == 0, out
    assert "3 of 3 jobs finished, 2 of them before; 0 failed" in out
    after = folder.ran()
    assert after.pop("fail")
    assert after == before
    status, out = folder.run(3)
    assert status == 0
    assert "3 of 3 jobs finished, 3 of them before" in out
    assert folder.ran().keys() == {*after, "fail"}


SLURM = {
    "sbatch": """
number=$(ls slurm | wc -l)
grep -q partition=none "${@: -1}" && { echo "invalid partition" >&2; exit 1; }
cp "${@: -1}" "slurm/$number.sh"
export SLURM_JOB_ID=$number SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
export SLURM_JOB_NODELIST=here SLURM_STEP_NUM_TASKS=1
([ -e lost ] || bash "slurm/$number.sh") >/dev/null 2>&1 &
echo "Submitted batch job $number"
""",
    "srun": 'while [ "$1" != --error ]; do shift; done; shift 2; exec "$@"',
    "sacct": 'echo "JobID|State|NodeList"; for file in slurm/*; do echo "$(basename "$file" .sh)|TIMEOUT|here"; done',
}


@pytest.mark.slow
def test_jobs_are_submitted_to_slurm(tmp_path: Path) -> None:
    pytest.importorskip("submitit", reason="the extra 'slurm' is missing")
    folder = Folder(tmp_path, "good", "fail", launcher="submitit")
    for name in ("slurm", "bin"):
        (tmp_path / name).mkdir()
    for name, text in SLURM.items():
        write(tmp_path / "bin", name, f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    submit = ("3", "2", "0", "stand_in", "--submit", "slurm_partition=long", "--submit", "mem_gb=7")
    status, out = folder.run(*submit, **environment)
    assert (status, folder.ran()["good"]["repeat"]) == (1, "3"), out
    assert "1 of 2 jobs finished; 1 failed" in out and "error: cannot read the data" in out
    script = (tmp_path / "slurm/0.sh").read_text()
    assert all(f"#SBATCH --{option}\n" in script for option in ("partition=long", "mem=7GB", "time=1440"))
    write(tmp_path, "lost", "")
    status, out = folder.run(*submit, **environment)
    assert re.search(r"\nfail +TIMEOUT +", out), out
    for option, wrong in (("gpus=2", "error: --submit: .*gpus"), ("slurm_partition=none", "submitted: .*partition")):
        status, out = folder.run("3", "2", "0", "stand_in", "--submit", option, **environment)
        assert status == 1 and re.search(wrong, out) and "Traceback" not in out, out


@pytest.mark.parametrize("at_once", [1, 3])
def test_so_many_jobs_at_a_time(at_once: int, tmp_path: Path) -> None:
    folder = Folder(tmp_path, *"abcde")
    assert folder.run(1, at_once)[0] == 0
    spans = [(job["begun"], job["ended"]) for job in folder.ran().values()]
    assert len(spans) == 5
    assert max(sum(begun <= time < ended for begun, ended in spans) for time, _ in spans) == at_once


def test_each_job_gets_a_gpu(tmp_path: Path) -> None:
    folder = Folder(tmp_path, *"abcdef")
    status, out = folder.run(1, 4, GPUS="2,5")
    assert status == 0, out
    ran = list(folder.ran().values())
    for gpu in ("2", "5"):
        spans = [(job["begun"], job["ended"]) for job in ran if job["gpu"] == gpu]
        assert len(spans) >= 2
        assert max(sum(begun <= time < ended for begun, ended in spans) for time, _ in spans) == 2


def arguments(*given: str) -> jobs.argparse.Namespace:
    return jobs.parse_args(["configs", "1", *given])


def test_gpus_and_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    monkeypatch.setattr(jobs.shutil, "which", lambda name: None)
    hidden = ({}, {"GPUS": "none", "CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": ""})
    assert [jobs.find_gpus(environment) for environment in hidden] == [()] * 3
    assert jobs.find_gpus({"GPUS": "0, 3"}) == ("0", "3")
    assert jobs.find_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"}) == ("GPU-1", "GPU-2")
    plan = jobs.make_plan(arguments("3"), 10, {})
    assert (plan.at_once, plan.threads, plan.main) == (3, 2, RUN / "main.py")
    assert jobs.make_plan(arguments("3"), 2, {}).threads == 4
    assert jobs.make_plan(arguments("3"), 1, {}).threads == 0
    assert jobs.make_plan(arguments("3"), 9, {"OMP_NUM_THREADS": "1"}).threads == 1
    assert jobs.make_plan(arguments("9"), 9, {"GPUS": "0,1", "JOBS_PER_GPU": "2"}).at_once == 4
    with pytest.raises(jobs.JobError, match="JOBS_PER_GPU is 'x'"):
        jobs.make_plan(arguments(), 9, {"JOBS_PER_GPU": "x"})
    with pytest.raises(jobs.JobError, match=r"MAIN mian: no file mian\.py"):
        jobs.make_plan(arguments("1", "0", "mian"), 9, {})
    job = jobs.Job(Path("c/x.yaml"), Path("log"), 1)
    assert jobs.command_of(job, plan)[1:] == ["--cfg", "c/x.yaml", "--repeat", "1", "--mark_done", "num_threads", "1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_stops_its_jobs(number: signal.Signals, tmp_path: Path, launcher: str) -> None:
    folder = Folder(tmp_path, "sleep1", "sleep2", "sleep3", launcher=launcher)
    process = folder.start()
    folder.wait_for("sleep1")
    folder.wait_for("sleep2")
    children = children_of(process.pid)
    assert len(children) == 2
    for child in children:  # those of submitit have children of their own, which are the jobs in the end
        children += children_of(int(child))
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "type the same command again to resume" in err
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert not (tmp_path / "results/grid/logs/sleep3.log").exists()


def test_stopped_between_a_jobs_end_and_its_record_it_ends_in_order(tmp_path: Path) -> None:
    plan = jobs.Plan(jobs.OWN_MAIN, 1, 1)
    queue = jobs.Queue([], plan, 1)
    ended = subprocess.Popen(["true"], start_new_session=True)
    ended.wait()
    queue.running[ended.pid] = jobs.Running(jobs.Job(tmp_path / "x.yaml", tmp_path / "log", 1), None, 0.0, 0)
    queue._stop()  # raises nothing, so that the interrupt is told


def test_killed_it_leaves_no_job_behind(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "sleep1")
    process = folder.start()
    folder.wait_for("sleep1")
    (child,) = children_of(process.pid)
    process.kill()
    process.communicate(timeout=30)
    deadline = time.monotonic() + 10
    while is_alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def children_of(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def test_two_queues_do_not_run_the_same_jobs(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    refused = pytest.raises(jobs.JobError, match="its jobs are being run already")
    with jobs.alone_with(folder), refused, jobs.alone_with(folder, patience=0):
        pass
    with jobs.alone_with(folder, patience=0):
        pass


@pytest.fixture
def done_with_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of finished configurations whose first seed is 4, with none, two or three seeds, or a foreign one."""
    monkeypatch.chdir(tmp_path)
    for name in ("none", "some", "all", "foreign"):
        write(tmp_path, f"{name}.yaml_done", "out_dir: results/g\nseed: 4\n")
    for name, seeds in (("some", (4, 5)), ("all", (4, 5, 6))):
        for seed in seeds:
            run = tmp_path / f"results/g/{name}/{seed}"
            run.mkdir(parents=True)
            write(run, "run.json", json.dumps({"finished": True}))
    write_seed(tmp_path / "results/g/foreign", 4, [0.5])
    return tmp_path


@pytest.mark.parametrize(
    ("repeat", "own", "waiting"),
    [(2, False, []), (3, False, ["some"]), (2, True, ["none"]), (3, True, ["none", "some"])],
)
def test_finished_configurations_that_lack_seeds_wait_again(
    repeat: int, own: bool, waiting: list[str], done_with_seeds: Path
) -> None:
    """With none at all, too (results were deleted), unless another program runs them, or did."""
    found, done = jobs.find_jobs(done_with_seeds, repeat, own)
    assert [job.name for job in found] == waiting
    assert done == 4 - len(waiting)
    assert [job.log for job in found] == [Path(f"results/g/logs/{name}.log") for name in waiting]


@pytest.mark.parametrize(("main", "waiting"), [((), ["none", "some"]), (("--main", "other.py"), ["some"])])
def test_an_array_has_the_seeds_that_finished_configurations_lack(
    main: tuple[str, ...], waiting: list[str], done_with_seeds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert load_program("slurm_gen").main(["--dir", ".", "--repeat", "3", *main]) == 0
    script = capsys.readouterr().out
    assert [line.strip() for line in script.splitlines() if line.endswith(".yaml")] == [
        f"{name}.yaml" for name in waiting
    ]
    assert f"--array=0-{3 * len(waiting) - 1}\n" in script


def test_where_main_asks_for_overwrite_the_report_says_which_results_to_delete(tmp_path: Path) -> None:
    for name in ("a job", "other"):
        write(tmp_path, f"{name}.yaml", "out_dir: results/g\n")
    found, _ = jobs.find_jobs(tmp_path, 1, True)
    queue = jobs.Queue(found, jobs.make_plan(arguments(), 2, {}), 2)
    refusal = "error: results/g/a job/0 holds another run; choose another out_dir, or start it anew with --overwrite"
    for job, line in zip(found, (refusal, "error: no data"), strict=True):
        queue.failures.append(jobs.Failure(job, "1", line))
    lines = jobs.report(queue, 0).splitlines()
    assert lines[-3].startswith("Whole logs: ")
    assert "There is no --overwrite here: change out_dir in the base, or delete these results" in lines[-2]
    assert lines[-1] == "rm -r 'results/g/a job'"


def test_a_wrong_folder_or_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert jobs.main([str(tmp_path / "no"), "1"]) == 1
    assert "no: no such folder" in capsys.readouterr().err
    assert jobs.main([str(tmp_path), "1"]) == 1
    assert "no configuration in it" in capsys.readouterr().err
    for given in (["1", "0"], ["0"], ["1", "1", "nan"], []):
        with pytest.raises(SystemExit) as exit:
            jobs.parse_args([str(tmp_path), *given])
        assert exit.value.code == 2


def test_the_last_line_of_an_error(tmp_path: Path) -> None:
    old = "error: of an earlier attempt\n"
    log = write(tmp_path, "log", old + "==== command\n10%\r20%\nSomething\n  \n")
    assert jobs.last_line(log, len(old)) == "Something"
    assert jobs.last_line(log, log.stat().st_size) == "no output"
    assert jobs.last_line(tmp_path / "no") == "no log"


# ---- tables -------------------------------------------------------------------------------------------------------


def write_seed(experiment: Path, seed: int, accuracy: list[float], test: list[float] | None = None) -> None:
    for split, values in (("train", accuracy), ("val", accuracy), ("test", test or accuracy)):
        folder = experiment / str(seed) / split
        folder.mkdir(parents=True)
        rows = [
            {"epoch": epoch, "accuracy": value, "loss": 1 - value, "lr": 0.1, "params": 9, "eta": 1.0}
            for epoch, value in enumerate(values)
        ]
        (folder / "stats.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tables_of_uneven_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    write_seed(results / "b-a=10-s=x%2Fy", 0, [0.1, 0.5, 0.3], [0.9, 0.4, 0.8])
    write_seed(results / "b-a=10-s=x%2Fy", 1, [0.1, 0.3], [0.9, 0.2])  # stopped earlier
    write_seed(results / "b-a=9-s=1e-05", 0, [0.2, 0.1], [0.7, 0.6])
    write_seed(results / "b-loss=ce", 0, [0.3], [0.5])
    (results / "logs").mkdir()
    (results / "stray-thing=1").mkdir()
    (results / "b-a=7" / "0").mkdir(parents=True)  # begun, no more
    write(results, "notes-a=3.txt", "x")
    assert load_program("agg_batch").main(["--dir", str(results)]) == 0
    out = capsys.readouterr().out
    for note in ("stray-thing=1: skipped, not", "b-a=7: skipped, without results"):
        assert note in out
    assert "notes-a=3.txt" not in out  # files, as the leaderboard leaves them, are no experiments that went wrong
    assert "b-a=9-s=1e-05: only the seeds 0, where others have 0, 1" in out

    best = pd.read_csv(results / "agg" / "test_best.csv")
    assert " ".join(best.columns) == "a s loss_axis epoch accuracy accuracy_std loss loss_std params"
    assert best["a"].fillna(0).tolist() == [0, 9, 10]
    assert best["s"].tolist()[1:] == ["1e-05", "x/y"]
    # At each seed's epoch of best validation, not of best test.
    assert best["accuracy"].tolist() == [0.5, 0.7, 0.3]
    assert best["accuracy_std"].tolist() == [0.0, 0.0, 0.1]
    assert pd.read_csv(results / "agg" / "val_best.csv")["accuracy"].tolist() == [0.3, 0.2, 0.4]
    assert pd.read_csv(results / "agg" / "test.csv")["accuracy"].tolist() == [0.5, 0.6, 0.8]
    assert pd.read_csv(results / "agg" / "test_bestepoch.csv")["accuracy"].tolist() == [0.5, 0.7, 0.3]
    assert pd.read_csv(results / "agg" / "val_bestepoch.csv")["epoch"].tolist() == [0, 0, 1]

    write(results / "b-loss=ce", "config.yaml", "metric_best: loss\nmetric_agg: argmin\n")
    tables.aggregate_grid(results)
    assert pd.read_csv(results / "agg" / "test_best.csv")["accuracy"].tolist() == [0.5, 0.7, 0.3]
    assert "no value of metric 'f1'" in "".join(refusal(results, "f1"))


def refusal(folder: Path, metric: str) -> str:
    with pytest.raises(ValueError) as caught:
        tables.aggregate_grid(folder, metric)
    return str(caught.value)


def test_tables_have_the_seeds_that_finished_since(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which a later seed fails leaves the aggregate of the seeds before."""
    write_seed(tmp_path / "b-a=1", 0, [0.1, 0.5])
    assert tables.aggregate_grid(tmp_path) == []
    write_seed(tmp_path / "b-a=1", 1, [0.1, 0.3])
    write_seed(tmp_path / "b-a=1", 2, [0.7])
    write(tmp_path / "b-a=1/2", "run.json", "{}")
    (tmp_path / "b-a=1" / "3").mkdir()
    write(tmp_path / "b-a=1", "config.yaml", "tensorboard_agg: true\n")
    assert load_program("agg_batch").main(["--dir", str(tmp_path)]) == 0
    assert "b-a=1: not finished, counted as far as they are: seeds 2" in capsys.readouterr().out
    row = pd.read_csv(tmp_path / "agg" / "val_best.csv").iloc[0]
    assert (row["accuracy"], row["accuracy_std"]) == (0.5, 0.1633)
    assert json.loads((tmp_path / "b-a=1/agg/val/best.json").read_text())["accuracy"] == 0.5
    assert list((tmp_path / "b-a=1/agg/val").glob("events.out.tfevents.*"))


def test_tables_lack_no_experiment_for_a_full_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    write_seed(tmp_path / "b-a=1", 0, [0.1, 0.5])
    write_seed(tmp_path / "b-a=2", 0, [0.1, 0.5])
    write = aggregate._write_lines

    def write_some(file: Path, rows: Any) -> None:
        if "b-a=2" in str(file):
            raise DiskFullError(f"{file}: the disk is full")
        write(file, rows)

    monkeypatch.setattr(aggregate, "_write_lines", write_some)
    assert load_program("agg_batch").main(["--dir", str(tmp_path)]) == 1
    assert "stats.json: the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "agg").exists()


def test_tables_of_experiments_without_axes(tmp_path: Path) -> None:
    for name in ("glem_debian", "lm_debian", "b-a=1", "c-a=1"):
        write_seed(tmp_path / name, 0, [0.1])
    assert tables.aggregate_grid(tmp_path) == []
    frame = pd.read_csv(tmp_path / "agg" / "val_best.csv")
    assert list(frame.columns[:2]) == ["run", "a"]
    assert frame["run"].tolist() == ["b-a=1", "c-a=1", "glem_debian", "lm_debian"]


# ---- Slurm --------------------------------------------------------------------------------------------------------


def test_every_task_of_the_array_runs_its_configuration_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my configs"
    folder.mkdir()
    names = ["a=$(touch owned).yaml", "b='x'.yaml", 'c=%2F "y".yaml']
    for seed, name in zip((0, 7, 0), names, strict=True):
        write(folder, name, f"out_dir: results/g%2F\nseed: {seed}\n")
    program = write(tmp_path, "show.py", "import sys\nprint('|'.join(sys.argv[1:]))\n")
    flags = ["--partition", "long", "--time", "4:00:00", "--gpus", "1", "--mem", "8G", "--max_jobs", "5"]
    flags += ["--sbatch", "account=a b", "--python", sys.executable, "--main", str(program), "--out", "grid.sbatch"]
    assert load_program("slurm_gen").main(["--dir", "my configs", "--repeat", "2", *flags]) == 0
    assert (tmp_path / "results/g%2F/logs").is_dir()
    script = (tmp_path / "grid.sbatch").read_text()
    lines = ['--job-name="my configs"', "--array=0-5%5", "--output=results/g%%2F/logs/slurm-%A_%a.log"]
    for line in (*lines, "--partition=long", "--gpus-per-task=1", '--account="a b"'):
        assert f"#SBATCH {line}\n" in script
    seen = []
    for task in range(6):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_SUBMIT_DIR": str(tmp_path)}
        ended = subprocess.run(["bash", "grid.sbatch"], env=environment, capture_output=True, text=True, check=True)
        seen.append(ended.stdout.splitlines()[-1])
    assert seen == [
        f"--cfg|my configs/{name}|--repeat|1|seed|{seed}"
        for name, seeds in zip(names, ((0, 1), (7, 8), (0, 1)), strict=True)
        for seed in seeds
    ]
    assert not (tmp_path / "owned").exists()
    assert load_program("slurm_gen").main(["--dir", "nowhere"]) == 1
    assert "expected configurations (*.yaml), found none" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        load_program("slurm_gen").main(["--dir", "x", "--time", "1\n#SBATCH --oops"])


# ---- the shell scripts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["parallel.sh", "run_batch.sh"])
def test_the_scripts_explain_themselves(script: str) -> None:
    ended = subprocess.run(["bash", str(RUN / script), "--help"], capture_output=True, text=True, check=True)
    assert "MAX_JOBS" in ended.stdout.upper()
    wrong = subprocess.run(["bash", str(RUN / script), "only"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr


def test_config_and_grid_are_names_of_ours_or_paths(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 1\n')
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "CONFIG": "words.yaml", "GRID": "debian"}
    command = ["bash", str(RUN / "run_batch.sh")]
    ended = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    expected = ["--config", "words.yaml", "--grid", str(ROOT / "configs_gg/grids/debian.txt")]
    assert ended.stdout.splitlines()[1:5] == expected
