"""OGB's archive of a node-property dataset: downloaded, checked to be complete, and read from its raw files.

OGB's own class caches what it has read as pickles, which may run any code when loaded, and accepts files that
contradict each other. Here OGB's tables are read instead, and no pickle is ever opened.

Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020, arXiv 2005.00687.
"""

from __future__ import annotations

import contextlib
import html
import shutil
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from filelock import FileLock
from pandas.errors import DtypeWarning

from glem_graphgym.data.errors import DataError, listed, reading_data
from glem_graphgym.data.ogb.download import check_download, download
from glem_graphgym.data.text_graph import SPLITS, UNLABELLED
from glem_graphgym.disk import disk_full_errors, require_space
from glem_graphgym.files import sync
from glem_graphgym.progress import Progress

ROWS_AT_ONCE = 1 << 20  # labels and features that are checked at a time
ARXIV_CATEGORIES = "mapping/labelidx2arxivcategeory.csv.gz"  # OGB's spelling


def ogb_accuracy(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """OGB's accuracy for a dataset: a function of y_true int (n,) and y_pred int (n,) that returns a share 0-1.

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
class OgbGraph:
    """A graph with N nodes and E directed edges, as stored in OGB's tables."""

    edge_index: np.ndarray  # int64 (2, E), as published
    features: np.ndarray  # float32 (N, F)
    label: np.ndarray  # int64 (N,), UNLABELLED where there is none
    split: dict[str, np.ndarray]  # sorted int64 node indices


@dataclass(frozen=True)
class OgbArchive:
    """OGB's archive of one node-property dataset, and the folder that it is unpacked to."""

    name: str  # OGB's name of the dataset, e.g. "ogbn-arxiv"
    folder: Path  # where OGB's class expects it
    mappings: Sequence[str]  # those of its mapping files that are needed
    master: dict[str, str]  # its column in OGB's master table: URL, version, which files there are

    @classmethod
    def of(cls, name: str, root: Path, *mappings: str) -> OgbArchive:
        with _without_version_check():
            import ogb
        table = Path(ogb.__file__).parent / "nodeproppred" / "master.csv"
        column = pd.read_csv(table, index_col=0, keep_default_na=False, dtype=str)[name]
        master = {str(key): str(value) for key, value in column.items()}
        folder = root / name.replace("-", "_")
        older = folder.with_name(f"{folder.name}_pyg")  # OGB prefers this folder if it exists
        return cls(name, older if older.exists() else folder, mappings, master)

    @property
    def release(self) -> Path:
        return self.folder / f"RELEASE_v{self.master['version']}.txt"

    @property
    def num_classes(self) -> int:
        return int(self.master["num classes"])

    def provide(self) -> None:
        """Fill the folder from OGB's archive: the one beside the folder, or a download.

        Raises:
            DataError: some files exist but others are missing, or the download fails.
        """
        if self.is_complete():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
            if not self._present():
                self._download()
        self._require_all()

    def check(self) -> None:
        """Raise DataError where `provide` would; downloads nothing, but asks whether the server has the archive."""
        if self._present():
            self._require_all()
        elif not self._packed().is_file():
            check_download(self.master["url"], self.remedy())

    def _require_all(self) -> None:
        if missing := self._missing():
            raise DataError(
                f"{self.folder} is no complete copy of {self.name}: missing {listed(missing)}; found "
                f"{listed(self._present())}. {self.remedy()}, after deleting what was found there"
            )

    def is_complete(self) -> bool:
        return not self._missing()

    def read(self) -> OgbGraph:
        """Read the graph in OGB's tables into memory.

        Raises:
            DataError: a table is damaged, holds an invalid value, or does not have the length that the tables of counts
                state; names the table and the row.
        """
        counts = (self._table(f"raw/num-{kind}-list.csv.gz", 1, 1, integers=True) for kind in ("node", "edge"))
        nodes, edges = (int(count[0, 0]) for count in counts)
        edge = self._table("raw/edge.csv.gz", edges, 2, integers=True)
        self._check_range("raw/edge.csv.gz", edge, nodes)
        with np.errstate(over="ignore"):
            features = self._table("raw/node-feat.csv.gz", nodes).astype(np.float32)
        labels = "raw/node-label.csv.gz"
        label = self.class_labels(self._table(labels, nodes, 1), self.folder / labels)
        check_finite(features, self.folder / "raw/node-feat.csv.gz")
        return OgbGraph(np.ascontiguousarray(edge.T), features, label, self.read_split(label))

    def class_labels(self, published: np.ndarray, source: Path) -> np.ndarray:
        """Convert published labels, (N, 1) or (N,), to class indices int64 (N,); NaN becomes `UNLABELLED`.

        Raises:
            DataError: a label is no class, or labels have several columns; names ``source``.
        """
        if published.ndim not in (1, 2) or published.size != len(published):
            raise DataError(f"{source}: labels have the shape {published.shape}, expected ({len(published)}, 1)")
        label = np.empty(len(published), dtype=np.int64)
        for start in range(0, len(label), ROWS_AT_ONCE):
            block = published[start : start + ROWS_AT_ONCE].reshape(-1).astype(np.float64)
            labelled = ~np.isnan(block)
            wrong = labelled & ~((block >= 0) & (block < self.num_classes) & (np.floor(block) == block))
            if wrong.any():
                row = int(np.argmax(wrong))
                raise DataError(
                    f"{source}: row {start + row} holds the label {block[row]:g}, expected a whole number from 0 to "
                    f"{self.num_classes - 1}; unpack OGB's archive anew"
                )
            label[start : start + ROWS_AT_ONCE] = np.where(labelled, block, UNLABELLED)
        return label

    def read_split(self, label: np.ndarray) -> dict[str, np.ndarray]:
        """Read the split as sorted int64 node indices; ``label`` is int64 (N,), `UNLABELLED` if a node has none.

        Raises:
            DataError: a table is damaged, or names a node that does not exist, has no label or was named before.
        """
        split = {}
        assigned = np.zeros(len(label), dtype=bool)
        for split_name in SPLITS:
            table = self._split_table(split_name)
            rows = self._table(table, None, 1, integers=True)
            self._check_range(table, rows, len(label))
            nodes = rows[:, 0]
            repeated = np.ones(len(nodes), dtype=bool)
            repeated[np.unique(nodes, return_index=True)[1]] = False
            for wrong, reason in (
                (repeated, "a second time"),
                (assigned[nodes], "which is in another split too"),
                (label[nodes] == UNLABELLED, "which has no label"),
            ):
                self._refuse_row(table, wrong, nodes, f"names node {{}}, {reason}")
            assigned[nodes] = True
            split[split_name] = np.sort(nodes)
        return split

    def _table(self, name: str, rows: int | None, columns: int | None = None, integers: bool = False) -> np.ndarray:
        """Read a table of numbers without a header, (rows, columns), int64 if ``integers``; raises DataError."""
        path = self.folder / name
        with reading_data(f"{path} cannot be read", self.remedy()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DtypeWarning)  # words among numbers, which are refused below
            table = pd.read_csv(path, header=None)
        for column in table.columns[[dtype.kind not in "iuf" for dtype in table.dtypes]]:
            numbers = pd.to_numeric(table[column].astype(str), errors="coerce")
            words = numbers.isna() & table[column].notna()
            self._refuse_row(name, words, table[column], "holds {!r}, expected numbers")
            table[column] = numbers
        values = table.to_numpy()
        shape = (len(values) if rows is None else rows, values.shape[1] if columns is None else columns)
        if values.shape != shape:
            counts = "num-edge-list" if name == "raw/edge.csv.gz" else "num-node-list"
            raise DataError(
                f"{path} has {values.shape[0]} rows of {values.shape[1]} columns, expected {shape[0]} of {shape[1]}"
                + (f" by {counts}.csv.gz" if values.shape[0] != shape[0] != 1 else "")
                + f". {self.remedy()}"
            )
        if not integers:
            return values
        if values.dtype.kind == "f":
            wrong = ~(np.floor(values) == values).all(axis=1)
            self._refuse_row(name, wrong, values, "holds {}, expected whole numbers")
        return values.astype(np.int64, copy=False)

    def _check_range(self, name: str, nodes: np.ndarray, num_nodes: int) -> None:
        wrong = ((nodes < 0) | (nodes >= num_nodes)).any(axis=1)
        self._refuse_row(name, wrong, nodes, f"holds {{}}, expected nodes from 0 to {num_nodes - 1}")

    def _refuse_row(self, name: str, wrong: Any, values: Any, template: str) -> None:
        """Raise DataError for the first row that is ``wrong``, bool (rows,); ``template`` is a format for its value."""
        if wrong.any():
            row = int(np.argmax(wrong))
            value = values[row].tolist() if isinstance(values[row], np.ndarray) else values[row]
            raise DataError(f"{self.folder / name}: row {row} {template.format(value)}. {self.remedy()}")

    def class_names(self, table: str) -> list[str]:
        """Names of the classes from a mapping file; ``class 3`` if the name of class 3, or the file, is missing.

        Raises:
            DataError: the file is damaged, or names another number of classes.
        """
        path = self.folder / table
        if not path.exists():
            return [f"class {index}" for index in range(self.num_classes)]
        names = read_mapping(path)
        if len(names) != self.num_classes:
            raise DataError(
                f"{path} names {len(names)} classes, expected {self.num_classes}; unpack OGB's archive anew"
            )
        return [html.unescape(name).strip() or f"class {index}" for index, name in enumerate(names)]

    def remedy(self) -> str:
        return f"Download {self.master['url']} and unpack it so that {self.release} exists"

    def raw_files(self) -> list[str]:
        if self.master["binary"] == "True":
            return ["raw/data.npz", "raw/node-label.npz"]
        raw = ["edge", "num-node-list", "num-edge-list", "node-label"]
        raw += ["node-feat"] if self.master["has_node_attr"] == "True" else []
        raw += [name for name in self.master["additional node files"].split(",") if name != "None"]
        return [f"raw/{name}.csv.gz" for name in raw]

    def tables(self) -> list[Path]:
        """The files of the graph and of its split."""
        return [self.folder / name for name in (*self.raw_files(), *map(self._split_table, SPLITS))]

    def _split_table(self, split_name: str) -> str:
        return f"split/{self.master['split']}/{split_name}.csv.gz"

    def _missing(self) -> list[str]:
        files = [self.release, *self.tables(), *(self.folder / name for name in self.mappings)]
        return [str(file.relative_to(self.folder)) for file in files if not file.is_file()]

    def _present(self) -> list[str]:
        patterns = ("RELEASE_*", "raw/*", "split/**/*", "mapping/*")
        files = [path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()]
        # node-text.csv.gz is not in OGB's archive: users put it among the raw files.
        return sorted(str(path.relative_to(self.folder)) for path in files if path.name != "node-text.csv.gz")

    def _download(self) -> None:
        """Download and unpack; RELEASE is moved last, so that an interrupted copy never looks complete."""
        packed = self._packed()
        download(self.master["url"], packed, self.remedy())
        temporary = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            unpacked = self._unpack(packed, temporary)
            self.folder.mkdir(exist_ok=True)
            for member in sorted(unpacked.iterdir(), key=lambda path: path.name.startswith("RELEASE")):
                target = self.folder / member.name
                if member.name == "processed":  # where OGB's class keeps its pickles
                    continue
                if target.is_dir():
                    for inner in member.iterdir():
                        inner.rename(target / inner.name)
                else:
                    member.rename(target)
            sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if _was_downloaded(packed):
            packed.unlink()

    def _packed(self) -> Path:
        """Path of the archive: the user's, if there is one beside the folder, else of the one to download."""
        user_archive = self.folder.parent / self.master["url"].rpartition("/")[2]
        return user_archive if user_archive.is_file() else self.folder.with_name(f".{self.folder.name}.zip")

    def _unpack(self, packed: Path, temporary: Path) -> Path:
        """Unpack an archive and return the resulting folder; a downloaded archive that is unusable is deleted."""
        downloaded = _was_downloaded(packed)
        source = self.master["url"] if downloaded else str(packed)
        try:
            with (
                packed.open("rb") as file,
                Progress.wrapattr(file, "read", total=packed.stat().st_size, desc=f"unpacking {self.name}") as stream,
                zipfile.ZipFile(cast(IO[bytes], stream)) as members,
            ):
                size = sum(info.file_size for info in members.infolist())
                require_space(self.folder.parent, size, f"unpacking {source}")
                with disk_full_errors(self.folder, size):
                    members.extractall(temporary)
            unpacked = temporary / self.master["download_name"]
            if not (unpacked / self.release.name).is_file():
                raise DataError(
                    f"{source} holds no {unpacked.name}/{self.release.name}, which the installed ogb expects; "
                    "install the release of ogb that fits it"
                )
        except (zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError, DataError) as error:
            if downloaded:
                packed.unlink()
            if isinstance(error, DataError):
                raise
            raise DataError(f"{source} is no sound zip archive ({error}). {self.remedy()}") from error
        for path in unpacked.rglob("*"):
            sync(path)
        return unpacked


def _was_downloaded(packed: Path) -> bool:
    """Whether an archive was downloaded here, not put there by the user."""
    return packed.name.startswith(".")


def check_finite(features: np.ndarray, source: Path) -> None:
    """Raise DataError, naming ``source`` and the row, if any of the features (N, F) is NaN or infinite."""
    for start in range(0, len(features), ROWS_AT_ONCE):
        wrong = ~np.isfinite(features[start : start + ROWS_AT_ONCE]).all(axis=1)
        if wrong.any():
            raise DataError(
                f"{source}: row {start + int(np.argmax(wrong))} holds features that are not finite; unpack OGB's "
                "archive anew"
            )


def read_mapping(path: Path, *columns: str) -> list[str]:
    """Second column of a mapping file; the first must count 0, 1, 2, …. If given, ``columns`` must be their names.

    Raises:
        DataError: the file is damaged, has other columns, or its rows are not in index order.
    """
    with reading_data(f"{path} cannot be read", "unpack OGB's archive anew"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    header = [str(name) for name in table.columns]
    if len(header) != 2 or columns not in ((), tuple(header)):
        raise DataError(
            f"{path} has the columns {header}, expected {[*columns] or 'two, index and name'}; unpack "
            "OGB's archive anew"
        )
    for row, index in enumerate(table[header[0]]):
        if index != str(row):
            raise DataError(
                f"{path}: row {row} has {header[0]} '{index}', expected {row}, as rows must be in index order; "
                "unpack OGB's archive anew"
            )
    return table[header[1]].tolist()


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
