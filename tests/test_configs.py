"""The configurations that ship: each loads, builds, says where its hyperparameters are from, keeps published ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym import memory
from glem_graphgym.build import footprint, memory_check
from glem_graphgym.build.gnn import build_gnn, sees_hops
from glem_graphgym.build.graph import GRAPHS
from glem_graphgym.build.language_model import build_lm, encoder_config
from glem_graphgym.build.run_folder import decisive_settings
from glem_graphgym.config import KEYS, WORD_FEATURES, feature_kinds, load_config
from glem_graphgym.data.registry import PUBLISHED_GRAPHS
from glem_graphgym.data.sampling import Block
from glem_graphgym.hardware import Hardware
from tests.models.families import save_encoder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "run"))

from grid import configs, space  # noqa: E402

CONFIGS = {file.stem: file for file in sorted((ROOT / "configs_gg").glob("*.yaml")) if "_best" not in file.stem}
NETWORKS = [stem for stem in CONFIGS if not re.match("(lm|lm_lora|lm_large)_", stem)]

# (width of the raw features, classes)
SIZES = {"ogbn-arxiv": (128, 40), "ogbn-products": (100, 47), "ogbn-papers100M": (128, 172)}
SIZES |= {"debian": (0, 56), "wordnet": (0, 43), "synthetic": (0, 4)}
SIZES |= {name: (0, known.classes) for name, known in PUBLISHED_GRAPHS.items()}
EMBEDDINGS = {"microsoft/deberta-base": 768, "microsoft/deberta-large": 1024, "intfloat/e5-large": 1024}
EMBEDDINGS |= {"sentence-transformers/all-MiniLM-L6-v2": 384, "answerdotai/ModernBERT-base": 768}
EMBEDDINGS |= {"intfloat/e5-large-v2": 1024, "Qwen/Qwen3-Embedding-0.6B": 1024}
GIANT = 768
# (nodes, edges in both directions)
GRAPH_SIZES = {"ogbn-arxiv": (169_343, 2_315_598), "ogbn-products": (2_449_029, 123_718_280)}
ACCELERATOR = 80_000_000_000


def load(stem: str) -> None:
    load_config(cfg, CONFIGS[stem])


def value_of(key: str) -> Any:
    group, name = key.split(".")
    return cfg[group][name]


def feature_width() -> int:
    """Width of the node features, side by side."""
    text = EMBEDDINGS[cfg.lm.model]
    widths = {"raw": SIZES[cfg.dataset.name][0], "text": cfg.lm.shrink_dim or text, "static": text, "file": GIANT}
    widths |= dict.fromkeys(WORD_FEATURES, cfg.glem.vocabulary)
    return sum(widths[kind] for kind in feature_kinds(cfg.glem.node_features))


def dim_in() -> int:
    """Width of the GNN's input: features, and labels where the network takes them with its features."""
    labels = SIZES[cfg.dataset.name][1] if cfg.glem.label_input and not sees_hops(cfg) else 0
    return feature_width() + labels


def build() -> nn.Module:
    with torch.device("meta"):
        return build_gnn(cfg, dim_in(), SIZES[cfg.dataset.name][1])


# ---- every configuration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stem", CONFIGS)
def test_it_loads_and_is_named_for_method_and_data(stem: str) -> None:
    load(stem)
    assert re.fullmatch(r"[a-z0-9_.]+", stem)  # agg_batch takes run names apart at "-" and "="
    assert cfg.dataset.name in GRAPHS
    assert cfg.dataset.name.removeprefix("ogbn-").lower() in stem
    assert cfg.metric_best == "accuracy"
    kind = {
        "lm": "glem_lm",
        "cascade": "glem_cascade",
        "joint": "glem_joint",
        "glem": "glem",
        "synthetic": "glem",
        "table": "glem",
    }
    assert cfg.train.mode == kind.get(stem.split("_")[0], "glem_gnn")


@pytest.mark.parametrize("stem", CONFIGS)
def test_its_comment_says_what_it_is_and_where_its_hyperparameters_are_from(stem: str) -> None:
    lines = CONFIGS[stem].read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    if not re.search("debian|wordnet|synthetic|table", stem):
        assert re.search(r"authors|published|(OGB|PyG|DGL)'s example|GIANT's|chosen for this project", comment), comment


def test_their_page_lists_each_of_them_and_no_other() -> None:
    page = (ROOT / "docs/configurations.md").read_text(encoding="utf-8")
    listed = [name for row in re.findall(r"^\| (`.*?) \| ", page, re.M) for name in re.findall(r"`([\w.]+)`", row)]
    assert sorted(listed) == sorted(CONFIGS)


@pytest.mark.parametrize("stem", [stem for stem in CONFIGS if stem.startswith("glem_")])
def test_glem_has_a_row_of_both_models_but_where_it_would_hold_a_hundred_million_predictions(stem: str) -> None:
    load(stem)
    assert cfg.glem.ensemble == (cfg.dataset.name != "ogbn-papers100M")


# ---- that none is missing -----------------------------------------------------------------------------------------


def method_of(stem: str) -> str:
    load(stem)
    features = cfg.glem.node_features
    return {
        "glem_lm": "LM with LoRA" if cfg.lm.lora_rank else "LM",
        "glem_gnn": f"{cfg.model.type} on {features}",
        "glem_cascade": "cascade",
        "glem_joint": "joint",
        "glem": f"GLEM with {cfg.model.type} and {cfg.lm.model.rpartition('/')[2]}",
    }[cfg.train.mode]


def networks(template: str, names: str) -> set[str]:
    return {template.format(f"glem_{name}") for name in names.split()}


OF_TODAY = ("ModernBERT-base", "e5-large-v2", "Qwen3-Embedding-0.6B")
EVERYWHERE = {"LM", "LM with LoRA", "cascade", "joint"}
EXPECTED = {
    "arxiv": networks("{} on raw", "mlp gcn sage gat revgat gamlp") | networks("{} on file", "mlp sage revgat")
    | networks("{} on static", "sage") | networks("GLEM with {} and deberta-base", "gcn sage gat revgat gamlp")
    | {"polynormer on raw"}
    | {f"GLEM with glem_revgat and {lm}" for lm in ("deberta-large", *OF_TODAY)},
    "products": networks("{} on raw", "mlp gcn sage gamlp sagn") | networks("{} on file", "sagn")
    | networks("{} on static", "sage") | networks("GLEM with {} and deberta-base", "gcn sage gamlp sagn"),
    "papers100m": networks("{} on raw", "sign sgc sage gamlp") | networks("{} on file", "gamlp")
    | networks("{} on static", "gamlp") | networks("GLEM with {} and deberta-base", "gamlp"),
    "debian": networks("{} on static", "mlp gcn sage gamlp") | networks("{} on tfidf", "sage")
    | networks("GLEM with {} and all-MiniLM-L6-v2", "gcn sage gamlp"),
}  # fmt: skip


@pytest.mark.parametrize("data", EXPECTED)
def test_every_method_has_a_configuration_for_the_data(data: str) -> None:
    assert {
        method_of(stem) for stem in CONFIGS if data in stem.split("_") and "2023" not in stem
    } == EVERYWHERE | EXPECTED[data]


# ---- the debian ones, and their grid ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stem", "base"),
    [
        *((f"{kind}_debian", "gnn_debian") for kind in ("mlp", "gcn", "gamlp")),
        ("cascade_gamlp_debian", "cascade_debian"),
        *((f"glem_{kind}_debian", "glem_debian") for kind in ("gcn", "gamlp")),
    ],
)
def test_networks_on_the_debian_graph_differ_in_nothing_else(stem: str, base: str) -> None:
    load(stem)
    mine = decisive_settings(cfg)
    load(base)
    unused = {"lm.epochs", "lm.batch_size", "lm.lr", "lm.warmup_epochs"} if cfg.train.mode == "glem_gnn" else set()
    theirs = decisive_settings(cfg)
    assert {key for key in mine if mine[key] != theirs[key]} - unused == {"model.type"}


@pytest.mark.parametrize("name", PUBLISHED_GRAPHS)
def test_each_of_the_usual_small_graphs_has_the_settings_of_the_small_debian_graph(name: str) -> None:
    load(f"glem_{name}")
    mine = decisive_settings(cfg)
    load("glem_debian_small")
    theirs = decisive_settings(cfg)
    differ = {"dataset.name", "dataset.tag_split", "dataset.tag_max_nodes", "lm.max_length"}
    assert {key for key in mine if mine[key] != theirs[key]} == differ


def test_the_grid_of_the_small_graphs_has_every_method_on_each() -> None:
    file, grid = ROOT / "configs_gg/glem_cora.yaml", ROOT / "configs_gg/grids/small_graphs.txt"
    made = configs.make_configs(str(file), str(grid), space.all_points(space.read_grid(grid)), None)  # loads each
    assert len(made) == 6 * len(PUBLISHED_GRAPHS) + 2
    assert all(sum(f"graph={name}" in run for run in made) >= 6 for name in PUBLISHED_GRAPHS)


def test_the_grid_of_the_debian_graph_keeps_its_names_with_the_ensemble() -> None:
    for base in ("glem_debian", "glem_debian_small"):
        file, grid = ROOT / f"configs_gg/{base}.yaml", ROOT / "configs_gg/grids/debian.txt"
        made = configs.make_configs(str(file), str(grid), space.all_points(space.read_grid(grid)), None)  # loads each
        assert len(made) == 14
        assert {f"{base}-mode=glem-share=True-gnn=glem_{kind}" for kind in ("sage", "gamlp", "gcn")} <= set(made)
        assert all("ensemble: true" in text for text in made.values())
        assert not any("ensemble" in name for name in made)


# ---- sizes --------------------------------------------------------------------------------------------------------


DEBERTA_BASE = 138_601_728  # parameters of microsoft/deberta-base without a head


@pytest.mark.parametrize(
    ("stem", "published"),
    [
        ("mlp_arxiv", 110_120),  # OGB's leaderboard, as the following five
        ("gcn_arxiv", 110_120),
        ("sage_arxiv", 218_664),
        ("mlp_products", 103_727),
        ("gcn_products", 103_727),
        ("tuned_gcn_products", 233_047),
        ("sage_products", 206_895),
        ("giant_sage_arxiv", 546_344),
        ("giant_revgat_arxiv", 3_081_296),  # the README of GIANT's authors
        # OGB's leaderboard, less the LM and its head
        ("glem_revgat_arxiv", 140_469_624 - DEBERTA_BASE - (768 + 1) * 40),
        ("glem_arxiv", 217_640),  # the code of GLEM's authors, as the following
        ("glem_gamlp_papers100m", 16_079_375),
        ("glem_giant_gamlp_papers100m", 16_079_375),
        ("gamlp_products", 3_335_831),  # the README of GAMLP's authors, as the following
        ("gamlp_rlu_products", 3_335_831),
        # with a linear map of x and its PReLU that the run makes and never uses
        ("gamlp_papers100m", 16_308_751 - (128 * 1024 + 1024 + 1)),
        ("sagn_products", 2_179_678),  # the README of SCR's authors
        ("giant_sagn_products", 1_154_654),
    ],
)
def test_parameter_counts_are_the_published_ones(stem: str, published: int) -> None:
    load(stem)
    assert sum(parameter.numel() for parameter in build().parameters()) == published


@pytest.mark.parametrize("stem", [stem for stem in NETWORKS if re.search("_(arxiv|products)$", stem)])
def test_a_full_batch_fits_into_a_large_accelerator(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load(stem)
    (nodes, edges), classes = GRAPH_SIZES[cfg.dataset.name], SIZES[cfg.dataset.name][1]
    split = dict.fromkeys(("train", "valid", "test"), np.arange(nodes // 3))
    names = {"name": cfg.dataset.name, "class_names": [str(number) for number in range(classes)]}
    sizes = {"num_nodes": nodes, "rowptr": None, "col": range(edges), "num_classes": classes}
    graph: Any = SimpleNamespace(**sizes, split=split, **names)
    limit = memory_check.Limit(ACCELERATOR, "the accelerator")
    monkeypatch.setattr(memory_check, "feature_width", lambda cfg, graph: feature_width())
    monkeypatch.setattr(memory_check, "_limit", lambda cfg: limit)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 256_000_000_000)
    ends, rowptr = np.full(len(cfg.gnn.fan_out) + 1, nodes), np.linspace(0, edges, nodes + 1).astype(np.int64)
    block = Block(np.arange(nodes), ends, rowptr, np.empty(0), np.empty(0))  # of a batch: at most all
    monkeypatch.setattr(footprint, "NeighbourSampler", lambda *_: SimpleNamespace(sample=lambda *_: block))
    memory_check.check_memory(cfg, graph)


# ---- published hyperparameters ------------------------------------------------------------------------------------

# The paper and the scripts of its authors: fine-tuning on gold. A batch of 36 is what one step sees, whatever
# accumulates it. The encoder's dropouts that their scripts name never act (tests/test_published_runs.py).
AS_PRETRAINED = {"lm.dropout": -1.0, "lm.attention_dropout": -1.0}
LM_ARXIV = {
    "lm.model": "microsoft/deberta-base", "lm.lr": 2e-5, "lm.batch_size": 36, "lm.epochs": 4, **AS_PRETRAINED,
    "lm.head_dropout": 0.4, "lm.label_smoothing": 0.3, "lm.warmup_epochs": 0.6, "lm.lora_rank": 0, "lm.max_length": 512,
}  # fmt: skip
LM_PRODUCTS = {
    "lm.model": "microsoft/deberta-base", "lm.lr": 2e-5, "lm.batch_size": 144, "lm.epochs": 4, **AS_PRETRAINED,
    "lm.head_dropout": 0.2, "lm.label_smoothing": 0.1, "lm.warmup_epochs": 0.6,
}  # fmt: skip
LM_PAPERS = {
    "lm.model": "microsoft/deberta-base", "lm.lr": 5e-5, "lm.batch_size": 288, "lm.epochs": 5, **AS_PRETRAINED,
    "lm.head_dropout": 0.4, "lm.label_smoothing": 0.3, "lm.shrink_dim": 100, "lm.warmup_epochs": 0.6,
}  # fmt: skip
LM_LARGE = {
    "lm.model": "microsoft/deberta-large", "lm.lr": 2e-5, "lm.batch_size": 72, "lm.epochs": 4, "lm.dropout": 0.1,
    "lm.attention_dropout": 0.1, "lm.head_dropout": 0.1, "lm.warmup_epochs": 1.0, "lm.label_smoothing": 0.1,
}  # fmt: skip

# The same: networks.
GCN = {
    "model.type": "glem_gcn", "gnn.layers_mp": 2, "gnn.dim_inner": 256, "optim.base_lr": 0.01,
    "optim.weight_decay": 5e-4, "gnn.dropout": 0.5, "gnn.norm": "batch", "gnn.input_dropout": 0.1,
    "gnn.hidden_bias": False,
}  # fmt: skip
# Fan-outs 5, 10, 15 are DGL's, layer after layer from the input; ours are hop after hop from the targets. Batch size,
# epochs and the like are the defaults of GLEM's authors for this network.
SAGE = {
    "model.type": "glem_sage", "gnn.layers_mp": 3, "gnn.dim_inner": 256, "optim.base_lr": 0.003,
    "gnn.fan_out": [15, 10, 5], "gnn.batch_size": 1000, "gnn.dropout": 0.5, "gnn.norm": "none",
    "optim.weight_decay": 0.0, "optim.max_epoch": 20, "optim.patience": 15, "gnn.input_norm": "none",
}  # fmt: skip
# DGL's example for ogbn-arxiv, as it is by default.
GAT = {
    "model.type": "glem_gat", "gnn.layers_mp": 3, "gnn.dim_inner": 250, "gnn.att_heads": 3, "gnn.dropout": 0.75,
    "gnn.input_dropout": 0.1, "gnn.attention_dropout": 0.0, "optim.optimizer": "rmsprop", "optim.base_lr": 0.002,
    "optim.weight_decay": 0.0, "optim.warmup_epochs": 50, "optim.max_epoch": 2000, "glem.label_input": False,
}  # fmt: skip
REVGAT = {
    "model.type": "glem_revgat", "gnn.layers_mp": 3, "gnn.dim_inner": 256, "gnn.att_heads": 3, "gnn.rev_groups": 2,
    "optim.optimizer": "rmsprop", "optim.base_lr": 0.002, "optim.warmup_epochs": 50, "gnn.dropout": 0.75,
    "gnn.input_dropout": 0.25, "gnn.edge_drop": 0.3, "glem.label_input": False,
    "optim.max_epoch": 2000, "optim.patience": 300, "gnn.input_norm": "batch",
}  # fmt: skip
GIANT_REVGAT = {
    **REVGAT, "gnn.layers_mp": 5, "gnn.symmetric_norm": True, "glem.label_input": True, "gnn.label_reuse": 1,
    "gnn.input_norm": "none",
}  # fmt: skip
LABEL_BRANCH = {"glem.label_input": True, "gnn.label_dropout": 0.0}
GAMLP = {
    "model.type": "glem_gamlp", "gnn.dim_inner": 1024, "gnn.hops": 5, "gnn.label_hops": 9, "optim.base_lr": 1e-3,
    "gnn.dropout": 0.5, "gnn.input_dropout": 0.2, "gnn.attention_dropout": 0.5, "gnn.batch_size": 50000,
}  # fmt: skip
GAMLP_ARXIV = {
    **GAMLP, "gnn.dim_inner": 256, "gnn.hops": 3, "gnn.label_hops": 5, "optim.max_epoch": 500, "gnn.input_norm": "none",
    **LABEL_BRANCH,
}  # fmt: skip
GAMLP_PRODUCTS = {
    **GAMLP, "gnn.dim_inner": 512, "gnn.residual": True, "gnn.layers_mp": 4, "optim.max_epoch": 400,
}  # fmt: skip
SAGN = {
    "model.type": "glem_sagn", "gnn.dim_inner": 256, "gnn.hops": 3, "gnn.att_heads": 1, "optim.base_lr": 1e-3,
    "gnn.dropout": 0.5, "gnn.input_dropout": 0.2, "gnn.attention_dropout": 0.4, "gnn.label_hops": 9,
    "gnn.batch_size": 50000,
    # the README of SCR's authors
    "gnn.scr_weight": 0.5, "gnn.scr_threshold": 0.85,
}  # fmt: skip
# The same, and the README of GLEM's authors for ogbn-papers100M: sigmoid, no dropout of inputs and attention.
GAMLP_PAPERS = {
    "model.type": "glem_gamlp", "optim.max_epoch": 150, "gnn.hops": 6, "gnn.layers_mp": 6, "gnn.batch_size": 40000,
    "gnn.hop_activation": "sigmoid", "gnn.input_dropout": 0.0, "gnn.attention_dropout": 0.0, "optim.patience": 120,
    "gnn.input_norm": "none", **LABEL_BRANCH, "gnn.label_hops": 9,
}  # fmt: skip

# The same: EM. T = 0.2 in every published run. No E-step of their code has a warm-up.
E_STEP = {
    "e_step.warmup_epochs": 0.0, "glem.smooth_pseudo": True, "e_step.dropout": None, "e_step.attention_dropout": None,
}  # fmt: skip
EM_REVGAT = {
    **E_STEP,
    "glem.order": "lm_first", "glem.alpha": 0.8, "glem.beta": 0.05, "glem.lm_pseudo_ratio": 1.0,
    "glem.temperature": 0.2, "glem.gnn_pseudo_ratio": 1.0, "glem.confidence": 1.0,
    "glem.lm_init": "pretrained", "glem.lm_init_first": "same",
    "e_step.epochs": 3, "e_step.lr": 2e-5, "e_step.batch_size": 30, "e_step.head_dropout": 0.4,
    "e_step.label_smoothing": 0.0, "glem.em_iterations": 2,
}  # fmt: skip
EM_GCN = {
    **E_STEP,
    "glem.order": "gnn_first", "glem.alpha": 0.5, "glem.beta": 0.7, "glem.lm_pseudo_ratio": 0.1,
    "glem.temperature": 0.2, "glem.gnn_pseudo_ratio": 0.2, "glem.confidence": 0.8,
    "glem.lm_init": "previous", "glem.lm_init_first": "same",
    "e_step.epochs": 1, "e_step.lr": 3e-5, "e_step.batch_size": 30, "optim.max_epoch": 500, "optim.patience": 300,
    "glem.label_input": True,
    # not in GLEM.md but in the README of GLEM's authors
    "gnn.input_norm": "none", "glem.em_iterations": 2, "e_step.head_dropout": 0.4, "e_step.label_smoothing": 0.0,
}  # fmt: skip
EM_GAMLP = {
    **E_STEP, "e_step.head_dropout": 0.4, "e_step.label_smoothing": 0.0,
    "glem.order": "lm_first", "glem.alpha": 0.8, "glem.beta": 0.05, "glem.lm_pseudo_ratio": 0.5,
    "glem.temperature": 0.2, "glem.gnn_pseudo_ratio": 0.1, "glem.confidence": 1.0,
    "glem.lm_init": "previous",
    "glem.lm_init_first": "pretrained", "e_step.epochs": 1, "e_step.lr": 3e-5,
}  # fmt: skip
EM_PAPERS = {
    **E_STEP, "e_step.head_dropout": 0.3,
    "glem.order": "lm_first", "glem.alpha": 0.4, "glem.beta": 0.05, "glem.lm_pseudo_ratio": 0.5,
    "glem.temperature": 0.2, "glem.gnn_pseudo_ratio": 0.1, "glem.confidence": 0.85,
    "glem.lm_init": "pretrained", "glem.lm_init_first": "same",
    "e_step.epochs": 6, "e_step.lr": 2e-5, "e_step.batch_size": 480, "e_step.label_smoothing": 0.2,
    "glem.pseudo_nodes": "valid_test",
}  # fmt: skip

# OGB's examples for its leaderboard.
OGB = {"gnn.layers_mp": 3, "gnn.dim_inner": 256, "optim.optimizer": "adam", "optim.base_lr": 0.01, "gnn.dropout": 0.5}
OGB |= {"optim.weight_decay": 0.0, "optim.patience": 0, "gnn.input_norm": "none", "glem.label_input": False}
OGB_ARXIV = {**OGB, "gnn.norm": "batch", "optim.max_epoch": 500}
OGB_PRODUCTS = {**OGB, "gnn.norm": "none", "optim.max_epoch": 300}

# Correct & Smooth: PyG's example; the shares for ogbn-arxiv are those of the method's authors, rounded.
SMOOTH = {
    "glem.correct_and_smooth": True, "glem.cs_correct_alpha": 1.0, "glem.cs_smooth_alpha": 0.8,
}  # fmt: skip

# The scripts of the authors of "Classic GNNs are strong baselines" (tunedGNN, large_graph/).
TUNED = {
    "optim.optimizer": "adam", "gnn.dropout": 0.5, "gnn.readout": "linear", "gnn.residual": False,
    "gnn.input_norm": "none", "glem.label_input": False,
}  # fmt: skip
TUNED_ARXIV = {
    **TUNED, "gnn.norm": "batch", "gnn.linear_skip": True, "gnn.input_dropout": 0.15, "optim.base_lr": 5e-4,
    "optim.weight_decay": 5e-4, "optim.max_epoch": 2000, "gnn.layers_pre_mp": 0,
}  # fmt: skip
TUNED_GCN = {**TUNED_ARXIV, "model.type": "glem_gcn", "gnn.layers_mp": 5, "gnn.dim_inner": 512}
TUNED_SAGE = {
    **TUNED_ARXIV,
    "model.type": "glem_sage",
    "gnn.layers_mp": 4,
    "gnn.dim_inner": 256,
    "gnn.self_loops": True,
}
TUNED_PRODUCTS = {
    **TUNED, "gnn.norm": "layer", "gnn.linear_skip": False, "gnn.input_dropout": 0.0, "optim.base_lr": 3e-3,
    "optim.weight_decay": 0.0, "gnn.layers_pre_mp": 1, "gnn.layers_mp": 5, "gnn.dim_inner": 200,
}  # fmt: skip
# The README of SimTeG's authors for e5-large and GraphSAGE.
SIMTEG = {
    "lm.lr": 5e-5, "lm.weight_decay": 1e-5, "lm.batch_size": 100, "lm.grad_accumulation": 5, "lm.label_smoothing": 0.3,
    "lm.epochs": 10, "lm.warmup_epochs": 1.5, "lm.lora_rank": 4, "lm.lora_alpha": 8.0, "lm.lora_dropout": 0.3,
    "lm.head_dropout": 0.6, "gnn.batch_size": 10_000, "optim.max_epoch": 100, "gnn.dropout": 0.4, "optim.base_lr": 0.01,
    "gnn.layers_mp": 2, "optim.weight_decay": 4e-6,
}  # fmt: skip

PUBLISHED: dict[str, dict[str, Any]] = {
    "tuned_gcn_arxiv": TUNED_GCN,
    "tuned_sage_arxiv": TUNED_SAGE,
    "tuned_gat_arxiv": {**TUNED_ARXIV, "model.type": "glem_gat", "gnn.att_heads": 1},
    "tuned_gcn_products": {**TUNED_PRODUCTS, "model.type": "glem_gcn", "optim.max_epoch": 299},
    "tuned_sage_products": {**TUNED_PRODUCTS, "model.type": "glem_sage", "optim.max_epoch": 1000,
                            "gnn.self_loops": True},
    # The script of Polynormer's authors
    "polynormer_arxiv": {
        "model.type": "polynormer", "gnn.layers_mp": 7, "gnn.global_layers": 2, "gnn.local_epochs": 2000,
        "gnn.dim_inner": 256, "gnn.norm": "batch", "optim.max_epoch": 2000, "optim.base_lr": 5e-4,
        "optim.weight_decay": 5e-4, "gnn.dropout": 0.5, "gnn.input_dropout": 0.15,
    },
    "cascade_simteg_arxiv": SIMTEG,
    "lm_arxiv": LM_ARXIV,
    "lm_large_arxiv": LM_LARGE,
    "lm_products": LM_PRODUCTS,
    "lm_papers100m": LM_PAPERS,
    "mlp_arxiv": OGB_ARXIV,
    "gcn_arxiv": OGB_ARXIV,
    "sage_arxiv": OGB_ARXIV,
    "giant_mlp_arxiv": OGB_ARXIV,
    "giant_sage_arxiv": {**OGB_ARXIV, "optim.base_lr": 8e-4},
    "giant_revgat_arxiv": GIANT_REVGAT,
    "giant_revgat_kd_arxiv": {**GIANT_REVGAT, "gnn.distillation": 0.95, "gnn.distillation_temperature": 0.7},
    "gat_arxiv": GAT,
    "mlp_cs_arxiv": {**OGB_ARXIV, **SMOOTH, "glem.cs_correct_alpha": 0.979, "glem.cs_smooth_alpha": 0.756},
    "mlp_products": {**OGB_PRODUCTS, "gnn.dropout": 0.0},
    "mlp_cs_products": {**OGB_PRODUCTS, **SMOOTH, "gnn.dim_inner": 200, "gnn.norm": "batch"},
    "gcn_products": OGB_PRODUCTS,
    "sage_products": OGB_PRODUCTS,
    "gamlp_arxiv": GAMLP_ARXIV,
    "revgat_arxiv": REVGAT,
    "cascade_arxiv": {**LM_ARXIV, **REVGAT},
    "joint_arxiv": LM_ARXIV,
    "joint_products": LM_PRODUCTS,
    "glem_arxiv": {**LM_ARXIV, **GCN, **EM_GCN},
    "glem_revgat_arxiv": {**LM_ARXIV, **REVGAT, **EM_REVGAT},
    "glem_gamlp_arxiv": {**LM_ARXIV, **GAMLP_ARXIV, **EM_GAMLP, "e_step.batch_size": 30,
                         "glem.em_iterations": 2},
    "glem_sage_arxiv": {**LM_ARXIV, **SAGE, **EM_REVGAT},
    "glem_gat_arxiv": {**LM_ARXIV, **GAT, **EM_REVGAT},
    "glem_tuned_gcn_arxiv": {**LM_ARXIV, **TUNED_GCN, **EM_REVGAT},
    "glem_tuned_sage_arxiv": {**LM_ARXIV, **TUNED_SAGE, **EM_REVGAT},
    "glem_large_revgat_arxiv": {**LM_LARGE, **REVGAT, **EM_REVGAT},
    "gamlp_products": GAMLP_PRODUCTS,
    # 300 epochs without a better score, of which every tenth is validated
    "gamlp_rlu_products": {**GAMLP_PRODUCTS, "gnn.rlu_rounds": 4, "gnn.rlu_threshold": 0.85, "optim.patience": 30,
                           "train.eval_period": 10},
    "sagn_products": {**SAGN, "gnn.dim_inner": 512, "gnn.label_hops": 14, "gnn.batch_size": 100_000,
                      "gnn.layers_mp": 2, "gnn.label_dropout": 0.5, "optim.max_epoch": 1000},
    "giant_sagn_products": {**SAGN, "gnn.layers_mp": 1, "gnn.label_dropout": 0.5, "optim.max_epoch": 1000},
    "cascade_products": {**LM_PRODUCTS, **GAMLP, **LABEL_BRANCH},
    "glem_gamlp_products": {**LM_PRODUCTS, **GAMLP, **EM_GAMLP, **LABEL_BRANCH},
    "glem_sagn_products": {**LM_PRODUCTS, **SAGN, **EM_GAMLP},
    "glem_sage_products": {**LM_PRODUCTS, **SAGE, **EM_GAMLP},
    "glem_gcn_products": {**LM_PRODUCTS, **GCN, **EM_GCN, "e_step.batch_size": 144},
    "glem_giant_sagn_products": {**LM_PRODUCTS, **SAGN, **EM_GAMLP},
    "gamlp_papers100m": {"gnn.dim_inner": 1024, "gnn.hops": 6, "gnn.layers_mp": 6, "gnn.label_hops": 9,
                         "gnn.hop_activation": "sigmoid", "gnn.residual": False, "gnn.batch_size": 5000,
                         "gnn.input_dropout": 0.0, "gnn.attention_dropout": 0.0, "gnn.dropout": 0.5,
                         "optim.base_lr": 1e-3, "optim.max_epoch": 100, "glem.label_input": True},
    "giant_gamlp_papers100m": {**GAMLP_PAPERS, "gnn.hops": 2},
    "gnn_papers100m": GAMLP_PAPERS,
    "joint_papers100m": LM_PAPERS,
    "cascade_papers100m": {**LM_PAPERS, **GAMLP_PAPERS},
    "glem_gamlp_papers100m": {**LM_PAPERS, **GAMLP_PAPERS, **EM_PAPERS},
    "glem_giant_gamlp_papers100m": {**LM_PAPERS, **GAMLP_PAPERS, **EM_PAPERS},
}  # fmt: skip


@pytest.mark.parametrize("stem", PUBLISHED)
def test_published_hyperparameters_are_kept(stem: str) -> None:
    load(stem)
    expected = PUBLISHED[stem]
    assert {key: value_of(key) for key in expected} == expected


FAMILY_OF = {"qwen3_embedding_0.6b": "qwen3", "modernbert": "modernbert", "e5_large": "bert"}


@pytest.mark.parametrize("lm", FAMILY_OF)
def test_encoders_of_today_have_the_network_and_the_em_of_the_published_run(lm: str, tmp_path: Path) -> None:
    """And are built, on a tiny model of the family, by LoRA on a base in bf16 where they are larger than 0.3 B."""
    load(f"glem_{lm}_arxiv")
    same = {**REVGAT, **{key: value for key, value in EM_REVGAT.items() if not key.startswith("e_step.")}}
    assert {key: value_of(key) for key in same} == same
    cfg.lm.model = str(save_encoder(FAMILY_OF[lm], tmp_path))
    config = encoder_config(cfg, Hardware())
    backbone = build_lm(config, 40, cfg.lm.head_dropout).encoder.backbone
    frozen = {str(parameter.dtype) for parameter in backbone.parameters() if not parameter.requires_grad}
    assert frozen == (set() if lm == "modernbert" else {"torch.bfloat16"})


@pytest.mark.parametrize("stem", [stem for stem in CONFIGS if stem.endswith("papers100m")])
def test_ogbn_papers100m_keeps_memory_small(stem: str) -> None:
    load(stem)
    assert cfg.glem.encode_nodes == "needed"
    assert cfg.glem.memory_budget_gb > 0
    assert cfg.train.mode != "glem" or cfg.glem.pseudo_nodes == "valid_test"
    assert cfg.lm.shrink_dim == 100 or "text" not in feature_kinds(cfg.glem.node_features)


def test_every_configuration_of_a_published_data_set_is_compared_but_for_our_own_choices() -> None:
    own = {"gnn_arxiv", "gnn_products", "sgc_papers100m", "mlp_papers100m", "sage_papers100m"}
    own |= {f"glem_{lm}_arxiv" for lm in FAMILY_OF}
    own |= {"lm_lora_arxiv", "lm_lora_products", "lm_lora_papers100m", *(f"glem_{name}" for name in PUBLISHED_GRAPHS)}
    assert {stem for stem in CONFIGS if not re.search("debian|wordnet|synthetic|table", stem)} == {*PUBLISHED, *own}


# ---- that every key has a use ---------------------------------------------------------------------------------------

# Keys of the machine, the disk and one's own data, which a shipped file has no reason to set.
OF_THE_USER = {
    "dataset.tag_columns",
    "dataset.tag_text",
    "lm.attention",
    "lm.precision",
    "lm.infer_tokens",
    "lm.micro_batch_tokens",
    "lm.strategy",
}
OF_THE_USER |= {"glem.search_trials"}  # run/search.py writes it
OF_THE_USER |= {"glem.plugins"}  # modules of one's own: the examples of docs/extending.md
OF_THE_USER |= {"glem.track"}  # needs packages that are not those of all
OF_THE_USER |= {"glem.keep_weights", "glem.checkpoint_minutes", "dataset.tag_valid_share", "dataset.tag_undirected"}


def test_every_key_is_set_to_another_value_than_its_default_by_something_that_ships() -> None:
    used = set()
    for stem in CONFIGS:
        load(stem)
        used |= {key.name for key in KEYS if value_of(key.name) != key.default}
    for grid in (ROOT / "configs_gg" / "grids").glob("*.txt"):
        used |= {axis.key for block in space.read_grid(grid) for axis in block}
    assert {key.name for key in KEYS} - used == OF_THE_USER & {key.name for key in KEYS}
