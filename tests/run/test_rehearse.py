"""`run/rehearse.py`: its graphs as our loaders see them, its model, and the whole command at a small scale."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmarks.scale import Used
from rehearsal import graphs, steps
from rehearsal.models import make_deberta

from glem_graphgym.data.ogb import load_ogbn_arxiv, load_ogbn_products
from glem_graphgym.data.text_graph import TextGraph
from tests.bad_inputs.conftest import load_program, logging_taken_back


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def arxiv(folder: Path) -> TextGraph:
    graphs.write_graph(folder, graphs.ARXIV.scaled(0.02))
    return load_ogbn_arxiv(folder)


@pytest.fixture(scope="module")
def products(folder: Path) -> TextGraph:
    graphs.write_graph(folder, graphs.PRODUCTS.scaled(0.002))
    return load_ogbn_products(folder)


def within_class(graph: TextGraph) -> float:
    """Share of edges between nodes of one class."""
    source, target = graph.edge_index()
    return float((graph.label[source] == graph.label[target]).mean())


def test_the_true_sizes_are_those_of_ogb() -> None:
    for shape in (graphs.ARXIV, graphs.PRODUCTS):
        assert sum(shape.split) == shape.nodes
        assert shape.scaled(1) == shape
    assert (graphs.ARXIV.nodes, graphs.ARXIV.edges) == (169_343, 1_166_243)
    assert (graphs.PRODUCTS.nodes, graphs.PRODUCTS.edges) == (2_449_029, 61_859_140)


def test_arxiv_is_read_with_exactly_what_was_asked_for(arxiv: TextGraph) -> None:
    assert arxiv.num_nodes == 1819 + 596 + 972
    assert {part: len(nodes) for part, nodes in arxiv.split.items()} == {"train": 1819, "valid": 596, "test": 972}
    assert arxiv.features is not None and arxiv.features.shape == (arxiv.num_nodes, 128)
    assert arxiv.num_edges == 23_156  # pairs
    assert arxiv.origin["directed_edges"] == 23_325
    assert arxiv.origin["missing_texts"] == 0
    assert arxiv.origin["text_rows"] == arxiv.num_nodes + arxiv.num_nodes // 20 + 2, "strangers, a header, zeros"
    assert arxiv.origin["skipped_rows"] == 2
    assert 0.55 < within_class(arxiv) < 0.75
    sizes = np.bincount(arxiv.label, minlength=40)
    assert sizes.min() > 0
    assert 0.14 < sizes.max() / arxiv.num_nodes < 0.16
    assert np.diff(arxiv.rowptr).max() > 20 * np.diff(arxiv.rowptr).mean(), "a hub"


def test_products_is_read_with_exactly_what_was_asked_for(products: TextGraph) -> None:
    assert {part: len(nodes) for part, nodes in products.split.items()} == {"train": 393, "valid": 79, "test": 4426}
    assert products.features is not None and products.features.shape == (4898, 100)
    assert products.num_edges == products.origin["published_edges"] == 123_718
    assert products.origin["missing_texts"] == products.origin["skipped_rows"] == 0
    assert 0.7 < within_class(products) < 0.9
    without = [text for text in products.texts if ". Content: " not in text]
    assert 0.08 < len(without) / products.num_nodes < 0.12


def test_texts_are_as_long_as_they_should_be_and_tell_of_the_class(arxiv: TextGraph) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    words = np.array([len(text.split()) for text in arxiv.texts])
    assert 165 < words.mean() < 185
    assert words.std() > 50
    counts = CountVectorizer().fit_transform(arxiv.texts)
    train, test = arxiv.split["train"], arxiv.split["test"]
    score = MultinomialNB().fit(counts[train], arxiv.label[train]).score(counts[test], arxiv.label[test])
    assert 0.6 < score < 0.9, "a fifth of the texts are another class's"


def test_the_same_seed_gives_the_same_graph(tmp_path: Path) -> None:
    shape = graphs.ARXIV.scaled(0.001)
    one, same, other = (
        load_ogbn_arxiv(graphs.write_graph(tmp_path / name, shape, seed).parent)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_a_graph_that_is_there_is_left_alone_and_a_part_of_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = graphs.PRODUCTS.scaled(0.001)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "_texts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            graphs.write_graph(tmp_path, shape)
    assert not (tmp_path / "ogbn_products").exists()
    made = graphs.write_graph(tmp_path, shape)
    times = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert graphs.write_graph(tmp_path, shape) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == times


@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_model_is_a_deberta_that_knows_the_words(
    tmp_path: Path, arxiv: TextGraph, size: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rehearsal import models
    from transformers import AutoConfig, AutoTokenizer

    if size == "base":  # 500 MB of random weights are not needed here
        monkeypatch.setitem(models.SIZES["base"], "num_hidden_layers", 1)
        monkeypatch.setitem(models.VOCABULARY, "base", 1500)
    make_deberta(tmp_path / size, size)
    config = AutoConfig.from_pretrained(tmp_path / size)
    assert config.model_type == "deberta"
    assert (config.hidden_size, config.pos_att_type) == ({"tiny": 64, "base": 768}[size], ["c2p", "p2c"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / size)
    texts = list(arxiv.texts)[:300]
    ids = tokenizer(texts)["input_ids"]
    assert not any(tokenizer.unk_token_id in text for text in ids)
    assert max(map(max, ids)) < config.vocab_size
    assert 1.25 < sum(map(len, ids)) / sum(len(text.split()) for text in texts) < 1.4


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Programs run in this process, which spares their imports; yields the names of those that were run."""
    run: list[str] = []

    def watched(command: Sequence[str], folder: Path, shown: bool = False) -> Used:
        assert shown and folder.is_dir()
        name = Path(command[1]).stem
        run.append(name)
        if (status := load_program(name).main(list(command[2:]))) != 0:
            raise RuntimeError(f"ended with {status}")
        return Used(60.0, 1.5, 0.25)

    monkeypatch.setattr(steps, "watched", watched)
    monkeypatch.delenv("GLEM_TRACEBACK", raising=False)
    environment = dict(os.environ)
    with logging_taken_back():
        yield run
    os.environ.clear()
    os.environ.update(environment)


FAST = ["accelerator", "cpu", "num_threads", "1", "lm.max_length", "16", "optim.max_epoch", "2", "print", "file"]


@pytest.mark.slow
def test_from_the_first_command_to_the_leaderboard(
    tmp_path: Path, in_this_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["arxiv", "--scale", "0.001", "--folder", str(tmp_path), *FAST]
    assert load_program("rehearse").main(command) == 0
    out = capsys.readouterr().out
    assert in_this_process == ["prepare", "main", "prepare", "main", "leaderboard"]
    results = tmp_path / "arxiv_0.001" / "results_tiny_bf16"
    assert {file.name for file in results.glob("leaderboard.*")} >= {"leaderboard.csv", "leaderboard.html"}
    table = (results / "figures.md").read_text()
    assert table.strip() in out
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert {len(row) for row in rows} == {len(steps.COLUMNS)}
    assert ["run, glem_arxiv", "1.0", "1.50", "0.25", "", "", ""] in rows
    for config in ("glem_arxiv", "glem_revgat_arxiv"):
        stages = [json.loads(file.read_text()) for file in sorted(results.glob(f"{config}/0/stages/*/stage.json"))]
        assert {"LM", "Cascade", "GLEM-LM", "GLEM-GNN"} <= {stage["method"] for stage in stages}
        for stage in stages:
            wanted = [f"· {stage['name']} ({stage['method']})", f"{stage['seconds'] / 60:.1f}"]
            assert any(row[:2] == wanted and row[-1] == f"{stage['scores']['test']['accuracy']:.3f}" for row in rows)
        assert re.search(r"precision: bf16", (results / config / "config.yaml").read_text())
    assert len(list((tmp_path / "arxiv_0.001/lm_gold").glob("[!.]*"))) == 1, "both runs share the LM on gold"

    in_this_process.clear()
    assert load_program("rehearse").main(command) == 0
    assert in_this_process == []
    assert (results / "figures.md").read_text() == table


@pytest.mark.slow
def test_a_step_that_fails_ends_it_and_is_done_again(
    tmp_path: Path, in_this_process: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["products", "--scale", "0.001", "--folder", str(tmp_path), "--prepare", *FAST]
    assert load_program("rehearse").main([*command, "lm.model", str(tmp_path / "nothing")]) == 1
    err = capsys.readouterr().err
    assert "lm.model" in err
    assert err.splitlines()[-1].startswith("error: 'prepare, glem_gamlp_products' failed")
    assert load_program("rehearse").main(command) == 0
    assert in_this_process == ["prepare", "prepare"]
    assert "| prepare, glem_gamlp_products | 1.0 | 1.50 | 0.25 |" in capsys.readouterr().out


@pytest.mark.slow
def test_texts_of_full_length(tmp_path: Path, in_this_process: list[str]) -> None:
    command = ["arxiv", "--scale", "0.001", "--folder", str(tmp_path), "--full_length", "--prepare", *FAST]
    assert load_program("rehearse").main(command) == 0
    graph = load_ogbn_arxiv(tmp_path / "arxiv_0.001_full")
    assert min(len(text.split()) for text in graph.texts) > 600


@pytest.mark.parametrize("wrong", [["--scale", "0"], ["--scale", "1.5"], ["--lm", "huge"], ["--nodes", "5"]])
def test_a_wrong_command_line_is_refused(tmp_path: Path, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_program("rehearse").main(["arxiv", "--folder", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert wrong[0] in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
