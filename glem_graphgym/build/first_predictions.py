"""Predictions from a file that replace the first EM step's teacher: logits, or ranked classes per node."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from glem_graphgym.build.features import load_matrix
from glem_graphgym.data.csv_file import read_csv_bytes
from glem_graphgym.data.errors import DataError, listed
from glem_graphgym.data.text_graph import TextGraph

KEY = "glem.first_predictions"
UNRANKED = 0.1  # probability mass spread evenly over all classes, ranked or not
LARGEST = float(np.finfo(np.float16).max)
NEXT_RANK = 0.5  # probability of a rank relative to the rank before


def first_predictions(path: str, graph: TextGraph) -> np.ndarray | None:
    """Logits float (N, C) from the file ``glem.first_predictions``; None if ``path`` is empty.

    The file holds an array (see `load_matrix`), or is a CSV such as TAPE's (He et al., ICLR 2024) answers of a large
    language model: row n ranks the classes of node n, as numbers or names, the most probable first, and may be empty
    (see `ranked_logits`).

    Raises:
        DataError: the file cannot be read, or does not fit the graph.
    """
    if not path:
        return None
    if not path.lower().endswith((".csv", ".csv.gz")):
        logits = load_matrix(path, graph.num_nodes, KEY, columns=graph.num_classes)
        if (largest := max(logits.max(), -logits.min())) > LARGEST:
            raise DataError(
                f"{KEY}: {path} holds {largest:g}, expected at most {LARGEST:g}, as predictions are kept in float16; "
                "subtract the largest logit of each row"
            )
        return logits
    try:
        rows = [*csv.reader(read_csv_bytes(Path(path)).decode().splitlines())]
    except (OSError, csv.Error) as error:
        raise DataError(f"{KEY}: {path} cannot be read: {error}") from error
    if len(rows) != graph.num_nodes:
        raise DataError(
            f"{KEY}: {path} has {len(rows)} rows, expected {graph.num_nodes}: one per node in their order, without a "
            "header"
        )
    return ranked_logits(_classes(path, rows, graph), graph)


def ranked_logits(ranked: list[list[int]], graph: TextGraph) -> np.ndarray:
    """Log-probabilities float16 (N, C): 0.9 is split over a node's ranks r = 0, 1, … in proportion to 2^-r, and 0.1
    evenly over all classes. A node without ranked classes gets a uniform distribution.
    """
    classes = graph.num_classes
    probabilities = np.full((len(ranked), classes), UNRANKED / classes)
    for row, ranking in zip(probabilities, ranked, strict=True):
        shares = NEXT_RANK ** np.arange(len(ranking) or classes)
        row[ranking or slice(None)] += (1 - UNRANKED) * (shares / shares.sum() if ranking else 1 / classes)
    return np.log(probabilities).astype(np.float16)


def _classes(path: str, rows: list[list[str]], graph: TextGraph) -> list[list[int]]:
    """Class indices per row, in ranked order; the cells of a row are all class names or all class numbers.

    Names that are numbers (1, 2, 3) count as names only if all cells of the file are names.
    """
    names = {name: index for index, name in enumerate(graph.class_names)}
    numbers = {str(index): index for index in range(graph.num_classes)}
    if not {cell.strip() for row in rows for cell in row if cell.strip()} <= {*names}:
        names = {name: index for name, index in names.items() if not name.isdigit()}
    ranked = []
    for number, row in enumerate(rows, start=1):
        cells = [cell.strip() for cell in row if cell.strip()]
        class_index = names if all(cell in names for cell in cells) else numbers
        if unknown := [cell for cell in cells if cell not in class_index]:
            raise DataError(
                f"{KEY}: {path}, row {number}: {listed(unknown, quoted=True)} is no class of {graph.name}; expected "
                f"numbers from 0 to {graph.num_classes - 1}, or names such as "
                f"{listed(graph.class_names, 3, quoted=True)}"
            )
        if len(set(cells)) < len(cells):
            raise DataError(f"{KEY}: {path}, row {number} ranks a class twice ({listed(cells)}); expected each once")
        ranked.append([class_index[cell] for cell in cells])
    return ranked
