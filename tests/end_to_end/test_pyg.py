"""Published graphs in miniature, in the layouts of their authors: from file to GLEM's table through run/main.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from tests.data.pyg_files import (
    CLASSES,
    cs_tag,
    glbench,
    in_memory_dataset,
    llm_bp,
    llm_bp_texas,
    llm_bp_wikics,
    llmnodebed,
    taglas,
    tape_arxiv_2023,
    tape_products,
)
from tests.small import write_config

NUMBERS = ["0", "1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "seed", "classes", "split"),
    [
        (glbench, 11, CLASSES, ["train_mask_1", "val_mask_1", "test_mask_1"]),
        (llmnodebed, 0, CLASSES, ["train_mask", "val_mask", "test_mask"]),
        (llm_bp, 0, CLASSES, ["train_mask", "test_mask"]),
        (llm_bp_wikics, 25, NUMBERS, ["train_mask_5", "val_mask_5", "test_mask_5"]),
        (llm_bp_texas, 0, NUMBERS, {"shares": [0.5, 0.25, 0.25], "seed": 0}),
        (cs_tag, 0, NUMBERS, {"shares": [0.5, 0.25, 0.25], "seed": 0}),
        (tape_arxiv_2023, 0, NUMBERS, ["train_mask", "val_mask", "test_mask"]),
        (tape_products, 0, NUMBERS, ["train_mask", "val_mask", "test_mask"]),
        (taglas, 9, CLASSES, ["train_mask_9", "val_mask_9", "test_mask_9"]),
        (in_memory_dataset, 0, NUMBERS, ["train_mask", "val_mask", "test_mask"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_published_layouts_go_from_file_to_table(
    layout: Callable[[Path], Path],
    seed: int,
    classes: list[str],
    split: object,
    main: Callable[..., int],
    tmp_path: Path,
    tiny_lm: Path,
) -> None:
    changes = {
        "dataset.name": "pyg",
        "dataset.tag_source": str(layout(tmp_path)),
        "dataset.tag_split": [0.5, 0.25, 0.25],
        "dataset.tag_valid_share": 0.3,
        "optim.max_epoch": 2,
        "seed": seed,
    }
    config = write_config(tmp_path / "mini.yaml", tiny_lm, changes)
    for program in ("main", "predict"):
        assert main(config, program=program) == 0
    run = tmp_path / "results" / "mini" / str(seed)
    rows = {row["method"]: row for row in json.loads((run / "summary.json").read_text())}
    assert [*rows] == ["LM", "Cascade", "GLEM-LM", "GLEM-GNN"]
    assert all(0 <= rows[method][part] <= 1 for method in rows for part in ("valid", "test"))
    assert json.loads((run / "run.json").read_text())["origin"]["split"] == split
    predicted = pd.read_csv(run / "predictions.csv.gz", dtype=str)
    assert set(predicted["GLEM-GNN"]) <= set(classes)
