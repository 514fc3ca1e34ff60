"""ogbn-papers100M with its raw text: 111 million nodes, read in streams and memory maps, made piece by piece.

OGB's class would hold several copies of 80 GB in memory. The file format is that of its ``read_binary_graph_raw``.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from glem_graphgym.data.errors import check_all, reading_data
from glem_graphgym.data.ogb.archive import ARXIV_CATEGORIES, ROWS_AT_ONCE, OgbArchive, check_finite
from glem_graphgym.data.ogb.download import check_download, download
from glem_graphgym.data.ogb.text_files import TextFile, decoded, find, report, sentence
from glem_graphgym.data.pieces import (
    Piece,
    load_without_sources,
    save_labels,
    snapshot_of_pieces,
    snapshot_without_sources,
    write_structure,
)
from glem_graphgym.data.text_graph import UNLABELLED, DataError, TextGraph, Texts, TextsWriter
from glem_graphgym.disk import disk_full_errors, new_array, require_space
from glem_graphgym.files import fingerprint, sampled_fingerprint
from glem_graphgym.progress import Progress

# Increment whenever the same files would give another graph than before.
RECIPE_VERSION = 1
TEXTS = ("idx_title.tsv", "idx_abs.tsv")
ZIP = "paperinfo.zip"
TEXT_URL = f"https://snap.stanford.edu/ogb/data/misc/ogbn_papers100M/{ZIP}"
MOST_DIGITS = 18  # of a node index
BLOCK_BYTES = 1 << 22  # of an array, unpacked at once
FIRST_ROWS = 1 << 14  # of a file of texts, checked before anything is written

logger = logging.getLogger(__name__)


def load_ogbn_papers100m(root: Path) -> TextGraph:
    """ogbn-papers100M with titles and abstracts: 111,059,956 papers, 172 classes, citations made undirected.

    OGB's archive is downloaded into ``<root>/ogbn_papers100M`` if missing (56 GB; its arrays take 83 GB). The raw text
    is looked for in that folder and in ``root``: ``paperinfo.zip``, which is read without unpacking, then
    ``idx_title.tsv`` and ``idx_abs.tsv``, there or in a folder ``paperinfo``; else the zip is downloaded (34 GB).

    The graph is frozen under ``<root>/ogbn_papers100M/text_graph``, one folder per content of the files; then all
    sources may be deleted. It is made in pieces (labels and split, titles, texts, features, structure), which take some
    GB of memory; finished ones survive a kill. Before that, the first rows of the texts and the disk space are checked.

    ``features`` are OGB's, float32 (N, 128), and memory-mapped; papers outside of arXiv have no label (-1);
    ``node_ids`` is None. A paper without a text gets an empty one, is counted in ``origin`` and logged.

    Raises:
        DataError: a file is missing and cannot be downloaded, is damaged, or belongs to another dataset; says which
            file is expected where, and from which URL.
        DiskFullError: there is no room on the disk; says for what.
    """
    archive = OgbArchive.of("ogbn-papers100M", root)
    snapshots = archive.folder / "text_graph"
    graph = load_without_sources(snapshots, archive.is_complete() and bool(_find_texts(archive.folder)))
    if graph is not None:
        return graph
    archive.provide()
    raw = RawGraph.of(archive)
    if not _find_texts(archive.folder):
        download(TEXT_URL, archive.folder / ZIP, _remedy(archive.folder))
    text_files = _find_texts(archive.folder)
    graph_key = fingerprint(RECIPE_VERSION, sampled_fingerprint(*archive.tables()))
    text_key = fingerprint(
        RECIPE_VERSION, raw.num_nodes, sampled_fingerprint(*{file.path: None for file in text_files})
    )

    def describe() -> dict[str, Any]:
        check_all(*(partial(_check_first_rows, file, raw.num_nodes) for file in text_files))
        files = [archive.release.name, *dict.fromkeys(file.path.name for file in text_files)]
        return {"name": archive.name, "class_names": archive.class_names(ARXIV_CATEGORIES), "origin": {"files": files}}

    titles, abstracts = text_files
    per_node = 8 * (raw.num_nodes + 1)  # bytes of labels, or of the offset of each text or row
    pieces = {
        "labels": Piece(graph_key, lambda piece: _write_labels(piece, archive, raw), per_node),
        "titles": Piece(
            text_key, lambda piece: _write_titles(piece, titles, raw.num_nodes), titles.size() + per_node, linked=False
        ),
        "texts": Piece(
            text_key,
            lambda piece: _write_texts(piece, piece.with_name(f"titles-{text_key}"), abstracts, raw.num_nodes),
            titles.size() + abstracts.size() + per_node,
        ),
        "features": Piece(graph_key, lambda piece: _write_features(piece, raw), raw.features.nbytes),
        "structure": Piece(
            graph_key, lambda piece: _write_structure(piece, raw), 2 * 4 * raw.edges.shape[1] + per_node
        ),
    }
    return snapshot_of_pieces(snapshots / fingerprint(text_key, graph_key), pieces, describe)


def checks_of_ogbn_papers100m(root: Path) -> list[Callable[[], object]]:
    """Checks to run before anything is downloaded or made; each raises DataError for missing or wrong files."""
    archive = OgbArchive.of("ogbn-papers100M", root)

    def texts() -> None:
        if not _find_texts(archive.folder):
            check_download(TEXT_URL, _remedy(archive.folder))

    def content() -> None:
        if archive.is_complete():
            nodes = RawGraph.of(archive).num_nodes
            check_all(*(partial(_check_first_rows, file, nodes) for file in _find_texts(archive.folder)))

    if snapshot_without_sources(
        archive.folder / "text_graph", archive.is_complete() and bool(_find_texts(archive.folder))
    ):
        return []
    return [archive.check, texts, content]


# ---- edges, features, labels --------------------------------------------------------------------------------------


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpzMember:
    """One array of an .npz file: its ``dtype``, ``shape``, and whether it is stored by columns (``fortran_order``).

    Raises:
        DataError: the file is damaged or no .npz, or lacks the array; names the file and the arrays in it.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        with self._reading(), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if f"{key}.npy" not in names:
                stored_names = ", ".join(name.removesuffix(".npy") for name in names)
                raise DataError(f"{path} holds no array '{key}', but: {stored_names or 'nothing'}")
            self._info = archive.getinfo(f"{key}.npy")
            with archive.open(self._info) as stream:
                version = np.lib.format.read_magic(stream)
                if version not in HEADERS:
                    raise ValueError(f"'{key}' has version {version} of the .npy format, expected 1.0 or 2.0")
                self.shape, self.fortran_order, self.dtype = HEADERS[version](stream)
                expected = stream.tell() + self.nbytes
            if self.dtype.hasobject or self._info.file_size != expected:
                stored = f"{self._info.file_size} bytes for {self.dtype} {self.shape}"
                raise ValueError(f"{stored}, expected {expected}")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def unpack(self, file: Path) -> np.ndarray:
        """Write the array to ``file`` as .npy, in its stored order, a few MB at a time; returns it memory-mapped.

        Raises:
            DataError: the archive is damaged (its CRC-32 is checked).
            DiskFullError: the disk has no room for the array.
        """
        size, description = self._info.file_size, f"unpacking {self.key}"
        require_space(file.parent, size, description)
        with (
            self._reading(),
            zipfile.ZipFile(self.path) as archive,
            archive.open(self._info) as stream,
            Progress(total=size, desc=description, unit="B", unit_scale=True) as bar,
            disk_full_errors(file, size),
            file.open("wb") as out,
        ):
            while block := stream.read(BLOCK_BYTES):
                out.write(block)
                bar.update(len(block))
        return np.load(file, mmap_mode="r")

    def read(self) -> np.ndarray:
        """The array in memory."""
        with self._reading(), np.load(self.path) as archive:
            return archive[self.key]

    def _reading(self) -> AbstractContextManager[None]:
        return reading_data(f"{self.path} is damaged or no sound .npz file", "unpack or download it anew")


@dataclass(frozen=True)
class RawGraph:
    """OGB's binary files, checked to fit each other."""

    num_nodes: int
    edges: NpzMember  # int (2, E)
    features: NpzMember  # float (N, F)
    labels: NpzMember  # (N, 1), NaN where there is none

    @classmethod
    def of(cls, archive: OgbArchive) -> RawGraph:
        data, label = (archive.folder / name for name in archive.raw_files())
        nodes, edges = (int(NpzMember(data, f"num_{kind}_list").read().sum()) for kind in ("nodes", "edges"))
        raw = cls(
            num_nodes=nodes,
            edges=NpzMember(data, "edge_index"),
            features=NpzMember(data, "node_feat"),
            labels=NpzMember(label, "node_label"),
        )
        edges_fit = raw.edges.dtype.kind in "iu" and raw.edges.shape == (2, edges)
        _check(raw.edges, edges_fit, f"integers (2, {edges}), as num_edges_list says")
        features_fit = raw.features.dtype.kind == "f" and len(raw.features.shape) == 2
        _check(raw.features, features_fit and raw.features.shape[0] == nodes, f"floats ({nodes}, F)")
        _check(raw.labels, raw.labels.shape in ((nodes, 1), (nodes,)), f"({nodes}, 1)")
        return raw


def _check(member: NpzMember, fits: bool, expected: str) -> None:
    if not fits:
        raise DataError(
            f"{member.path}: {member.key} is {member.dtype} {member.shape}, expected {expected}; unpack OGB's archive "
            "anew"
        )


def _write_labels(folder: Path, archive: OgbArchive, raw: RawGraph) -> dict[str, int]:
    label = archive.class_labels(raw.labels.read(), raw.labels.path)
    save_labels(folder, label, archive.read_split(label))
    return {"nodes": raw.num_nodes, "labelled_nodes": int((label != UNLABELLED).sum())}


def _write_features(folder: Path, raw: RawGraph) -> dict[str, int]:
    file = folder / "features.npy"
    if raw.features.fortran_order:
        columns = raw.features.unpack(folder / "columns.npy")
        rows = new_array(file, columns.dtype, columns.shape)
        for start in Progress(range(0, len(rows), ROWS_AT_ONCE), desc="features, row by row"):
            rows[start : start + ROWS_AT_ONCE] = columns[start : start + ROWS_AT_ONCE]
        rows.flush()
        (folder / "columns.npy").unlink()
    else:
        raw.features.unpack(file)
    check_finite(np.load(file, mmap_mode="r"), raw.features.path)
    return {}


def _write_structure(folder: Path, raw: RawGraph) -> dict[str, int]:
    edges = raw.edges.unpack(folder / "edge_index.npy")
    try:
        undirected = write_structure(folder, edges, raw.num_nodes)
    except DataError as error:
        raise DataError(f"{raw.edges.path}: {error}; unpack OGB's archive anew") from error
    (folder / "edge_index.npy").unlink()
    return {"directed_edges": edges.shape[1], "edges": undirected}


# ---- texts --------------------------------------------------------------------------------------------------------


READABLE_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


def _find_texts(folder: Path) -> list[TextFile]:
    """Titles and abstracts: in the zip archive, preferred as it shows if it is whole, or unpacked; [] if missing."""
    remedy = f"put the one of {TEXT_URL} in its place"
    packed = find((folder, folder.parent), [ZIP])
    folders = [inner for outer in (folder, folder.parent) for inner in (outer, outer / "paperinfo")]
    files = [path for name in TEXTS if (path := find(folders, [name]))]
    unpacked = [TextFile(path, remedy) for path in files] if len(files) == len(TEXTS) else []
    if not packed:
        return unpacked
    with reading_data(f"{packed} is damaged or not what its name says", remedy), zipfile.ZipFile(packed) as archive:
        infos = archive.infolist()
    members = {Path(info.filename).name: info.filename for info in infos}
    # Encrypted, or packed by a method that Python's zipfile does not know (Deflate64).
    unreadable = {info.filename for info in infos if info.flag_bits & 1 or info.compress_type not in READABLE_METHODS}
    if unpacked and any(members.get(name) in unreadable for name in TEXTS):
        return unpacked
    if missing := [name for name in TEXTS if name not in members]:
        raise DataError(f"{packed} holds {', '.join(members) or 'nothing'}, but no {missing[0]}; {remedy}")
    return [TextFile(packed, f"{remedy}, or unpack it there with unzip", members[name]) for name in TEXTS]


def _remedy(folder: Path) -> str:
    return f"Download {TEXT_URL} and put it at {folder / ZIP}"


def _check_first_rows(source: TextFile, num_nodes: int) -> None:
    """Raise DataError if most of the first rows of titles or abstracts name no paper, or if none has a text."""
    counts = _new_counts()
    with_text = sum(1 for _ in _rows(islice(source.lines(), FIRST_ROWS), num_nodes, counts))
    if not with_text or 2 * counts["skipped_rows"] > counts["text_rows"]:
        raise DataError(
            f"{source}: of its first {counts['text_rows']} rows {counts['skipped_rows']} name no paper and {with_text} "
            f"have a text. Expected node index and text, separated by a tab, of {num_nodes} papers: this is another "
            f"file; {source.remedy}"
        )


def _write_titles(folder: Path, source: TextFile, num_nodes: int) -> dict[str, int]:
    counts = _new_counts()
    with TextsWriter(folder, num_nodes, "title") as writer:
        writer.put(_rows(source.lines(), num_nodes, counts))
    counts["repeated"] = writer.repeated
    missing = writer.missing()
    expected = (
        "node index and title, separated by a tab, of nearly all papers: this is another file or a part of it; "
        f"{source.remedy}"
    )
    report(source, "papers", counts, missing, range(num_nodes), expected)
    return {**_prefixed("title", counts), "missing_titles": len(missing)}


def _write_texts(folder: Path, titles: Path, source: TextFile, num_nodes: int) -> dict[str, int]:
    """Write the text of every node: its title and abstract."""
    stored = Texts.load(titles, "title")
    counts = _new_counts()
    with TextsWriter(folder, num_nodes) as writer:
        rows = _rows(source.lines(), num_nodes, counts)
        writer.put((node, sentence(Title=stored[node], Abstract=abstract)) for node, abstract in rows)
        counts["repeated"] = writer.repeated
        without_abstract = np.flatnonzero(~writer.written)
        if len(without_abstract) == num_nodes or 2 * counts["skipped_rows"] > counts["text_rows"]:
            raise DataError(
                f"{source} has abstracts for {num_nodes - len(without_abstract)} of {num_nodes} papers, and "
                f"{counts['skipped_rows']} of its {counts['text_rows']} rows name no paper. Expected node index and "
                f"abstract, separated by a tab: this is another file or a part of it; {source.remedy}"
            )
        writer.put((int(node), sentence(Title=stored[node])) for node in without_abstract)
    if 2 * len(without_abstract) > num_nodes:
        logger.warning("%s: more than half of the papers have no abstract; is the file whole?", source)
    logger.info("%s: %d of %d papers have no abstract", source, len(without_abstract), num_nodes)
    missing = {"missing_abstracts": len(without_abstract), "missing_texts": len(writer.missing())}
    return {**_prefixed("abstract", counts), **missing}


def _new_counts() -> dict[str, int]:
    return dict.fromkeys(("text_rows", "rows_not_utf8", "skipped_rows", "rows_without_text", "repeated"), 0)


def _prefixed(prefix: str, counts: dict[str, int]) -> dict[str, int]:
    return {f"{prefix}_{name.removeprefix('text_')}": count for name, count in counts.items()}


def _rows(lines: Iterable[bytes], num_nodes: int, counts: dict[str, int]) -> Iterator[tuple[int, str]]:
    """Yield (node, text) for every row that has both."""
    for raw in lines:
        counts["text_rows"] += 1
        index, tab, raw_text = raw.partition(b"\t")
        if not (tab and index.isdigit() and len(index) <= MOST_DIGITS and (node := int(index)) < num_nodes):
            counts["skipped_rows"] += 1
            continue
        text = decoded(raw_text, counts).strip()
        if text:
            yield node, text
        else:
            counts["rows_without_text"] += 1
