"""Measure speed: ``python run/benchmark.py [part ...]`` prints a table, and with --json FILE writes JSON too.

Every figure is the median of several repetitions after a warm-up, with fixed seeds; rivals take turns with our code in
the same process, on the same device. "bound" is the device's limit, measured in the same run by a large matrix product
and a large copy; "share" is the share of it that is reached. The parts ``peer`` (PyG's own GLEM), ``deberta`` (its
attention), ``cost`` (the LM alone, joint training and GLEM compared), ``smoothing`` (Correct & Smooth against PyG's),
``adapters`` (memory and files of LoRA) and ``scale`` (out-of-core runs on graphs of up to 5 million nodes, each once)
take minutes to an hour and run only when named, ``peer`` also with --peer.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from command_line import path, run_program
from session import run_to_status

if TYPE_CHECKING:
    from benchmarks.measure import Row

# Part -> module of benchmarks/ with the function of that name.
PARTS = {
    "machine": "measure",
    **dict.fromkeys(("tokenising", "e_step", "inference", "peer", "attention", "deberta"), "lm"),
    **dict.fromkeys(("m_step", "propagation", "smoothing", "sampled"), "gnn"),
    "startup": "measure",
    "cost": "cost",
    "adapters": "adapters",
    "scale": "scale",
}
WHEN_NAMED = ("peer", "deberta", "cost", "smoothing", "adapters", "scale")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named_only = " and ".join([", ".join(WHEN_NAMED[:-1]), WHEN_NAMED[-1]])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all but {named_only})")
    parser.add_argument("--peer", action="store_true", help="measure PyG's own GLEM too, if it can be imported")
    parser.add_argument("--accelerator", choices=("auto", "cpu", "cuda"), default="auto", help="device (default: auto)")
    parser.add_argument("--repeats", type=int, default=7, help="counted repetitions per figure (default: 7)")
    parser.add_argument("--memory_gb", type=float, default=4.0, help="cost: memory for the largest batch (default: 4)")
    parser.add_argument("--nodes", type=int, nargs="+", help="scale: sizes of the graphs (default: four)")
    parser.add_argument("--folder", type=path, help="scale: folder for its files (default: the system's temporary one)")
    parser.add_argument("--json", type=path, help="file to which the rows are written too")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}; expected some of: {', '.join(PARTS)}")
    if args.repeats < 1:
        parser.error(f"--repeats is {args.repeats}, expected at least 1")
    if not 0 < args.memory_gb < float("inf"):
        parser.error(f"--memory_gb is {args.memory_gb:g}, expected a number above 0")
    if args.nodes and min(args.nodes) < 1000:
        parser.error(f"--nodes is {min(args.nodes)}, expected at least 1,000")
    return args


def main(argv: list[str] | None = None) -> int:
    return run_to_status(benchmark, parse_args(argv))


def benchmark(args: argparse.Namespace) -> int:
    """Measure the chosen parts, and print and write their rows; returns the exit status."""
    import torch
    from benchmarks.measure import describe_machine
    from joblib import cpu_count

    from glem_graphgym.files import write_json
    from glem_graphgym.memory import keep_freed_memory

    device = device_of(args.accelerator)
    chosen_parts = args.parts or [part for part in PARTS if part not in WHEN_NAMED]
    if args.peer and "peer" not in chosen_parts:
        chosen_parts.append("peer")
    options: dict[str, dict[str, Any]] = {"cost": {"memory_gb": args.memory_gb}, "scale": {"folder": args.folder}}
    if args.nodes:
        options["scale"]["sizes"] = args.nodes
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    torch.set_num_threads(cpu_count())
    rows: list[Row] = []
    for part in chosen_parts:
        for row in function_of(part)(args.repeats, device, **options.get(part, {})):
            rows.append(replace(row, part=part))
            print(f"{part}: {row.what}: {row.value:,.4g} {row.unit}", file=sys.stderr, flush=True)
    rows += ratios_to_peer(rows)
    show(rows, device)
    if args.json:
        write_json(args.json, {"machine": describe_machine(device), "rows": [row.as_json() for row in rows]})
    return 0


def device_of(accelerator: str) -> str:
    """``cpu`` or ``cuda``; ValueError if that is asked for and torch sees no GPU."""
    import torch

    if accelerator == "cuda" and not torch.cuda.is_available():
        raise ValueError("--accelerator is cuda, but torch sees no GPU; expected cpu")
    return accelerator if accelerator != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def function_of(part: str) -> Callable[..., Iterable[Row]]:
    """The function that measures a part, of the number of repetitions and the device."""
    return getattr(importlib.import_module(f"benchmarks.{PARTS[part]}"), part)


def ratios_to_peer(rows: list[Row]) -> list[Row]:
    """Our training and inference figures compared with the peer's better one, if both were measured."""
    if not any(row.part == "peer" for row in rows):
        return []
    from benchmarks.lm import PEER
    from benchmarks.measure import Row

    ratio_rows = []
    for part, name in (("e_step", "training"), ("inference", "inference")):
        rivals = [row.value for row in rows if row.part == "peer" and f", {name}," in row.what]
        ratio_rows += [
            Row(row.what, row.value, row.unit, rival=max(rivals), rival_name=PEER, part="against peer")
            for row in rows
            if row.part == part and rivals
        ]
    return ratio_rows


def show(rows: list[Row], device: str) -> None:
    from benchmarks.measure import describe_machine
    from rich.console import Console

    from glem_graphgym.report.stats import new_table

    table = new_table(describe_machine(device), ["part", "what"], [])
    for name in ("median", "lowest", "highest", "unit", "bound", "share", "rival", "times", "rival is"):
        table.add_column(name, justify="left" if name in ("unit", "rival is") else "right")
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.0f}%"
        times = "" if row.times is None else f"{row.times:.1f}x"
        median, low, high, bound, rival = (
            "" if number is None else f"{number:,.4g}"
            for number in (row.value, row.low, row.high, row.bound, row.rival)
        )
        table.add_row(row.part, row.what, median, low, high, row.unit, bound, share, rival, times, row.rival_name)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
