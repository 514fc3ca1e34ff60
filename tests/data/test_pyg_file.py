"""Graphs in files of PyTorch, PyTorch Geometric and DGL: published layouts in miniature, their quirks, and refusals."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data

from glem_graphgym.data.dgl_file import read_dgl_file
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.from_tables import TableOptions, graph_of
from glem_graphgym.data.pyg_file import find_pyg_files, read_pyg_files
from glem_graphgym.data.tables import Tables
from tests.checks import refused
from tests.data.pyg_files import (
    CLASSES,
    DOUBLED,
    EDGES,
    MASKS,
    SHIFTED,
    TEXTS,
    N,
    X,
    Y,
    cs_tag,
    dgl_file,
    glbench,
    in_memory_dataset,
    llm_bp,
    llm_bp_texas,
    llm_bp_wikics,
    llmnodebed,
    numbers,
    planetoid,
    pyg_1,
    sparse_tensor,
    taglas,
    tape_arxiv_2023,
    tape_products,
)


def graph_in(file: Path, *others: Path) -> Tables:
    return read_pyg_files([file, *others] if others else find_pyg_files(file), TableOptions())


def files_of(layout: Callable[[Path], Path], folder: Path) -> Path:
    folder = folder / "mini"
    folder.mkdir()
    return layout(folder)


def parts_of(tables: Tables) -> dict[str, list[int]]:
    """Nodes of each part of each split."""
    return {name: numbers(tables.nodes[name]).tolist() for name in tables.nodes if "mask" in name}


ONE = {name: numbers(mask).tolist() for name, mask in zip(("train_mask", "val_mask", "test_mask"), MASKS, strict=True)}
TEN = {
    f"{name}_mask_{by}": numbers(mask).tolist()
    for name, masks in zip(("train", "val", "test"), SHIFTED, strict=True)
    for by, mask in enumerate(masks)
}
TWO_PARTS = {name: ONE[name] for name in ("train_mask", "test_mask")}
JOINED = [text.replace(": ", ". ", 1) for text in TEXTS]


@pytest.mark.parametrize(
    ("layout", "name", "edges", "classes", "parts", "taken"),
    [
        (glbench, "cora", DOUBLED, CLASSES, TEN, {"text": ["raw_texts"], "features": "x"}),
        (llmnodebed, "reddit", EDGES, CLASSES, ONE, {"class_names": "label_name"}),
        (
            llm_bp,
            "mini",
            DOUBLED,
            CLASSES,
            TWO_PARTS,
            {"text": ["raw_texts.pt: raw_texts"], "class_names": "categories.csv"},
        ),
        (llm_bp_texas, "Texas", EDGES, None, {}, {"text": ["Texas.csv: raw_text"], "label": "label"}),
        (cs_tag, "History", EDGES, None, {}, {"text": ["History.csv: text"]}),
        (tape_arxiv_2023, "mini", EDGES, None, ONE, {"text": ["paper_info.csv: title", "paper_info.csv: abstract"]}),
        (tape_products, "ogbn-products_subset", EDGES, None, ONE, {"edges": "adj_t"}),
        (taglas, "cora", DOUBLED, CLASSES, TEN, {"class_names": "label_names"}),
        (in_memory_dataset, "mini", DOUBLED, None, ONE, {}),
        (pyg_1, "mini", DOUBLED, None, {}, {"features": "x"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_published_layouts_are_read(
    layout: Callable[[Path], Path],
    name: str,
    edges: torch.Tensor,
    classes: list[str] | None,
    parts: dict[str, list[int]],
    taken: dict[str, Any],
    tmp_path: Path,
) -> None:
    tables = graph_in(files_of(layout, tmp_path))
    assert tables.name == name
    assert tables.nodes["text"].tolist() == (JOINED if "tape" in layout.__name__ else TEXTS)
    assert tables.nodes["label"].tolist() == Y.tolist()
    assert tables.class_names == classes
    assert isinstance(tables.edges, np.ndarray)
    assert sorted(tables.edges.T.tolist()) == sorted(edges.T.tolist())
    assert tables.edges.dtype == np.int64
    assert parts_of(tables) == parts
    if (features := tables.origin["taken"].get("features")) is None:
        assert tables.features is None
    else:
        assert features == "x"
        np.testing.assert_array_equal(tables.features, X)
    assert taken.items() <= tables.origin["taken"].items()
    json.dumps(tables.origin)


def test_splits_of_which_one_serves_all_and_what_is_left(tmp_path: Path) -> None:
    tables = graph_in(files_of(llm_bp_wikics, tmp_path))
    parts = parts_of(tables)
    assert len(parts) == 3 * 20
    assert parts["train_mask_19"] == [*range(1, 7)]
    assert parts["test_mask_0"] == parts["test_mask_19"] == numbers(MASKS[2]).tolist()
    assert tables.origin["left"] == ["stopping_mask"]
    assert tables.origin["files"] == ["processed_data.pt", "raw_texts.pt"]


# ---- quirks: other ways of saying the same --------------------------------------------------------------------------


def read(folder: Path, **changes: Any) -> Tables:
    """The graph of a dict that `changes` differs from; None: without the attribute."""
    content = {"edge_index": EDGES, "y": Y, "raw_texts": TEXTS} | changes
    torch.save({name: value for name, value in content.items() if value is not None}, folder / "graph.pt")
    return graph_in(folder / "graph.pt")


LAST_MISSING = [*Y.tolist()[:-1], pd.NA]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (Y[:, None].to(torch.int8), Y.tolist()),
        (Y.double(), Y.tolist()),
        (Y.tolist(), Y.tolist()),
        (torch.nn.functional.one_hot(Y), Y.tolist()),
        (torch.where(torch.arange(N) < N - 1, Y, -1), LAST_MISSING),
        (torch.where(torch.arange(N) < N - 1, Y.float(), torch.nan), LAST_MISSING),
        (torch.nn.functional.one_hot(Y) * (torch.arange(N) < N - 1)[:, None], LAST_MISSING),
        (np.array([CLASSES[label] for label in Y]), [CLASSES[label] for label in Y]),
    ],
    ids=["(N, 1)", "double", "list", "one-hot", "-1", "nan", "one-hot without a one", "names"],
)
def test_labels(labels: Any, expected: list[Any], tmp_path: Path) -> None:
    assert read(tmp_path, y=labels).nodes["label"].tolist() == expected


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (("train_mask", "val_mask", "test_mask"), lambda mask: mask.to(torch.int8)),
        (("train_mask", "valid_mask", "test_mask"), lambda mask: mask.float()[:, None]),
        (("train_masks", "val_masks", "test_masks"), lambda mask: mask[None]),
        (("train_mask", "val_mask", "test_mask"), lambda mask: mask.tolist()),
        (("train_idx", "valid_idx", "test_idx"), lambda mask: mask.nonzero()),
        (("train_idx", "val_idx", "test_idx"), lambda mask: mask),
        (("train_id", "val_id", "test_id"), lambda mask: numbers(mask).tolist()),
        (("train_index", "val_index", "test_index"), lambda mask: [numbers(mask).astype(np.int32)]),
        (("train_idx", "val_idx", "test_idx"), lambda mask: [torch.tensor(node) for node in numbers(mask)]),
    ],
)
def test_one_split(names: Sequence[str], form: Callable[[torch.Tensor], Any], tmp_path: Path) -> None:
    parts = dict(zip(names, map(form, MASKS), strict=True))
    assert parts_of(read(tmp_path, **parts)) == ONE
    if names[0].startswith(("train_id", "train_index")):
        split = dict(zip(("train", "valid", "test"), map(form, MASKS), strict=True))
        assert parts_of(read(tmp_path, split_idx=split)) == ONE


@pytest.mark.parametrize(
    "form",
    [
        lambda masks: torch.stack(masks),
        lambda masks: torch.stack(masks, 1).to(torch.uint8),
        lambda masks: [mask.numpy() for mask in masks],
        lambda masks: [mask.tolist() for mask in masks],
    ],
    ids=["(10, N)", "(N, 10)", "arrays", "lists"],
)
def test_ten_splits(form: Callable[[list[torch.Tensor]], Any], tmp_path: Path) -> None:
    parts = dict(zip(("train_mask", "val_mask", "test_mask"), map(form, SHIFTED), strict=True))
    assert parts_of(read(tmp_path, **parts)) == TEN


def test_a_split_in_two_parts_and_masks_before_numbers(tmp_path: Path) -> None:
    tables = read(tmp_path, train_mask=MASKS[0], test_mask=MASKS[2], train_id=[0], test_id=[1])
    assert parts_of(tables) == TWO_PARTS
    assert tables.origin["left"] == ["test_id", "train_id"]


GAPS = [*TEXTS[:-2], float("nan"), None]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"raw_text": np.array(TEXTS)}, TEXTS),
        ({"texts": np.array(GAPS, dtype=object)}, [*TEXTS[:-2], "", ""]),
        ({"text": tuple(GAPS)}, [*TEXTS[:-2], "", ""]),
        ({"title": GAPS, "abstract": ["A"] * N}, [*(f"{text}. A" for text in TEXTS[:-2]), "A", "A"]),
        ({"title": GAPS}, [*TEXTS[:-2], "", ""]),
        ({"text": torch.zeros(N, 8), "title": TEXTS}, TEXTS),
    ],
)
def test_texts_in_the_file(texts: dict[str, Any], expected: list[str], tmp_path: Path) -> None:
    assert read(tmp_path, raw_texts=None, **texts).nodes["text"].tolist() == expected


def test_texts_and_labels_of_other_attributes(tmp_path: Path) -> None:
    torch.save({"edge_index": EDGES, "y": 0 * Y, "venue": Y, "raw_texts": ["?"] * N}, tmp_path / "graph.pt")
    pd.DataFrame({"heading": GAPS, "note": ["about"] * N}).to_csv(tmp_path / "graph.csv", index=False)
    files = find_pyg_files(tmp_path / "graph.pt")
    tables = read_pyg_files(files, TableOptions(columns=("label=venue",), text="{heading} – {note}"))
    assert tables.nodes["text"].tolist() == [*(f"{text} – about" for text in TEXTS[:-2]), "– about", "– about"]
    assert tables.nodes["label"].tolist() == Y.tolist()
    assert tables.origin["left"] == ["raw_texts", "y"]
    assert read_pyg_files(files, TableOptions(columns=("text=raw_texts",))).nodes["text"].tolist() == ["?"] * N
    for options, message in (
        (TableOptions(text="{subject}"), "graph.csv has no texts; expected subject in graph.pt or in one of raw_texts"),
        (TableOptions(columns=("label=class",)), "has no class; found: edge_index, raw_texts, venue, y"),
        (TableOptions(columns=("id=key",)), "dataset.tag_columns names id, expected text and label alone for"),
    ):
        refused(lambda options=options: read_pyg_files(files, options), message)


@pytest.mark.parametrize("ending", [".csv.gz", ".jsonl", ".pt"])
def test_texts_in_a_file_that_is_named(ending: str, tmp_path: Path) -> None:
    torch.save(Data(edge_index=EDGES, y=Y), tmp_path / "graph.pt")
    texts = tmp_path / f"elsewhere{ending}"
    table = pd.DataFrame({"idx": range(N), "title": GAPS, "abs": ["NA"] * N}).iloc[::-1]
    if ending == ".pt":
        torch.save({"title": GAPS, "abs": ["NA"] * N}, texts)
    elif ending == ".jsonl":
        table.to_json(texts, orient="records", lines=True)
    else:
        table.to_csv(texts, index=False)
    tables = graph_in(tmp_path / "graph.pt", texts)
    assert tables.nodes["text"].tolist() == [*(f"{text}. NA" for text in TEXTS[:-2]), "NA", "NA"]


@pytest.mark.parametrize(
    "edges",
    [
        {"edge_index": EDGES.tolist()},
        {"edge_index": EDGES.to(torch.int32).numpy()},
        {"edge_index": None, "adj_t": torch.sparse_coo_tensor(EDGES.flip(0), torch.ones(EDGES.shape[1]), (N, N))},
    ],
    ids=["list", "int32 array", "torch.sparse"],
)
def test_edges(edges: dict[str, Any], tmp_path: Path) -> None:
    found = read(tmp_path, **edges).edges
    assert isinstance(found, np.ndarray)
    assert sorted(found.T.tolist()) == sorted(EDGES.T.tolist())


def test_edges_of_a_sparse_tensor_that_holds_row_pointers_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, rows = EDGES[:, EDGES[1].argsort()]
    pointers = torch.cat([torch.zeros(1, dtype=torch.long), rows.bincount(minlength=N).cumsum(0)])
    matrix = sparse_tensor({"_row": None, "_col": columns, "_rowptr": pointers}, monkeypatch)
    found = read(tmp_path, edge_index=matrix).edges
    assert isinstance(found, np.ndarray)
    assert sorted(found.T.tolist()) == sorted(EDGES.T.tolist())


def test_edges_that_dgl_stores_in_several_formats(tmp_path: Path) -> None:
    file = llm_bp_texas(tmp_path)
    expected = graph_in(file).edges
    file.write_bytes(dgl_file("two formats"))
    np.testing.assert_array_equal(graph_in(file).edges, expected)


def test_class_names_given_per_node_and_features_in_half_precision(tmp_path: Path) -> None:
    tables = read(tmp_path, y=2 * Y, category_names=[CLASSES[label] for label in Y], x=X.half().to_sparse())
    assert tables.class_names == [CLASSES[0], "1", CLASSES[1], "3", CLASSES[2]]
    np.testing.assert_array_equal(tables.features, X.half().float())


@pytest.mark.parametrize("wrap", [lambda data: [data], lambda data: (data, {"x": torch.tensor([0, N])}, None)])
def test_a_graph_in_a_list(wrap: Callable[[Data], Any], tmp_path: Path) -> None:
    torch.save(wrap(planetoid()), tmp_path / "graph.pt")
    assert graph_in(tmp_path / "graph.pt").nodes["text"].tolist() == TEXTS


def test_arrays_of_numpy_1(tmp_path: Path) -> None:
    content = {"edge_index": EDGES, "y": Y.numpy(), "raw_texts": TEXTS, "year": np.int64(2023)}
    torch.save(content, tmp_path / "graph.pt", _use_new_zipfile_serialization=False)
    saved = (tmp_path / "graph.pt").read_bytes()
    assert b"numpy._core" in saved
    (tmp_path / "graph.pt").write_bytes(saved.replace(b"numpy._core", b"numpy.core"))
    assert graph_in(tmp_path / "graph.pt").nodes["label"].tolist() == Y.tolist()


# ---- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": None}, "has no edge_index or adj_t; found: raw_texts, y"),
        ({"y": None}, "has no y or label or labels; found: edge_index, raw_texts"),
        ({"edge_index": EDGES.T}, "edge_index is int64 (14, 2), expected whole numbers (2, number of edges)"),
        ({"edge_index": EDGES.float()}, "edge_index is float32 (2, 14), expected whole numbers"),
        ({"edge_index": "0 1"}, "edge_index is str of 3, expected a tensor, an array or a list of numbers"),
        ({"y": torch.ones(N, 3)}, "y is float32 (12, 3), expected one class per node"),
        ({"y": torch.zeros(N, 2, 2)}, "y is float32 (12, 2, 2), expected one class per node"),
        ({"y": torch.tensor(3)}, "raw_texts hold 12 texts for 1 nodes"),
        ({"train_mask": torch.tensor(True), "test_mask": MASKS[2]}, "train_mask is bool (), expected true or false"),
        ({"y": Y + 0.5}, "y holds 0.5, 1.5, 2.5, 0.5, 1.5 and 7 more; expected whole numbers"),
        ({"y": torch.zeros(0)}, "y is float32 (0,), expected one class per node"),
        ({"label_names": CLASSES[:2]}, "y holds the classes 2, which are not among the numbers of 2 names"),
        ({"edge_index": EDGES + 1}, "edge_index: 2 of 14 edges name nodes outside of 0 to 11, such as 12"),
        ({"category_names": [*CLASSES[1:], *CLASSES * 3, "x"]}, "category_names gives nodes of one class the names"),
        ({"raw_texts": [*TEXTS, "one more"]}, "raw_texts hold 13 texts for 12 nodes (y of graph.pt); expected one per"),
        ({"raw_texts": TEXTS[:-1]}, "raw_texts hold 11 texts for 12 nodes"),
        ({"raw_texts": [*TEXTS[:-1], 7]}, "raw_texts holds int, str; expected a list of str"),
        ({"raw_texts": None}, "has no texts; expected raw_texts or raw_text or texts or text, or a title"),
        ({"raw_texts": None, "title": TEXTS, "abstract": TEXTS[1:]}, "title and abstract have [12, 11] texts"),
        ({"x": X[1:]}, "x is float32 (11, 4), expected finite numbers (12 nodes, number of features)"),
        ({"num_nodes": N + 1}, "num_nodes is 13, but y has 12"),
        ({"edge_index": torch.sparse_coo_tensor(EDGES, torch.ones(14), (N, 40))}, "is a matrix (12, 40), but"),
        ({"y": ["a", 0.5] * 6}, "y is list of 12, expected a tensor, an array or a list of numbers"),
        ({"y": Y * 1e18}, "y holds 1e+18"),
        ({"raw_texts": [*TEXTS[:-1], 0.5]}, "raw_texts holds float, str; expected a list of str"),
        ({"raw_texts": None, "title": [*TEXTS[:-1], 7], "abstract": TEXTS}, "title holds int, str; expected a list of"),
        ({"split": ["train", "val", "test"] * 4}, "split is list of 12, expected a dict of train"),
        ({"split_idx": {"Train": [0], "Test": [1]}}, "split_idx is dict of 2, expected a dict of train"),
        ({"x": X / 0}, "x holds NaN or infinity, expected finite numbers"),
        ({"train_mask": MASKS[0], "test_mask": numbers(MASKS[2])}, "test_mask is int64 (3,), expected true or false"),
        ({"train_mask": MASKS[0], "test_mask": 0.5 * MASKS[2]}, "test_mask is float32 (12,), expected true or false"),
        ({"train_mask": MASKS[0][1:], "test_mask": MASKS[2]}, "train_mask is bool (11,), expected true or false"),
        (
            {"train_idx": [0, 0], "test_idx": [1]},
            "train_idx is list of 2, expected different numbers of nodes, 0 to 11",
        ),
        ({"train_idx": [0], "test_idx": [12]}, "test_idx is list of 1, expected different numbers of nodes, 0 to 11"),
        ({"train_mask": SHIFTED[0], "test_mask": SHIFTED[2][:9]}, "numbers of splits differ, {'train_mask': 10, 'test"),
    ],
)
def test_broken_attributes_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    said = refused(lambda: graph_of(read(tmp_path, **changes), TableOptions()), message)
    assert said.startswith(str(tmp_path / "graph.pt"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"node_id": [*range(N, 0, -1)]}, "graph.csv: column 'node_id' is in no order and lacks some number"),
        ({"node_idx": [11, *range(11, 0, -1)]}, "graph.csv: column 'node_idx' is in no order"),
        ({"text ": TEXTS}, "graph.csv: several columns have the name 'text'"),
    ],
)
def test_tables_of_texts_that_are_refused(table: dict[str, Any], message: str, tmp_path: Path) -> None:
    torch.save({"edge_index": EDGES, "y": Y}, tmp_path / "graph.pt")
    frame = pd.DataFrame({"text": TEXTS, **table})
    frame.to_csv(tmp_path / "graph.csv", index=False, header=[name.strip() for name in frame])
    refused(lambda: graph_in(tmp_path / "graph.pt"), message)


def changed(attribute: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """Save a Data with another value of an attribute."""

    def change_file(file: Path) -> None:
        data = torch.load(file, weights_only=False)
        data[attribute] = change(data[attribute])
        torch.save(data, file)

    return change_file


def without_last_row(file: Path) -> None:
    table = file.parent / "paper_info.csv"
    pd.read_csv(table).iloc[:-1].to_csv(table, index=False)


@pytest.mark.parametrize(
    ("layout", "damage", "message"),
    [
        (glbench, changed("y", lambda y: y * torch.nan), "cora.pt: y holds 0 classes"),
        (llmnodebed, changed("val_mask", lambda mask: ~mask), "reddit.pt: 6 nodes are true in several of the masks"),
        (cs_tag, lambda file: file.with_suffix(".csv").unlink(), "History.pt has no texts; expected raw_texts"),
        (tape_arxiv_2023, without_last_row, "paper_info.csv: title and abstract hold 11 texts for 12 nodes"),
        (llm_bp, lambda file: None, "no node in ['valid']; set dataset.tag_valid_share"),
        (llm_bp, Path.unlink, "processed_data.pt is no file"),
    ],
)
def test_a_broken_sibling_of_a_published_layout(
    layout: Callable[[Path], Path], damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    file = files_of(layout, tmp_path)
    damage(file)
    refused(lambda: graph_of(graph_in(file), TableOptions()), message)


class Runs:
    """What is unpickled by calling a function."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def save(content: Any, **options: Any) -> Callable[[Path], None]:
    return lambda file: torch.save(content, file, **options)


def write(content: bytes) -> Callable[[Path], int]:
    return lambda file: file.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (save({"y": Runs()}), "holds posix.mkdir, which is not loaded, as it could run code"),
        (save({"y": Y, "title": pd.Series(TEXTS)}), "holds pandas."),
        (save(torch.nn.Linear(2, 2)), "holds torch.nn.modules.linear.Linear, which is not loaded"),
        (save(Y), "holds int64 (12,), expected PyTorch Geometric's Data"),
        (save({"y": Y}, pickle_protocol=4), "save it anew without pickle_protocol"),
        (save([planetoid()] * 4), "holds list of 4, expected PyTorch Geometric's Data"),
        (save((planetoid(), planetoid())), "holds tuple of 2, expected PyTorch Geometric's Data"),
        (save((planetoid(), {"x": torch.tensor([0, N, 2 * N])})), "holds 2 graphs, expected one"),
        (write(b"PK\x03\x04 cut short"), "is damaged, or not as torch.save writes it"),
        (write(b"id,text"), "is damaged, or not as torch.save writes it"),
        (write(dgl_file("2.1")[:5000]), "is damaged or not of DGL 0.5 to 2"),
        (write(dgl_file("2.1")[:8] + b"\1" + dgl_file("2.1")[9:]), "version 1 of the format, expected 2"),
        (write(dgl_file("2.1")[:24] + b"\2" + dgl_file("2.1")[25:]), "holds 2 graphs, expected one graph"),
    ],
)
def test_broken_files_are_refused(
    make: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "graph.pt")
    refused(lambda: graph_in(tmp_path / "graph.pt"), message, str(tmp_path / "graph.pt"))
    assert not (tmp_path / "ran").exists()


def test_damaged_files_of_dgl_are_refused_or_read(tmp_path: Path) -> None:
    sound, file, refused = dgl_file("two formats"), tmp_path / "graph.pt", 0
    for position in range(4096, len(sound), 5):
        file.write_bytes(sound[:position] + b"\xff" + sound[position + 1 :])
        try:
            read_dgl_file(file)
        except DataError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("graph.csv", "title\nA\n", "title hold 1 texts for 12 nodes"),
        ("graph.csv", "name\nA\n", "has no texts; expected raw_texts"),
        ("graph.jsonl", '{"text": "A"', "expected one JSON object per line"),
        ("texts.xlsx", "", "expected a .pt, .csv, .csv.gz or .jsonl file with the texts"),
    ],
)
def test_broken_files_beside_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    torch.save(Data(edge_index=EDGES, y=Y), tmp_path / "graph.pt")
    named = [tmp_path / name] if name == "texts.xlsx" else []
    refused(lambda: graph_in(tmp_path / "graph.pt", *named), message)
