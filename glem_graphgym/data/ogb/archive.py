"""What OGB publishes of a node-property dataset: provided on disk, complete, and read through OGB's own class.

Hu et al., "Open Graph Benchmark: Datasets for Machine Learning on Graphs", NeurIPS 2020, arXiv 2005.00687.
"""

from __future__ import annotations

import contextlib
import html
import pickle
import shutil
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from filelock import FileLock

from glem_graphgym.data.ogb.download import check_download, download
from glem_graphgym.data.text_graph import SPLITS, DataError
from glem_graphgym.disk import DiskFullError, require_space, writing
from glem_graphgym.files import sync
from glem_graphgym.progress import Progress

ARXIV_CATEGORIES = "mapping/labelidx2arxivcategeory.csv.gz"  # spelled like this by OGB
BROKEN_TABLE = (OSError, EOFError, zlib.error, ValueError)


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
    """What OGB publishes for one node-property dataset, and where it is unpacked.

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

    def provide(self, mappings: Sequence[str] = ()) -> None:
        """Make sure that the folder is complete, with these mapping files; download it if nothing is there.

        An archive that lies packed beside the folder, under the name that it has on OGB's server, is unpacked instead.

        OGB's class must not see an incomplete folder: it would ask on standard input, delete the folder with
        all that others put there, or end the process.

        Raises:
            DataError: files are missing beside others that are there, or the download fails.
        """
        if self.is_complete(mappings):
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if not self._present():
                self._download()
        self._require(mappings)

    def check(self, mappings: Sequence[str] = ()) -> None:
        """Whether `provide` can do its work, without doing it: of what it would download the server is asked.

        Raises:
            DataError: files are missing beside others that are there, or the server cannot be reached.
        """
        if self._present():
            self._require(mappings)
        elif not self._packed().is_file():
            check_download(self.master["url"], self.remedy())

    def _require(self, mappings: Sequence[str]) -> None:
        if missing := self._missing(mappings):
            raise DataError(
                f"{self.folder} is no complete copy of {self.name}: missing {listed(missing)}; found "
                f"{listed(self._present())}. {self.remedy()}, after deleting what was found there"
            )

    def is_complete(self, mappings: Sequence[str] = ()) -> bool:
        """Whether all files are there, with these mapping files."""
        return not self._missing(mappings)

    def read(self) -> tuple[Any, dict[str, np.ndarray]]:
        """OGB's PyG ``Data`` (x, y, edge_index) and its split, sorted int64 node indices; all in memory.

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
                with writing(self.folder / "processed"):
                    dataset = PygNodePropPredDataset(self.name, root=str(self.folder.parent))
                    data, split = dataset[0], dataset.get_idx_split()
            except DiskFullError:
                raise
            except (*BROKEN_TABLE, RuntimeError, KeyError, AttributeError, pickle.UnpicklingError) as error:
                raise DataError(
                    f"{self.folder}: OGB cannot read it ({error!r:.200}). Delete its folder 'processed', "
                    f"which another version may have made; if that is not it: {self.remedy()}"
                ) from error
        return data, {part: np.sort(split[part].numpy().astype(np.int64)) for part in SPLITS}

    def read_split(self) -> dict[str, np.ndarray]:
        """The split alone, sorted int64 node indices, straight from its tables.

        Raises:
            DataError: a table is damaged, or holds anything but one column of node indices.
        """
        split = {}
        for part in SPLITS:
            path = self.folder / self._split_table(part)
            try:
                nodes = pd.read_csv(path, header=None).to_numpy()
            except BROKEN_TABLE as error:
                raise DataError(f"{path} cannot be read ({error}). {self.remedy()}") from error
            if nodes.ndim != 2 or nodes.shape[1] != 1 or nodes.dtype.kind != "i":
                raise DataError(
                    f"{path} holds {nodes.dtype} {nodes.shape}, expected one column of node indices. {self.remedy()}"
                )
            split[part] = np.sort(nodes[:, 0].astype(np.int64))
        return split

    def class_names(self, table: str) -> list[str]:
        """Names of the classes out of a mapping file; ``class 3`` for one without a name, or for all without the file.

        Raises:
            DataError: the file is damaged, or names another number of classes.
        """
        num_classes = int(self.master["num classes"])
        path = self.folder / table
        if not path.exists():
            return [f"class {index}" for index in range(num_classes)]
        names = read_mapping(path)
        if len(names) != num_classes:
            raise DataError(f"{path} names {len(names)} classes, expected {num_classes}; unpack OGB's archive anew")
        return [html.unescape(name).strip() or f"class {index}" for index, name in enumerate(names)]

    def remedy(self) -> str:
        return f"Download {self.master['url']} and unpack it so that {self.release} exists"

    def raw_files(self) -> list[str]:
        """The files with edges, features and labels, relative to the folder."""
        if self.master["binary"] == "True":
            return ["raw/data.npz", "raw/node-label.npz"]
        raw = ["edge", "num-node-list", "num-edge-list", "node-label"]
        raw += ["node-feat"] if self.master["has_node_attr"] == "True" else []
        raw += [name for name in self.master["additional node files"].split(",") if name != "None"]
        return [f"raw/{name}.csv.gz" for name in raw]

    def split_files(self) -> list[str]:
        """The tables of the split, relative to the folder."""
        return [self._split_table(part) for part in SPLITS]

    def _split_table(self, part: str) -> str:
        return f"split/{self.master['split']}/{part}.csv.gz"

    def _missing(self, mappings: Sequence[str]) -> list[str]:
        names = [self.release.name, *self.raw_files(), *self.split_files(), *mappings]
        return [name for name in names if not (self.folder / name).is_file()]

    def _present(self) -> list[str]:
        """Files of the archive that are there, whoever put them there."""
        patterns = ("RELEASE_*", "raw/*", "split/**/*", "mapping/*")
        files = [path for pattern in patterns for path in self.folder.glob(pattern) if path.is_file()]
        # A text that others put among OGB's raw files is none of OGB's.
        return sorted(str(path.relative_to(self.folder)) for path in files if path.name != "node-text.csv.gz")

    def _download(self) -> None:
        """Download and unpack; RELEASE comes last, so that nothing that was cut short looks complete."""
        packed = self._packed()
        download(self.master["url"], packed, self.remedy())
        temporary = self.folder.with_name(f".{self.folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            unpacked = self._unpack(packed, temporary)
            self.folder.mkdir(exist_ok=True)
            for member in sorted(unpacked.iterdir(), key=lambda path: path.name.startswith("RELEASE")):
                self._put(member)
            sync(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        if _is_ours(packed):
            packed.unlink()

    def _packed(self) -> Path:
        """The archive that somebody put beside the folder, or the place of the one that is downloaded."""
        given = self.folder.parent / self.master["url"].rpartition("/")[2]
        return given if given.is_file() else self.folder.with_name(f".{self.folder.name}.zip")

    def _put(self, member: Path) -> None:
        """Move a file or folder of the unpacked archive to its place, into a folder that is there already."""
        target = self.folder / member.name
        if target.is_dir() and member.name != "processed":  # one of those was made from other raw files
            for inner in member.iterdir():
                inner.rename(target / inner.name)
        else:
            shutil.rmtree(target, ignore_errors=True)
            member.rename(target)

    def _unpack(self, packed: Path, temporary: Path) -> Path:
        """The folder of the unpacked archive; one that is no use and that nobody else put there is removed."""
        downloaded = _is_ours(packed)
        source = self.master["url"] if downloaded else str(packed)
        try:
            self._extract(packed, temporary, source)
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

    def _extract(self, packed: Path, temporary: Path, source: str) -> None:
        name = f"unpacking {self.name}"
        with (
            packed.open("rb") as file,
            Progress.wrapattr(file, "read", total=packed.stat().st_size, desc=name) as stream,
            zipfile.ZipFile(cast(IO[bytes], stream)) as members,
        ):
            size = sum(info.file_size for info in members.infolist())
            require_space(self.folder.parent, size, f"unpacking {source}")
            with writing(self.folder, size):
                members.extractall(temporary)

    def _lock(self) -> FileLock:
        return FileLock(self.folder.with_name(f".{self.folder.name}.lock"))

    def _forget_interrupted_processing(self) -> None:
        # PyG writes pre_filter.pt last: without it, what OGB made of the raw files may be half of a file.
        processed = self.folder / "processed"
        if not (processed / "pre_filter.pt").exists():
            (processed / "geometric_data_processed.pt").unlink(missing_ok=True)


def _is_ours(packed: Path) -> bool:
    """Whether an archive was downloaded here, and not put there by somebody."""
    return packed.name.startswith(".")


def read_mapping(path: Path, *columns: str) -> list[str]:
    """Second column of a mapping file of OGB, whose first column must count 0, 1, 2, and so on.

    Args:
        columns: what both columns must be called; any names where none are given.

    Raises:
        DataError: the file is damaged, has other columns, or its rows are not in index order.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, index_col=False)
    except BROKEN_TABLE as error:
        raise DataError(f"{path} cannot be read ({error}); unpack OGB's archive anew") from error
    found = [str(name) for name in table.columns]
    if len(found) != 2 or columns not in ((), tuple(found)):
        raise DataError(
            f"{path} has the columns {found}, expected {[*columns] or 'two, index and name'}; unpack OGB's archive anew"
        )
    for row, index in enumerate(table[found[0]]):
        if index != str(row):
            raise DataError(
                f"{path}: row {row} has {found[0]} '{index}', expected {row}, as rows must be in index order; "
                "unpack OGB's archive anew"
            )
    return table[found[1]].tolist()


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


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first of these names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
