"""A broken sibling of each published layout of PyTorch Geometric and DGL is refused in one line by run/main.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.bad_inputs.conftest import Program
from tests.data.pyg_files import (
    N,
    Y,
    cs_tag,
    glbench,
    llm_bp,
    llm_bp_texas,
    llm_bp_wikics,
    llmnodebed,
    taglas,
    tape_arxiv_2023,
    tape_products,
)


def changed(attribute: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Save a Data with another value of an attribute."""

    def change_file(file: Path) -> None:
        data = torch.load(file, weights_only=False)
        data[attribute] = change(data[attribute])
        torch.save(data, file)

    return change_file


def without_last_line(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("layout", "damage", "names"),
    [
        (glbench, changed("raw_texts", lambda texts: [*texts, "?"]), ["cora.pt", "raw_texts", "13 texts", "12 nodes"]),
        (llmnodebed, changed("val_mask", lambda mask: ~mask), ["reddit.pt", "several of the masks", "val_mask"]),
        (llm_bp, lambda file: None, ["processed_data.pt", "'valid'", "dataset.tag_valid_share"]),
        (llm_bp_wikics, changed("val_mask", lambda mask: mask[:, 1:]), ["processed_data.pt", "'val_mask': 19"]),
        (llm_bp_texas, lambda file: file.write_bytes(file.read_bytes()[:-200]), ["Texas.pt", "damaged"]),
        (cs_tag, lambda file: file.with_suffix(".csv").unlink(), ["History.pt", "no texts", "History.csv"]),
        (
            tape_arxiv_2023,
            lambda file: without_last_line(file.parent / "paper_info.csv"),
            ["paper_info.csv", "11 texts"],
        ),
        (
            tape_products,
            lambda file: without_last_line(file.with_suffix(".csv")),
            ["ogbn-products_subset.csv", "11 texts"],
        ),
        (taglas, changed("raw_texts", pd.Series), ["cora.pt", "pandas.", "not loaded"]),
        (glbench, changed("y", lambda y: y * torch.nan), ["cora.pt: y", "holds 0 classes"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_sibling(
    layout: Callable[[Path], Path], damage: Callable[[Path], object], names: list[str], program: Program
) -> None:
    file = layout(program.folder)
    damage(file)
    program.refuses("dataset.name", "pyg", "dataset.tag_source", file, names=names)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("nowhere.pt", None, ["nowhere.pt", "no file"]),
        ("model.pt", torch.nn.Linear(2, 2), ["model.pt", "torch.nn.modules.linear.Linear", "not loaded"]),
        ("labels.pt", Y, ["labels.pt", f"int64 ({N},)", "Data"]),
    ],
)
def test_what_is_no_graph(name: str, content: object, names: list[str], program: Program) -> None:
    if content is not None:
        torch.save(content, program.folder / name)
    program.refuses("dataset.name", "pyg", "dataset.tag_source", program.folder / name, names=names)
