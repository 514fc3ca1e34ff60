"""Write an sbatch array script for a folder of configurations, one task per configuration and seed.

``python run/slurm_gen.py --dir configs_gg/<grid> --repeat 3 --gpus 1 --time 4:00:00 --out grid.sbatch``, then
``sbatch grid.sbatch`` in the same folder; submitting it again resumes what was not finished.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from pathlib import Path

import yaml
from command_line import check_repeat, path, run_program
from grid.jobs import OWN_MAIN, reopen, written_out

OWN = "run/main.py"
HEAD = """\
#!/bin/bash
{directives}

# Task i runs configuration i / {seeds} with seed i % {seeds} after the first.
set -euo pipefail
cd "${{SLURM_SUBMIT_DIR:-.}}"

configs=(
{configs}
)
first_seeds=({first_seeds})

config=${{configs[SLURM_ARRAY_TASK_ID / {seeds}]}}
seed=$((first_seeds[SLURM_ARRAY_TASK_ID / {seeds}] + SLURM_ARRAY_TASK_ID % {seeds}))
echo "$config, seed $seed"
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
exec {python} {main} --cfg "$config" --repeat 1 seed "$seed"
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write an sbatch array script, one task per configuration and seed.")
    parser.add_argument("--dir", type=path, required=True, help="folder of configurations, from run/configs_gen.py")
    parser.add_argument("--repeat", type=int, default=1, help="seeds per configuration (default: 1)")
    parser.add_argument("--out", type=path, help="file to write (default: the terminal)")
    parser.add_argument("--max_jobs", type=int, default=0, help="most tasks at a time (default: no limit)")
    parser.add_argument("--partition", help="Slurm partition")
    parser.add_argument("--time", help="time limit per task, e.g. 4:00:00")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs per task (default: 0)")
    parser.add_argument("--cpus", type=int, default=4, help="CPU cores per task (default: 4)")
    parser.add_argument("--mem", help="memory per task, e.g. 32G")
    parser.add_argument("--name", help="job name (default: the folder's)")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="further option, e.g. account=x"
    )
    parser.add_argument("--python", default="python", help="Python on the cluster's nodes (default: python)")
    parser.add_argument("--main", default=OWN, help=f"program of a task (default: {OWN})")
    args = parser.parse_args(argv)
    check_repeat(parser, args.repeat)
    for name, low in (("max_jobs", 0), ("gpus", 0), ("cpus", 1)):
        if getattr(args, name) < low:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least {low}")
    for text in (args.partition, args.time, args.mem, args.name, *args.sbatch):
        if text is not None and not text.isprintable():
            parser.error(f"{text!r} has a line break or another control character in it")
    return args


def array_script(args: argparse.Namespace) -> tuple[str, Path]:
    """The script for all waiting configurations, and the folder of its logs.

    Finished configurations that lack seeds wait again, as for run/parallel.sh.

    Raises:
        ValueError: no configuration waits, or one cannot be read; names it.
    """
    reopen(args.dir, args.repeat, args.main == OWN or Path(args.main).resolve() == OWN_MAIN)
    files = sorted(args.dir.glob("*.yaml"))
    if not files:
        finished = len(list(args.dir.glob("*.yaml_done")))
        finding = f"{finished} finished ones" if finished else "none"
        raise ValueError(f"--dir {args.dir}: expected configurations (*.yaml), found {finding}; see run/configs_gen.py")
    settings = [read_settings(file) for file in files]
    logs = written_out(settings[0].get("out_dir", "results")) / "logs"
    script = HEAD.format(
        directives="\n".join(f"#SBATCH {line}" for line in directives(args, len(files), logs)),
        seeds=args.repeat,
        configs="\n".join(f"    {shlex.quote(str(file))}" for file in files),
        first_seeds=" ".join(str(config.get("seed", 0)) for config in settings),
        python=shlex.quote(args.python),
        main=shlex.quote(args.main),
    )
    return script, logs


def read_settings(file: Path) -> dict:
    try:
        settings = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader) or {}  # texts as typed
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict) or not str(settings.get("seed", 0)).isdecimal():
        raise ValueError(f"{file}: expected 'key: value' lines, and an integer for seed if there is one")
    return settings


def directives(args: argparse.Namespace, configs: int, logs: Path) -> list[str]:
    """Options for sbatch, quoted as sbatch expects; "%" in the name of a log is doubled."""
    array = f"0-{configs * args.repeat - 1}" + (f"%{args.max_jobs}" if args.max_jobs else "")
    options = {
        "job-name": args.name or args.dir.resolve().name,
        "array": array,
        "output": f"{logs}/".replace("%", "%%") + "slurm-%A_%a.log",
        "cpus-per-task": str(args.cpus),
        "gpus-per-task": str(args.gpus) if args.gpus else None,
        "ntasks": "1",
        "partition": args.partition,
        "time": args.time,
        "mem": args.mem,
    }
    lines = [f"--{name}={quoted(value)}" for name, value in options.items() if value is not None]
    for option in args.sbatch:
        name, equals, value = option.removeprefix("--").partition("=")
        lines.append(f"--{name}{equals}{quoted(value) if equals else ''}")
    return lines


def quoted(value: str) -> str:
    return value if re.fullmatch(r"[\w./:%,@+=-]+", value) else '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        script, logs = array_script(args)
        logs.mkdir(parents=True, exist_ok=True)  # Slurm silently drops a task if the folder of its log is missing
        if args.out is None:
            print(script, end="")
        else:
            args.out.write_text(script, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"logs: {logs}/slurm-<job>_<task>.log", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
