"""Downloads of many GB, resumed where the connection or the process broke."""

from __future__ import annotations

import re
import shutil
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock

from glem_graphgym.data.errors import DataError
from glem_graphgym.disk import DiskFullError, disk_full_errors, require_space
from glem_graphgym.files import sync
from glem_graphgym.progress import Progress

PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def download(url: str, path: Path, remedy: str) -> None:
    """Download ``url`` to ``path`` by way of ``.<name>.part`` beside it, which a later call resumes.

    Processes that want the same file wait for the first of them.

    Raises:
        DataError: the file could not be downloaded in full; the message ends in ``remedy``.
        DiskFullError: the disk has no room; checked before the download if the server states a size. The part is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.lstrip(".")
    partial = path.with_name(f".{name}.part")
    with FileLock(path.with_name(f".{name}.lock")):
        if path.is_file():
            return
        try:
            _fetch(url, partial)
        except DiskFullError:
            raise
        except (OSError, HTTPException) as error:
            resume_hint = f" The next start goes on from {partial}." if partial.exists() else ""
            raise DataError(f"{_failed(url, error, remedy)}{resume_hint}") from error
        sync(partial)
        partial.replace(path)
        sync(path.parent)


def check_download(url: str, remedy: str) -> None:
    """Raise DataError, ending in ``remedy``, if the server cannot be reached or does not have the file."""
    try:
        urlopen(Request(url), timeout=60).close()
    except (OSError, HTTPException) as error:
        raise _failed(url, error, remedy) from error


def _failed(url: str, error: Exception, remedy: str) -> DataError:
    return DataError(f"{url} could not be downloaded ({error}). {remedy}.")


def _fetch(url: str, partial: Path) -> None:
    start = partial.stat().st_size if partial.exists() else 0
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=60)
    except HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not start:
            raise
        if _size(error, start) != start:  # equal = the part is the whole file
            partial.unlink()
            raise
        return
    with response:
        if response.status != PARTIAL_CONTENT:
            start = 0
        size = _size(response, start)
        if size is not None:
            require_space(partial.parent, size - start, f"downloading {url}")
        with disk_full_errors(partial, size), partial.open("ab" if start else "wb") as file:
            name = url.rpartition("/")[2]
            with Progress.wrapattr(response, "read", total=size, initial=start, desc=name) as stream:
                shutil.copyfileobj(stream, file, 1 << 20)
            if size not in (None, file.tell()):
                raise OSError(f"the connection ended after {file.tell()} of {size} bytes")


def _size(response: Any, start: int) -> int | None:
    """Bytes of the whole file, from the headers of a response that begins at byte ``start``; None if not announced."""
    match = re.search(r"/(\d+)$", response.headers.get("Content-Range") or "")
    if match:
        return int(match[1])
    announced = response.headers.get("Content-Length")
    return None if announced is None else start + int(announced)
