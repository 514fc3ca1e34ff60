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
import json
import sys
from collections.abc import Callable, Iterable
from functools import partial

from command_line import before_imports, path, run_program

before_imports()

import torch
from benchmarks import adapters, cost, gnn, lm, measure, scale
from benchmarks.measure import Row, describe_machine
from joblib import cpu_count
from rich.console import Console
from rich.table import Table

from glem_graphgym.memory import keep_freed_memory

PARTS: dict[str, Callable[[int, str], Iterable[Row]]] = {
    "machine": measure.machine,
    "tokenising": lm.tokenising,
    "e_step": lm.e_step,
    "inference": lm.inference,
    "peer": lm.peer,
    "attention": lm.attention,
    "deberta": lm.deberta,
    "m_step": gnn.m_step,
    "propagation": gnn.propagation,
    "smoothing": gnn.smoothing,
    "sampled": gnn.sampled,
    "startup": measure.startup,
    "cost": cost.cost,
    "adapters": adapters.adapters,
    "scale": scale.scale,
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
    sizes = ", ".join(f"{size:,}" for size in scale.SIZES)
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=scale.SIZES, help=f"scale: sizes of the graphs (default: {sizes})"
    )
    parser.add_argument("--folder", type=path, help="scale: folder for its files (default: the system's temporary one)")
    parser.add_argument("--json", type=path, help="file to which the rows are written too")
    args = parser.parse_args(argv)
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}; expected some of: {', '.join(PARTS)}")
    if args.accelerator == "auto":
        args.accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if args.accelerator == "cuda" and not torch.cuda.is_available():
        parser.error("--accelerator is cuda, but torch sees no GPU; expected cpu")
    if args.memory_gb <= 0:
        parser.error(f"--memory_gb is {args.memory_gb:g}, expected more than 0")
    return args


def main() -> int:
    args = parse_args()
    chosen_parts = args.parts or [part for part in PARTS if part not in WHEN_NAMED]
    run: dict[str, Callable[[int, str], Iterable[Row]]] = {
        **PARTS,
        "cost": partial(cost.cost, memory_gb=args.memory_gb),
        "scale": partial(scale.scale, sizes=args.nodes, folder=args.folder),
    }
    if args.peer and "peer" not in chosen_parts:
        chosen_parts.append("peer")
    keep_freed_memory()
    torch.set_num_threads(cpu_count())
    rows: list[Row] = []
    for part in chosen_parts:
        for row in run[part](args.repeats, args.accelerator):
            rows.append(row)
            print(f"{row.part}: {row.what}: {row.value:,.4g} {row.unit}", file=sys.stderr, flush=True)
    rows += ratios_to_peer(rows)
    show(rows, args.accelerator)
    if args.json:
        report = {"machine": describe_machine(args.accelerator), "rows": [row.as_json() for row in rows]}
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def ratios_to_peer(rows: list[Row]) -> list[Row]:
    """Our training and inference figures compared with the peer's better one, if both were measured."""
    ratio_rows = []
    for part, name in (("e_step", "training"), ("inference", "inference")):
        rivals = [row.value for row in rows if row.part == "peer" and f", {name}," in row.what]
        ratio_rows += [
            Row("against peer", row.what, row.value, row.unit, rival=max(rivals), rival_name=lm.PEER)
            for row in rows
            if row.part == part and rivals
        ]
    return ratio_rows


def show(rows: list[Row], device: str) -> None:
    table = Table(title=describe_machine(device))
    for name in ("part", "what"):
        table.add_column(name, overflow="fold")
    for name in ("median", "lowest", "highest", "unit", "bound", "share", "rival", "times", "rival is"):
        table.add_column(name, justify="left" if name in ("unit", "rival is") else "right")
    for row in rows:
        share = "" if row.share is None else f"{100 * row.share:.0f}%"
        times = "" if row.times is None else f"{row.times:.1f}x"
        numbers = [
            f"{number:,.4g}" if number is not None else ""
            for number in (row.value, row.low, row.high, row.bound, row.rival)
        ]
        median, low, high, bound, rival = numbers
        table.add_row(row.part, row.what, median, low, high, row.unit, bound, share, rival, times, row.rival_name)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(run_program(main))
