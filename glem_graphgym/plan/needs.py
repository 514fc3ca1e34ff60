"""Prints what a run needs: its stages, its files, and whether the machine has enough for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from glem_graphgym.disk import size_text
from glem_graphgym.memory import MB
from glem_graphgym.progress import time_text
from glem_graphgym.report.stats import default_console, new_table


def print_needs(preflight: Any, title: str, console: Console | None = None) -> None:
    """Print the result of `preflight.examine`: stages, files, one line per resource, and the time."""
    console = console or default_console()
    measured = preflight.measured
    _print_line(console, _texts_line(measured))
    console.print(_stages_table(title, preflight.stages, measured["costs"]))
    console.print(_files_table(preflight.stored))
    for verdict in preflight.verdicts:
        _print_line(console, verdict_line(verdict))
    at_most = ", at most, as epochs and iterations may end early"
    _print_line(console, f"time: about {time_text(preflight.seconds())} on this machine at its current load{at_most}")


def verdict_line(verdict: Any) -> str:
    """One line about a resource: bytes needed and free, and what to do if they do not suffice."""
    subject = f"{verdict.stage} " if verdict.stage else "the run "
    sizes = f"{subject}needs {size_text(verdict.needed)}, {size_text(verdict.available)} are free"
    if verdict.fits:
        return f"{verdict.resource}: fits; {sizes}"
    return f"{verdict.resource}: DOES NOT FIT; {sizes}; {verdict.remedy}"


def _texts_line(measured: Mapping[str, Any]) -> str:
    graph, tokens = measured["graph"], measured["tokens"]
    line = f"{graph['name']}: {graph['nodes']:,} nodes, {graph['edges']:,} undirected edges, {graph['classes']} classes"
    if tokens:
        qualifier = "" if tokens["cached"] else "about "
        line += f"; {qualifier}{tokens['total']:,} tokens in {graph['nodes']:,} texts"
    return line


def _stages_table(title: str, stages: Sequence[Any], costs: Mapping[str, Mapping[str, Any]]) -> Any:
    accelerator = any(cost["accelerator_mb"] for cost in costs.values())
    numbers = ["texts trained on", "tokens", "memory", "of it files", *(["accelerator"] if accelerator else []), "time"]
    table = new_table(title, ["stage", ""], numbers)
    for stage in stages:
        cost = costs.get(stage.cost)
        if stage.done or cost is None:
            table.add_row(stage.folder, "is there already" if stage.done else "no training", *[""] * len(numbers))
            continue
        counts = (f"{cost[name]:,}" if cost[name] else "" for name in ("texts", "tokens"))
        sizes = [cost["resident_mb"], cost["mapped_mb"], *([cost["accelerator_mb"]] if accelerator else [])]
        memory = (size_text(size * MB) for size in sizes)
        table.add_row(stage.folder, "", *counts, *memory, time_text(cost["seconds"]))
    return table


def _files_table(stored: Sequence[Any]) -> Any:
    table = new_table("Files", ["what", "where", ""], ["size"])
    for item in stored:
        note = "is there already" if item.done else "for a while" if item.temporary else ""
        table.add_row(item.what, item.path, note, size_text(item.bytes))
    return table


def _print_line(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
