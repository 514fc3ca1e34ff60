"""The generated graph in the format of ogbn-papers100M: as OGB's reader and our loader see it."""

from __future__ import annotations

import hashlib
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ogb.io.read_graph_raw import read_binary_graph_raw
from rehearsal import papers100m
from rehearsal.papers100m import Papers100MLike
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from glem_graphgym.data.errors import DataError
from glem_graphgym.data.ogb import load_ogbn_papers100m
from tests.bad_inputs.conftest import load_program

N, E, C = 4001, 30_000, 5


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Several blocks of nodes and of edges."""
    folder = tmp_path_factory.mktemp("like")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(papers100m, "NODES_AT_ONCE", 700)
        patch.setattr(papers100m, "EDGES_AT_ONCE", 9000)
        Papers100MLike(N, E, C, features=6, labelled=0.2, seed=3).write(folder / "ogbn_papers100M")
        yield folder


@pytest.fixture(scope="module")
def raw(root: Path) -> dict[str, Any]:
    """The graph as OGB's own reader returns it, with its labels and the split."""
    folder = root / "ogbn_papers100M"
    (graph,) = read_binary_graph_raw(str(folder / "raw"))
    split = {
        part: pd.read_csv(folder / f"split/time/{part}.csv.gz", header=None)[0].to_numpy()
        for part in ("train", "valid", "test")
    }
    return {**graph, "label": np.load(folder / "raw/node-label.npz")["node_label"], "split": split}


def test_shapes_and_types_are_those_of_the_archive(raw: dict[str, Any]) -> None:
    assert raw["num_nodes"] == N
    found = {key: (raw[key].dtype.name, raw[key].shape) for key in ("edge_index", "node_feat", "node_year", "label")}
    assert found == {
        "edge_index": ("int64", (2, E)),
        "node_feat": ("float32", (N, 6)),
        "node_year": ("int64", (N, 1)),
        "label": ("float32", (N, 1)),
    }
    assert raw["edge_index"].min() >= 0 and raw["edge_index"].max() < N
    assert not (raw["edge_index"][0] == raw["edge_index"][1]).any()


def test_arrays_are_stored_as_they_are(root: Path) -> None:
    """So that they can be memory-mapped, as in OGB's archive."""
    for name in ("data", "node-label"):
        with zipfile.ZipFile(root / f"ogbn_papers100M/raw/{name}.npz") as archive:
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
            assert archive.testzip() is None


def test_labels_are_few_and_split_by_year(raw: dict[str, Any]) -> None:
    label, split, year = raw["label"][:, 0], raw["split"], raw["node_year"][:, 0]
    labelled = np.flatnonzero(~np.isnan(label))
    assert len(labelled) == round(0.2 * N)
    assert np.array_equal(np.sort(np.concatenate(list(split.values()))), labelled)
    shares = [len(split[part]) / len(labelled) for part in ("train", "valid", "test")]
    assert np.allclose(shares, [0.78, 0.08, 0.14], atol=0.01)
    for nodes in split.values():
        counts = np.bincount(label[nodes].astype(int), minlength=C)
        assert counts.max() - counts.min() <= 1
        assert (np.diff(nodes) > 0).all()
    assert year[split["train"]].max() <= 2017
    assert set(year[split["valid"]]) == {2018}
    assert set(year[split["test"]]) == {2019}
    assert (year.min(), year.max()) == (1990, 2019)


def classes(raw: dict[str, Any]) -> np.ndarray:
    """The class of every node, the unlabelled ones too: what the generator knows and the files don't say."""
    drawn = Papers100MLike(N, E, C, labelled=0.2, seed=3)
    of_class = drawn.class_of(np.arange(N))
    known = ~np.isnan(raw["label"][:, 0])
    assert np.array_equal(of_class[known], raw["label"][known, 0])
    return of_class


def test_classes_are_balanced_and_places_are_a_shuffle(raw: dict[str, Any]) -> None:
    assert np.ptp(np.bincount(classes(raw))) <= 1
    drawn = Papers100MLike(N, E, C, labelled=0.2, seed=3)
    place = drawn.place_of(np.arange(N))
    assert np.array_equal(np.sort(place), np.arange(N))
    assert np.array_equal(drawn.node_at(place), np.arange(N))
    assert drawn.class_size(np.arange(C)).tolist() == np.bincount(classes(raw)).tolist()


def test_edges_tell_of_the_class_and_some_nodes_are_cited_most(raw: dict[str, Any]) -> None:
    source, target = raw["edge_index"]
    of_class = classes(raw)
    inside = (of_class[source] == of_class[target]).mean()
    assert abs(inside - (0.6 + 0.4 / C)) < 0.02
    citations = np.sort(np.bincount(target, minlength=N))[::-1]
    assert citations[0] > 20 * E / N  # a hub
    assert 0.08 < citations[: N // 100].sum() / E < 0.13  # sqrt(1/100) of all go to the first hundredth
    assert np.bincount(source, minlength=N).max() < 6 * E / N


def test_features_and_texts_tell_of_the_class_but_not_all(root: Path, raw: dict[str, Any]) -> None:
    graph = load_ogbn_papers100m(root)
    train, test = graph.split["train"], graph.split["test"]
    words = CountVectorizer().fit_transform(graph.texts)
    assert graph.features is not None
    for inputs, low, high in ((words, 0.75, 0.99), (np.asarray(graph.features), 0.45, 0.99)):
        classifier = LogisticRegression(max_iter=500).fit(inputs[train], graph.label[train])
        assert low < classifier.score(inputs[test], graph.label[test]) < high


def test_our_loader_reads_it_all(root: Path, raw: dict[str, Any]) -> None:
    graph = load_ogbn_papers100m(root)
    assert (graph.num_nodes, graph.num_classes, len(graph.class_names)) == (N, 172, 172)
    np.testing.assert_array_equal(graph.features, raw["node_feat"])
    np.testing.assert_array_equal(graph.label, np.nan_to_num(raw["label"][:, 0], nan=-1))
    pairs = {(min(a, b), max(a, b)) for a, b in raw["edge_index"].T.tolist()}
    assert graph.num_edges == len(pairs)
    assert graph.origin["title_skipped_rows"] == graph.origin["abstract_skipped_rows"] == 0
    assert 0 < graph.origin["missing_titles"] < 0.01 * N
    assert 0.03 * N < graph.origin["missing_abstracts"] < 0.07 * N
    whole = [text for text in graph.texts if text.startswith("Title: ") and ". Abstract: " in text]
    assert len(whole) > 0.9 * N
    assert {len(text.split()) for text in whole} == {32 + 2}


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = hashlib.sha256()
    for path in files:
        content.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return content.hexdigest()


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    sizes = {"num_nodes": 500, "num_edges": 2000, "num_classes": 3, "features": 4, "labelled": 0.1}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        Papers100MLike(**sizes, seed=seed).write(tmp_path / name)  # type: ignore[arg-type]
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_features_of_half_precision(tmp_path: Path) -> None:
    Papers100MLike(200, 300, 2, features=3, feature_dtype="float16", labelled=0.1).write(tmp_path / "x")
    assert np.load(tmp_path / "x/raw/data.npz")["node_feat"].dtype == np.float16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_nodes": 1}, "num_nodes is 1, expected at least 2"),
        ({"num_edges": -1}, "num_edges is -1"),
        ({"features": 0}, "features is 0"),
        ({"text_words": 1}, "text_words is 1, expected at least 2"),
        ({"labelled": 1.5}, "labelled is 1.5, expected 0 to 1"),
        ({"feature_dtype": "int8"}, "feature_dtype is 'int8'"),
        ({"num_classes": 173, "labelled": 1}, "200 labelled nodes .* for 173 classes, expected 2 to 172 classes"),
        ({"num_classes": 9, "labelled": 0.05}, "10 labelled nodes .* at least 12 labelled nodes; raise"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    sound = {"num_nodes": 200, "num_edges": 300, "num_classes": 2, "labelled": 0.1}
    with pytest.raises(DataError, match=message):
        Papers100MLike(**{**sound, **changes}).write(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists; expected a new folder"):
        Papers100MLike(200, 300, 2, labelled=0.1).write(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60,000 nodes and 400,000 edges, 27 MB, in blocks of 2,000 and 20,000."""
    monkeypatch.setattr(papers100m, "NODES_AT_ONCE", 2000)
    monkeypatch.setattr(papers100m, "EDGES_AT_ONCE", 20_000)
    tracemalloc.start()
    try:
        Papers100MLike(60_000, 400_000, 4, text_words=12).write(tmp_path / "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in (tmp_path / "x").rglob("*") if path.is_file()) > 25e6
    assert peak < 8e6


def test_the_script_writes_it_or_says_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLEM_TRACEBACK")
    script = load_program("make_papers100m_like")
    sizes = ["--nodes", "300", "--edges", "900", "--classes", "3", "--labelled", "0.1", "--seed", "4"]
    arguments = ["--folder", str(tmp_path / "x"), *sizes]
    assert script.main(arguments) == 0
    assert "x: 300 nodes, 900 directed edges" in capsys.readouterr().out
    Papers100MLike(300, 900, 3, labelled=0.1, seed=4).write(tmp_path / "y")
    assert digest(tmp_path / "x") == digest(tmp_path / "y")
    assert script.main(arguments) == 1
    assert "exists; expected a new folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        script.main(["--nodes", "300"])
