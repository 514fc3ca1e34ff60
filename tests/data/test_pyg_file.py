"""Graphs in files of PyTorch, PyTorch Geometric and DGL: published layouts in miniature, their quirks, and refusals."""

from __future__ import annotations

import base64
import json
import os
import sys
import types
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data import data as pyg_data

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.pyg_file import find_pyg_files, read_pyg_files
from glem_graphgym.data.tables import Tables

N, CLASSES = 12, ["Theory", "Neural_Networks", "Case_Based"]
Y = torch.arange(N) % 3
RING = torch.stack([torch.arange(N), (torch.arange(N) + 1) % N])
EDGES = torch.cat([RING, torch.tensor([[0, 5], [6, 5]])], 1)  # directed, with a self-loop
DOUBLED = torch.cat([RING, RING.flip(0)], 1)
TEXTS = [f"Paper {node}: on “graphs”, part {node}" for node in range(N)]
X = torch.rand(N, 4, generator=torch.Generator().manual_seed(0))
PARTS = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])  # train, val, test
MASKS = [part == PARTS for part in torch.arange(3)]
SHIFTED = [[mask.roll(by) for by in range(10)] for mask in MASKS]  # ten splits

# dgl.save_graphs of EDGES and ndata["label"] = Y: by DGL 2.1 as COO, and by DGL 1.0.1 as CSC and as COO and CSC.
DGL_FILES = {
    "2.1": (
        "c-pgHxW(;*zusLY1_*%Bj0~e-6pVsVFbYP&C>RB!U=)mkQ7{Td!6+CmKtKSMzu!yAbl?1lyZf_P6#m8A+*SX0pH=8`&Rs^daRK{<Tc&+*h`Y"
        ";xCJv?@7~$gxXvPz*AI9fE(@(BGxP<z`E#E#Q=z%>1!t79b*m)S_k<0%R@A5$TJVYAE2jv&w@CeMK%ut#IO0z;~HYm-G<}gku%>|{o(adKh("
        "|xpd7aNK0!vu_IF@T=5U?%4zCZ*;OG9G3~0)gnEmN+8;`FKAJ5mx~;wXi}4CJq2yrC5a"
    ),
    "1.0.1": (
        "c-pgHxW(;*zusLY1_*%Bj0~e-6pVsVFbYP&C>RB!U=)mkQ7{Td!6+CmKtKSMzu!yAbl?1lyZf_P6#m8A+*SX0pH=8`&Rs^daRK{<Tc&+*h`Y"
        ";xCJv?@7~$gxXvPz*AI9fE(@(BGxP<z`E#E#Q=-p+3im^lKVdr6(M|hxo9wH6oh4M3Scm(EAW+=@9rCFggJCx>x(p*rQ8_gXsd-#ZS7ff9Nn"
        "t7zUj}=WH8=AX0aJZk=?&C#s9}kJ{gImCZ&4EY;=OiYj<`D7?%#Z{EzMz&kBLVq%KMWC90W`I+vJ55;09&0{ga"
    ),
    "two formats": (
        "c-pgHxW(;*zusLY1_*%Bj0~e-6pVsVFbYP&C>RB!U=)mkQ7{Td!6+CmKtKSMzu!yAbl?1lyZf_P6#m8A+*SX0pH=8`&Rs^daRK{<Tc&+*h`Y"
        ";xCJv?@7~$gxXvPz*AI9fE(@(BGxP<z`E#E#Q=-p+7im^lKVdr6xM=t+QyvqaS^AKquACzB!!y_<{GDB$=D9s9`*`PE#n!`AuG#8ZSMl+w4O"
        "!v{+U2G(}4-*W_qy_Q_sY#0$%FiG(X|WTCGMGDH_VAIJq`1j+A1jWeLnz77+I_re?&BfReQ*nSusIOP;GD#y)Eq*-ff<rOz!%gKXCxpW?}s7"
        "cDuAXIR!zdh0cE0uT>"
    ),
}


def dgl_file(kind: str) -> bytes:
    return zlib.decompress(base64.b85decode(DGL_FILES[kind]))


def planetoid(**attributes: Any) -> Data:
    """What most published files hold, without a split."""
    return Data(x=X, edge_index=DOUBLED, y=Y, raw_texts=TEXTS, **attributes)


def numbers(mask: Any) -> np.ndarray:
    return np.flatnonzero(np.asarray(mask))


def graph_in(file: Path, *others: Path) -> Tables:
    return read_pyg_files([file, *others] if others else find_pyg_files(file))


# ---- published layouts: what each writes into a folder, and the file to name ----------------------------------------


def glbench(folder: Path) -> Path:
    """GLBench: ten splits as lists, classes in label_name."""
    masks = dict(zip(("train_mask", "val_mask", "test_mask"), SHIFTED, strict=True))
    torch.save(planetoid(label_name=CLASSES, **masks), folder / "cora.pt")
    return folder / "cora.pt"


def llmnodebed(folder: Path) -> Path:
    """LLMNodeBed: directed edges in citeseer and arxiv, no features in reddit and instagram, one split."""
    data = Data(edge_index=EDGES, y=Y, raw_texts=TEXTS, label_name=CLASSES, num_nodes=N)
    data.train_mask, data.val_mask, data.test_mask = MASKS
    torch.save(data, folder / "reddit.pt")
    return folder / "reddit.pt"


def llm_bp(folder: Path) -> Path:
    """LLM-BP: texts and classes beside processed_data.pt, nodes of the split by number."""
    torch.save(
        Data(edge_index=DOUBLED, y=Y, train_id=numbers(MASKS[0]), val_id=numbers(MASKS[1]), test_id=numbers(MASKS[2])),
        folder / "processed_data.pt",
    )
    torch.save(TEXTS, folder / "raw_texts.pt")
    pd.DataFrame({"name": CLASSES, "description": "…"}).to_csv(folder / "categories.csv", index=False)
    return folder / "processed_data.pt"


def llm_bp_wikics(folder: Path) -> Path:
    """LLM-BP's WikiCS: 20 splits as (N, 20), one test set."""
    splits = [torch.stack([mask.roll(by) for by in range(20)], 1) for mask in MASKS[:2]]
    data = Data(x=X, edge_index=DOUBLED, y=Y, train_mask=splits[0], val_mask=splits[1], stopping_mask=splits[1])
    data.test_mask = MASKS[2]
    torch.save(data, folder / "processed_data.pt")
    torch.save(TEXTS, folder / "raw_texts.pt")
    return folder / "processed_data.pt"


def llm_bp_texas(folder: Path) -> Path:
    """LLM-BP's Cornell, Texas, Washington and Wisconsin: a graph of DGL, texts in a column of a CSV, no split."""
    (folder / "Texas.pt").write_bytes(dgl_file("2.1"))
    pd.DataFrame({"raw_text": TEXTS, "label": Y}).to_csv(folder / "Texas.csv", index=False)
    return folder / "Texas.pt"


def cs_tag(folder: Path) -> Path:
    """CS-TAG: a graph of DGL, texts in a CSV whose rows are numbered."""
    (folder / "History.pt").write_bytes(dgl_file("1.0.1"))
    rows = pd.DataFrame({"category": "…", "text": TEXTS, "label": Y, "node_id": range(N)})
    rows.sample(frac=1, random_state=0).to_csv(folder / "History.csv", index=False)
    return folder / "History.pt"


def tape_arxiv_2023(folder: Path) -> Path:
    """TAPE's arxiv_2023: directed edges, masks and numbers of nodes as NumPy arrays, titles and abstracts in a CSV."""
    data = Data(x=X, edge_index=EDGES, y=Y, num_nodes=N)
    for name, mask in zip(("train", "val", "test"), MASKS, strict=True):
        data[f"{name}_id"], data[f"{name}_mask"] = numbers(mask), mask
    torch.save(data, folder / "graph.pt")
    rows = [text.split(": ") for text in TEXTS]
    table = pd.DataFrame(rows, columns=["title", "abstract"]).assign(node_id=range(N))
    table.to_csv(folder / "paper_info.csv", index=False)
    return folder / "graph.pt"


def sparse_tensor(matrix: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch_sparse's SparseTensor, as it is pickled."""
    modules = [types.ModuleType(f"torch_sparse{part}") for part in ("", ".tensor", ".storage")]
    for module, name in zip(modules[1:], ("SparseTensor", "SparseStorage"), strict=True):
        setattr(module, name, type(name, (), {"__module__": module.__name__}))
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    tensor, storage = modules[1].SparseTensor(), modules[2].SparseStorage()
    vars(storage).update({"_value": None, "_sparse_sizes": (N, N), "_rowcount": None, **matrix})
    vars(tensor).update(storage=storage)
    return tensor


def tape_products(folder: Path) -> Path:
    """TAPE's ogbn-products_subset: labels (N, 1), edges as SparseTensor, ASINs as an array, titles that are missing."""
    with pytest.MonkeyPatch.context() as patch:
        columns, rows = EDGES[:, EDGES[1].argsort()]
        matrix = {"_row": rows, "_col": columns, "_rowptr": None}
        data = Data(x=X, y=Y[:, None], adj_t=sparse_tensor(matrix, patch), n_id=np.arange(N), num_nodes=N)
        data.n_asin = np.array([f"B00{node}" for node in range(N)], dtype=object)
        for name, mask in zip(("train_mask", "val_mask", "test_mask"), MASKS, strict=True):
            data[name] = mask[:, None]
        torch.save(data, folder / "ogbn-products_subset.pt")
    rows = [text.split(": ") for text in TEXTS]
    table = pd.DataFrame(rows, columns=["title", "content"])
    table.insert(0, "nid", 7 * np.arange(N))  # of the whole graph
    table.to_csv(folder / "ogbn-products_subset.csv", index=False)
    return folder / "ogbn-products_subset.pt"


def taglas(folder: Path) -> Path:
    """TAGLAS' cora.pt and pubmed.pt, as Graph-LLM made them: texts twice, lists of masks, classes per node too."""
    masks = dict(zip(("train_masks", "val_masks", "test_masks"), SHIFTED, strict=True))
    names = {"label_names": CLASSES, "category_names": [CLASSES[label] for label in Y]}
    torch.save(planetoid(raw_text=TEXTS, **names, **masks), folder / "cora.pt")
    return folder / "cora.pt"


def in_memory_dataset(folder: Path) -> Path:
    """What PyTorch Geometric keeps of any dataset."""
    (folder / "processed").mkdir()
    data = planetoid(**dict(zip(("train_mask", "val_mask", "test_mask"), MASKS, strict=True)))
    InMemoryDataset.save([data], str(folder / "processed" / "data.pt"))
    return folder / "processed" / "data.pt"


def pyg_1(folder: Path) -> Path:
    """A Data of PyTorch Geometric 1, in the format that PyTorch had before 1.6."""
    with pytest.MonkeyPatch.context() as patch:
        old = type("Data", (), {"__module__": pyg_data.__name__})
        patch.setattr(pyg_data, "Data", old)
        data = old()
        vars(data).update(x=X, edge_index=DOUBLED, edge_attr=None, y=Y, pos=None, raw_texts=TEXTS, __num_nodes__=N)
        torch.save((data, None), folder / "data.pt", _use_new_zipfile_serialization=False)
    return folder / "data.pt"


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
JOINED = [text.replace(": ", ". ", 1) for text in TEXTS]


@pytest.mark.parametrize(
    ("layout", "name", "edges", "classes", "parts", "taken"),
    [
        (glbench, "cora", DOUBLED, CLASSES, TEN, {"text": ["raw_texts"], "features": "x"}),
        (llmnodebed, "reddit", EDGES, CLASSES, ONE, {"class_names": "label_name"}),
        (llm_bp, "mini", DOUBLED, CLASSES, ONE, {"text": ["raw_texts.pt: raw_texts"], "class_names": "categories.csv"}),
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
    assert parts["train_mask_19"] == numbers(MASKS[0].roll(19)).tolist()
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
    assert parts_of(tables) == {name: ONE[name] for name in ("train_mask", "test_mask")}
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
        ({"y": Y + 0.5}, "y holds 0.5, 1.5, 2.5, 0.5, 1.5 and 7 more; expected whole numbers"),
        ({"y": torch.zeros(0)}, "y is float32 (0,), expected one class per node"),
        ({"label_names": CLASSES[:2]}, "label_names holds 2 names, but there are classes 0 to 2; expected all"),
        ({"category_names": [*CLASSES[1:], *CLASSES * 3, "x"]}, "category_names gives nodes of one class the names"),
        ({"raw_texts": [*TEXTS, "one more"]}, "raw_texts hold 13 texts for 12 nodes (y of graph.pt); expected one per"),
        ({"raw_texts": TEXTS[:-1]}, "raw_texts hold 11 texts for 12 nodes"),
        ({"raw_texts": [*TEXTS[:-1], 7]}, "raw_texts holds int, str; expected a list of str"),
        ({"raw_texts": None}, "has no texts; expected raw_texts or raw_text or texts or text, or a title"),
        ({"raw_texts": None, "title": TEXTS, "abstract": TEXTS[1:]}, "title and abstract have [12, 11] texts"),
        ({"x": X[1:]}, "x is float32 (11, 4), expected finite numbers (12 nodes, number of features)"),
        ({"x": X / 0}, "x is float32 (12, 4), expected finite numbers (12 nodes, number of features)"),
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
    with pytest.raises(DataError) as error:
        read(tmp_path, **changes)
    assert message in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "graph.pt"))
    assert "\n" not in str(error.value)


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
        (save({"y": Y}, pickle_protocol=4), "save it anew without pickle_protocol"),
        (
            save([planetoid(), planetoid(), planetoid(), planetoid()]),
            "holds list of 4, expected PyTorch Geometric's Data",
        ),
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
    with pytest.raises(DataError) as error:
        graph_in(tmp_path / "graph.pt")
    assert message in str(error.value)
    assert str(tmp_path / "graph.pt") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("graph.csv", "title\nA\n", "title hold 1 texts for 12 nodes"),
        ("graph.csv", "name\nA\n", "has no texts; expected raw_texts"),
        ("graph.jsonl", '{"text": "A"', "expected one JSON object per line"),
        ("categories.csv", "name\nA\n", "categories.csv holds 1 names, but there are classes 0 to 2"),
        ("texts.xlsx", "", "expected a .pt, .csv, .csv.gz or .jsonl file with the texts"),
    ],
)
def test_broken_files_beside_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    torch.save(Data(edge_index=EDGES, y=Y), tmp_path / "graph.pt")
    with pytest.raises(DataError) as error:
        graph_in(tmp_path / "graph.pt", *([tmp_path / name] if name == "texts.xlsx" else []))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
