"""Small stand-ins for large data, for measuring what the large data will cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from glem_graphgym.data.csr import csr_from_edges
from glem_graphgym.data.text_graph import SPLITS, TextGraph, Texts
from glem_graphgym.data.tokens import TokenStore, encode_texts

SAMPLED_TEXTS = 2000


class RemappedTokens(TokenStore):
    """Tokens of N texts: text i is text ``stands_for[i]`` of a smaller store."""

    def __init__(self, store: TokenStore, stands_for: np.ndarray) -> None:
        super().__init__(store.ids, store.offsets, store.pad_id, store.unknown_id, store.ids_below)
        self.store, self.stands_for = store, stands_for
        self.lengths = store.lengths[stands_for]

    def pad(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.store.pad(self.stands_for[nodes])


def sampled_tokens(texts: Texts, tokenizer: Any, max_length: int, count: int = SAMPLED_TEXTS) -> RemappedTokens:
    """Tokenize ``count`` texts, spread evenly over sizes in bytes; each text is represented by the next larger one."""
    order = np.argsort(np.diff(texts.offsets), kind="stable")
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(np.int64))
    ids = encode_texts([texts[i] for i in order[chosen]], tokenizer, max_length)
    offsets = np.concatenate([[0], np.cumsum([len(text) for text in ids])]).astype(np.int64)
    flat = np.concatenate([np.asarray(text, dtype=np.int32) for text in ids])
    store = TokenStore.of(flat, offsets, tokenizer)
    stands_for = np.empty(len(texts), dtype=np.int32)
    stands_for[order] = np.searchsorted(chosen, np.arange(len(texts)))
    return RemappedTokens(store, stands_for)


def smaller_graph(graph: TextGraph, num_nodes: int, seed: int = 0) -> TextGraph:
    """A graph of ``num_nodes`` < N nodes, without texts, with the mean degree, classes and split shares of ``graph``.

    It keeps ``num_nodes`` / N of the edges, with node numbers modulo ``num_nodes``; labels are drawn at random.
    """
    rng = np.random.default_rng(seed)
    share = num_nodes / graph.num_nodes
    # With replacement, so that memory is that of the small graph: so many draws hit about that share of the edges.
    draws = int(-np.log1p(-share) * graph.num_edges)
    entries = np.sort(rng.integers(0, max(1, len(graph.col)), draws))
    row = np.searchsorted(graph.rowptr, entries, side="right") - 1
    rowptr, col = csr_from_edges(row % num_nodes, np.asarray(graph.col[entries], np.int64) % num_nodes, num_nodes)
    order, split, start = rng.permutation(num_nodes), {}, 0
    for split_name in SPLITS:
        size = max(1, int(share * len(graph.split[split_name])))
        split[split_name] = np.sort(order[start : start + size])
        start += size
    return TextGraph(
        name=graph.name,
        texts=Texts.of([""] * num_nodes),
        rowptr=rowptr,
        col=col,
        label=rng.integers(0, graph.num_classes, num_nodes),
        split=split,
        class_names=graph.class_names,
        features=None if graph.features is None else np.asarray(graph.features[:num_nodes]),
    )
