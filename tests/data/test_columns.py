"""Columns of a user's tables under other names, texts of several columns, and lists of neighbours."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glem_graphgym.data.columns import Columns, edges_of_neighbours
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.text_graph import TextGraph
from tests.data.own_tables import load_table

TABLE = pd.DataFrame(
    {
        "paper": ["p0", "p1", "p2", "p3"],
        "title": ["On cats", "", "On newts", ""],
        "abstract": ["They purr.", "They bark.", "", ""],
        "venue": ["A", "B", "A", "B"],
        "part": ["train", "train", "valid", "test"],
        "pages": [4, 8, 6, 9],
        "year": [2001, 2002, 2003, 2004],
        "author": list("uvwx"),
        "label": list("abcd"),
    }
)
NAMES = ["id=paper", "label=venue", "split=part"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "papers").mkdir()
    TABLE.to_csv(tmp_path / "papers" / "nodes.csv", index=False)
    (tmp_path / "papers" / "edges.csv").write_text("source,target\np0,p1\np2,p0\n")
    return tmp_path / "papers"


def load(folder: Path, *columns: str, text: str = "{title}: {abstract}", **options: Any) -> TextGraph:
    return load_table(folder, folder.parent / "cache", columns=(*NAMES, *columns), text=text, **options)


def test_named_columns_are_taken_numbers_are_features_and_the_rest_is_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        graph = load(folder)
    assert (graph.node_ids, graph.class_names) == ([*TABLE["paper"]], ["A", "B"])
    assert {part: [*nodes] for part, nodes in graph.split.items()} == {"train": [0, 1], "valid": [2], "test": [3]}
    np.testing.assert_array_equal(graph.features, TABLE[["pages", "year"]])
    assert "papers: not used: label, author\n" in caplog.text
    assert graph.origin["taken"] == {
        "id": "paper",
        "label": "venue",
        "split": "part",
        "text": "{title}: {abstract}",
        "edges": "edges.csv",
    }


def test_features_that_are_named_are_the_only_ones(folder: Path) -> None:
    graph = load(folder, "features=year")
    np.testing.assert_array_equal(graph.features, TABLE[["year"]])
    assert graph.origin["left"] == ["label", "pages", "author"]


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("{title}: {abstract}", ["On cats: They purr.", "They bark.", "On newts", ""]),
        ("{title}. {abstract} ({year})", ["On cats. They purr. (2001)", "They bark. (2002)", "On newts (2003)"]),
        ("Title: {title}\nAbout: {abstract}", ["Title: On cats\nAbout: They purr.", "About: They bark."]),
        ("{paper} {part}", ["p0 train", "p1 train", "p2 valid", "p3 test"]),
    ],
)
def test_empty_parts_leave_no_punctuation(folder: Path, template: str, texts: list[str]) -> None:
    assert [*load(folder, text=template).texts][: len(texts)] == texts


@pytest.mark.parametrize(
    ("columns", "template", "message"),
    [
        (["text"], "", r"holds 'text', expected ours=theirs"),
        (["text="], "", r"holds 'text=', expected ours=theirs"),
        (["words=abstract"], "", r"ours is one of id, text, label, split"),
        (["label=a", "label=b"], "", r"two columns for 'label': 'a' and 'b'"),
        (["id=title", "text=title"], "", r"names the column 'title' for several of ours"),
        ([], "title", r"tag_text is 'title', expected columns in braces"),
        (["label=venue"], "{title} ({venue})", r"the texts would tell the label, column 'venue'"),
        (["text=abstract"], "{title}", r"tag_text is '{title}', but .* names 'abstract' for the text"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_read(columns: list[str], template: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Columns(columns, template)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["text=summary"], {"text": ""}, r"\(text=summary\) names the column 'summary', which .*nodes.csv does not"),
        (["features=size"], {}, r"\(features=size\) names the column 'size'"),
        (["features=author"], {}, r"column 'author' holds 'u' at node 'p0'"),
        (["source=von"], {}, r"\(source=von\) names the column 'von', which .*edges.csv does not have"),
        (["neighbours=author"], {}, r"names 'author' for the neighbours, but edges have a file"),
        ([], {"text": "{title}. {body}"}, r"tag_text .* names the column 'body', which .*nodes.csv does not have"),
        ([], {"text": ""}, r"no column \['text'\].* dataset.tag_columns to \[text=title\]"),
    ],
)
def test_columns_that_are_not_there_are_named(
    folder: Path, columns: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(folder, *columns, **options)


def test_features_beside_the_tables(folder: Path) -> None:
    plain = TABLE[["title", "venue", "part"]]
    plain.to_csv(folder / "nodes.csv", index=False)
    (folder / "edges.csv").write_text("source,target\n0,1\n")
    names = {"columns": ("text=title", "label=venue", "split=part")}
    features = np.arange(8, dtype=np.float64).reshape(4, 2)
    np.save(folder / "features.npy", features)
    graph = load_table(folder, folder.parent / "cache", **names)
    np.testing.assert_array_equal(graph.features, features)
    assert graph.node_ids is None
    for wrong, message in (
        (features[:3], r"is float64 \(3, 2\), expected finite numbers \(4 nodes, number of features\)"),
        (np.full((4, 2), np.inf), "holds NaN or infinity"),
        (np.array([{}]), "cannot be read"),
    ):
        np.save(folder / "features.npy", wrong)
        with pytest.raises(DataError, match=rf"features.npy.*{message}"):
            load_table(folder, folder.parent / "cache", **names)
    np.save(folder / "features.npy", features)
    TABLE.to_csv(folder / "nodes.csv", index=False)
    with pytest.raises(DataError, match="'pages', 'year' beside features of their own"):
        load(folder)


@pytest.mark.parametrize(
    ("value", "listed"),
    [
        ("[3, 17]", ["3", "17"]),
        ("3 17", ["3", "17"]),
        ("3;17", ["3", "17"]),
        ("3|17", ["3", "17"]),
        ("['a', 'b']", ["a", "b"]),
        ('["a, b", "c d"]', ["a, b", "c d"]),
        ([3, 17], ["3", "17"]),
        (np.array(["a"]), ["a"]),
        ("[]", []),
        ("", []),
        (None, []),
        (float("nan"), []),
        (pd.NA, []),
        (3.0, ["3"]),
        ("[" * 100_000 + "]" * 100_000, []),
    ],
)
def test_lists_of_neighbours(value: Any, listed: list[str]) -> None:
    edges = edges_of_neighbours(["x", "y"], pd.Series([value, "z"], dtype=object), "column")
    assert [*map(str, edges["target"])] == [*listed, "z"]
    assert [*edges["source"]] == ["x"] * len(listed) + ["y"]


@pytest.mark.parametrize("name", ["neighbours", "neighbors", "adj_list"])
def test_neighbours_in_csv_stay_as_written(name: str, tmp_path: Path) -> None:
    nodes = TABLE[["title", "venue"]].assign(id=["00", "01", "02", "03"])
    nodes[name] = ["01", "02", "03", "00"]
    nodes.to_csv(tmp_path / "ring.csv", index=False)
    columns = ("text=title", "label=venue")
    assert load_table(tmp_path / "ring.csv", tmp_path, columns=columns, shares=(0.5, 0.25, 0.25)).num_edges == 4


@pytest.mark.parametrize("wrong", ["[[1]]", "[1, 2", "1, 2]", "{1 2"])  # nested, or a cell that was cut
def test_lists_of_neighbours_that_are_refused(wrong: str) -> None:
    with pytest.raises(DataError, match=rf"column 'adj', row 2 holds '{re.escape(wrong)}', expected a list of ids"):
        edges_of_neighbours([0, 1], pd.Series(["1", wrong]), "column 'adj'")


LONG = [2**60 + i for i in range(4)]  # not exact as floats


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_long_numbers_with_gaps_stay_exact(ending: str, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"id": LONG, "text": "x", "neighbours": [*LONG[1:], None], "label": [None, *LONG[:3]]}, dtype=object
    )
    file = tmp_path / f"ring{ending}"
    if ending == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    else:
        table.to_parquet(file)
    graph = load_table(file, tmp_path, shares=(0.34, 0.33, 0.33))
    assert graph.edge_index().T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert graph.class_names == [*map(str, LONG[:3])]
    table.astype({"neighbours": float}).to_parquet(file.with_suffix(".parquet"))
    with pytest.raises(DataError, match=r"column .neighbours. holds .*rounded number"):
        load_table(file.with_suffix(".parquet"), tmp_path, shares=(0.34, 0.33, 0.33))


def test_the_first_whole_number_that_no_float_holds_stays_exact(tmp_path: Path) -> None:
    table = pd.DataFrame({"text": "x", "neighbours": "0", "label": [2**53 + 1, None, 7, 7]}, dtype=object)
    table.to_parquet(tmp_path / "ring.parquet")
    (tmp_path / "ring.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))
    for ending in (".parquet", ".jsonl"):
        graph = load_table(tmp_path / f"ring{ending}", tmp_path, shares=(0.34, 0.33, 0.33))
        assert str(2**53 + 1) in graph.class_names
