"""Make a graph that the package carries: ``python run/freeze.py debian InRelease Packages.xz``.

Files that each graph is made of:

- ``debian``: the InRelease file of a Debian release, and a Packages file whose SHA-256 it states.
- ``wordnet``: the folder of WordNet 3.0's database (wndb(5WN) describes its files).

The graph goes into the package, or to ``--out``. The same files make the same bytes.
Exit status: 0 the graph is written; 1 it is not (one message says why); 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import path, run_program
from session import run_to_status

if TYPE_CHECKING:
    from glem_graphgym.data.records import Records

DEBIAN_TERMS = (
    "A description is part of its source package, whose licence is in its file debian/copyright. All licences in "
    "Debian's main allow use, change and redistribution (Debian Free Software Guidelines)."
)


def debian(release: Path, packages: Path) -> Records:
    """Records of a Packages file, with their origin; DataError if the InRelease file ``release`` does not list it."""
    from glem_graphgym.data.debian import read_packages_file
    from glem_graphgym.data.errors import DataError

    catalogue = read_packages_file(packages.name, packages.read_bytes())
    (file,) = catalogue.files
    release_text = release.read_text(encoding="utf-8")
    listed = re.search(rf"^ {file['sha256']} +{file['bytes']} (\S+)$", release_text, re.MULTILINE)
    if listed is None:
        raise DataError(f"{release} states no file with the SHA-256 of {packages}; expected two files of one release")
    stated = dict(re.findall(r"^(\w+): (.*)$", release_text, re.MULTILINE))
    records = catalogue.records()
    origin = {
        "release": f"Debian {stated['Version']} ({stated['Codename']})",
        "date": stated["Date"],
        "terms": DEBIAN_TERMS,
        "files": [{**file, "name": listed[1], "release": stated["Codename"]}],
    }
    return replace(records, origin=records.origin | origin)


PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# Names of WordNet's lexicographer files by number (lexnames(5WN)); a synset's file is its class.
# fmt: off
LEXICOGRAPHERS = [
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant",
    "noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state",
    "noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication",
    "verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
]
# fmt: on


def wordnet(folder: Path) -> Records:
    """Synsets with a sense that occurs in WordNet's semantically tagged texts, and the pointers among them."""
    import numpy as np

    from glem_graphgym.data.records import Records

    contents = {
        f"{kind}.{part}": (folder / f"{kind}.{part}").read_bytes()
        for kind in ("index", "data")
        for part in PARTS_OF_SPEECH
    }
    lines = {name: re.sub(rb"(?m)^  .*\n", b"", content).decode().splitlines() for name, content in contents.items()}
    tagged = set()
    for line in chain.from_iterable(lines[f"index.{part}"] for part in PARTS_OF_SPEECH):
        # lemma, part of speech, senses, kinds, a symbol per kind, senses, tagged ones, offsets by decreasing frequency
        cells = line.split()
        first_offset = 6 + int(cells[3])
        tagged |= {(cells[1], offset) for offset in cells[first_offset : first_offset + int(cells[first_offset - 1])]}
    rows: dict[tuple[str, str], tuple[str, str, str]] = {}
    pointers: list[tuple[tuple[str, str], tuple[str, str]]] = []
    name_counts: Counter[str] = Counter()
    for line in chain.from_iterable(lines[f"data.{part}"] for part in PARTS_OF_SPEECH):
        # offset, file, type, words in hex, (word, id) each, pointers, (symbol, offset, type, words) each, gloss
        cells, gloss = line.partition("|")[0].split(), line.partition("|")[2]
        key = ("a" if cells[2] == "s" else cells[2], cells[0])
        if key in tagged:
            end = 4 + 2 * int(cells[3], 16)
            name = ", ".join(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in cells[4:end:2])
            name_counts[name] += 1
            numbered = name if name_counts[name] == 1 else f"{name} ({name_counts[name]})"
            rows[key] = numbered, LEXICOGRAPHERS[int(cells[1])], " ".join(gloss.split())
            targets = zip(cells[end + 3 :: 4], cells[end + 2 :: 4], strict=False)
            pointers += [(key, target) for _, target in zip(range(int(cells[end])), targets, strict=False)]
    order = sorted(rows, key=lambda key: rows[key])
    node = {key: number for number, key in enumerate(order)}
    ends = [(node[key], node[target]) for key, target in pointers if target in node]
    names, classes, glosses = (list(column) for column in zip(*(rows[key] for key in order), strict=True))
    files = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    ]
    # Every file begins with the licence, which every copy must carry; its lines are numbered.
    terms = " ".join(" ".join(re.findall(r"(?m)^ +[0-9]+ (.*)", contents["data.noun"].decode())).split())
    origin = {"release": "WordNet 3.0", "date": "2006", "terms": terms, "files": files}
    return Records("wordnet", names, names, classes, glosses, np.array(ends, np.int64).reshape(-1, 2).T, origin)


GRAPHS: dict[str, Callable[..., Records]] = {"debian": debian, "wordnet": wordnet}
FILES = {"debian": 2, "wordnet": 1}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make a graph that the package carries.")
    parser.add_argument("name", choices=GRAPHS, help="the graph")
    parser.add_argument("files", type=path, nargs="+", help="files to make it of; Packages may be plain, .gz or .xz")
    parser.add_argument("--out", type=path, help="the file to write (default: the package's own)")
    args = parser.parse_args(argv)
    if len(args.files) != FILES[args.name]:
        parser.error(f"{args.name} is made of {FILES[args.name]} files, found {len(args.files)}")
    return args


def main(argv: list[str] | None = None) -> int:
    return run_to_status(write, parse_args(argv), computes=False)


def write(args: argparse.Namespace) -> int:
    """Write the graph; returns the exit status."""
    from glem_graphgym.data.frozen import file_of, freeze

    out = args.out or file_of(args.name)
    content = freeze(GRAPHS[args.name](*args.files))
    out.write_bytes(content)
    print(f"{out}: {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
