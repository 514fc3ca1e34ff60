"""ogbn-papers100M on a miniature in OGB's binary format, with its texts in and out of their archive."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from glem_graphgym import disk
from glem_graphgym.data import pieces, text_graph
from glem_graphgym.data.ogb import download, load_ogbn_papers100m, papers100m
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.disk import DiskFullError
from glem_graphgym.memory import PeakMemory
from tests.data.ogb_files import (
    CITATIONS,
    CITATIONS_UNDIRECTED,
    NAN,
    PAPERS100M_FEATURES,
    PAPERS100M_LABELS,
    SPLIT,
    M,
    Response,
    abstract_rows,
    check_miniature,
    complete_papers100m,
    edges_of,
    packed,
    papers100m_texts,
    read_by_ogb,
    serving,
    title_rows,
    write_paperinfo,
    write_papers100m,
)

pytestmark = pytest.mark.usefixtures("unattended")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return complete_papers100m(tmp_path).parent


def folder_of(root: Path) -> Path:
    return root / "ogbn_papers100M"


def load(root: Path, titles: list[bytes] | None = None, abstracts: list[bytes] | None = None) -> TextGraph:
    """The graph with an archive of these texts."""
    write_paperinfo(folder_of(root) / "paperinfo.zip", titles, abstracts)
    return load_ogbn_papers100m(root)


def test_miniature_becomes_a_graph_with_its_texts(root: Path) -> None:
    graph = load_ogbn_papers100m(root)
    assert graph.name == "ogbn-papers100M"
    labels = [-1 if np.isnan(label) else label for label in PAPERS100M_LABELS]
    check_miniature(graph, labels, PAPERS100M_FEATURES, CITATIONS_UNDIRECTED)
    assert (graph.num_classes, graph.class_names[171]) == (172, "arxiv cs 171")
    assert list(graph.texts) == papers100m_texts()
    assert graph.node_ids is None
    assert graph.origin == {
        "files": ["RELEASE_v1.txt", "paperinfo.zip"],
        "nodes": M,
        "labelled_nodes": 12,
        "title_rows": M,
        "title_skipped_rows": 0,
        "title_rows_without_text": 0,
        "title_rows_not_utf8": 0,
        "title_repeated": 0,
        "missing_titles": 0,
        "abstract_rows": M - 4,
        "abstract_skipped_rows": 0,
        "abstract_rows_without_text": 0,
        "abstract_rows_not_utf8": 0,
        "abstract_repeated": 0,
        "missing_abstracts": 4,
        "missing_texts": 0,
        "directed_edges": CITATIONS.shape[1],
        "edges": len(CITATIONS_UNDIRECTED),
    }


def test_the_same_as_ogbs_own_class_reads(root: Path) -> None:
    graph = load_ogbn_papers100m(root)
    data, split = read_by_ogb("ogbn-papers100M", root)
    both = {(int(a), int(b)) for a, b in data.edge_index.T.tolist() if a != b}
    assert set(edges_of(graph)) == {(min(pair), max(pair)) for pair in both}
    np.testing.assert_array_equal(graph.features, data.x.numpy())
    np.testing.assert_array_equal(graph.label, np.nan_to_num(data.y.numpy().reshape(-1), nan=-1))
    for part, nodes in graph.split.items():
        assert nodes.tolist() == sorted(split[part].tolist())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_stored_or_deflated_row_by_row_or_column_by_column(
    tmp_path: Path, save: Callable[..., None], order: str
) -> None:
    complete_papers100m(tmp_path, save, order)
    graph = load_ogbn_papers100m(tmp_path)
    assert edges_of(graph) == CITATIONS_UNDIRECTED
    np.testing.assert_array_equal(graph.features, PAPERS100M_FEATURES)
    frozen = next((folder_of(tmp_path) / "text_graph").glob("[!.]*"))
    assert {path.name for path in frozen.iterdir()} == {
        *("graph.json", "text.npy", "text_offsets.npy", "rowptr.npy", "col.npy", "label.npy", "features.npy"),
        *(f"split_{part}.npy" for part in SPLIT),
    }


@pytest.mark.parametrize(
    "changed",
    [
        {"node_feat": PAPERS100M_FEATURES.astype(np.float16)},
        {"edge_index": CITATIONS.astype(np.int32)},
        {"node_label": np.array(PAPERS100M_LABELS)},
        {"node_label": np.array(PAPERS100M_LABELS, dtype=np.float16).reshape(-1, 1)},
    ],
)
def test_arrays_of_other_types(tmp_path: Path, changed: dict[str, np.ndarray]) -> None:
    complete_papers100m(tmp_path, **changed)
    graph = load_ogbn_papers100m(tmp_path)
    assert edges_of(graph) == CITATIONS_UNDIRECTED
    assert graph.label[:3].tolist() == [0, 4, 171]
    np.testing.assert_array_equal(graph.features, PAPERS100M_FEATURES)
    assert graph.features is not None
    assert graph.features.dtype == changed.get("node_feat", PAPERS100M_FEATURES).dtype


@pytest.mark.parametrize("deflate", [True, False])
@pytest.mark.parametrize(
    "place", ["ogbn_papers100M/paperinfo.zip", "paperinfo.zip", "ogbn_papers100M/paperinfo", "paperinfo", "."]
)
def test_texts_are_found_packed_or_not_in_several_folders(root: Path, place: str, deflate: bool) -> None:
    (folder_of(root) / "paperinfo.zip").unlink()
    write_paperinfo(root / place, deflate=deflate)
    assert list(load_ogbn_papers100m(root).texts) == papers100m_texts()


@pytest.mark.parametrize("which", ["titles", "abstracts"])
def test_rows_out_of_order_are_put_in_order(root: Path, which: str) -> None:
    rows = {"titles": title_rows(), "abstracts": abstract_rows()}
    rows[which] = [*rows[which][5:], *rows[which][:5][::-1]]
    graph = load(root, **rows)
    assert list(graph.texts) == papers100m_texts()
    assert (graph.origin["missing_titles"], graph.origin["missing_abstracts"]) == (0, 4)


@pytest.mark.parametrize("ordered", [True, False])
def test_of_duplicate_rows_the_first_with_a_text_wins(root: Path, ordered: bool) -> None:
    titles, abstracts = title_rows(), abstract_rows()
    titles[3:4] = [b"3\t", b"3\ttitle 3", b"3\tlater"]
    at = abstracts.index(b"8\tabout 8")
    abstracts[at : at + 1] = [b"8\t \r", b"8\tabout 8", b"8\tlater", b"8\tlatest"]
    if not ordered:
        titles, abstracts = [*titles, b"0\tlater"], [*abstracts, b"9\tlater"]
    graph = load(root, titles, abstracts)
    assert list(graph.texts) == papers100m_texts()
    counted = {name: count for name, count in graph.origin.items() if "repeated" in name or "without" in name}
    assert counted == {
        "title_rows_without_text": 1,
        "title_repeated": 1 if ordered else 2,
        "abstract_rows_without_text": 1,
        "abstract_repeated": 2 if ordered else 3,
    }
    assert graph.origin["missing_abstracts"] == 4


def test_missing_texts_are_empty_and_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    titles = [row for row in title_rows() if row.split(b"\t")[0] not in (b"2", b"4", b"14")]
    with caplog.at_level(logging.INFO):
        graph = load(root, titles)
    expected = papers100m_texts()
    expected[2], expected[4], expected[14] = "Abstract: about 2", "", ""
    assert list(graph.texts) == expected
    assert (graph.origin["missing_titles"], graph.origin["missing_texts"]) == (3, 2)
    assert "no text for 3 of 15 papers (2, 4, 14)" in caplog.text
    assert "4 of 15 papers have no abstract" in caplog.text


@pytest.mark.parametrize(
    "broken", [b"", b"only words", b"the rest\tof a line", b"15\tno node", b"-1\tno node", b"9" * 5000 + b"\tx"]
)
def test_broken_rows_are_skipped_and_counted(root: Path, broken: bytes) -> None:
    titles, abstracts = title_rows(), abstract_rows()
    graph = load(root, [*titles[:4], broken, *titles[4:]], [*abstracts[:2], broken, *abstracts[2:]])
    assert list(graph.texts) == papers100m_texts()
    assert (graph.origin["title_skipped_rows"], graph.origin["abstract_skipped_rows"]) == (1, 1)
    assert graph.origin["missing_abstracts"] == 4


def test_text_of_unusual_rows(root: Path) -> None:
    titles, abstracts = title_rows(), abstract_rows()
    titles[1], abstracts[0] = b"1\tcaf\xe9", b"1\tna\xefve\twith a tab\r"
    titles[2] = b'2\t"quoted'
    titles[3] = "3\ta true \ufffd".encode()
    graph = load(root, titles, abstracts)
    assert graph.texts[1:4] == [
        "Title: caf\ufffd. Abstract: na\ufffdve\twith a tab",
        'Title: "quoted. Abstract: about 2',
        "Title: a true \ufffd. Abstract: about 3",
    ]
    assert (graph.origin["title_rows_not_utf8"], graph.origin["abstract_rows_not_utf8"]) == (1, 1)


def test_titles_of_something_else_are_refused_before_anything_long(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_paperinfo(folder_of(root) / "paperinfo.zip", title_rows()[:7])
    monkeypatch.setattr(papers100m, "write_structure", lambda *args, **kwargs: pytest.fail("too late"))
    with pytest.raises(DataError, match=r"idx_title\.tsv has no text for 8 of 15 papers .*another file or a part"):
        load_ogbn_papers100m(root)


# ---- damaged files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [10, 0.5, -10])
def test_truncated_zip_of_texts_is_named(root: Path, keep: float) -> None:
    path = folder_of(root) / "paperinfo.zip"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=rf"{path} is damaged .*put the one of https://snap.* in its place"):
        load_ogbn_papers100m(root)


def test_changed_byte_in_a_zip_of_texts_is_found(root: Path) -> None:
    path = folder_of(root) / "paperinfo.zip"
    write_paperinfo(path, deflate=False)
    path.write_bytes(path.read_bytes().replace(b"about 7", b"abovt 7"))
    with pytest.raises(DataError, match=r"paperinfo/idx_abs\.tsv is damaged .*CRC"):
        load_ogbn_papers100m(root)


def test_zip_without_one_of_the_files(root: Path) -> None:
    with zipfile.ZipFile(folder_of(root) / "paperinfo.zip", "w") as archive:
        archive.writestr("paperinfo/idx_title.tsv", "0\ta\n")
    with pytest.raises(DataError, match=r"holds idx_title\.tsv, but no idx_abs\.tsv"):
        load_ogbn_papers100m(root)


def test_zip_packed_in_a_way_that_python_cannot_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(root) / "paperinfo.zip"
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        begin = archive.getinfo("paperinfo/idx_title.tsv").header_offset
    directory = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1)  # the folder's own entry comes first
    raw[begin + 8], raw[directory + 10] = 9, 9  # Deflate64
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"idx_title\.tsv is damaged .*compression.* or unpack it there with unzip"):
        load_ogbn_papers100m(root)
    write_paperinfo(folder_of(root) / "paperinfo")
    assert load_ogbn_papers100m(root).origin["missing_abstracts"] == 4


@pytest.mark.parametrize("name", ["idx_title", "idx_abs"])
@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], "0 rows 0 name no paper and 0 have a text"),
        ([b"a\tb"] * 3 + [b"7\tc"], "4 rows 3 name no paper and 1 have a text"),
        ([b"15\tno such paper"] * 9, "5 rows 5 name no paper and 0 have a text"),
        ([b"7\t", b"8\t \t"] * 9, "5 rows 0 name no paper and 0 have a text"),
    ],
)
def test_texts_of_something_else_are_refused_by_their_first_rows(
    root: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: list[bytes], found: str
) -> None:
    monkeypatch.setattr(papers100m, "FIRST_ROWS", 5)
    given = {"titles" if name == "idx_title" else "abstracts": rows}
    write_paperinfo(folder_of(root) / "paperinfo.zip", **given)
    message = rf"{name}\.tsv: of its first {found}\. Expected node index and text, .* of 15 papers: .*another file; put"
    with pytest.raises(DataError, match=message):
        load_ogbn_papers100m(root)
    assert not (folder_of(root) / "text_graph/.pieces").exists()


def test_a_few_strange_rows_at_the_beginning_are_none_of_that(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(papers100m, "FIRST_ROWS", 4)
    graph = load(root, [b"node\ttitle", *title_rows()], [b"x", b"y", *abstract_rows()])
    assert graph.origin["abstract_skipped_rows"] == 2


def test_room_for_all_pieces_is_asked_for_before_the_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda path: 500)
        patch.setattr(papers100m, "_write_labels", None)  # which nobody comes to
        message = r"\.pieces: making labels, titles, texts, features, structure takes 1\.\d kB .* 500 bytes are free"
        with pytest.raises(DiskFullError, match=message):
            load_ogbn_papers100m(root)
    assert load_ogbn_papers100m(root).num_nodes == M


@pytest.mark.parametrize(
    ("rows", "found"),
    [([], "0 of 15 papers, and 0 of its 0 rows"), ([b"a\tb"] * 3 + [b"7\tc"], "1 of 15 papers, and 3 of its 4 rows")],
)
def test_abstracts_of_something_else_are_refused_when_all_were_read(
    root: Path, monkeypatch: pytest.MonkeyPatch, rows: list[bytes], found: str
) -> None:
    monkeypatch.setattr(papers100m, "_check_first_rows", lambda *args: None)
    write_paperinfo(folder_of(root) / "paperinfo.zip", title_rows(), rows)
    with pytest.raises(DataError, match=rf"idx_abs\.tsv has abstracts for {found} name no paper\. .*another file"):
        load_ogbn_papers100m(root)


def test_half_of_the_abstracts_missing_is_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_paperinfo(folder_of(root) / "paperinfo.zip", title_rows(), [b"0\ta", b"3\tb"])
    load_ogbn_papers100m(root)
    assert "more than half of the papers have no abstract" in caplog.text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("name", ["data", "node-label"])
@pytest.mark.parametrize("keep", [20, 0.6])
def test_truncated_npz_is_named(tmp_path: Path, save: Callable[..., None], name: str, keep: float) -> None:
    path = complete_papers100m(tmp_path, save) / f"raw/{name}.npz"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=rf"{path} is damaged or no sound \.npz file"):
        load_ogbn_papers100m(tmp_path)


@pytest.mark.parametrize("array", [PAPERS100M_FEATURES[9:11].tobytes(), CITATIONS[0, 3:7].tobytes()])
def test_changed_byte_in_an_npz_is_found(tmp_path: Path, array: bytes) -> None:
    path = complete_papers100m(tmp_path, np.savez) / "raw/data.npz"
    raw = path.read_bytes()
    assert raw.count(array) == 1
    path.write_bytes(raw.replace(array, array[:-8] + b"\1" + array[-7:]))
    with pytest.raises(DataError, match=r"data\.npz is damaged .*CRC"):
        load_ogbn_papers100m(tmp_path)


def test_arrays_that_do_not_fit_are_refused_before_the_texts_are_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_papers100m(folder_of(root), num_nodes_list=np.array([M + 1]))
    monkeypatch.setattr(papers100m, "_write_titles", lambda *args: pytest.fail("too late"))
    with pytest.raises(DataError, match=r"node_feat is float32 \(15, 4\), expected floats \(16, F\)"):
        load_ogbn_papers100m(root)


# ---- resuming -----------------------------------------------------------------------------------------------------

PIECES = ["labels", "titles", "texts", "features", "structure"]


@pytest.mark.parametrize("killed", PIECES)
def test_killed_in_a_piece_it_goes_on_with_that_one(root: Path, killed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def record(name: str, write: Callable[..., Any], fail: bool) -> Callable[..., Any]:
        def piece(folder: Path, *rest: object) -> Any:
            made.append(name)
            result = write(folder, *rest)
            if fail:
                raise KeyboardInterrupt
            return result

        return piece

    originals = {name: getattr(papers100m, f"_write_{name}") for name in PIECES}
    for fail in (True, False):
        made.clear()
        for name, write in originals.items():
            monkeypatch.setattr(papers100m, f"_write_{name}", record(name, write, fail and name == killed))
        if fail:
            with pytest.raises(KeyboardInterrupt):
                load_ogbn_papers100m(root)
            assert made == PIECES[: PIECES.index(killed) + 1]
    graph = load_ogbn_papers100m(root)
    assert made == PIECES[PIECES.index(killed) :]
    assert list(graph.texts) == papers100m_texts()
    assert graph.origin["title_rows"] == M
    assert not (folder_of(root) / "text_graph/.pieces").exists()


def test_new_texts_do_not_make_the_structure_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(text_graph, "_write_meta", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_ogbn_papers100m(root)
    write_paperinfo(folder_of(root) / "paperinfo.zip", [row.replace(b"title 3", b"new") for row in title_rows()])
    monkeypatch.setattr(papers100m, "_write_structure", lambda *args: pytest.fail("the structure was made twice"))
    assert load_ogbn_papers100m(root).texts[3] == "Title: new. Abstract: about 3"


def test_killed_while_the_pieces_are_removed_the_next_load_removes_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "discard", lambda kept: None)
        first = load_ogbn_papers100m(root)
    kept = folder_of(root) / "text_graph/.pieces"
    assert len(list(kept.glob("[!.]*"))) == 5
    assert load_ogbn_papers100m(root).fingerprint() == first.fingerprint()
    assert not kept.exists()


def test_pieces_go_into_the_snapshot_without_a_copy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "discard", lambda kept: None)
    load_ogbn_papers100m(root)
    frozen = next((folder_of(root) / "text_graph").glob("[!.]*"))
    for name in ("features", "text", "col"):
        assert (frozen / f"{name}.npy").stat().st_nlink == 2


def test_without_hard_links_they_are_copied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", Mock(side_effect=OSError("not supported")))
    assert list(load_ogbn_papers100m(root).texts) == papers100m_texts()


# ---- downloads ----------------------------------------------------------------------------------------------------


def test_without_network_it_says_what_to_put_where(root: Path) -> None:
    (folder_of(root) / "paperinfo.zip").unlink()
    url = "https://snap.stanford.edu/ogb/data/misc/ogbn_papers100M/paperinfo.zip"
    with pytest.raises(DataError, match=rf"{url} could not be .* put it at {folder_of(root)}/paperinfo\.zip"):
        load_ogbn_papers100m(root)
    (folder_of(root) / "raw/data.npz").unlink()
    with pytest.raises(DataError, match=r"missing raw/data\.npz; found .*papers100M-bin\.zip"):
        load_ogbn_papers100m(root)


def test_what_is_missing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_papers100m(tmp_path / "server/papers100M-bin")
    write_paperinfo(tmp_path / "paperinfo.zip")
    server = {
        "http://snap.stanford.edu/ogb/data/nodeproppred/papers100M-bin.zip": packed(
            tmp_path / "server", "papers100M-bin"
        ),
        papers100m.TEXT_URL: (tmp_path / "paperinfo.zip").read_bytes(),
    }
    monkeypatch.setattr(download, "urlopen", serving(server))
    graph = load_ogbn_papers100m(tmp_path / "root")
    assert list(graph.texts) == papers100m_texts()
    assert edges_of(graph) == CITATIONS_UNDIRECTED
    assert not list((tmp_path / "root").glob(".*.zip"))


def test_a_download_that_broke_goes_on_where_it_was(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (folder_of(root) / "paperinfo.zip").read_bytes()
    (folder_of(root) / "paperinfo.zip").unlink()
    asked: list[str | None] = []

    def answer(request: Any, timeout: float) -> Response:
        wanted = request.get_header("Range")
        asked.append(wanted)
        if wanted is None:
            return Response(content[:100], len(content))
        whole = {"Content-Range": f"bytes 100-{len(content) - 1}/{len(content)}"}
        return Response(content[100:], len(content) - 100, status=206, **whole)

    monkeypatch.setattr(download, "urlopen", answer)
    with pytest.raises(DataError, match=rf"after 100 of {len(content)} bytes.*goes on from .*\.paperinfo\.zip\.part"):
        load_ogbn_papers100m(root)
    assert not (folder_of(root) / "paperinfo.zip").exists()
    assert list(load_ogbn_papers100m(root).texts) == papers100m_texts()
    assert asked == [None, "bytes=100-"]
    assert not list(folder_of(root).glob(".*.part"))


# ---- size ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """Most bytes that the process had allocated in the block; memory-mapped files are not among them. Linux only."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.002):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_far_below_what_the_graph_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, edges = 200_000, 1_500_000
    rng = np.random.default_rng(0)
    changed = {
        "edge_index": rng.integers(0, nodes, (2, edges)),
        "node_feat": rng.random((nodes, 128), dtype=np.float32),
        "node_label": np.where(np.arange(nodes) < 12, 0.0, NAN).reshape(-1, 1),
    }
    sizes = {"num_nodes_list": np.array([nodes]), "num_edges_list": np.array([edges])}
    write_papers100m(folder_of(tmp_path), np.savez, **changed, **sizes)
    titles = [f"{node}\ttitle {node}".encode() for node in range(nodes)]
    abstracts = [f"{node}\t{'about ' * 120}{node}".encode() for node in range(nodes)]
    write_paperinfo(folder_of(tmp_path) / "paperinfo.zip", titles, abstracts, deflate=False)
    whole = sum(changed[name].nbytes for name in ("edge_index", "node_feat")) + sum(map(len, abstracts))
    del changed, titles, abstracts
    monkeypatch.setattr(pieces, "MEMORY_BYTES", 8 << 20)
    PeakMemory()  # gives back what was freed, which would hide what is allocated
    before = own_memory()
    with peak_of_own_memory() as peak:
        graph = load_ogbn_papers100m(tmp_path)
    assert graph.texts[nodes - 1].endswith(f"about {nodes - 1}")
    assert peak[0] - before < whole / 2
