"""The text graph that ``dataset.*`` describes, its tokens, and the scores of predictions on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from yacs.config import CfgNode

from glem_graphgym.config import KEYS, TEXT_GRAPHS, feature_kinds, shown
from glem_graphgym.data.registry import LAYOUTS, PUBLISHED_GRAPHS, check_published, reader_of, source_of
from glem_graphgym.data.splits import with_shots
from glem_graphgym.data.text_graph import DataError, TextGraph, Texts
from glem_graphgym.data.tokens import Prompted, TokenStore, open_token_store
from glem_graphgym.models.pooling import Readout, readout_of, with_end_token
from glem_graphgym.models.pretrained import load_tokenizer, prompt_of

if TYPE_CHECKING:
    from glem_graphgym.data.from_tables import Reader, TableOptions

Accuracy = Callable[[np.ndarray, np.ndarray], float]  # (true classes (n,), predicted classes (n,)) -> share 0-1
Metric = Callable[[np.ndarray, np.ndarray], float]  # (true classes (n,), float logits (n, C)) -> share 0-1

MANY_UNKNOWN = 0.05  # share of unknown tokens above which a warning is logged
TEXTS_COMPARED, CHARACTERS_COMPARED = 100, 1000  # texts, and characters per text, that tokenizers are compared on


def load_text_graph_of(cfg: CfgNode, *, quiet: bool = False) -> TextGraph:
    """The text graph that ``dataset.name`` and its keys describe; unless ``quiet``, a message tells its sizes.

    Raises:
        DataError: the name is unknown, or the data cannot be read; says what to do.
    """
    if cfg.dataset.name not in GRAPHS:
        raise DataError(f"dataset.name is '{cfg.dataset.name}', expected one of: {', '.join(GRAPHS)}")
    _check_keys(cfg)
    graph = GRAPHS[cfg.dataset.name](cfg)
    if not isinstance(graph, TextGraph):  # of a user's function
        raise DataError(
            f"dataset.name {cfg.dataset.name}: GRAPHS returned {type(graph).__name__}, expected a TextGraph"
        )
    graph = graph.with_split(cfg.seed)
    if cfg.dataset.tag_shots:
        graph = with_shots(graph, cfg.dataset.tag_shots, cfg.dataset.tag_seed)
    if not quiet:
        sizes = ", ".join(f"{len(nodes):,} {split_name}" for split_name, nodes in graph.split.items())
        logging.info(
            f"{graph.name}: {graph.num_nodes:,} nodes, {graph.num_edges:,} {'' if graph.directed else 'un'}directed "
            f"edges, {graph.num_classes} classes\n"
            f"  {sizes}; fingerprint {graph.fingerprint()}"
        )
    return graph


def _check_keys(cfg: CfgNode) -> None:
    """Refuse keys that are set, but that ``dataset.name`` does not read, rather than ignore them."""
    name, defaults = cfg.dataset.name, {key.name: key.default for key in KEYS}
    for key, datasets in DATASETS_BY_KEY.items() if name in OURS else ():
        value = cfg.dataset[key.removeprefix("dataset.")]
        if name not in datasets and value != defaults[key]:
            raise DataError(
                f"{key} is {shown(value)}, which dataset.name {name} does not read; expected {shown(defaults[key])!r}, "
                f"or one of these datasets: {', '.join(datasets)}"
            )


# Each function imports its own reader: all readers would make up a quarter of the package's import time.


def _frozen(cfg: CfgNode) -> TextGraph:
    from glem_graphgym.data.frozen import load_frozen

    d = cfg.dataset
    return load_frozen(d.name, Path(d.dir), shares=d.tag_split, seed=d.tag_seed, max_nodes=d.tag_max_nodes)


def _debian(cfg: CfgNode) -> TextGraph:
    from glem_graphgym.data.debian import load_debian

    d = cfg.dataset
    if not d.tag_source:
        return _frozen(cfg)
    return load_debian(Path(d.dir), d.tag_source, shares=d.tag_split, seed=d.tag_seed, max_nodes=d.tag_max_nodes)


def _ogb(cfg: CfgNode) -> TextGraph:
    from glem_graphgym.data.ogb import OGB

    load, _ = OGB[cfg.dataset.name]
    return load(Path(cfg.dataset.dir))


def _table_files(cfg: CfgNode) -> TextGraph:
    from glem_graphgym.data.from_tables import load_files

    d, raw = cfg.dataset, "raw" in feature_kinds(cfg.glem.node_features)
    reader, source, options = files_of(cfg)
    graph = load_files(reader, source, Path(d.dir), options, kind=d.name, raw=raw)
    if d.name in PUBLISHED_GRAPHS:
        check_published(d.name, graph)
    return graph


def files_of(cfg: CfgNode) -> tuple[Reader, Path, TableOptions]:
    """Reader, location and options of a user's files, or of a known graph's files.

    Raises:
        DataError: files are missing, or keys contradict each other.
    """
    from glem_graphgym.data.from_tables import TableOptions

    d, published_graph = cfg.dataset, PUBLISHED_GRAPHS.get(cfg.dataset.name)
    options = {name: d[f"tag_{name}"] for name in ("seed", "valid_share", "undirected", "text")}
    options |= {"shares": tuple(d.tag_split), "columns": tuple(d.tag_columns)}
    if not d.tag_source and not published_graph:
        raise DataError(f"dataset.name is '{d.name}', but dataset.tag_source is empty; expected the user's files")
    source = Path(d.tag_source) if d.tag_source else source_of(d.name, Path(d.dir) / d.name)
    return reader_of(published_graph.layout if published_graph else d.name), source, TableOptions(**options)


def _synthetic(cfg: CfgNode) -> TextGraph:
    from glem_graphgym.data.synthetic import make_synthetic

    d = cfg.dataset
    return make_synthetic(
        num_nodes=d.synthetic_nodes,
        num_classes=d.synthetic_classes,
        avg_degree=d.synthetic_degree,
        text_signal=d.synthetic_text_signal,
        structure_signal=d.synthetic_structure_signal,
        words_per_text=d.synthetic_words,
        feature_dim=d.synthetic_features,
        shares=d.tag_split,
        seed=d.tag_seed,
    )


# dataset.name -> function that loads the graph. A new dataset is one function in `data/` and one line here.
GRAPHS = TEXT_GRAPHS
GRAPHS |= {
    "debian": _debian,
    **dict.fromkeys(("ogbn-arxiv", "ogbn-products", "ogbn-papers100M"), _ogb),
    **dict.fromkeys((*LAYOUTS, *PUBLISHED_GRAPHS), _table_files),
    "synthetic": _synthetic,
    "wordnet": _frozen,
}
OURS = frozenset(GRAPHS)
FILE_DATASETS = (*LAYOUTS, *PUBLISHED_GRAPHS)
DATASETS_BY_KEY = {
    "dataset.tag_source": ("debian", *FILE_DATASETS),
    "dataset.tag_max_nodes": ("debian", "wordnet"),
    **{f"dataset.tag_{key}": FILE_DATASETS for key in ("valid_share", "undirected", "columns", "text")},
}


def checks_of(cfg: CfgNode) -> list[Callable[[], object]]:
    """Quick checks of a dataset's sources, each raising DataError; empty if loading the data fails as quickly."""
    from glem_graphgym.data.ogb import OGB

    if cfg.dataset.name not in OGB:
        return []
    _, checks = OGB[cfg.dataset.name]
    return checks(Path(cfg.dataset.dir))


def open_tokens(cfg: CfgNode, graph: TextGraph) -> TokenStore:
    """The graph's token ids for ``lm.model``, ``lm.prompt`` and ``lm.max_length``, cached under ``dataset.dir``.

    Warns if many of them are the tokenizer's unknown token.
    """
    tokenizer, cache = tokenizer_of(cfg, graph.texts), Path(cfg.dataset.dir) / "tokens"
    store = open_token_store(graph.texts, tokenizer, cfg.lm.max_length, cache)
    if isinstance(tokenizer, Prompted):
        logging.info(f"lm.model {cfg.lm.model}: texts are given as {tokenizer.prefix + '{text}' + tokenizer.suffix!r}")
    unknown = store.unknown_share()
    if unknown > MANY_UNKNOWN:
        logging.warning(
            f"lm.model {cfg.lm.model} does not know {unknown:.0%} of the tokens of {graph.name}: its vocabulary was "
            "not made for these texts; expected a model of their language"
        )
    return store


def readout_for(cfg: CfgNode) -> Readout:
    """The readout of text embeddings from ``lm.model``, by ``lm.pooling`` and ``lm.bidirectional``."""
    return readout_of(cfg.lm.model, cfg.lm.pooling, cfg.lm.bidirectional)


def tokenizer_of(cfg: CfgNode, texts: Texts) -> Any:
    """The tokenizer of ``lm.model`` with ``lm.prompt``, compared on some texts with the file that it is made from."""
    nodes = evenly_spaced(len(texts), TEXTS_COMPARED)
    tokenizer = load_tokenizer(cfg.lm.model, [texts[node][:CHARACTERS_COMPARED] for node in nodes])
    tokenizer = with_end_token(tokenizer, cfg.lm.model, readout_for(cfg))
    prefix, suffix = prompt_of(cfg.lm.model, cfg.lm.prompt)
    return Prompted(tokenizer, prefix, suffix) if prefix or suffix else tokenizer


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)).tolist()


def accuracy_of(dataset: str) -> Accuracy:
    """OGB's evaluator for ``ogbn-*`` graphs; for others, the same share of correct predictions."""
    if dataset.startswith("ogbn-"):
        from glem_graphgym.data.ogb.archive import ogb_accuracy

        return ogb_accuracy(dataset)
    return lambda true, predicted: float((true == predicted).mean())


def metrics_of(graph: TextGraph) -> dict[str, Metric]:
    """Name in `METRICS` -> score, for the metrics that are defined on every split of the graph.

    Macro-F1 is the mean over classes that occur as true or predicted, balanced accuracy over those that occur as true.
    ROC-AUC needs two classes, and nodes of both in every split.
    """
    from sklearn.metrics import f1_score, recall_score, roc_auc_score

    accuracy = accuracy_of(graph.name)

    def balanced_accuracy(true: np.ndarray, logits: np.ndarray) -> float:
        return recall_score(true, logits.argmax(-1), labels=np.unique(true), average="macro")

    metrics: dict[str, Metric] = {
        "accuracy": lambda true, logits: accuracy(true, logits.argmax(-1)),
        "macro_f1": lambda true, logits: f1_score(true, logits.argmax(-1), average="macro"),
        "balanced_accuracy": balanced_accuracy,
    }
    if graph.num_classes == 2 and all(len(np.unique(graph.label[nodes])) == 2 for nodes in graph.split.values()):
        metrics["auc"] = lambda true, logits: roc_auc_score(true, logits[:, 1] - logits[:, 0])
    return metrics
