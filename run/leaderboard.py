"""Rank finished runs: ``python run/leaderboard.py --dir results/<grid> [more folders] [--ogb ...]``.

Prints one table per graph and writes leaderboard.csv, .md, .tex and .html, with ``--ogb`` also ogb_entry.json and
ogb_entry.md. With ``--blind`` no output shows test scores, until ``--unblind``. Exit status: 0 done; 1 failed (a
message says why); 2 wrong command line.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from command_line import path, run_program
from session import run_to_status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Rank the methods of finished runs by validation, next to published results."
    )
    parser.add_argument(
        "--dir", dest="dirs", nargs="+", type=path, required=True, action="extend",
        help="folder of an experiment (with seed folders) or of several experiments",
    )  # fmt: skip
    parser.add_argument("--out", type=path, help="folder for the files (default: the first --dir)")
    parser.add_argument("--title", default="GLEM leaderboard", help="title of the HTML page")
    parser.add_argument(
        "--blind", action="store_true", help="hide test scores in all output, from now on until --unblind"
    )
    parser.add_argument("--unblind", action="store_true", help="show test scores again, for good; the output says when")
    ogb = parser.add_argument_group("entry for the OGB leaderboard")
    ogb.add_argument(
        "--ogb", action="store_true", help="write the fields of a submission, or say which rule is violated"
    )
    ogb.add_argument("--row", default="", help="name of the row to submit (default: the best by validation)")
    ogb.add_argument("--name", default="", help="name of the method; external data is appended if it is not mentioned")
    ogb.add_argument("--contact", default="", help="name and e-mail address")
    ogb.add_argument("--code", default="", help="URL of the code")
    ogb.add_argument("--paper", default="", help="URL of the paper")
    ogb.add_argument("--hardware", default="", help='e.g. "NVIDIA H100 (80GB GPU)"')
    ogb.add_argument("--ogb-version", default="", help="version of ogb that the runs were made with, if not recorded")
    official = ogb.add_mutually_exclusive_group()
    official.add_argument(
        "--official", dest="official", action="store_true", default=None, help="by the paper's authors"
    )
    official.add_argument("--unofficial", dest="official", action="store_false", help="by somebody else")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    return run_to_status(rank, parse_args(argv), computes=False)


def rank(args: argparse.Namespace) -> int:
    """Print and write all tables; returns the exit status."""
    from dataclasses import replace

    from glem_graphgym.files import atomic_write, write_json
    from glem_graphgym.report.blind import blinding
    from glem_graphgym.report.experiments import NoRunsError
    from glem_graphgym.report.leaderboard import read_boards
    from glem_graphgym.report.ogb_entry import entry_markdown
    from glem_graphgym.report.page import render_page
    from glem_graphgym.report.tables import to_csv, to_latex, to_markdown
    from glem_graphgym.report.terminal import print_board

    out = args.out or args.dirs[0]
    if args.blind:
        out.mkdir(parents=True, exist_ok=True)
    hidden, notes = blinding(out, args.blind, args.unblind)
    try:
        boards = read_boards(args.dirs, hidden)
    except NoRunsError as error:
        if not args.blind:
            raise
        print(f"{notes[0]}\n{error}")
        return 0
    if args.ogb and boards[0].blind:
        raise ValueError("--ogb needs test scores, which are hidden; give --unblind first, once all choices are made")
    boards = [replace(board, notes=[*notes, *board.notes]) for board in boards]
    for board in boards:
        print_board(board)
    texts = {"csv": to_csv(boards), "md": to_markdown(boards), "tex": to_latex(boards)}
    texts["html"] = render_page(boards, args.title)
    if args.ogb:
        entry = make_entry(boards, args)
    for suffix, text in texts.items():
        with atomic_write(out / f"leaderboard.{suffix}", "w") as file:
            file.write(text)
        print(f"written: {out / f'leaderboard.{suffix}'}")
    if args.ogb:
        write_json(out / "ogb_entry.json", entry)
        with atomic_write(out / "ogb_entry.md", "w") as file:
            file.write(entry_markdown(entry))
        print(entry_markdown(entry))
        print(f"written: {out / 'ogb_entry.json'} and {out / 'ogb_entry.md'}")
    return 0


def make_entry(boards: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The OGB entry of ``--row``, by default of the board's best row."""
    from glem_graphgym.report.ogb_entry import OgbError, ogb_entry

    matches = [(board, row) for board in boards for row in board.rows if args.row in ("", row.name)]
    if not matches:
        names = [row.name for board in boards for row in board.rows]
        raise OgbError(f"--row is {args.row!r}, expected one of: {', '.join(names)}")
    if len({board.title for board, _ in matches}) > 1:
        raise OgbError("runs on several graphs; an OGB entry is for one dataset, so give --dir the runs on that alone")
    board, row = matches[0]
    return ogb_entry(board, vars(args), row)


if __name__ == "__main__":
    sys.exit(run_program(main))
