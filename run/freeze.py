"""Make a graph that the package carries: ``python run/freeze.py debian InRelease Packages.xz``.

The files of each graph are:

- ``debian``: the InRelease file of a Debian release, and a Packages file whose SHA-256 it states.

The graph goes into the package, or to ``--out``. The same files make the same bytes.
Exit status: 0 the graph is written; 1 it is not (one message says why); 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from command_line import path, run_program

from glem_graphgym.data.debian import read_packages_file
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.frozen import file_of, freeze
from glem_graphgym.data.records import Records

DEBIAN_TERMS = (
    "A description is part of its source package, whose licence is in its file debian/copyright. All licences in "
    "Debian's main allow use, change and redistribution (Debian Free Software Guidelines)."
)


def debian(release: Path, packages: Path) -> Records:
    """The records of a Packages file of a Debian release, with their origin; raises DataError if it is of another."""
    catalogue = read_packages_file(packages.name, packages.read_bytes())
    (file,) = catalogue.files
    about = release.read_text(encoding="utf-8")
    listed = re.search(rf"^ {file['sha256']} +{file['bytes']} (\S+)$", about, re.MULTILINE)
    if listed is None:
        raise DataError(f"{release} states no file with the SHA-256 of {packages}; expected two files of one release")
    stated = dict(re.findall(r"^(\w+): (.*)$", about, re.MULTILINE))
    records = catalogue.records()
    origin = {
        "release": f"Debian {stated['Version']} ({stated['Codename']})",
        "date": stated["Date"],
        "terms": DEBIAN_TERMS,
        "files": [{**file, "name": listed[1], "release": stated["Codename"]}],
    }
    return replace(records, origin=records.origin | origin)


GRAPHS: dict[str, Callable[..., Records]] = {"debian": debian}
FILES = {"debian": 2}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a graph that the package carries.")
    parser.add_argument("name", choices=GRAPHS, help="the graph")
    parser.add_argument("files", type=path, nargs="+", help="debian: InRelease and Packages (plain, .gz or .xz)")
    parser.add_argument("--out", type=path, help="the file to write (default: the package's own)")
    args = parser.parse_args(argv)
    if len(args.files) != FILES[args.name]:
        parser.error(f"{args.name} is made of {FILES[args.name]} files, found {len(args.files)}")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    out = args.out or file_of(args.name)
    try:
        content = freeze(GRAPHS[args.name](*args.files))
        out.write_bytes(content)
    except (DataError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{out}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
