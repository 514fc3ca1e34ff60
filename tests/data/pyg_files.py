"""Miniatures of published graphs in files of PyTorch, PyTorch Geometric and DGL, in the layouts of their authors."""

from __future__ import annotations

import base64
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch_geometric.data import Data, InMemoryDataset
from torch_geometric.data import data as pyg_data

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
    """LLM-BP: texts and classes beside processed_data.pt, nodes of the split by number, none that validate."""
    ids = {f"{name}_id": MASKS[part].nonzero()[:, 0] for name, part in (("train", 0), ("test", 2))}
    torch.save(Data(edge_index=DOUBLED, y=Y, **ids), folder / "processed_data.pt")
    torch.save(TEXTS, folder / "raw_texts.pt")
    pd.DataFrame({"name": CLASSES, "description": "…"}).to_csv(folder / "categories.csv", index=False)
    return folder / "processed_data.pt"


def llm_bp_wikics(folder: Path) -> Path:
    """LLM-BP's WikiCS: 20 splits as (N, 20), one test set."""
    rest = [torch.stack([torch.cat([mask[:9].roll(by), mask[9:]]) for by in range(20)], 1) for mask in MASKS[:2]]
    data = Data(x=X, edge_index=DOUBLED, y=Y, train_mask=rest[0], val_mask=rest[1], stopping_mask=rest[1])
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
