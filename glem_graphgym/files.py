"""Files and folders that are complete or absent after a crash, a kill or a full disk; reading and hashing them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from filelock import FileLock, Timeout

from glem_graphgym.disk import disk_full_errors

BLOCK_BYTES = 1 << 24  # bytes hashed at a time
FINGERPRINT_AT_END = re.compile("[0-9a-f]{16}$")
SAMPLES, SAMPLE_BYTES = 64, 1 << 16


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` that replaces it (fsync, rename) when the block ends without error.

    Raises:
        DiskFullError: names ``path``, which stays as it was.
    """
    with disk_full_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as strict JSON (no NaN), atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


class DamagedFileError(ValueError):
    """A file of an earlier run is missing, truncated or has other content; the message names it and the remedy."""


@contextlib.contextmanager
def reading(path: Path, remedy: str) -> Iterator[None]:
    """A block that reads ``path``, a file of an earlier run.

    Raises:
        DamagedFileError: reading failed in any way; the message ends with ``remedy``.
    """
    try:
        yield
    except DamagedFileError:
        raise
    except Exception as error:  # NumPy, json and safetensors each have errors of their own
        reason = f"no {error}" if isinstance(error, KeyError) else (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedFileError(f"{path} is damaged or missing ({reason}); {remedy}") from error


REMAKE = "delete it to have it made anew"


def read_json(path: Path, remedy: str = REMAKE) -> Any:
    """Content of a JSON file; raises `DamagedFileError` if it is missing or damaged."""
    with reading(path, remedy):
        return json.loads(path.read_text(encoding="utf-8"))


def read_array(path: Path, remedy: str = REMAKE) -> np.ndarray:
    """Memory-mapped array of an .npy file; raises `DamagedFileError` if it is missing or damaged."""
    with reading(path, remedy):
        return np.load(path, mmap_mode="r")


@contextlib.contextmanager
def making(folder: Path, *, resume: bool = False) -> Iterator[Path | None]:
    """A block that fills a temporary sibling of ``folder``, renamed at its end; yields None if ``folder`` exists.

    Processes that want the same folder take turns, by a lock file beside it. A temporary folder that a killed process
    left is removed or, with ``resume``, yielded with its content.

    Raises:
        DiskFullError: names the folder, or the file in it where that is known.
    """
    if folder.is_dir():
        yield None
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with disk_full_errors(folder), FileLock(folder.parent / f".{folder.name}.lock"):
        if folder.is_dir():
            yield None
            return
        temporary = folder.parent / f".{folder.name}.part"
        if not resume:
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(exist_ok=resume)
        try:
            yield temporary
            for file in temporary.iterdir():
                sync(file)
            temporary.rename(folder)
        finally:
            if not resume:
                shutil.rmtree(temporary, ignore_errors=True)
        sync(folder.parent)


def make_once(folder: Path, make: Callable[[Path], None], *, resume: bool = False) -> Path:
    """Fill ``folder`` by ``make`` unless it exists, as in `making`; returns it."""
    with making(folder, resume=resume) as temporary:
        if temporary is not None:
            make(temporary)
    return folder


def replace_folder(folder: Path, make: Callable[[Path], None]) -> None:
    """Replace ``folder`` by a temporary sibling that ``make`` fills; concurrent processes take turns."""
    new, old = (folder.parent / f".{folder.name}.{name}" for name in ("part", "old"))
    with FileLock(folder.parent / f".{folder.name}.lock"):
        if old.exists() and not folder.exists():  # killed between the two renames below
            old.rename(folder)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            new.mkdir()
            make(new)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)


def forget_unfinished(folder: Path) -> None:
    """Remove unfinished siblings of ``folder`` whose names differ in the `fingerprint`: their sources have changed.

    Only for folders that are made without ``resume``. Folders that another process is filling stay.
    """
    other_fingerprints = re.compile(re.escape(FINGERPRINT_AT_END.sub("", folder.name)) + FINGERPRINT_AT_END.pattern)
    for unfinished in folder.parent.glob(".*.part"):
        name = unfinished.name.removeprefix(".").removesuffix(".part")
        lock = folder.parent / f".{name}.lock"
        if name != folder.name and other_fingerprints.fullmatch(name) and unfinished.is_dir():
            with contextlib.suppress(Timeout), FileLock(lock, timeout=0):  # held, or a process could begin to fill it
                shutil.rmtree(unfinished, ignore_errors=True)
                lock.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link ``target`` to ``source``, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:  # no hard links on this file system, or between two file systems
        with disk_full_errors(target, source.stat().st_size):
            shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprint(*values: Any) -> str:
    """First 16 hexadecimal digits of a SHA-256 over bytes, numpy arrays and JSON-able values; equal on all machines."""
    digest = hashlib.sha256()
    for value in values:
        size: int = 0
        blocks: Iterator[Any] = iter(())
        if isinstance(value, bytes | bytearray | memoryview):
            head = bytes(value)
        elif hasattr(value, "tobytes"):
            array = np.asarray(value)
            head, size = f"{array.dtype.str}{array.shape}".encode(), array.nbytes
            blocks = _blocks_of(np.atleast_1d(array))
        else:
            head = json.dumps(value, sort_keys=True, default=str).encode()
        digest.update((len(head) + size).to_bytes(8, "little"))
        for block in itertools.chain([head], blocks):
            digest.update(block)
    return digest.hexdigest()[:16]


def _blocks_of(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array's bytes in order, uint8 (n,): in one block if they need no copy, else about BLOCK_BYTES at a time."""
    rows = len(array) if array.flags.c_contiguous else max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for start in range(0, len(array), rows or 1):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8)


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of the concatenated files, in hexadecimal digits."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()


def sampled_fingerprint(*paths: Path) -> str:
    """Hash of the names and sizes of files and of SAMPLES blocks spread evenly over each, including first and last.

    Takes seconds for files of any size. It detects files that were cut or replaced, but not every changed byte.
    """
    digests: list[Any] = []
    for path in paths:
        size = path.stat().st_size
        last = max(size - SAMPLE_BYTES, 0)
        with path.open("rb") as file:
            for start in sorted({last * index // (SAMPLES - 1) for index in range(SAMPLES)}):
                file.seek(start)
                digests.append(hashlib.sha256(file.read(SAMPLE_BYTES)).hexdigest())
        digests.append([path.name, size])
    return fingerprint(*digests)


def expand_path(text: str) -> str:
    """Expand ``~``, ``$NAME`` and ``${NAME}`` in a path; raises ValueError for unknown variables and users."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ValueError(f"the environment variable {name} is not set")
        return os.environ[name]

    path = re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)
    if "$" in path:
        raise ValueError("a $ in it names no variable; expected $NAME or ${NAME}")
    home, slash, rest = path.partition("/")
    if not home.startswith("~"):
        return path
    try:
        return f"{Path(home).expanduser()}{slash}{rest}"
    except RuntimeError as error:
        raise ValueError(f"there is no user {home[1:]}; write ./{path} for a folder of that name") from error
