"""Writes a text graph as tables, which `glem_graphgym.data.table` reads."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from glem_graphgym.data.columns import VIEW
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.splits import NO_SPLIT
from glem_graphgym.data.table import FEATURES
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED, TextGraph
from glem_graphgym.files import atomic_write


def write_tables(graph: TextGraph, folder: Path) -> list[Path]:
    """Write ``nodes.csv``, ``edges.csv`` and, if there are features, ``features.npy``; returns their paths.

    If nodes have no ids of their own, there is no column ``id``. A drawn split is not written: readers draw it again.
    Edges of an undirected graph are written once.

    Raises:
        DataError: the folder already holds files, or a text cannot be written.
    """
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} holds files already; expected a new folder, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    ids = np.array(list(graph.node_ids), dtype=object) if graph.node_ids else np.arange(graph.num_nodes)
    names = np.array([*graph.class_names, ""], dtype=object)  # UNLABELLED, -1, selects the last one
    assert UNLABELLED == NO_SPLIT == -1
    nodes = pd.DataFrame({"id": ids, "text": list(graph.texts), "label": names[graph.label]})
    for name, texts in graph.views.items():
        nodes[f"{VIEW}{name}"] = list(texts)
    if "shares" not in graph.origin["split"]:
        codes = graph.splits
        if codes is None:
            codes = np.full((1, graph.num_nodes), NO_SPLIT, dtype=np.int8)
            for code, split_name in enumerate(SPLITS):
                codes[0, graph.split[split_name]] = code
        for k, row in enumerate(codes):
            nodes[f"split_{k}" if len(codes) > 1 else "split"] = np.array([*SPLITS, ""], dtype=object)[row]
    source, target = graph.edge_index()
    if not graph.directed:
        source, target = source[source < target], target[source < target]
    files = [folder / "nodes.csv", folder / "edges.csv"]
    nodes = nodes if graph.node_ids else nodes.drop(columns="id")
    if with_nul := [name for name in nodes if any("\0" in value for value in nodes[name] if isinstance(value, str))]:
        raise DataError(f"{files[0]} cannot be written: {listed(with_nul, quoted=True)} hold a NUL byte; take it out")
    if graph.features is not None:
        files.append(folder / FEATURES)
        with atomic_write(files[-1]) as stream:
            np.save(stream, graph.features)
    quoting = csv.QUOTE_NONNUMERIC if any("\r" in name for name in graph.node_ids or ()) else csv.QUOTE_MINIMAL
    with atomic_write(files[1], "w") as stream:
        pd.DataFrame({"source": ids[source], "target": ids[target]}).to_csv(stream, index=False, quoting=quoting)
    with atomic_write(files[0], "w") as stream:  # last: without it, what a killed process leaves is no graph
        nodes.to_csv(stream, index=False, quoting=csv.QUOTE_NONNUMERIC)  # a text may hold a carriage return
    return files
