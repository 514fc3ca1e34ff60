"""Blind selection: no output shows test scores until they are asked for, and the time of that is recorded."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from glem_graphgym.files import read_json, reading, write_json
from glem_graphgym.scores import BLIND


def blinding(folder: Path, blind: bool, unblind: bool) -> tuple[bool, list[str]]:
    """Decide whether a leaderboard's test scores are hidden; returns that and notes on it for the leaderboard.

    Args:
        folder: folder of the leaderboard, where `BLIND` keeps the state between calls; `scores.hides_test` reads it.
        blind: hide test scores from now on, unless they were unblinded before.
        unblind: show them from now on.

    Raises:
        ValueError: ``unblind`` without an earlier ``blind``, both at once, or `BLIND` is damaged.
    """
    file, now = folder / BLIND, datetime.now(timezone.utc).isoformat(timespec="seconds")
    if blind and unblind:
        raise ValueError("--blind and --unblind contradict each other; give one of them")
    state = None
    if file.exists():
        with reading(file, "restore it: without it nothing says whether test scores were seen"):
            state = {name: read_json(file)[name] for name in ("since", "unblinded")}
    if unblind and state is None:
        raise ValueError(f"--unblind, but {file} does not exist: no test score was hidden; expected an earlier --blind")
    if blind and state is None:
        write_json(file, state := {"since": now, "unblinded": None})
    if unblind and state and state["unblinded"] is None:
        write_json(file, state := {**state, "unblinded": now})
    if state is None:
        return False, []
    if state["unblinded"] is None:
        return True, [f"blind since {state['since']}: test scores are hidden until --unblind is given"]
    return False, [f"test scores were hidden from {state['since']} until {state['unblinded']} (--unblind)"]
