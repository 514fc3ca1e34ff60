"""WikiCS, Wikipedia articles on computer science, as its authors publish it: ``data.json`` and ``metadata.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.data.columns import Columns
from glem_graphgym.data.csv_file import read_csv_bytes
from glem_graphgym.data.errors import DataError, reading_data
from glem_graphgym.data.from_tables import Reader, TableOptions
from glem_graphgym.data.tables import Tables

FILES = ("data.json", "metadata.json")
TEXT = "{title}: {tokens}"
DATA, METADATA = ("features", "labels", "links", "train_masks", "val_masks", "test_mask"), ("labels", "nodes")


def find_wikics(folder: Path) -> list[Path]:
    """The two files in a folder; raises DataError."""
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder} has no {name}; expected WikiCS's {' and '.join(FILES)}")
    return [folder / name for name in FILES]


def read_wikics(files: list[Path], options: TableOptions) -> Tables:
    """Read the files that `find_wikics` found.

    A text is the title and the tokens of an article, or ``options.text`` filled with ``{title}`` and ``{tokens}``. The
    splits share one test set; their stopping sets are not used, and are in no split.

    Raises:
        DataError: a file is damaged, or its parts have different numbers of nodes.
    """
    if options.columns:
        raise DataError(
            "dataset.tag_columns is for tables; texts of wikics are dataset.tag_text of {title} and {tokens}"
        )
    (path, data), (texts_path, metadata) = ((file, _read(file)) for file in files)
    for file, content, names in ((path, data, DATA), (texts_path, metadata, METADATA)):
        if missing := [name for name in names if name not in content]:
            raise DataError(f"{file} has no {missing}; found {[*content]}")
    columns = Columns((), options.text or TEXT)
    with reading_data(f"{path} or {texts_path.name} is not as its authors publish it", "download it again"):
        count, class_names = len(data["labels"]), dict(metadata["labels"])
        masks = {
            f"{split_name}_mask_{k}": row
            for split_name in ("train", "val")
            for k, row in enumerate(data[f"{split_name}_masks"])
        }
        masks |= {f"test_mask_{k}": data["test_mask"] for k in range(len(data["train_masks"]))}
        arrays = {name: data[name] for name in ("features", "links", "test_mask")}
        for name, rows in {**arrays, **masks, "nodes": metadata["nodes"]}.items():
            if len(rows) != count:
                file = texts_path if name == "nodes" else path
                raise DataError(f"{file}: '{name}' has {len(rows)} entries, expected one for each of {count} labels")
        articles = pd.DataFrame(metadata["nodes"])
        columns.names(texts_path, [*articles], ("text",))  # refuses columns that do not exist
        if "tokens" in articles:
            articles["tokens"] = articles["tokens"].map(lambda tokens: " ".join(map(str, tokens)))
        links = [(node, neighbour) for node, neighbours in enumerate(data["links"]) for neighbour in neighbours]
        edges = np.array(links, dtype=np.int64).reshape(-1, 2).T
        features = np.array(data["features"], dtype=np.float32)
        splits = {name: np.array(row, dtype=bool) for name, row in masks.items()}
    return Tables(
        "wikics",
        pd.DataFrame({"text": columns.texts(articles, texts_path), "label": data["labels"], **splits}),
        edges,
        features=features,
        class_names=[class_names.get(str(number), str(number)) for number in range(len(class_names))],
        where={"nodes": str(path), "edges": f"{path}: links", "text": str(texts_path), "features": f"{path}: features"},
        origin={
            "files": [*FILES],
            "taken": {"text": columns.template, "label": "labels", "edges": "links", "features": "features"},
            "left": ["stopping_masks"],
        },
    )


def _read(path: Path) -> dict[str, Any]:
    with reading_data(f"{path} is no JSON", "download it again"):
        content = json.loads(read_csv_bytes(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected an object with {[*DATA, *METADATA]}")
    return content


WIKICS = Reader(find_wikics, read_wikics)
