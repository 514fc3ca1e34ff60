"""Graphs bundled with the package: the same on every machine, without a download.

A file is xz-compressed UTF-8 with a SHA-256 check: a line of JSON (name and origin), then a line per node, ordered by
name, with five tab-separated cells: name, group (empty = the name), class, description, and the neighbours with higher
numbers, each as its distance from the previous one (the first: from the node). ``run/freeze.py`` writes these files.
"""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.records import Recipe, Records, graph_snapshot
from glem_graphgym.data.text_graph import DataError, TextGraph, csr_from_edges


def file_of(name: str) -> Path:
    return Path(__file__).with_name("graphs") / f"{name}.tsv.xz"


def load_frozen(name: str, root: Path, **options: Any) -> TextGraph:
    """Load the bundled graph ``<name>.tsv.xz`` by way of a snapshot under ``root``; for the options see `Recipe`.

    Raises:
        DataError: an option is out of range, or the file is missing or damaged.
    """
    recipe, file = Recipe(**options), file_of(name)
    try:
        raw = file.read_bytes()
        return graph_snapshot(root, name, recipe, lambda: thaw(raw), raw)
    except (FileNotFoundError, lzma.LZMAError) as error:
        raise DataError(
            f"{file}, which comes with the package, is missing or damaged ({error}); reinstall it"
        ) from error


def freeze(records: Records) -> bytes:
    """Serialise records as the bytes of a file; one version of liblzma always gives the same bytes."""
    rowptr, col = csr_from_edges(records.edges[0], records.edges[1], len(records.names))
    lines = [json.dumps({"name": records.name, "origin": records.origin})]
    rows = zip(records.names, records.groups, records.classes, records.descriptions, strict=True)
    for node, (name, group, *cells) in enumerate(rows):
        neighbours = col[rowptr[node] : rowptr[node + 1]]
        steps = np.diff(neighbours[neighbours > node], prepend=node)
        lines.append("\t".join([name, "" if group == name else group, *cells, " ".join(map(str, steps))]))
    return lzma.compress("\n".join(lines).encode(), check=lzma.CHECK_SHA256, preset=9 | lzma.PRESET_EXTREME)


def thaw(raw: bytes) -> Records:
    """Parse the bytes of a file that `freeze` made; raises lzma.LZMAError if it is damaged."""
    head, *lines = lzma.decompress(raw).decode().split("\n")
    names, groups, classes, descriptions, steps = map(list, zip(*(line.split("\t") for line in lines), strict=True))
    neighbours = [[*itertools.accumulate(map(int, cell.split()), initial=node)][1:] for node, cell in enumerate(steps)]
    source = np.repeat(np.arange(len(neighbours)), [len(row) for row in neighbours])
    edges = np.stack([source, np.fromiter(itertools.chain.from_iterable(neighbours), np.int64, len(source))])
    groups = [group or name for name, group in zip(names, groups, strict=True)]
    header = json.loads(head)
    return Records(header["name"], names, groups, classes, descriptions, edges, header["origin"])
