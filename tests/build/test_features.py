"""Node features of the GNN: every source, joined, standardised, cached; and files that are not what they should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.features import feature_builder, load_matrix, static_embeddings
from glem_graphgym.build.graph import open_tokens
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.data.texts import Texts
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import LMTask

NODES, HIDDEN = 40, 32


@pytest.fixture
def graph() -> TextGraph:
    return make_synthetic(
        num_nodes=NODES, num_classes=2, avg_degree=3, feature_dim=5, shares=(0.3, 0.3, 0.4), words_per_text=4
    )


@pytest.fixture
def tokens(graph: TextGraph, tmp_path: Path, tiny_lm: Path) -> TokenStore:
    cfg.dataset.dir, cfg.lm.model, cfg.lm.max_length = str(tmp_path / "datasets"), str(tiny_lm), 16
    cfg.lm.precision, cfg.gnn.input_norm = "32", "none"
    return open_tokens(cfg, graph)


@pytest.fixture
def embeddings() -> np.ndarray:
    return np.random.default_rng(1).normal(3, 2, size=(NODES, HIDDEN)).astype(np.float16)


def save(file: Path, array: np.ndarray) -> str:
    np.save(file, array)
    return str(file)


# ---- sources ------------------------------------------------------------------------------------------------------


def test_raw_features_need_no_embeddings(graph: TextGraph, tokens: TokenStore) -> None:
    cfg.glem.node_features = "raw"
    assert np.array_equal(feature_builder(cfg, graph, None)(None), np.asarray(graph.features))


@pytest.mark.parametrize("kind", ["bow", "tfidf"])
@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_words_are_features_and_unseen_texts_choose_none(graph: TextGraph, kind: str, setting: str) -> None:
    texts = ["cat dog dog", "dog the dog bird", "cat"] + ["dog"] * (NODES - 4) + ["zebra " * 50 + "cat"]
    split = {"train": np.arange(10), "valid": np.arange(10, 20), "test": np.arange(20, NODES)}
    cfg.glem.node_features, cfg.glem.vocabulary, cfg.glem.setting, cfg.gnn.input_norm = kind, 5, setting, "none"
    found = feature_builder(cfg, replace(graph, texts=Texts.of(texts), split=split), None)(None)
    assert found.shape == (NODES, 5)
    words = 3 if setting == "inductive" else 4  # bird, cat, dog, and zebra, which one test node alone has
    assert (found.any(axis=0)).tolist() == [True] * words + [False] * (5 - words)
    row = found[0][:3].tolist()
    assert (
        row == [0, 1, 1] if kind == "bow" else row[1] > row[2] > 0 and np.hypot(*row[1:]) == pytest.approx(1, abs=1e-3)
    )


def test_texts_without_words_are_refused(graph: TextGraph) -> None:
    cfg.glem.node_features = "tfidf"
    with pytest.raises(DataError, match=r"glem\.node_features tfidf: the texts hold no word"):
        feature_builder(cfg, replace(graph, texts=Texts.of(["the"] * NODES)), None)


def test_raw_features_that_a_graph_has_not(graph: TextGraph, tokens: TokenStore) -> None:
    cfg.glem.node_features = "text+raw"
    with pytest.raises(DataError, match=r"glem\.node_features asks for raw features, but synthetic has none"):
        feature_builder(cfg, replace(graph, features=None), tokens)


@pytest.mark.parametrize("kind", ["npy", "pt"])
def test_sources_are_joined_in_the_order_named(
    kind: str, graph: TextGraph, tokens: TokenStore, embeddings: np.ndarray, tmp_path: Path
) -> None:
    extra = np.arange(2 * NODES, dtype=np.float64).reshape(NODES, 2)
    torch.save(torch.from_numpy(extra), tmp_path / "extra.pt")
    save(tmp_path / "extra.npy", extra)
    cfg.glem.node_features, cfg.glem.feature_file = "file + text+raw", str(tmp_path / f"extra.{kind}")
    x = feature_builder(cfg, graph, tokens)(embeddings)
    assert x.dtype == np.float32
    assert np.array_equal(x, np.concatenate([extra, embeddings, np.asarray(graph.features)], axis=1, dtype=np.float32))


# ---- standardising ------------------------------------------------------------------------------------------------


def test_input_norm_standardises_columns(graph: TextGraph, tokens: TokenStore, embeddings: np.ndarray) -> None:
    cfg.gnn.input_norm = "standardise"
    embeddings[:, 4] = 2.5
    x = feature_builder(cfg, graph, tokens)(embeddings)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(x.std(0), 4), 1, atol=1e-4)
    assert (x[:, 4] == 0).all()  # a column that tells nothing, not NaN


@pytest.mark.parametrize("setting", ["transductive", "inductive", "structure_free"])
def test_statistics_are_not_those_of_test_nodes(
    setting: str, graph: TextGraph, tokens: TokenStore, embeddings: np.ndarray
) -> None:
    cfg.gnn.input_norm, cfg.glem.setting = "standardise", setting
    build = feature_builder(cfg, graph, tokens)
    test = graph.split["test"]
    seen = np.setdiff1d(np.arange(NODES), test)
    x, changed = build(embeddings), embeddings.copy()
    changed[test] += 100
    again = build(changed)
    assert (again[test] != x[test]).all()
    if setting == "transductive":
        assert (again[seen] != x[seen]).all()
        return
    np.testing.assert_allclose(x[seen].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x[seen].std(0), 1, atol=1e-4)
    assert np.array_equal(again[seen], x[seen])


# ---- static embeddings --------------------------------------------------------------------------------------------


def test_static_embeddings_are_the_pretrained_models(tokens: TokenStore, tiny_lm: Path) -> None:
    """Against transformers itself: the mean of the last hidden states over a text's tokens."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(tiny_lm).eval()
    found = static_embeddings(cfg, tokens)
    assert found.dtype == np.float16
    assert found.shape == (NODES, HIDDEN)
    for node in (0, 17, NODES - 1):
        ids, _ = tokens.pad(np.array([node]))
        with torch.no_grad():
            expected = model(input_ids=torch.from_numpy(ids)).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(found[node], expected.numpy(), atol=2e-3)


def test_static_embeddings_are_computed_once(
    graph: TextGraph, tokens: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    predict = LMTask.predict

    def counted(*args: Any) -> None:
        calls.append(1)
        predict(*args)

    monkeypatch.setattr(LMTask, "predict", counted)
    cfg.glem.node_features = "static"
    first = feature_builder(cfg, graph, tokens)(None)
    again = feature_builder(cfg, graph, tokens)(None)
    assert len(calls) == 1
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    ("key", "value"), [("pooling", "cls"), ("pretrained", False), ("max_length", 8), ("prompt", "a ")]
)
def test_static_embeddings_are_not_shared_between_models(
    key: str, value: object, graph: TextGraph, tokens: TokenStore
) -> None:
    before = np.array(static_embeddings(cfg, tokens))
    cfg.lm[key] = value
    after = static_embeddings(cfg, open_tokens(cfg, graph))
    assert len(list((Path(cfg.dataset.dir) / "static").glob("[0-9a-f]*"))) == 2
    assert (before != after).any()


def test_static_embeddings_have_the_models_own_width(tokens: TokenStore) -> None:
    """An untrained bottleneck would be a random projection, different for every seed."""
    cfg.lm.shrink_dim = 4
    assert static_embeddings(cfg, tokens).shape == (NODES, HIDDEN)


# ---- files that are not what they should be -----------------------------------------------------------------------


ARRAYS = ["rows", "vector", "no column", "cube", "int", "nan", "huge", "inf", "object"]
BAD_FILES = ["zip.npy", "empty.npy", "junk.pt", "empty.pt", "dict.pt", "array.pt", "bf16.pt", "none.npy"]


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Name -> file, and what its error says."""
    good = np.ones((NODES, 3), dtype=np.float32)
    cases: dict[str, tuple[np.ndarray, str]] = {
        "rows": (good[1:], f"shape ({NODES - 1}, 3), expected ({NODES}, D), in node order"),
        "vector": (good[:, 0], f"shape ({NODES},), expected ({NODES}, D)"),
        "no column": (good[:, :0], "in node order, with at least one column"),
        "cube": (good[:, :, None], "shape (40, 3, 1)"),
        "int": (good.astype(np.int64), "holds int64, expected floating point numbers"),
        "nan": (np.where(np.eye(NODES, 3) > 0, np.nan, good), "holds NaN or infinite values"),
        "huge": (np.full((NODES, 3), 1e300), "beyond float32"),
        "inf": (np.where(np.eye(NODES, 3) > 0, np.inf, good), "holds NaN or infinite values"),
        "object": (np.array([["a", None]] * NODES, dtype=object), "cannot be read as one array"),
    }
    result = {name: (folder / f"{name}.npy", message) for name, (_, message) in cases.items()}
    for name, (array, _) in cases.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "zip.npz", good)
    (folder / "zip.npz").rename(folder / "zip.npy")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "junk.pt").write_bytes(b"no such thing")
    (folder / "empty.pt").write_bytes(b"")
    torch.save({"x": torch.ones(NODES, 3)}, folder / "dict.pt")
    torch.save(good, folder / "array.pt")
    torch.save(torch.ones(NODES, 3, dtype=torch.bfloat16), folder / "bf16.pt")
    (folder / "table.csv").write_text("1,2,3\n")
    result.update({name: (folder / name, "cannot be read as one array") for name in BAD_FILES})
    result["table.csv"] = (folder / "table.csv", "expected a file ending in .npy or .pt")
    return result


@pytest.mark.parametrize("name", [*ARRAYS, *BAD_FILES, "table.csv"])
def test_bad_feature_files(name: str, graph: TextGraph, tokens: TokenStore, tmp_path: Path) -> None:
    file, message = bad_files(tmp_path)[name]
    cfg.glem.node_features, cfg.glem.feature_file = "text+file", str(file)
    with pytest.raises(DataError) as error:
        feature_builder(cfg, graph, tokens)
    assert str(error.value).startswith("glem.feature_file")
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_can_be_asked_for(tmp_path: Path) -> None:
    file = save(tmp_path / "logits.npy", np.ones((NODES, 3), dtype=np.float32))
    assert load_matrix(file, NODES, "glem.first_predictions", columns=3).shape == (NODES, 3)
    with pytest.raises(DataError, match=r"glem\.first_predictions: .* \(40, 3\), expected \(40, 2\)"):
        load_matrix(file, NODES, "glem.first_predictions", columns=2)
