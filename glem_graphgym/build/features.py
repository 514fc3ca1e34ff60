"""Node features of the GNN: text embeddings, static embeddings, raw features, words, a file's, or several of these."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.graph import readout_for
from glem_graphgym.build.language_model import untuned_lm
from glem_graphgym.build.run_folder import file_hashes
from glem_graphgym.config import WORD_FEATURES, feature_kinds, trains_features
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.checkpoint import Checkpoint, filling
from glem_graphgym.em.e_step import open_predictions
from glem_graphgym.files import fingerprint, read_array, read_json, write_json
from glem_graphgym.memory import naming_out_of_memory
from glem_graphgym.out_of_core.feature_rows import FeatureRows, ranges

ROWS_AT_ONCE = 1 << 16
SECONDS = "seconds.json"  # file beside the static embeddings: seconds of computing them


def load_matrix(path: str, rows: int, key: str, columns: int | None = None) -> np.ndarray:
    """Float array (rows, columns) of an ``.npy`` (memory-mapped) or ``.pt`` file.

    Raises:
        DataError: names the config ``key`` and the file, what was found and what was expected.
    """
    file = Path(path)
    try:
        if file.suffix == ".npy":
            array = np.lib.format.open_memmap(file, mode="r")
        elif file.suffix in (".pt", ".pth"):
            array = torch.load(file, map_location="cpu", weights_only=True).numpy()
        else:
            raise DataError(f"{key} is '{path}', expected a file ending in .npy or .pt")
    except DataError:
        raise
    except Exception as error:  # unpickling a foreign file can fail in any way
        raise DataError(f"{key}: {path} cannot be read as one array: {error!r:.200}") from error
    if array.ndim != 2 or len(array) != rows or array.shape[1] != (columns or max(1, array.shape[1])):
        raise DataError(
            f"{key}: {path} holds an array of shape {array.shape}, expected ({rows}, {columns or 'D'}), in node order, "
            "with at least one column"
        )
    if array.dtype.kind != "f":
        raise DataError(f"{key}: {path} holds {array.dtype}, expected floating point numbers")
    with np.errstate(over="ignore"):  # computations are in float32
        blocks = (np.asarray(array[first:end], dtype=np.float32) for first, end in ranges(rows, ROWS_AT_ONCE))
        if not all(np.isfinite(block).all() for block in blocks):
            raise DataError(f"{key}: {path} holds NaN or infinite values, or some beyond float32")
    return array


def word_features(texts: Sequence[str], kind: str, columns: int, rows: np.ndarray | None = None) -> np.ndarray:
    """Bag-of-words features float16 (N, columns), by scikit-learn; columns beyond the vocabulary are zero.

    Args:
        kind: ``"bow"``, 1 for each word that occurs, or ``"tfidf"``, sublinear counts times inverse document frequency,
            each row of length 1.
        columns: size of the vocabulary: the most frequent words, without English stop words.
        rows: int64, the texts that determine vocabulary and frequencies; None = all.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    make, options = (CountVectorizer, {"binary": True}) if kind == "bow" else (TfidfVectorizer, {"sublinear_tf": True})
    words = make(max_features=columns, stop_words="english", dtype=np.float32, **options)
    try:
        words.fit(texts if rows is None else (texts[row] for row in rows.tolist()))
    except ValueError as error:  # no words at all
        raise DataError(
            f"glem.node_features {kind}: the texts hold no word that could be a feature ({error})"
        ) from None
    features = np.zeros((len(texts), columns), dtype=np.float16)
    for first, end in ranges(len(texts), ROWS_AT_ONCE // 4):
        block = words.transform(texts[first:end])
        features[first:end, : block.shape[1]] = block.toarray()
    return features


def static_folder(cfg: CfgNode, tokens: TokenStore, nodes: np.ndarray | None = None) -> Path:
    """The folder under ``dataset.dir`` for the untuned LM's embeddings, of ``nodes`` alone if given."""
    lm = cfg.lm
    key = fingerprint(
        np.asarray(tokens.ids),
        np.asarray(tokens.offsets),
        lm.model,
        file_hashes(cfg).get("lm.model"),
        lm.pretrained,
        str(readout_for(cfg)),
        lm.bidirectional,
        lm.base_precision,
        lm.precision,
        lm.attention,
    )
    return Path(cfg.dataset.dir) / "static" / (key if nodes is None else fingerprint(key, nodes))


def static_embeddings(cfg: CfgNode, tokens: TokenStore, nodes: np.ndarray | None = None) -> np.ndarray:
    """Embeddings float16 (N, H) of the untuned LM, computed once and cached under ``dataset.dir``.

    Args:
        nodes: int64 (n,), nodes to encode, with zeros for the others; None = all.
    """
    folder = static_folder(cfg, tokens, nodes)
    with filling(folder, data_parallel=True) as partial_folder:
        if partial_folder is not None:
            task = untuned_lm(cfg, tokens).start()
            checkpoint = Checkpoint(partial_folder, cfg.glem.checkpoint_minutes)
            unused = np.zeros((len(tokens), 1), dtype=np.float16)
            embeddings = open_predictions(partial_folder, "embeddings", len(tokens), task.embedding_dim, nodes)
            start = time.perf_counter()
            remedy = f"set lm.infer_tokens below {task.settings.infer_tokens}, or take a smaller lm.model"
            with naming_out_of_memory("encoding static embeddings", remedy):
                task.predict(unused, embeddings, "static embeddings", nodes, checkpoint)
            if processes.rank() == 0:
                seconds = checkpoint.seconds_before + time.perf_counter() - start
                write_json(partial_folder / SECONDS, round(seconds, 3))
    return read_array(folder / "embeddings.npy", f"delete {folder} to have it made anew")


def seconds_before(cfg: CfgNode, tokens: TokenStore | None, nodes: np.ndarray | None) -> float:
    """Seconds of computing the static embeddings, in whichever run; 0 if the features include none."""
    if "static" not in feature_kinds(cfg.glem.node_features):
        return 0.0
    assert tokens is not None
    file = static_folder(cfg, tokens, nodes) / SECONDS
    return float(read_json(file)) if file.exists() else 0.0


def feature_builder(
    cfg: CfgNode, graph: TextGraph, tokens: TokenStore | None, encoded: np.ndarray | None = None
) -> Callable[..., Any]:
    """A function from embeddings (N, H) of texts and views to the features (N, D) that ``glem.node_features`` names.

    All features but the trained embeddings are read and checked at once. The function returns a float32 array or, with
    ``glem.memory_budget_gb``, `FeatureRows`, which read the rows that they are asked for from their sources.

    Args:
        encoded: int64, increasing: nodes that have embeddings; None = all.
    """
    fixed: dict[str, np.ndarray] = {}
    kinds = feature_kinds(cfg.glem.node_features)
    seen_nodes = None  # nodes whose texts training may use; None = all (transductive)
    if cfg.glem.setting != "transductive":
        seen_nodes = np.setdiff1d(np.arange(graph.num_nodes), graph.split["test"])
    for kind in kinds:
        if kind == "raw":
            if graph.features is None:
                raise DataError(f"glem.node_features asks for raw features, but {graph.name} has none")
            fixed[kind] = np.asarray(graph.features)
        elif kind == "file":
            fixed[kind] = load_matrix(cfg.glem.feature_file, graph.num_nodes, "glem.feature_file")
        elif kind == "static":
            assert tokens is not None
            fixed[kind] = static_embeddings(cfg, tokens, encoded)
        elif kind in WORD_FEATURES:
            fixed[kind] = word_features(graph.texts, kind, cfg.glem.vocabulary, seen_nodes)
    has_trained = trains_features(cfg.glem.node_features)
    has_zero_rows = encoded is not None and (has_trained or "static" in kinds)
    statistics_nodes = encoded if has_zero_rows else None
    if seen_nodes is not None:
        statistics_nodes = seen_nodes
        if has_zero_rows:  # only these: whether other nodes are encoded depends on edges of test nodes
            statistics_nodes = np.union1d(graph.split["train"], graph.split["valid"])

    def build(embeddings: np.ndarray | None, views: Mapping[str, np.ndarray] = MappingProxyType({})) -> Any:
        trained = {"text": embeddings, **{f"text:{name}": view_embeddings for name, view_embeddings in views.items()}}
        arrays = [array for kind in kinds if (array := {**fixed, **trained}.get(kind)) is not None]
        standardise = cfg.gnn.input_norm in ("standardise", "layer")
        rows = FeatureRows(arrays, standardise=standardise, rows=statistics_nodes, fixed=not has_trained)
        return rows if cfg.glem.memory_budget_gb else np.asarray(rows)

    return build
