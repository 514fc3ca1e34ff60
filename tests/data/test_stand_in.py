"""Stand-ins are small and look like what they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glem_graphgym.data.csr import check_csr
from glem_graphgym.data.stand_in import RemappedTokens, sampled_tokens, smaller_graph
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import Texts
from glem_graphgym.data.tokens import open_token_store
from glem_graphgym.models.pretrained import load_tokenizer


def texts_of_many_sizes(count: int) -> Texts:
    rng = np.random.default_rng(3)
    words = [f"word{i}" for i in range(50)]
    return Texts.of([" ".join(rng.choice(words, int(size))) for size in rng.lognormal(2, 1, count).clip(0, 60)])


def test_sampled_tokens_tell_the_number_of_all_tokens_and_the_longest_text(tiny_lm: Path, tmp_path: Path) -> None:
    texts, tokenizer = texts_of_many_sizes(3000), load_tokenizer(str(tiny_lm))
    exact = open_token_store(texts, tokenizer, 60, tmp_path)
    sampled = sampled_tokens(texts, tokenizer, 60, count=200)
    assert len(sampled) == 3000
    assert len(sampled.store) <= 200
    assert sampled.lengths.sum() == pytest.approx(exact.lengths.sum(), rel=0.05)
    assert sampled.lengths.max() == exact.lengths.max()


def test_all_texts_sampled_are_all_texts(tiny_lm: Path, tmp_path: Path) -> None:
    texts, tokenizer = texts_of_many_sizes(40), load_tokenizer(str(tiny_lm))
    exact, sampled = open_token_store(texts, tokenizer, 60, tmp_path), sampled_tokens(texts, tokenizer, 60)
    nodes = np.array([7, 0, 39, 7])
    for mine, its in zip(sampled.pad(nodes), exact.pad(nodes), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_text_that_stands_for_others_is_given_for_each_of_them(tiny_lm: Path, tmp_path: Path) -> None:
    store = open_token_store(texts_of_many_sizes(10), load_tokenizer(str(tiny_lm)), 60, tmp_path)
    tokens = RemappedTokens(RemappedTokens(store, np.array([4, 2, 4])), np.array([2, 1]))
    for mine, its in zip(tokens.pad(np.array([0, 1])), store.pad(np.array([4, 2])), strict=True):
        np.testing.assert_array_equal(mine, its)
    np.testing.assert_array_equal(tokens.lengths, store.lengths[[4, 2]])


def test_a_smaller_graph_keeps_mean_degree_classes_and_shares() -> None:
    graph = make_synthetic(num_nodes=5000, num_classes=4, avg_degree=12, feature_dim=3, seed=1)
    small = smaller_graph(graph, 1000)
    check_csr("small", small.rowptr, small.col)
    assert small.num_nodes == 1000
    assert small.num_edges / 1000 == pytest.approx(graph.num_edges / 5000, rel=0.05)
    assert small.class_names == graph.class_names
    assert {part: len(nodes) * 5 for part, nodes in small.split.items()} == {
        part: len(nodes) for part, nodes in graph.split.items()
    }
    assert small.features is not None
    assert small.features.shape == (1000, 3)
