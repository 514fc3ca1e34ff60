"""A user's own tables: what is wrong is refused with its file and line, what is odd is said, and nothing is guessed."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from glem_graphgym.data.from_tables import telling_columns
from glem_graphgym.data.text_graph import TextGraph
from tests.bad_inputs.conftest import Program
from tests.checks import refused
from tests.data import own_tables
from tests.data.own_tables import labels_of, load_table

COUNT = 24
NODES = "id,text,label,split\n" + "".join(
    f"n{i},text of {i},{('cats', 'dogs', 'newts')[i % 3]},{('train', 'valid', 'test')[i // 3 % 3]}\n"
    for i in range(COUNT)
)
EDGES = "source,target\n" + "".join(f"n{i},n{i + 1}\n" for i in range(COUNT - 1))
NUMBERED = NODES.replace("cats", "0").replace("dogs", "1").replace("newts", "2")
ROWS = NODES.splitlines()


def write(folder: Path, nodes: str | bytes = NODES, edges: str | bytes = EDGES) -> Path:
    return own_tables.write(folder, nodes, edges)


def load(folder: Path, **options: Any) -> TextGraph:
    return load_table(folder, folder.parent / "cache", **options)


def refusal(folder: Path, *names: str, **options: Any) -> str:
    """The one line with which the tables are refused, which holds ``names``."""
    return refused(lambda: load(folder, **options), *names)


def row(number: int, to: str, nodes: str = NODES) -> str:
    """The nodes with line ``number`` (1: the header) replaced."""
    lines = nodes.splitlines()
    lines[number - 1] = to
    return "\n".join(lines) + "\n"


def with_column(name: str, values: Callable[[int], object], nodes: str = NODES) -> str:
    """The nodes with a further column, whose value in row i is ``values(i)``."""
    header, *rows = nodes.splitlines()
    return "\n".join([f"{header},{name}", *(f"{line},{values(i)}" for i, line in enumerate(rows))]) + "\n"


def with_label(values: Callable[[int], object], *, split: bool = False) -> str:
    """Nodes whose label in row i is ``values(i)``; without a split unless asked."""
    rows = (f"n{i},text of {i},{values(i)}" + f",{PART[i // 3 % 3]}" * split for i in range(COUNT))
    return "\n".join(["id,text,label" + ",split" * split, *rows]) + "\n"


PART = ("train", "valid", "test")
KIND = ("cats", "dogs", "newts")
UNSPLIT = with_label(lambda i: KIND[i % 3])


def masked(*names: str, of: Callable[[int, int], object] = lambda i, part: int(i // 3 % 3 == part)) -> str:
    nodes = UNSPLIT
    for part, name in enumerate(names):
        nodes = with_column(name, lambda i, part=part: of(i, part), nodes)
    return nodes


def test_the_tables_that_every_case_changes_are_fine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = load(write(tmp_path / "g"))
    assert (graph.num_nodes, graph.num_edges, graph.num_classes) == (COUNT, COUNT - 1, 3)
    assert not caplog.records


# ---- refused --------------------------------------------------------------------------------------------------------

SWALLOWED = row(5, 'n3,"text of 3,cats,valid')  # closed by the quote of a later row
REFUSED_NODES: dict[str, tuple[str | bytes, list[str]]] = {
    # rows
    "an unquoted comma": (row(7, "n5,a, b,dogs,valid"), ["line 7", "5 fields", "4"]),
    "two unquoted commas": (row(25, "n23,a, b, c,newts,valid"), ["line 25", "6 fields"]),
    "an unquoted comma in the first row": (row(2, "n0,a, b,cats,train"), ["line 2", "5 fields"]),
    "a comma at the end of a row": (row(7, "n5,a,dogs,valid,"), ["line 7", "commas at the end"]),
    "a comma at the end of all rows": (NODES.replace("\n", ",\n").replace("split,", "split", 1), ["line 2"]),
    "an unquoted line break": (row(7, "n5,first\nsecond,dogs,valid"), ["line 7", "2 fields", "4"]),
    "a row cut short": (row(25, "n23,text"), ["line 25", "2 fields"]),
    "a row without its last field": (row(9, "n7,text,cats"), ["line 9", "3 fields"]),
    "a file cut within a row": (NODES[: NODES.rindex("newts")].rstrip(","), ["line 25", "2 fields"]),
    "a row of one word": (row(9, "n7"), ["line 9", "1 fields"]),
    "a blank row": (row(9, "   "), ["line 9", "1 fields"]),
    "a sum below the table": (NODES + "24 rows\n", ["line 26", "1 fields"]),
    "a short row after texts of several lines": (row(9, "n7,x", row(5, 'n3,"a\nb\nc",cats,valid')), ["line 9"]),
    # quotes
    "a quote that is never closed": (row(5, 'n3,"text of 3,cats,valid'), ["line 5", "never closed"]),
    "a quote in the last row": (row(25, 'n23,"text,newts,valid'), ["line 25", "never closed"]),
    "a quote that is closed by the next one": (
        row(9, 'n7,the end",dogs,test', SWALLOWED), ["lines 5 to 9", "n3"],
    ),
    "a quote that swallows one row": (row(6, 'n4,the end",dogs,test', SWALLOWED), ["lines 5 to 6", "n3"]),
    "a quote that meets a quoted text": (row(9, 'n7,"a, b",dogs,test', SWALLOWED), ["line 5 to 9", "within a field"]),
    "a quote that meets a quoted word": (row(9, 'n7,say "hi" to,dogs,test', SWALLOWED), ["line 5 to 9"]),
    "a quote that is not doubled": (row(5, 'n3,"say "hi" to",cats,valid'), ["line 5", "within a field"]),
    "Spark's quotes": (row(5, 'n3,"say \\"hi\\", to",cats,valid'), ["line 5", "Spark"]),
    "Spark's quote at the end": (row(5, 'n3,"a, \\"b\\"",cats,valid'), ["line 5", "Spark"]),
    "Spark's quote in the last row": (row(25, 'n23,"a, b\\"",newts,valid'), ["line 25", "Spark"]),
    "a quote after a blank": (row(5, 'n3, "a, b",cats,valid'), ["line 5", "5 fields"]),
    "single quotes": (row(5, "n3,'a, b',cats,valid"), ["line 5", "5 fields"]),
    "a quote that swallows rows, text last": (
        "id,label,text\n0,cats,a\n1,dogs,\"b\n2,cats,c\n3,dogs,d\"\n4,cats,e\n", ["lines 3 to 5"],
    ),
    # bytes
    "Latin-1": (NODES.replace("text of 7", "café 7").encode("latin-1"), ["line 9", "0xe9", "café", "UTF-8"]),
    "Windows quotes": (NODES.replace("text of 7", "“x”").encode("cp1252"), ["line 9", "0x93"]),
    "UTF-16": (NODES.encode("utf-16"), ["UTF-16"]),
    "UTF-16 without a mark": (NODES.encode("utf-16-le"), ["line 1", "NUL"]),
    "a NUL byte": (row(8, "n6,te\0xt,cats,train"), ["line 8", "NUL"]),
    "zeros at the end": (NODES + "\0" * 100, ["line 26", "NUL"]),
    "nothing": ("", ["empty"]),
    "blanks alone": ("  \n\n", ["empty"]),
    "a header alone": (ROWS[0] + "\n", ["no rows"]),
    "a zip archive": (b"PK\x03\x04" + bytes(20), ["zip"]),
    "an old Excel workbook": (b"\xd0\xcf\x11\xe0" + bytes(20), ["Excel"]),
    "a Parquet file": (b"PAR1" + bytes(20), ["Parquet"]),
    "gzip cut short": (gzip.compress(NODES.encode())[:-9], ["gzip"]),
    # the header
    "semicolons": (NODES.replace(",", ";"), ["semicolons", "commas"]),
    "tabs": (NODES.replace(",", "\t"), ["tabs", "commas"]),
    "bars": (NODES.replace(",", "|"), ["bars", "commas"]),
    "no header": (NODES.partition("\n")[2], ["['id', 'text', 'label']", "'n0'"]),
    "no header, numbers": (NODES.partition("\n")[2].replace("n", ""), ["['id', 'text', 'label']", "first line a row"]),
    "no label": (NODES.replace("label", "kind"), ["['label']", "kind"]),
    "a label of another name": (NODES.replace("label", "category"), ["['label']", "'category'"]),
    "a text of another name": (NODES.replace("id,text", "id,abstract"), ["['text']", "'abstract'"]),
    "an id of another name": (NODES.replace("id,text", "node_id,text"), ["['id']", "'node_id'"]),
    "Label": (NODES.replace("label", "Label"), ["['label']", "'Label'"]),
    "a blank before label": (NODES.replace("label", " label"), ["['label']", "' label'"]),
    "a blank after id": (NODES.replace("id,", "id ,", 1), ["['id']", "'id '"]),
    "ID": (NODES.replace("id,", "ID,", 1), ["['id']", "'ID'"]),
    "Split": (NODES.replace("split", "Split"), ["'Split'", "'split'"]),
    "a blank before split": (NODES.replace("split", " split"), ["' split'"]),
    "label twice": (with_column("label", lambda i: KIND[i % 3]), ["label", "several columns"]),
    "id twice": (with_column("id", lambda i: f"n{i}"), ["id", "several columns"]),
    "text twice": (with_column("text", lambda i: "x"), ["text", "several columns"]),
    "split twice": (with_column("split", lambda i: "train"), ["split", "several columns"]),
    "a feature twice": (with_column("a", lambda i: i, with_column("a", lambda i: 2 * i)), ["a", "several columns"]),
    "label.1 of pandas": (with_column("label.1", lambda i: i % 3), ["'label.1'", "'label'"]),
    "Label beside label": (with_column("Label", lambda i: i % 3), ["'Label'", "'label'"]),
    "label_ beside label": (with_column("label_", lambda i: i % 3), ["'label_'", "'label'"]),
    "a blank and label beside label": (with_column(" label", lambda i: i % 3), ["' label'"]),
    "ID beside id": (with_column("ID", lambda i: i), ["'ID'", "'id'"]),
    "an index of pandas": (
        "\n".join([f",{ROWS[0]}", *(f"{i},{line}" for i, line in enumerate(ROWS[1:]))]), ["column 1", "no name"],
    ),
    "an index of pandas, read and written again": (
        "\n".join([f"Unnamed: 0,{ROWS[0]}", *(f"{i},{line}" for i, line in enumerate(ROWS[1:]))]),
        ["column 1", "Unnamed: 0"],
    ),
    "a nameless column at the end": (with_column("", lambda i: i), ["column 5", "no name"]),
    # ids
    "an id twice": (row(9, ROWS[7]), ["1 ids", "n6"]),
    "an id missing": (row(9, ",text,cats,train"), ["row", "8", "no id"]),
    # labels
    "no label at all": (with_label(lambda i: ""), ["'label'", "0 classes"]),
    "labels NA alone, and one class": (with_label(lambda i: ["3", "NA"][i % 2]), ["'label'", "1 classes", "NA"]),
    "labels -1 and 1": (with_label(lambda i: [-1, 1][i % 2]), ["'label'", "1 classes", "-1"]),
    "one class": (with_label(lambda i: "cats"), ["'label'", "1 classes", "cats"]),
    "one class of many letters": (with_label(lambda i: "x" * 5000), ["'label'", "1 classes", "xxx…"]),
    "a label of blanks": (with_label(lambda i: ["cats", " "][i % 2]), ["'label'", "1 classes"]),
    "-1 in a split": (row(9, "n7,text,-1,test", NUMBERED), ["1 nodes", "n7", "split"]),
    "NA in a split": (row(9, "n7,text,NA,test", NUMBERED), ["1 nodes", "n7", "split"]),
    "null in a split": (row(9, "n7,text,null,test", NUMBERED), ["1 nodes", "n7", "split"]),
    # splits
    "a split of another word": (NODES.replace("valid", "holdout"), ["'split'", "holdout"]),
    "a split of numbers": (NODES.replace("train", "0").replace("valid", "1"), ["'split'", "'0'", "'1'"]),
    "no validation": (NODES.replace("valid", "test"), ["'split'", "['valid']"]),
    "no training": (NODES.replace("train", "test"), ["'split'", "['train']"]),
    "masks beside a split": (with_column("train_mask", lambda i: 1), ["'split'", "train_mask"]),
    "a mask too few": (masked("train_mask", "val_mask"), ["train_mask", "test"]),
    "one mask": (masked("train_mask"), ["train_mask"]),
    "two masks of validation": (masked("train_mask", "val_mask", "test_mask", "valid_mask"), ["valid_mask"]),
    "masks that overlap": (
        masked("train_mask", "val_mask", "test_mask", of=lambda i, part: int(i % 3 == part or i == 5)),
        ["1 nodes", "n5", "test_mask"],
    ),
    "a mask of words": (masked("train_mask", "val_mask", "test_mask", of=lambda i, part: "x"), ["'train_mask'", "'x'"]),
    "a mask of twos": (masked("train_mask", "val_mask", "test_mask", of=lambda i, part: 2), ["'train_mask'", "'2'"]),
    "a mask that is false": (
        masked("train_mask", "val_mask", "test_mask", of=lambda i, part: int(part < 2 and i % 2 == part)), ["['test']"],
    ),
    # features
    "a feature of words": (with_column("colour", lambda i: "red"), ["'colour'", "'red'", "n0"]),
    "a split under another name": (with_column("set", lambda i: "train", UNSPLIT), ["'set'", "'split'"]),
    "a second text": (with_column("summary", lambda i: "word " * 1000), ["'summary'", "'word word", "n0"]),
    "a mask of long texts": (
        masked("train_mask", "val_mask", "test_mask", of=lambda i, part: "word " * 999), ["'train_mask'", "'word word"],
    ),
    "a feature with a gap": (with_column("size", lambda i: i if i != 7 else ""), ["'size'", "n7"]),
    "a feature with nan": (with_column("size", lambda i: i if i != 7 else "nan"), ["'size'", "n7"]),
    "a feature with a decimal comma": (with_column("size", lambda i: f'"{i},5"'), ["'size'", "'0,5'"]),
    "a feature that is infinite": (with_column("size", lambda i: "inf"), ["'size'", "inf"]),
    "a feature beyond float32": (with_column("size", lambda i: "1e300"), ["'size'", "1e+300", "24 such values"]),
    "a feature of days": (with_column("day", lambda i: "2020-01-01"), ["'day'", "2020-01-01"]),
    "a feature that is a list": (with_column("emb", lambda i: '"[0.1, 0.2]"'), ["'emb'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_NODES)
def test_nodes_that_are_refused(tmp_path: Path, case: str) -> None:
    nodes, names = REFUSED_NODES[case]
    refusal(write(tmp_path / "g", nodes), "nodes.csv", *names)
    assert not list((tmp_path / "cache").glob("table-*"))


REFUSED_EDGES: dict[str, tuple[str | bytes, list[str]]] = {
    "no header": (EDGES.partition("\n")[2], ["['source', 'target']", "'n0'"]),
    "no header, numbers": ("0,1\n1,2\n", ["['source', 'target']", "first line a row", "'0'"]),
    "src and dst": (EDGES.replace("source,target", "src,dst"), ["['source', 'target']", "'src'"]),
    "from and to": (EDGES.replace("source,target", "from,to"), ["['source', 'target']", "'from'"]),
    "Source and Target": (EDGES.replace("source,target", "Source,Target"), ["['source', 'target']", "'Source'"]),
    "a blank before target": (EDGES.replace("source,target", "source, target"), ["['target']", "' target'"]),
    "source twice": ("source,target,source\nn0,n1,n2\n", ["source", "several columns"]),
    "semicolons": (EDGES.replace(",", ";"), ["semicolons"]),
    "tabs": (EDGES.replace(",", "\t"), ["tabs"]),
    "blanks": (EDGES.replace(",", " "), ["['source', 'target']"]),
    "empty": ("", ["empty"]),
    "a row too long": (EDGES + "n1,n2,n3\n", ["line 25", "3 fields", "2"]),
    "a row too short": (EDGES + "n1\n", ["line 25", "1 fields"]),
    "an open quote": (EDGES + '"n1,n2\n', ["line 25", "never closed"]),
    "an unknown node": (EDGES + "n1,x9\n", ["1 of 24 edges", "x9", "'n0'"]),
    "an end missing": (EDGES + "n1,\n", ["1 of 24 edges", "(empty)"]),
    "an id with a blank": (EDGES.replace(",n", ", n"), ["' n1'", "'n1'", "blanks"]),
    "ids of another case": (EDGES.replace("n", "N"), ["'N0'", "'n0'", "case"]),
    "ids in quotes of their own": (EDGES.replace("n5", "'n5'"), ["\"'n5'\"", "'n5'", "quotes"]),
    "row numbers": (EDGES.replace("n", ""), ["'n0'", "row numbers"]),
    "NaN for an end": (EDGES + "n1,NaN\n", ["NaN"]),
    "Latin-1": (EDGES.encode() + b"n1,caf\xe9\n", ["line 25", "0xe9"]),
    "a NUL byte": (EDGES + "n1,\0n2\n", ["line 25", "NUL"]),
}


@pytest.mark.parametrize("case", REFUSED_EDGES)
def test_edges_that_are_refused(tmp_path: Path, case: str) -> None:
    edges, names = REFUSED_EDGES[case]
    refusal(write(tmp_path / "g", edges=edges), "edges.csv", *names)


@pytest.mark.parametrize(
    ("ids", "ends", "names"),
    [
        (["0001", "0002", "0003"], ["1", "2", "3"], ["'1'", "'0001'", "leading zeros"]),
        (["1", "2", "3"], ["0001", "0002", "0003"], ["'0001'", "'1'", "leading zeros"]),
        (["1.0", "2.0", "3.0"], ["1", "2", "3"], ["'1'", "'1.0'", "'.0'"]),
        (["1", "2", "3"], ["1.0", "2.0", "3.0"], ["'1.0'", "'1'", "'.0'"]),
        (["A1", "B2", "C3"], [" a1.0", "b2.0", "c3.0"], ["' a1.0'", "'A1'"]),
        (["\u00e9a", "b", "c"], ["e\u0301a", "b", "c"], ["e\u0301a", "\u00e9a"]),
        (["1e3", "2", "3"], ["1000", "2", "3"], ["1000", "'1e3'"]),
        (["A" * 5000, "b", "c"], ["a" * 5000, "b", "c"], ["aaa…", "AAA…", "case"]),
    ],
)
def test_a_message_shows_ids_of_both_sides(tmp_path: Path, ids: list[str], ends: list[str], names: list[str]) -> None:
    nodes = "id,text,label,split\n" + "".join(
        f"{name},x,{KIND[i % 2]},{part}\n" for i, (name, part) in enumerate(zip(ids, PART, strict=True))
    )
    edges = f"source,target\n{ends[0]},{ends[1]}\n{ends[1]},{ends[2]}\n"
    refusal(write(tmp_path / "g", nodes, edges), "edges.csv", *names)


# ---- files ----------------------------------------------------------------------------------------------------------


def rename(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "nodes.csv").rename(folder / to) and None


def copy(to: str) -> Callable[[Path], None]:
    return lambda folder: (folder / to).write_bytes((folder / "nodes.csv").read_bytes()) and None


def spark(folder: Path) -> None:
    (folder / "nodes.csv").rename(folder / "part-0")
    (folder / "nodes.csv").mkdir()
    (folder / "part-0").rename(folder / "nodes.csv" / "part-00000.csv")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (rename("nodes.tsv"), ["nodes.csv", "nodes.tsv"]),
        (rename("nodes.json"), ["nodes.json"]),
        (rename("nodes.xlsx"), ["nodes.xlsx"]),
        (rename("Nodes.txt"), ["Nodes.txt"]),
        (rename("vertices.csv"), ["holds 0", "nodes.csv"]),
        (copy("nodes.CSV"), ["holds 2", "nodes.CSV"]),
        (copy("Nodes.csv.gz"), ["holds 2", "Nodes.csv.gz"]),
        (copy("nodes.parquet"), ["holds 2", "nodes.parquet"]),
        (spark, ["nodes.csv/", "Spark"]),
    ],
)
def test_files_that_are_not_one_table_are_listed(
    tmp_path: Path, change: Callable[[Path], None], names: list[str]
) -> None:
    change(write(tmp_path / "g"))
    refusal(tmp_path / "g", *names)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("x")])
def test_a_folder_that_is_none_is_named_with_its_key(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "g")
    refusal(tmp_path / "g", "dataset.tag_source", str(tmp_path / "g"))


# ---- Parquet --------------------------------------------------------------------------------------------------------


def frame(**changed: Any) -> pd.DataFrame:
    table = pd.read_csv(BytesIO(NODES.encode()))
    return table.assign(**changed)


def parquet(folder: Path, nodes: pd.DataFrame | None = None, edges: pd.DataFrame | None = None, **how: Any) -> Path:
    write(folder)
    for name, table in (("nodes", nodes), ("edges", edges)):
        if table is not None:
            (folder / f"{name}.csv").unlink()
            table.to_parquet(folder / f"{name}.parquet", **how)
    return folder


NESTED = [{"a": i} for i in range(COUNT)]
LISTS = [[i, i] for i in range(COUNT)]
DAYS = pd.date_range("2024", periods=COUNT)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ({"Label": list(range(COUNT))}, ["'Label'"]),
        ({"label.1": list(range(COUNT))}, ["'label.1'"]),
        ({"id": LISTS}, ["'id'", "lists"]),
        ({"id": NESTED}, ["'id'", "lists"]),
        ({"label": LISTS}, ["'label'", "lists"]),
        ({"text": LISTS}, ["'text'", "lists"]),
        ({"split": LISTS}, ["'split'", "lists"]),
        ({"x": LISTS}, ["'x'"]),
        ({"x": NESTED}, ["'x'"]),
        ({"x": DAYS}, ["'x'"]),
        ({"x": ["a"] * COUNT}, ["'x'", "'a'"]),
        ({"x": [None, *range(1, COUNT)]}, ["'x'", "n0"]),
        ({"x": [float("inf"), *range(1, COUNT)]}, ["'x'", "n0"]),
        ({"id": [None, *(f"n{i}" for i in range(1, COUNT))]}, ["no id", "rows 1"]),
        ({"id": ["n1", *(f"n{i}" for i in range(1, COUNT))]}, ["n1", "several rows"]),
        ({"label": [None] * COUNT}, ["'label'", "0 classes"]),
        ({"label": [1.0, float("nan")] * (COUNT // 2)}, ["'label'", "1 classes"]),
        ({"split": [1, 2, 3] * (COUNT // 3)}, ["'split'", "'1'"]),
        ({"split": [True, False] * (COUNT // 2)}, ["'split'", "'True'"]),
        ({"train_mask": [True] * COUNT}, ["train_mask", "'split'"]),
        ({"Unnamed: 0": list(range(COUNT))}, ["Unnamed: 0"]),
    ],
)
def test_nodes_of_parquet_that_are_refused(tmp_path: Path, changed: dict[str, Any], names: list[str]) -> None:
    refusal(parquet(tmp_path / "g", frame(**changed)), "nodes.parquet", *names)


def test_masks_of_several_splits_are_refused(tmp_path: Path) -> None:
    masks = {f"{part}_mask": [[True, False]] * COUNT for part in ("train", "val", "test")}
    assert "'train_mask' holds lists" in refusal(parquet(tmp_path / "g", frame(**masks).drop(columns="split")))


def test_repeated_columns_of_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = write(tmp_path / "g")
    (folder / "nodes.csv").unlink()
    table = pa.Table.from_pandas(frame())
    pq.write_table(table.append_column("label", table["label"]), folder / "nodes.parquet")
    refusal(folder, "nodes.parquet", "label")


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw[: len(raw) // 2], lambda raw: b"id,text\n"])
def test_damaged_parquet_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = parquet(tmp_path / "g", frame()) / "nodes.parquet"
    file.write_bytes(damage(file.read_bytes()))
    assert "nodes.parquet cannot be read" in refusal(tmp_path / "g")


def test_an_index_of_parquet_named_like_a_column_is_named(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "g", frame().set_index("id", drop=False))
    assert "nodes.parquet cannot be read as Parquet (cannot insert id" in refusal(folder)


# ---- what is odd and means one thing: taken, and said where it matters ----------------------------------------------


ODD_NODES: dict[str, str | bytes] = {
    "a byte order mark": "\ufeff" + NODES,
    "CRLF": NODES.replace("\n", "\r\n"),
    "CR alone": NODES.replace("\n", "\r"),
    "no line end at the end": NODES.rstrip(),
    "empty lines": NODES.replace("\n", "\n\n") + "\n\n",
    "gzip named .csv": gzip.compress(NODES.encode()),
    "all quoted": "\n".join(",".join(f'"{cell}"' for cell in line.split(",")) for line in ROWS),
    "splits in capitals": NODES.replace("train", "TRAIN").replace("test", "Test"),
    "dev": NODES.replace("valid", "Dev"),
    "validation and blanks": NODES.replace("valid", " Validation "),
    "masks of 0 and 1": masked("train_mask", "val_mask", "test_mask"),
    "masks of true and false": masked(
        "train_mask", "valid_mask", "test_mask", of=lambda i, part: str(i // 3 % 3 == part)
    ),
    "masks of 0.0 and 1.0": masked("train_mask", "val_mask", "test_mask", of=lambda i, part: float(i // 3 % 3 == part)),
    "masks with nothing for false": masked(
        "train_mask", "val_mask", "test_mask", of=lambda i, part: "true" if i // 3 % 3 == part else ""
    ),
    "masks in capitals": masked("Train_Mask", "Val_Mask", "Test_Mask"),
    "masks without a mask": masked("train", "val", "test"),
    "is_train": masked("is_train", "is_val", "is_test"),
    "a nameless column without values": with_column("", lambda i: ""),
    "two nameless columns without values": with_column("", lambda i: "", with_column(" ", lambda i: "")),
}


@pytest.mark.parametrize("case", ODD_NODES)
def test_nodes_that_are_the_same_in_another_form(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(write(tmp_path / "g"))
    graph = load(write(tmp_path / "g", ODD_NODES[case]))
    assert graph.fingerprint() == expected.fingerprint()
    assert graph.node_ids == expected.node_ids
    assert graph.origin["feature_columns"] == []
    assert not caplog.records


@pytest.mark.parametrize("name", ["Nodes.csv", "nodes.CSV", "NODES.CSV", "nodes.csv.gz"])
def test_names_of_files_in_capitals_or_as_if_packed(tmp_path: Path, name: str) -> None:
    expected = load(write(tmp_path / "g"))
    rename(name)(tmp_path / "g")
    assert load(tmp_path / "g").fingerprint() == expected.fingerprint()


@pytest.mark.parametrize(
    "text",
    [
        'two\nlines, a ""quote""',
        "a\n\nb\nc\n",
        "one, two, three\nfour, five, six, seven\n, , , ,",
        "in code:\nf(a,b,c,d)\nfor i in a,b,c,d: pass",
        "x" * 300_000,
        'ends with a quote ""',
        "a \\ backslash",
        "tab\there; and a semicolon",
        "NA",
    ],
)
def test_texts_that_are_legal_stay_whole(tmp_path: Path, text: str) -> None:
    graph = load(write(tmp_path / "g", row(5, f'n3,"{text}",cats,valid')))
    assert graph.texts[3] == text.replace('""', '"')


MASKS = {f"{part}_mask": [i // 3 % 3 == k for i in range(COUNT)] for k, part in enumerate(PART)}


@pytest.mark.parametrize(
    ("table", "split"),
    [
        *((frame(**{name: pd.Categorical(frame()[name])}), "split") for name in ("id", "text", "label", "split")),
        (frame(id=[f"n{i}".encode() for i in range(COUNT)]), "split"),
        (frame().set_index("id"), "split"),
        (frame(**MASKS).drop(columns="split"), [*MASKS]),
    ],
    ids=["id", "text", "label", "split", "bytes", "index", "masks"],
)
def test_the_same_table_in_other_types_of_parquet(tmp_path: Path, table: pd.DataFrame, split: object) -> None:
    expected = load(write(tmp_path / "g"))
    graph = load(parquet(tmp_path / "g", table))
    assert graph.fingerprint() == expected.fingerprint()
    assert graph.origin["split"] == split


@pytest.mark.parametrize(
    "word", ["-1", "NA", "nan", "NaN", "None", "null", "NULL", "N/A", "-1.0", " -1", "<NA>", "#N/A"]
)
@pytest.mark.parametrize("numbers", [("0", "1", "2"), ("0.0", "1.0", "2.0")])
def test_words_for_no_label_beside_numbers(
    tmp_path: Path, word: str, numbers: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    nodes = with_label(lambda i: word if i % 4 == 3 else numbers[i % 3])
    graph = load(write(tmp_path / "g", nodes), shares=(0.4, 0.3, 0.3))
    assert graph.class_names == ["0", "1", "2"]
    assert labels_of(graph) == [None if i % 4 == 3 else "012"[i % 3] for i in range(COUNT)]
    assert sum(len(nodes) for nodes in graph.split.values()) == 18
    assert graph.origin["no_label_words"] == {word: 6}
    assert f"'{word}': 6" in caplog.text


@pytest.mark.parametrize("word", ["NA", "nan", "None", "null"])
def test_words_beside_words_are_classes_and_said(tmp_path: Path, word: str, caplog: pytest.LogCaptureFixture) -> None:
    graph = load(write(tmp_path / "g", with_label(lambda i: ("DE", "FR", word)[i % 3])), shares=(0.4, 0.3, 0.3))
    assert sorted(graph.class_names) == sorted(["DE", "FR", word])
    assert graph.origin["unlabelled"] == 0
    assert f"'{word}': 8" in caplog.text


def test_minus_one_beside_words_is_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = load(write(tmp_path / "g", with_label(lambda i: ("cats", "dogs", -1)[i % 3])), shares=(0.4, 0.3, 0.3))
    assert (graph.class_names, graph.origin["unlabelled"]) == (["cats", "dogs"], 8)
    assert "'-1': 8" in caplog.text


@pytest.mark.parametrize("missing", [-1, -1.0, None, float("nan")])
def test_no_label_in_parquet(tmp_path: Path, missing: Any) -> None:
    labels = pd.Series([missing if i % 4 == 3 else i % 3 for i in range(COUNT)])
    graph = load(parquet(tmp_path / "g", frame(label=labels).drop(columns="split")), shares=(0.4, 0.3, 0.3))
    assert (graph.class_names, graph.origin["unlabelled"]) == (["0", "1", "2"], 6)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("cats", "Cats", "dogs"), "'Cats' and 'cats'"),
        (("cats", "cats ", "dogs"), "'cats' and 'cats '"),
        (("big  cats", "big cats", "dogs"), "'big  cats' and 'big cats'"),
        (("true", "TRUE", "false"), "'TRUE' and 'true'"),
        (("01", "1", "2"), "'01' and '1'"),
        (("1.5", "2.5", "3.5"), "fractions"),
        (("0", "1", "?"), "unlike the others are classes too: '?'"),
        (("0", "1", "unlabelled"), "'unlabelled'"),
        (("0", "1", "inf"), "'inf'"),
        (("-100", "0", "1"), "'-100'"),
    ],
)
def test_labels_that_may_not_be_meant_are_said(
    tmp_path: Path, labels: tuple[str, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    graph = load(write(tmp_path / "g", with_label(lambda i: labels[i % 3])), shares=(0.4, 0.3, 0.3))
    assert graph.num_classes == 3
    assert said in caplog.text


def test_what_is_odd_is_said_when_the_graph_comes_from_the_cache_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "g", with_column("size", lambda i: i * i, with_label(lambda i: (0, 1, -1)[i % 3])))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            load(tmp_path / "g", shares=(0.4, 0.3, 0.3))
        assert "'-1': 8" in caplog.text
        assert "1 feature columns (for glem.node_features raw): size" in caplog.text


# ---- columns that tell the label ------------------------------------------------------------------------------------

NOISE = np.random.default_rng(3).permutation(COUNT)
TELLING: dict[str, Callable[[int], object]] = {
    "encoded": lambda i: i % 3,
    "encoded in another order": lambda i: (7, 2, 5)[i % 3],
    "a negative multiple": lambda i: -2.5 * (i % 3),
    "one of a one-hot set": lambda i: int(i % 3 == 1),
    "a flag": lambda i: i % 3 == 0,
    "two kinds a class": lambda i: i % 6,
    "a row number": lambda i: i,
    "a row number from 1": lambda i: i + 1,
}
HARMLESS: dict[str, Callable[[int], object]] = {
    "different for each node": lambda i: i * i,
    "noise": lambda i: NOISE[i] % 5,
    "noise of two values": lambda i: NOISE[i] % 2,
    "constant": lambda i: 4,
    "a rare flag": lambda i: int(i == 6),
}


@pytest.mark.parametrize("case", TELLING)
def test_a_column_that_tells_the_label_is_no_feature(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write(tmp_path / "g", with_column("extra", TELLING[case], with_column("size", HARMLESS["noise"])))
    load(folder)
    assert "column 'extra'" in caplog.text and "'size'" not in caplog.text
    refusal(folder, "nodes.csv", "column 'extra'", "glem.node_features", raw=True)


@pytest.mark.parametrize("case", HARMLESS)
def test_a_column_that_tells_nothing_is_a_feature(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "g", with_column("extra", HARMLESS[case]))
    graph = load(folder, raw=True)
    assert graph.features is not None
    assert not caplog.records


def test_the_label_of_nodes_without_one_hides_no_copy(tmp_path: Path) -> None:
    nodes = with_column("copy", lambda i: i % 3, with_label(lambda i: "" if i % 4 == 3 else i % 3))
    nodes = nodes.replace(",3,0\n", ",3,9\n")
    assert "column 'copy' is one-to-one" in refusal(write(tmp_path / "g", nodes), raw=True, shares=(0.4, 0.3, 0.3))


SHARES = ("dataset.tag_split", "[0.3, 0.3, 0.4]")


def test_a_copy_of_the_label_is_seen_in_a_large_table_that_is_sorted_by_it() -> None:
    label = np.repeat(np.arange(5), 4000)
    features = np.stack([label * 0.5, label == 3, np.random.default_rng(0).normal(size=len(label))], axis=1)
    assert list(telling_columns(["copy", "one-hot", "noise"], features.astype(np.float32), label)) == [
        "copy",
        "one-hot",
    ]


def test_a_copy_of_the_label_is_refused_by_a_run_that_would_use_it(program: Program) -> None:
    write(program.folder / "g", with_column("copy", lambda i: i % 3))
    table = ("dataset.name", "table", "dataset.tag_source", program.folder / "g", "train.mode", "glem_gnn", *SHARES)
    program.refuses(*table, "glem.node_features", "raw", names=["nodes.csv", "copy", "glem.node_features"])


def test_a_table_that_is_wrong_is_one_line_of_a_run(program: Program) -> None:
    write(program.folder / "g", row(7, "n5,a, b,dogs,valid"))
    table = ("dataset.name", "table", "dataset.tag_source", program.folder / "g", *SHARES)
    program.refuses(*table, names=["nodes.csv, line 7", "comma"])
