"""Graphs that differ from a given one in what training must not see: two runs on both tell whether something leaks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from glem_graphgym.data.text_graph import TextGraph, Texts, csr_from_edges


def with_other_test_nodes(graph: TextGraph) -> TextGraph:
    """The same but for its test nodes: other edges, other labels, the words of their texts in another order."""
    test = graph.split["test"]
    texts = [" ".join(reversed(text.split())) if node in set(test) else text for node, text in enumerate(graph.texts)]
    row, col = graph.edge_index()
    seen = ~np.isin(row, test) & ~np.isin(col, test)
    rng = np.random.default_rng(1)
    source, target = rng.choice(test, 90), rng.integers(0, graph.num_nodes, 90)
    rowptr, col = csr_from_edges(np.r_[row[seen], source], np.r_[col[seen], target], graph.num_nodes)
    label = graph.label.copy()
    label[test] = (label[test] + 1) % graph.num_classes
    return replace(graph, texts=Texts.of(texts), rowptr=rowptr, col=col, label=label)


def with_permuted_labels(graph: TextGraph) -> TextGraph:
    label, rng = graph.label.copy(), np.random.default_rng(3)
    for part in ("valid", "test"):
        label[graph.split[part]] = rng.permutation(label[graph.split[part]])
    return replace(graph, label=label)
