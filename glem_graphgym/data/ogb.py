"""Open Graph Benchmark datasets with their raw text, read through OGB's own classes.

Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020, arXiv 2005.00687.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import pickle
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd
from filelock import FileLock
from tqdm import tqdm

from glem_graphgym.data.text_graph import (
    SPLITS,
    UNLABELLED,
    DataError,
    TextGraph,
    Texts,
    csr_from_edges,
    snapshot,
)
from glem_graphgym.files import atomic_write, fingerprint, sync

# To be raised whenever the same files would give another graph than before.
RECIPE_VERSION = 1
ARXIV_TEXT = "titleabs.tsv.gz"
ARXIV_TEXT_URL = f"https://snap.stanford.edu/ogb/data/misc/ogbn_arxiv/{ARXIV_TEXT}"
ARXIV_PAPERS = "mapping/nodeidx2paperid.csv.gz"
ARXIV_CATEGORIES = "mapping/labelidx2arxivcategeory.csv.gz"  # spelled like this by OGB
BROKEN_FILE = (OSError, EOFError, zlib.error)
BROKEN_TABLE = (*BROKEN_FILE, ValueError)

logger = logging.getLogger(__name__)


def load_ogbn_arxiv(root: Path) -> TextGraph:
    """ogbn-arxiv with titles and abstracts: 169,343 papers, 40 classes, citations made undirected.

    What is missing on disk is downloaded: OGB's archive into ``<root>/ogbn_arxiv`` and the text into the same
    folder; ``titleabs.tsv.gz`` or ``titleabs.tsv`` is looked for there first, then in ``root``. The finished
    graph is frozen under ``<root>/ogbn_arxiv/text_graph``, in a folder of its own for each text file. Nothing
    is ever asked on standard input.

    ``features`` are OGB's, float32 (N, 128), means of word vectors; ``node_ids`` are the paper ids of the
    Microsoft Academic Graph. A paper without a text gets an empty one, is counted in ``origin`` and logged.

    Raises:
        DataError: a file is missing and cannot be downloaded, is damaged, or belongs to another dataset or
            version; says which file is expected where, and from which URL.
    """
    archive = OgbArchive.of("ogbn-arxiv", root)
    archive.provide([ARXIV_PAPERS])
    text_file = _provide_arxiv_text(archive.folder)
    papers_file = archive.folder / ARXIV_PAPERS
    key = fingerprint(RECIPE_VERSION, text_file.read_bytes(), papers_file.read_bytes())
    return snapshot(archive.folder / "text_graph" / key, lambda: _arxiv_graph(archive, text_file))


def ogb_accuracy(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """OGB's own accuracy of a dataset, a share 0-1, as a function of y_true int (n,) and y_pred int (n,).

    Raises:
        ValueError: OGB has no node-property dataset ``name``, or does not score it by accuracy.
    """
    with _without_version_check():
        from ogb.nodeproppred import Evaluator
    evaluator = Evaluator(name)
    if evaluator.eval_metric != "acc":
        raise ValueError(f"OGB scores {name} by '{evaluator.eval_metric}', not by accuracy")

    def accuracy(y_true: np.ndarray, y_pred: np.ndarray) -> float:
        score = evaluator.eval({"y_true": y_true.reshape(-1, 1), "y_pred": y_pred.reshape(-1, 1)})
        return float(score["acc"])

    return accuracy


@dataclass(frozen=True)
class OgbArchive:
    """What OGB publishes for one node-property dataset (as CSV files), and where it is unpacked.

    Attributes:
        name: OGB's name of the dataset, e.g. ``"ogbn-arxiv"``.
        folder: where OGB's class expects it.
        master: the dataset's column in OGB's master table: URL, version, which files there are.
    """

    name: str
    folder: Path
    master: dict[str, str]

    @classmethod
    def of(cls, name: str, root: Path) -> OgbArchive:
        with _without_version_check():
            import ogb
        table = Path(ogb.__file__).parent / "nodeproppred" / "master.csv"
        column = pd.read_csv(table, index_col=0, keep_default_na=False, dtype=str)[name]
        master = {str(key): str(value) for key, value in column.items()}
        folder = root / name.replace("-", "_")
        older = folder.with_name(f"{folder.name}_pyg")  # OGB prefers this one where it exists
        return cls(name, older if older.exists() else folder, master)

    @property
    def release(self) -> Path:
        """The file without which OGB's class asks, on standard input, whether it may delete the folder."""
        return self.folder / f"RELEASE_v{self.master['version']}.txt"

    def provide(self, mappings: Sequence[str]) -> None:
        """Make sure that the folder is complete, with these mapping files; download it if nothing is there.

        OGB's class must not see an incomplete folder: it would ask on standard input, delete the folder with
        all that others put there, or end the process.

        Raises:
            DataError: files are missing beside others that are there, or the download fails.
        """
        required = [self.release.name, *self._tables(), *mappings]
        if not self._missing(required):
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not self._present():
                self._download()
        if missing := self._missing(required):
            raise DataError(
                f"{self.folder} is no complete copy of {self.name}: missing {_listed(missing)}; found "
                f"{_listed(self._present())}. {self._remedy()}, after deleting what was found there"
            )

    def read(self) -> tuple[Any, dict[str, np.ndarray]]:
        """OGB's PyG ``Data`` (x, y, directed edge_index) and its split, sorted int64 node indices.

        Raises:
            DataError: OGB cannot read its files.
        """
        import torch
        from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
        from torch_geometric.data.storage import GlobalStorage

        with _without_version_check():
            from ogb.nodeproppred import PygNodePropPredDataset

        # OGB calls torch.load without arguments, which since torch 2.6 refuses these classes of PyG.
        already_safe = torch.serialization.get_safe_globals()
        needed = [kind for kind in (DataEdgeAttr, DataTensorAttr, GlobalStorage) if kind not in already_safe]
        with self._lock(), torch.serialization.safe_globals(needed):
            self._forget_interrupted_processing()
            try:
                dataset = PygNodePropPredDataset(self.name, root=str(self.folder.parent))
                data, split = dataset[0], dataset.get_idx_split()
            except (*BROKEN_TABLE, RuntimeError, KeyError, AttributeError, pickle.UnpicklingError) as error:
                raise DataError(
                    f"{self.folder}: OGB cannot read it ({error!r:.200}). Delete its folder 'processed', "
                    f"which another version may have made; if that is not it: {self._remedy()}"
                ) from error
        return data, {part: np.sort(split[part].numpy().astype(np.int64)) for part in SPLITS}

    def _tables(self) -> list[str]:
        raw = ["edge", "num-node-list", "num-edge-list", "node-label"]
        raw += ["node-feat"] if self.master["has_node_attr"] == "True" else []
        raw += [name for name in self.master["additional node files"].split(",") if name != "None"]
        split = f"split/{self.master['split']}"
        return [*(f"raw/{name}.csv.gz" for name in raw), *(f"{split}/{part}.csv.gz" for part in SPLITS)]

    def _missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not (self.folder / name).is_file()]

    def _present(self) -> list[str]:
        """Files of the archive that are there, whoever put them there."""
        patterns = ("RELEASE_*", "raw/*", "split/**/*", "mapping/*")
        files = [path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()]
        return sorted(str(path.relative_to(self.folder)) for path in files)

    def _download(self) -> None:
        """Download and unpack; RELEASE comes last, so that nothing that was cut short looks complete."""
        temporary = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            unpacked = self._unpack(temporary)
            self.folder.mkdir(exist_ok=True)
            for member in sorted(unpacked.iterdir(), key=lambda path: path.name.startswith("RELEASE")):
                # What is there is empty, or a 'processed' made from other raw files.
                shutil.rmtree(self.folder / member.name, ignore_errors=True)
                member.rename(self.folder / member.name)
            sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _unpack(self, temporary: Path) -> Path:
        url = self.master["url"]
        file = temporary / "archive.zip"
        _download(url, file, self._remedy())
        try:
            with zipfile.ZipFile(file) as members:
                members.extractall(temporary)
        except (zipfile.BadZipFile, EOFError, zlib.error) as error:
            raise DataError(f"{url} is no sound zip archive ({error}). {self._remedy()}") from error
        unpacked = temporary / self.master["download_name"]
        if not (unpacked / self.release.name).is_file():
            raise DataError(
                f"{url} holds no {unpacked.name}/{self.release.name}, which the installed ogb expects; "
                "install the release of ogb that fits it"
            )
        for path in unpacked.rglob("*"):
            sync(path)
        return unpacked

    def _remedy(self) -> str:
        return f"Download {self.master['url']} and unpack it so that {self.release} exists"

    def _lock(self) -> FileLock:
        return FileLock(self.folder.with_name(f".{self.folder.name}.lock"))

    def _forget_interrupted_processing(self) -> None:
        # PyG writes pre_filter.pt last: without it, what OGB made of the raw files may be half of a file.
        processed = self.folder / "processed"
        if not (processed / "pre_filter.pt").exists():
            (processed / "geometric_data_processed.pt").unlink(missing_ok=True)


def _arxiv_graph(archive: OgbArchive, text_file: Path) -> TextGraph:
    papers = _read_mapping(archive.folder / ARXIV_PAPERS, "node idx", "paper id")
    class_names = _arxiv_class_names(archive)
    text_of, counts = _read_papers(text_file)
    texts = [text_of.get(paper, "") for paper in papers]
    _report(papers, texts, text_file, counts)
    data, split = archive.read()
    if len(papers) != data.num_nodes:
        raise DataError(
            f"{archive.folder / ARXIV_PAPERS}: {len(papers)} papers for {data.num_nodes} nodes; unpack OGB's "
            "archive anew, without an older folder 'processed'"
        )
    source, target = data.edge_index.numpy()
    rowptr, col = csr_from_edges(source, target, data.num_nodes)
    return TextGraph(
        name=archive.name,
        texts=Texts.of(texts),
        rowptr=rowptr,
        col=col,
        label=np.nan_to_num(data.y.numpy().reshape(-1), nan=UNLABELLED).astype(np.int64),
        split=split,
        class_names=class_names,
        features=data.x.numpy().astype(np.float32, copy=False),
        node_ids=papers,
        origin={
            "files": [archive.release.name, text_file.name],
            "nodes": len(papers),
            "directed_edges": len(source),
            "edges": len(col) // 2,
            "missing_texts": texts.count(""),
            **counts,
        },
    )


def _arxiv_class_names(archive: OgbArchive) -> list[str]:
    num_classes = int(archive.master["num classes"])
    path = archive.folder / ARXIV_CATEGORIES
    if not path.exists():
        return [f"class {index}" for index in range(num_classes)]
    names = _read_mapping(path, "label idx", "arxiv category")
    if len(names) != num_classes:
        raise DataError(f"{path} names {len(names)} classes, expected {num_classes}; unpack OGB's archive anew")
    return names


def _read_mapping(path: Path, index: str, value: str) -> list[str]:
    """Column ``value`` of a mapping file of OGB, whose column ``index`` must count 0, 1, 2, and so on."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except BROKEN_TABLE as error:
        raise DataError(f"{path} cannot be read ({error}); unpack OGB's archive anew") from error
    if [*table.columns] != [index, value]:
        raise DataError(
            f"{path} has the columns {[*table.columns]}, expected {[index, value]}; unpack OGB's archive anew"
        )
    for row, found in enumerate(table[index]):
        if found != str(row):
            raise DataError(
                f"{path}: row {row} has {index} '{found}', expected {row}, as rows must be in index order; "
                "unpack OGB's archive anew"
            )
    return [str(entry) for entry in table[value]]


def _provide_arxiv_text(folder: Path) -> Path:
    names = (ARXIV_TEXT, ARXIV_TEXT.removesuffix(".gz"))
    for path in (place / name for place in (folder, folder.parent) for name in names):
        if path.is_file():
            return path
    path = folder / ARXIV_TEXT
    _download(ARXIV_TEXT_URL, path, f"Download {ARXIV_TEXT_URL} and put it at {path}")
    return path


def _read_papers(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Text by paper id, and counts of the file's rows and of what was wrong with them.

    Of several rows of one paper the first with a text wins.
    """
    texts: dict[str, str] = {}
    counts = dict.fromkeys(("text_rows", "skipped_rows", "repeated_papers", "rows_not_utf8"), 0)
    for raw in _lines(path):
        row = raw.decode("utf-8", "replace").rstrip("\r\n")
        paper, *fields = row.split("\t", 2)
        # The published file is a tar archive: its header is glued to the first row, zeros follow the last.
        paper = paper.rpartition("\0")[2]
        counts["text_rows"] += 1
        if not (fields and paper.isdecimal()):
            counts["skipped_rows"] += 1
            continue
        counts["rows_not_utf8"] += "\ufffd" in row and not _is_utf8(raw)
        counts["repeated_papers"] += paper in texts
        texts[paper] = texts.get(paper) or _paper_text(*fields)
    return texts, counts


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from file
    except BROKEN_FILE as error:
        raise DataError(
            f"{path} is damaged or not what its name says ({error}); delete it to have it downloaded again, "
            f"or put {ARXIV_TEXT_URL} in its place"
        ) from error


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _paper_text(title: str, abstract: str = "") -> str:
    parts = (("Title", title.strip()), ("Abstract", abstract.strip()))
    return ". ".join(f"{name}: {part}" for name, part in parts if part)


def _report(papers: list[str], texts: list[str], text_file: Path, counts: dict[str, int]) -> None:
    missing = [paper for paper, text in zip(papers, texts, strict=True) if not text]
    found = (
        f"{text_file} has no text for {len(missing)} of {len(papers)} papers ({_listed(missing)}); of its "
        f"{counts['text_rows']} rows {counts['skipped_rows']} name no paper"
    )
    if 2 * len(missing) > len(papers):
        raise DataError(
            f"{found}. Expected paper id, title and abstract, separated by tabs, of nearly all papers: this "
            f"is another file or a part of it; put {ARXIV_TEXT_URL} in its place"
        )
    if missing:
        logger.warning("%s. These nodes get an empty text.", found)
    if counts["rows_not_utf8"]:
        broken = counts["rows_not_utf8"]
        logger.warning("%s: %d rows hold bytes that are not UTF-8; U+FFFD replaces them.", text_file, broken)


def _download(url: str, path: Path, remedy: str) -> None:
    """Download ``url`` to ``path``, which exists only when all of it has come.

    Raises:
        DataError: it could not be downloaded in full; the message ends in ``remedy``.
    """
    try:
        with urlopen(url, timeout=60) as response, atomic_write(path) as file:
            announced = response.headers.get("Content-Length")
            size = None if announced is None else int(announced)
            with tqdm.wrapattr(response, "read", total=size, desc=url.rpartition("/")[2]) as stream:
                shutil.copyfileobj(stream, file)
            if size not in (None, file.tell()):
                raise OSError(f"the connection ended after {file.tell()} of {size} bytes")
    except (OSError, HTTPException) as error:
        raise DataError(f"{url} could not be downloaded ({error}). {remedy}") from error


@contextlib.contextmanager
def _without_version_check() -> Iterator[None]:
    """Hide the package ``outdated`` from ogb, which asks a server for its newest release when imported."""
    hidden = {"outdated": sys.modules["outdated"]} if "outdated" in sys.modules else {}
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["outdated"]
        sys.modules.update(hidden)


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
