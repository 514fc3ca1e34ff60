"""ogbn-arxiv on a miniature in the exact raw format that OGB publishes, read as OGB's own class reads it."""

from __future__ import annotations

import io
import sys
import types
import zipfile
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import numpy as np
import pytest

from glem_graphgym.data.ogb import archive, arxiv, download, load_ogbn_arxiv
from glem_graphgym.data.ogb.archive import OgbArchive, ogb_accuracy
from glem_graphgym.data.text_graph import DataError, TextGraph
from glem_graphgym.disk import DiskFullError, require_space
from tests.checks import refused
from tests.data.ogb_files import (
    ARXIV_LABELS,
    EDGES,
    FEATURES,
    MINIATURES,
    PAPERS,
    UNDIRECTED,
    N,
    Response,
    arxiv_rows,
    check_miniature,
    complete_arxiv,
    edges_of,
    packed,
    read_by_ogb,
    serving,
    write_arxiv,
    write_lines,
    write_pyg,
    write_table,
)

pytestmark = pytest.mark.usefixtures("unattended")
TAR_HEADER = b"titleabs.tsv" + b"\0" * 88 + b"0000644\0" + b"\0" * 404


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return complete_arxiv(tmp_path).parent


def load(root: Path, rows: list[bytes]) -> TextGraph:
    """The graph with a text file of these rows."""
    write_lines(root / "ogbn_arxiv/titleabs.tsv.gz", rows)
    return load_ogbn_arxiv(root)


def test_miniature_comes_through_ogb_and_is_undirected(root: Path) -> None:
    graph = load_ogbn_arxiv(root)
    assert graph.name == "ogbn-arxiv"
    check_miniature(graph, ARXIV_LABELS, FEATURES, UNDIRECTED)
    assert list(graph.texts) == [f"Title: title {node}. Abstract: about {node}" for node in range(N)]
    assert graph.node_ids == [str(paper) for paper in PAPERS]
    assert len(graph.class_names) == 40
    assert graph.class_names[39] == "arxiv cs 39"
    assert graph.origin["directed_edges"] == len(EDGES)
    assert graph.origin["missing_texts"] == 0


def test_the_same_as_ogbs_own_class_reads(root: Path) -> None:
    graph = OgbArchive.of("ogbn-arxiv", root).read()
    assert not (root / "ogbn_arxiv/processed").exists()
    data, expected = read_by_ogb("ogbn-arxiv", root)
    np.testing.assert_array_equal(graph.edge_index, data.edge_index.numpy())
    np.testing.assert_array_equal(graph.features, data.x.numpy())
    np.testing.assert_array_equal(graph.label, data.y.numpy()[:, 0])
    assert {part: nodes.tolist() for part, nodes in graph.split.items()} == {
        part: sorted(nodes.tolist()) for part, nodes in expected.items()
    }


@pytest.mark.parametrize("name", MINIATURES)
def test_second_load_reads_the_snapshot_even_when_sources_are_deleted_and_no_piece_is_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the snapshot of ogbn-arxiv needs its sources: it is found by what is in them."""
    folder = MINIATURES[name].make(tmp_path)
    first = MINIATURES[name].load(tmp_path)
    assert not (folder / "text_graph/.pieces").exists()
    for made in ("ogb.archive.OgbArchive.read_split", "text_graph._write_meta", "texts.TextsWriter.put"):
        monkeypatch.setattr(f"glem_graphgym.data.{made}", lambda *_: pytest.fail("the snapshot was not used"))
    assert MINIATURES[name].load(tmp_path).fingerprint() == first.fingerprint()
    for source in [*folder.glob("Amazon-3M.raw/*"), *folder.glob("paperinfo.zip"), *folder.glob("raw/data.npz")]:
        source.unlink()
    assert MINIATURES[name].load(tmp_path).fingerprint() == first.fingerprint()


@pytest.mark.parametrize("table", ["raw/edge", "raw/node-feat", "split/time/valid"])
def test_other_tables_make_another_graph(root: Path, table: str) -> None:
    first = load_ogbn_arxiv(root)
    rows = {"raw/edge": EDGES[:-1], "raw/node-feat": (FEATURES * 2).tolist(), "split/time/valid": [[3]]}[table]
    write_table(root / f"ogbn_arxiv/{table}.csv.gz", rows)
    write_table(root / "ogbn_arxiv/raw/num-edge-list.csv.gz", [[len(EDGES) - (table == "raw/edge")]])
    assert load_ogbn_arxiv(root).fingerprint() != first.fingerprint()


def test_another_text_file_makes_another_graph(root: Path) -> None:
    first = load_ogbn_arxiv(root)
    rows = arxiv_rows()
    rows[3] = f"{PAPERS[3]}\tnew\tnewer".encode()
    second = load(root, rows)
    assert second.texts[3] == "Title: new. Abstract: newer"
    assert second.fingerprint() != first.fingerprint()
    assert len(list((root / "ogbn_arxiv/text_graph").glob("[!.]*"))) == 2


@pytest.mark.parametrize("place", ["ogbn_arxiv/titleabs.tsv", "titleabs.tsv.gz", "titleabs.tsv"])
def test_text_is_found_packed_or_not_in_either_folder(root: Path, place: str) -> None:
    (root / "ogbn_arxiv/titleabs.tsv.gz").unlink()
    write_lines(root / place, arxiv_rows())
    assert load_ogbn_arxiv(root).texts[11] == "Title: title 11. Abstract: about 11"


def test_rows_are_joined_by_paper_id_not_by_position(root: Path) -> None:
    straight = load_ogbn_arxiv(root)
    rows = [*arxiv_rows()[::-1], b"42\ta paper of no node\tits abstract"]
    assert list(load(root, rows).texts) == list(straight.texts)


def test_header_rows_are_skipped_and_counted(root: Path) -> None:
    graph = load(root, [b"paper id\ttitle\tabstract", *arxiv_rows(), b"only words"])
    assert (graph.origin["text_rows"], graph.origin["skipped_rows"]) == (N + 2, 2)
    assert graph.origin["missing_texts"] == 0


def test_first_row_is_not_lost_to_the_tar_header_of_the_published_file(root: Path) -> None:
    rows = arxiv_rows()
    rows[0] = TAR_HEADER + rows[0]
    graph = load(root, [*rows, b"\0" * 1024])
    assert graph.texts[0] == "Title: title 0. Abstract: about 0"
    assert (graph.origin["skipped_rows"], graph.origin["missing_texts"]) == (1, 0)


def test_missing_papers_get_empty_texts_and_are_reported(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = arxiv_rows()
    rows[4] = f"{PAPERS[4]}\t\t".encode()
    del rows[7]
    graph = load(root, rows)
    assert [node for node, text in enumerate(graph.texts) if not text] == [4, 7]
    assert graph.origin["missing_texts"] == 2
    assert f"no text for 2 of 12 papers ({PAPERS[4]}, {PAPERS[7]})" in caplog.text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("\tonly a title\t", "Title: only a title"),
        ("\tonly a title", "Title: only a title"),
        ("\t\tonly an abstract\r", "Abstract: only an abstract"),
        ('\t"quoted\tit "is', 'Title: "quoted. Abstract: it "is'),
        ("\ttitle\twith\ttabs", "Title: title. Abstract: with\ttabs"),
        ("\tNA\tnull", "Title: NA. Abstract: null"),
    ],
)
def test_text_of_unusual_rows(root: Path, row: str, text: str) -> None:
    rows = arxiv_rows()
    rows[2] = f"{PAPERS[2]}{row}".encode()
    graph = load(root, rows)
    assert graph.texts[2] == text
    assert graph.texts[3] == "Title: title 3. Abstract: about 3"


def test_of_duplicate_papers_the_first_with_a_text_wins(root: Path) -> None:
    rows = arxiv_rows()
    rows.insert(0, f"{PAPERS[5]}\t\t".encode())
    rows += [f"{PAPERS[5]}\tlater\tlater".encode(), f"{PAPERS[6]}\t\t".encode()]
    graph = load(root, rows)
    assert graph.texts[5] == "Title: title 5. Abstract: about 5"
    assert graph.texts[6] == "Title: title 6. Abstract: about 6"
    assert graph.origin["repeated_papers"] == 3


def test_bytes_that_are_not_utf8_are_replaced_and_counted(root: Path) -> None:
    rows = arxiv_rows()
    rows[1] = f"{PAPERS[1]}\tcaf".encode() + b"\xe9\tna\xefve"
    rows[2] = f"{PAPERS[2]}\ta true \ufffd\tin UTF-8".encode()
    graph = load(root, rows)
    assert graph.texts[1] == "Title: caf\ufffd. Abstract: na\ufffdve"
    assert graph.origin["rows_not_utf8"] == 1


def test_text_file_of_something_else_is_refused_before_ogb_is_asked(root: Path) -> None:
    with pytest.raises(DataError, match=r"no text for 7 of 12 papers .* another file or a part of it"):
        load(root, arxiv_rows()[:5])
    assert not (root / "ogbn_arxiv/processed").exists()
    assert load(root, arxiv_rows()[:6]).origin["missing_texts"] == 6


@pytest.mark.parametrize("damage", [lambda raw: raw[:-20], lambda raw: b"<html>log in</html>", lambda raw: raw[:30]])
@pytest.mark.parametrize(
    ("name", "file", "remedy"),
    [
        ("arxiv", "titleabs.tsv.gz", "delete it to have it downloaded again"),
        ("products", "Amazon-3M.raw/tst.json.gz", "put the one of Amazon-3M in its place"),
    ],
)
def test_damaged_text_file_is_named(
    tmp_path: Path, name: str, file: str, remedy: str, damage: Callable[[bytes], bytes]
) -> None:
    path = MINIATURES[name].make(tmp_path) / file
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    refused(lambda: MINIATURES[name].load(tmp_path), f"{path} is damaged ", remedy)
    path.write_bytes(sound)
    assert MINIATURES[name].load(tmp_path).origin["missing_texts"] == 0


def test_mapping_must_have_its_columns(root: Path) -> None:
    write_table(root / "ogbn_arxiv/mapping/nodeidx2paperid.csv.gz", list(enumerate(PAPERS)))
    with pytest.raises(DataError, match=r"expected \['node idx', 'paper id'\]"):
        load_ogbn_arxiv(root)


def test_without_network_it_says_which_text_to_put_where(root: Path) -> None:
    (root / "ogbn_arxiv/titleabs.tsv.gz").unlink()
    before = sorted(root.rglob("*"))
    url = "https://snap.stanford.edu/ogb/data/misc/ogbn_arxiv/titleabs.tsv.gz"
    refused(lambda: load_ogbn_arxiv(root), url, f"put it at {root}/ogbn_arxiv/titleabs.tsv.gz")
    assert [path for path in sorted(root.rglob("*")) if path.suffix != ".lock"] == before


def test_without_network_it_says_where_to_unpack_the_archive(tmp_path: Path) -> None:
    write_lines(tmp_path / "titleabs.tsv.gz", arxiv_rows())
    url = "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"
    refused(lambda: load_ogbn_arxiv(tmp_path), url, f"so that {tmp_path}/ogbn_arxiv/RELEASE_v1.txt exists")
    assert not (tmp_path / "ogbn_arxiv").exists()


@pytest.mark.parametrize(
    "name", ["RELEASE_v1.txt", "raw/edge.csv.gz", "raw/node_year.csv.gz", "split/time/test.csv.gz"]
)
def test_incomplete_archive_is_refused_without_a_question_and_left_alone(root: Path, name: str) -> None:
    (root / "ogbn_arxiv" / name).unlink()
    before = sorted((root / "ogbn_arxiv").rglob("*"))
    with pytest.raises(DataError, match=rf"missing {name}; found .*raw/n.* and \d more"):
        load_ogbn_arxiv(root)
    assert sorted((root / "ogbn_arxiv").rglob("*")) == before


def published(tmp_path: Path) -> dict[str, bytes]:
    """What OGB's server holds."""
    write_arxiv(tmp_path / "server/arxiv")
    (tmp_path / "server/arxiv/processed").mkdir()
    write_lines(tmp_path / "server/titleabs.tsv.gz", arxiv_rows())
    return {
        "http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip": packed(tmp_path / "server", "arxiv"),
        arxiv.TEXT_URL: (tmp_path / "server/titleabs.tsv.gz").read_bytes(),
    }


def test_download_fetches_what_is_missing_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, asked = published(tmp_path), []
    monkeypatch.setattr(download, "urlopen", serving(server, asked))
    root = tmp_path / "new" / "root"
    graph = load_ogbn_arxiv(root)
    assert asked == [*server]
    assert edges_of(graph) == UNDIRECTED
    assert load_ogbn_arxiv(root).fingerprint() == graph.fingerprint()
    assert len(asked) == 2
    assert not list(root.glob(".*.part"))


@pytest.mark.parametrize("of_pyg", [False, True])
def test_download_keeps_a_text_that_was_put_there_first(
    of_pyg: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "urlopen", serving(published(tmp_path)))
    (tmp_path / "ogbn_arxiv/raw").mkdir(parents=True)  # empty: what OGB's own interrupted download leaves
    if of_pyg:
        with_pyg(tmp_path, [f"mine {node}" for node in range(N)])
    else:
        write_lines(tmp_path / "ogbn_arxiv/titleabs.tsv", [row.replace(b"about", b"mine") for row in arxiv_rows()])
    assert load_ogbn_arxiv(tmp_path).texts[11] == ("mine 11" if of_pyg else "Title: title 11. Abstract: mine 11")


def test_kill_before_the_release_file_is_moved_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, rename = published(tmp_path), Path.rename

    def killed_at_release(path: Path, target: Path) -> Path:
        if path.name == "RELEASE_v1.txt":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(download, "urlopen", serving(server))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_at_release)
        with pytest.raises(KeyboardInterrupt):
            load_ogbn_arxiv(tmp_path)
    assert {path.name for path in (tmp_path / "ogbn_arxiv").iterdir()} == {"raw", "split", "mapping"}
    with pytest.raises(DataError, match=r"missing RELEASE_v1\.txt; found mapping/"):
        load_ogbn_arxiv(tmp_path)


@pytest.mark.parametrize("short", ["arxiv.zip", "titleabs.tsv.gz"])
def test_download_that_ends_early_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: str
) -> None:
    server = published(tmp_path)

    def answer(request: Request, timeout: float) -> Response:
        content = server[request.full_url]
        return Response(content[:-9] if request.full_url.endswith(short) else content, len(content))

    monkeypatch.setattr(download, "urlopen", answer)
    with pytest.raises(DataError, match=rf"{short} could not be downloaded \(the connection ended after \d+ of"):
        load_ogbn_arxiv(tmp_path)
    left = [path for path in tmp_path.rglob("*") if "server" not in path.parts and path.is_file()]
    assert not [path for path in left if path.name.startswith("titleabs") or path.suffix == ".zip"]
    assert (tmp_path / "ogbn_arxiv").exists() == (short == "titleabs.tsv.gz")
    monkeypatch.setattr(download, "urlopen", serving(server))
    assert load_ogbn_arxiv(tmp_path).num_nodes == N


@pytest.mark.parametrize(
    ("content", "message"), [(b"<html>", "no sound zip archive"), (None, r"holds no arxiv/RELEASE_v1\.txt")]
)
def test_archive_that_is_not_the_expected_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, message: str
) -> None:
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    monkeypatch.setattr(download, "urlopen", lambda request, timeout: Response(content or empty.getvalue()))
    with pytest.raises(DataError, match=message):
        load_ogbn_arxiv(tmp_path)
    assert not (tmp_path / "ogbn_arxiv").exists()


def test_an_archive_that_lies_there_packed_is_named_if_damaged_else_unpacked_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "arxiv.zip"
    content = published(tmp_path)["http://snap.stanford.edu/ogb/data/nodeproppred/arxiv.zip"]
    path.write_bytes(content[:-30])
    write_lines(tmp_path / "titleabs.tsv", arxiv_rows())
    refused(lambda: load_ogbn_arxiv(tmp_path), f"{path} is no sound zip archive")
    assert path.exists()
    path.write_bytes(content)
    assert edges_of(load_ogbn_arxiv(tmp_path)) == UNDIRECTED
    assert path.exists()


@pytest.mark.parametrize("what", ["downloading", "unpacking"])
def test_what_does_not_fit_on_the_disk_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    server, asked = published(tmp_path), []
    monkeypatch.setattr(download, "urlopen", serving(server, asked))

    def full(folder: Path, needed: int, asking: str) -> None:
        if asking.startswith(what):
            require_space(folder, needed + 10**15, asking)

    with monkeypatch.context() as patch:
        for module in (download, archive):
            patch.setattr(module, "require_space", full)
        with pytest.raises(DiskFullError, match=rf"{what} http\S*/arxiv\.zip takes 909 TB of disk, .* are free; make"):
            load_ogbn_arxiv(tmp_path / "root")
    assert not (tmp_path / "root/ogbn_arxiv").exists()
    asked.clear()
    assert load_ogbn_arxiv(tmp_path / "root").num_nodes == N
    assert len(asked) == (2 if what == "downloading" else 1)  # the archive had come and is kept


@pytest.mark.parametrize(("status", "begin"), [(200, 0), (206, 50)])
def test_a_download_goes_on_only_where_the_server_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, begin: int
) -> None:
    content = bytes(range(200))
    (tmp_path / ".file.part").write_bytes(content[:50])
    headers = {"Content-Range": f"bytes {begin}-199/200"} if begin else {}
    answer = Response(content[begin:], len(content) - begin, status, **headers)
    monkeypatch.setattr(download, "urlopen", lambda request, timeout: answer)
    download.download("http://x/file", tmp_path / "file", "remedy")
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize(("have", "kept"), [(200, True), (300, False)])
def test_a_download_that_had_all_come_is_taken_and_one_of_another_file_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, have: int, kept: bool
) -> None:
    (tmp_path / ".file.part").write_bytes(bytes(have))

    def refuse(request: Request, timeout: float) -> None:
        headers = Message()
        headers["Content-Range"] = "bytes */200"
        raise HTTPError(request.full_url, 416, "Range Not Satisfiable", headers, None)

    monkeypatch.setattr(download, "urlopen", refuse)
    if kept:
        download.download("http://x/file", tmp_path / "file", "remedy")
        assert (tmp_path / "file").stat().st_size == have
    else:
        with pytest.raises(DataError, match=r"http://x/file could not be downloaded .*416.*\. remedy\.$"):
            download.download("http://x/file", tmp_path / "file", "remedy")
    assert not (tmp_path / ".file.part").exists()


def with_pyg(root: Path, texts: list[str]) -> Path:
    """PyG's copy of the texts, as its TAGDataset writes it, in place of OGB's."""
    (root / "ogbn_arxiv/titleabs.tsv.gz").unlink(missing_ok=True)
    return write_pyg(root / "ogbn_arxiv/raw/node-text.csv.gz", texts)


def test_pyg_copy_of_the_texts_is_taken_where_ogbs_is_not(root: Path) -> None:
    texts = [f'paper {node}: "quoted"\nand, so on' for node in range(N)]
    texts[3] = ""
    with_pyg(root, texts)
    graph = load_ogbn_arxiv(root)
    assert list(graph.texts) == texts
    assert (graph.origin["files"][1], graph.origin["missing_texts"]) == ("node-text.csv.gz", 1)
    write_lines(root / "titleabs.tsv", arxiv_rows())
    assert load_ogbn_arxiv(root).texts[0] == "Title: title 0. Abstract: about 0"


@pytest.mark.parametrize("use", [lambda root: ogb_accuracy("ogbn-arxiv"), load_ogbn_arxiv])
def test_import_of_ogb_starts_no_version_check(
    root: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[Path], object]
) -> None:
    outdated = types.ModuleType("outdated")
    outdated.check_outdated = lambda *args: pytest.fail("phoned home")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "outdated", outdated)
    for name in [name for name in sys.modules if name.partition(".")[0] == "ogb"]:
        monkeypatch.delitem(sys.modules, name)
    use(root)
    assert sys.modules["ogb.version"].check_outdated is None
    assert sys.modules["outdated"] is outdated


@pytest.mark.parametrize("name", ["ogbn-arxiv", "ogbn-products", "ogbn-papers100M"])
def test_accuracy_is_a_python_float_of_hand_counted_value(name: str) -> None:
    accuracy = ogb_accuracy(name)
    score = accuracy(np.array([3, 1, 2, 2, 39]), np.array([3, 1, 1, 2, 0]))
    assert type(score) is float
    assert score == 0.6


def test_accuracy_refuses_what_ogb_does_not_score_by_it() -> None:
    with pytest.raises(ValueError, match="ogbn-proteins by 'rocauc'"):
        ogb_accuracy("ogbn-proteins")
    with pytest.raises(ValueError, match="Invalid dataset name"):
        ogb_accuracy("ogbn-arvix")
