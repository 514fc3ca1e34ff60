"""ogbn-products on a miniature in the exact raw format, its texts joined out of miniatures of Amazon-3M's files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from glem_graphgym.data import pieces
from glem_graphgym.data.csr import write_csr
from glem_graphgym.data.ogb import load_ogbn_products, products
from glem_graphgym.data.text_graph import DataError, TextGraph
from tests.data.ogb_files import (
    ASINS,
    EDGES,
    FEATURES,
    PRODUCT_LABELS,
    UNDIRECTED,
    N,
    amazon_rows,
    check_miniature,
    complete_products,
    product_row,
    write_amazon,
    write_asins,
    write_lines,
    write_pyg,
    write_table,
)

pytestmark = pytest.mark.usefixtures("unattended")
TEXTS = [f"Title: title {node}. Content: about {node}" for node in range(N)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return complete_products(tmp_path).parent


def amazon(root: Path) -> Path:
    return root / "ogbn_products/Amazon-3M.raw"


def load(root: Path, *rows: list[bytes]) -> TextGraph:
    """The graph with these rows in the two files of Amazon-3M."""
    write_amazon(amazon(root), *rows)
    return load_ogbn_products(root)


def with_pyg(root: Path, texts: list[str]) -> Path:
    """PyG's copy, written as its TAGDataset writes it; the folder of Amazon-3M goes."""
    for file in amazon(root).glob("*"):
        file.unlink()
    return write_pyg(root / "ogbn_products/raw/node-text.csv.gz", texts)


def test_miniature_comes_through_ogb_with_its_texts(root: Path) -> None:
    graph = load_ogbn_products(root)
    assert graph.name == "ogbn-products"
    check_miniature(graph, PRODUCT_LABELS, FEATURES, UNDIRECTED)
    assert list(graph.texts) == TEXTS
    assert graph.node_ids == ASINS
    assert graph.origin == {
        "files": ["RELEASE_v1.txt", "trn.json.gz", "tst.json.gz"],
        "text_rows": N + 4,
        "rows_not_utf8": 0,
        "skipped_rows": 0,
        "rows_without_text": 0,
        "rows_of_no_node": 4,
        "repeated_products": 0,
        "missing_texts": 0,
        "nodes": N,
        "published_edges": len(EDGES),
        "edges": len(UNDIRECTED),
    }


def test_names_of_classes_are_made_readable_and_never_empty(root: Path) -> None:
    names = load_ogbn_products(root).class_names
    assert len(names) == 47
    assert [names[i] for i in (0, 24, 45, 46)] == ["All Electronics", "class 24", "Furniture & Decor", "name 46"]


def test_classes_are_numbered_where_no_file_names_them_and_miscounted_ones_are_refused(root: Path) -> None:
    path = root / "ogbn_products/mapping/labelidx2productcategory.csv.gz"
    write_table(path, [("label idx", "product category"), (0, "one")])
    with pytest.raises(DataError, match=r"labelidx2productcategory\.csv\.gz names 1 classes, expected 47"):
        load_ogbn_products(root)
    path.unlink()
    assert load_ogbn_products(root).class_names[46] == "class 46"


def test_another_text_makes_another_graph_of_the_same_structure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # killed when all pieces are there
        patch.setattr("glem_graphgym.data.text_graph._write_meta", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_ogbn_products(root)
    first, second = amazon_rows()
    write_amazon(amazon(root), [row.replace(b"about 3", b"now 3") for row in first], second)
    monkeypatch.setattr(products, "write_structure", lambda *_: pytest.fail("the structure was made twice"))
    assert load_ogbn_products(root).texts[3] == "Title: title 3. Content: now 3"


@pytest.mark.parametrize("place", ["ogbn_products", "Amazon-3M.raw", "."])
@pytest.mark.parametrize("ending", [".json.gz", ".json"])
def test_texts_are_found_packed_or_not_in_several_folders(root: Path, place: str, ending: str) -> None:
    for name, rows in zip(("trn", "tst"), amazon_rows(), strict=True):
        (amazon(root) / f"{name}.json.gz").unlink()
        write_lines(root / place / f"{name}{ending}", rows)
    assert list(load_ogbn_products(root).texts) == TEXTS


def test_missing_texts_are_empty_and_shift_no_row(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = amazon_rows()
    rows = [row for row in first if f'"{ASINS[3]}"'.encode() not in row]
    second = [product_row(ASINS[6], " ", None) if ASINS[6].encode() in row else row for row in second]
    graph = load(root, rows, second)
    assert list(graph.texts) == ["" if node in (3, 6) else text for node, text in enumerate(TEXTS)]
    assert (graph.origin["missing_texts"], graph.origin["rows_without_text"]) == (2, 1)
    assert f"no text for 2 of 12 products ({ASINS[3]}, {ASINS[6]})" in caplog.text


def test_of_duplicate_products_the_first_with_a_text_wins_and_shifts_no_row(root: Path) -> None:
    first, second = amazon_rows()
    first.insert(0, product_row(ASINS[5], "", ""))
    second += [product_row(ASINS[5], "later", "later"), product_row(ASINS[0], "later", "later"), second[0]]
    graph = load(root, first, second)
    assert list(graph.texts) == TEXTS
    assert (graph.origin["repeated_products"], graph.origin["rows_without_text"]) == (3, 1)


def test_nodes_that_share_a_product_id_share_its_text(root: Path) -> None:
    write_asins(root / "ogbn_products", [*ASINS[:8], ASINS[2], *ASINS[9:]])
    graph = load_ogbn_products(root)
    assert graph.texts[8] == graph.texts[2] == TEXTS[2]
    assert graph.texts[9] == TEXTS[9]
    assert graph.origin["missing_texts"] == 0


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not JSON",
        b'{"uid": "B000000000", "title": "cut sho',
        b"[1, 2]",
        b'{"title": "without uid"}',
        b'{"uid": 7, "title": "a number"}',
        b'{"uid": " ", "title": "blank"}',
        b"[" * 100_000,
    ],
)
def test_broken_lines_are_skipped_and_counted(root: Path, broken: bytes) -> None:
    first, second = amazon_rows()
    graph = load(root, [first[0], broken, *first[1:]], second)
    assert list(graph.texts) == TEXTS
    assert (graph.origin["text_rows"], graph.origin["skipped_rows"]) == (N + 5, 1)


def test_text_of_unusual_rows(root: Path) -> None:
    first, second = amazon_rows()
    rows = {
        0: product_row(ASINS[0], " only a title ", None),
        1: product_row(f" {ASINS[1]} ", ["a list"], "only content"),
        2: b"\xef\xbb\xbf" + product_row(ASINS[2], "NA", "null"),
        3: f'{{"uid": "{ASINS[3]}", "title": "line\\nend", "content": "half \\ud800"}}'.encode(),
        4: product_row(ASINS[4], "caf", "x").replace(b"caf", b"caf\xe9"),
    }
    all_rows = [*first, *second]
    kept = [row for row in all_rows if not any(f'"{ASINS[node]}"'.encode() in row for node in rows)]
    graph = load(root, list(rows.values()), kept)
    assert list(graph.texts) == [
        "Title: only a title",
        "Content: only content",
        "Title: NA. Content: null",
        "Title: line\nend. Content: half ?",
        "Title: caf\ufffd. Content: x",
        *TEXTS[5:],
    ]
    assert graph.origin["rows_not_utf8"] == 1


@pytest.mark.parametrize("content", [b"", b"<html>\nlog in\n</html>\n"])
def test_one_of_both_files_without_a_product_is_refused(root: Path, content: bytes) -> None:
    (amazon(root) / "tst.json.gz").unlink()
    (amazon(root) / "tst.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tst\.json: no row names a product, expected JSON lines"):
        load_ogbn_products(root)


def test_text_of_something_else_is_refused_before_ogb_is_asked(root: Path) -> None:
    with pytest.raises(DataError, match=r"no text for 7 of 12 products .* another file or a part of it"):
        load(root, [product_row("B0", "a", "b")] * 3, amazon_rows()[1][:5])
    assert not (root / "ogbn_products/processed").exists()


def test_without_texts_it_says_what_to_put_where(root: Path) -> None:
    (amazon(root) / "tst.json.gz").unlink()
    with pytest.raises(DataError, match=rf"not complete: expected trn\.json\.gz and tst.*{amazon(root)}, found {root}"):
        load_ogbn_products(root)
    (amazon(root) / "trn.json.gz").unlink()
    with pytest.raises(DataError, match=r"missing: .*found neither.*drive\.google.*node-text\.csv\.gz into"):
        load_ogbn_products(root)


def test_an_edge_that_got_lost_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_fewer(edges: np.ndarray, *rest: Any, **how: Any) -> None:
        write_csr(edges[:, :5], *rest, **how)

    monkeypatch.setattr(pieces, "write_csr", write_fewer)
    with pytest.raises(DataError, match="edge 5 from 7 to 11 got lost"):
        load_ogbn_products(root)


# ---- PyG's copy ---------------------------------------------------------------------------------------------------


def test_pyg_copy_is_taken_as_it_is_in_node_order(root: Path) -> None:
    texts = [f'Product {node}: "quoted", with\na line' for node in range(N)]
    texts[4] = ""
    texts[7] = "x" * 200_000
    with_pyg(root, texts)
    graph = load_ogbn_products(root)
    assert list(graph.texts) == texts
    assert graph.origin["files"] == ["RELEASE_v1.txt", "node-text.csv.gz"]
    assert (graph.origin["text_rows"], graph.origin["missing_texts"]) == (N, 1)


def test_amazon_goes_before_pyg_copy_and_half_of_it_does_not(root: Path) -> None:
    both = {path.name: path.read_bytes() for path in amazon(root).glob("*")}
    with_pyg(root, ["other"] * N)
    (amazon(root) / "trn.json.gz").write_bytes(both["trn.json.gz"])
    assert load_ogbn_products(root).texts[0] == "other"
    (amazon(root) / "tst.json.gz").write_bytes(both["tst.json.gz"])
    assert load_ogbn_products(root).texts[0] == TEXTS[0]


@pytest.mark.parametrize(("rows", "found"), [(N - 1, "11"), (N + 1, "more than 12"), (N + 5, "more than 12")])
def test_pyg_copy_must_have_a_row_per_node(root: Path, rows: int, found: str) -> None:
    with_pyg(root, ["text"] * rows)
    with pytest.raises(DataError, match=rf"node-text\.csv\.gz has {found} rows for 12 products"):
        load_ogbn_products(root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"index,words\n0,a\n", r"has the columns \['index', 'words'\], expected one that is called 'text'"),
        (b"", r"has the columns \[\]"),
        (b'text\none\n"two\nthree\n', r"row 2 is no CSV"),
        (b"text\none\ntwo,2\n", r"row 2 has 2 columns, expected 1"),
    ],
)
def test_pyg_copy_of_another_form_is_refused(root: Path, content: bytes, message: str) -> None:
    path = with_pyg(root, [])
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        load_ogbn_products(root)


def test_pyg_copy_with_an_index_an_empty_line_and_bytes_that_are_no_utf8(root: Path) -> None:
    path = with_pyg(root, [])
    rows = [f"{node},text {node}".encode() for node in range(N)]
    rows[1], rows[2], rows[3] = b"", b"2,caf\xe9 \0", "3,a true \ufffd".encode()
    path.write_bytes(gzip.compress(b"\n".join([b",text", *rows, b""])))
    graph = load_ogbn_products(root)
    assert graph.texts[:5] == ["text 0", "", "caf\ufffd", "a true \ufffd", "text 4"]
    assert graph.origin["rows_not_utf8"] == 1
