"""A full disk: noticed before a file is mapped, said in one line that names the file, and what is finished is kept."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from glem_graphgym import disk
from glem_graphgym.disk import (
    DiskFullError,
    NpyWriter,
    disk_full_errors,
    kept_array,
    new_array,
    require_space,
    size_text,
)
from glem_graphgym.files import atomic_write, make_once

MB = 1 << 20
TAKEN = 512  # bytes of a block that `stat` counts


def taken(file: Path) -> int:
    return TAKEN * file.stat().st_blocks


# ---- arrays that are mapped ---------------------------------------------------------------------------------------


def test_an_array_has_its_space_before_anything_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    array = new_array(file, np.float16, (1000, 700))
    assert taken(file) >= file.stat().st_size >= 2 * 1000 * 700
    assert not array.any()
    array[7] = 3
    array.flush()
    assert np.load(file)[6:9, 0].tolist() == [0, 3, 0]


def test_whoever_has_the_old_file_mapped_keeps_it(tmp_path: Path) -> None:
    old = new_array(tmp_path / "a.npy", np.int64, (5,))
    old[:] = 7
    assert new_array(tmp_path / "a.npy", np.int64, (3,)).tolist() == [0, 0, 0]
    assert old.tolist() == [7] * 5


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (1,)])
def test_small_and_empty_arrays(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert new_array(tmp_path / "a.npy", np.float32, shape).shape == shape
    assert new_array(tmp_path / "b.npy", np.float32, shape, np.arange(shape[0])).shape == shape
    assert kept_array(tmp_path / "a.npy", np.float32, shape).shape == shape


@pytest.mark.parametrize("at_once", [3, 1 << 18])
def test_rows_that_are_not_written_take_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(disk, "ROWS_AT_ONCE", at_once)
    rows = np.array([0, 1, 2, 700, 5_000, 5_001, 9_999])
    file = tmp_path / "a.npy"
    array = new_array(file, np.float16, (10_000, 1_000), rows)  # 20 MB, of which four stretches are wanted
    before = taken(file)
    assert 7 * 2_000 <= before < 100_000
    array[rows] = 1
    array.flush()
    assert taken(file) == before
    assert int(np.load(file).sum(dtype=np.int64)) == 7 * 1_000
    assert taken(file) == before
    new_array(file, np.float16, (10_000, 1_000), rows[:0])
    assert taken(file) < 10_000


def test_what_a_killed_process_wrote_is_kept_and_its_holes_are_filled(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    sparse = np.lib.format.open_memmap(file, "w+", np.float32, (1000, 500))
    sparse[400:402] = 5
    sparse.flush()
    del sparse
    assert taken(file) < MB
    array = kept_array(file, np.float32, (1000, 500))
    assert taken(file) >= 4 * 1000 * 500
    assert array[399:403, 0].tolist() == [0, 5, 5, 0]
    inode = file.stat().st_ino
    kept_array(file, np.float32, (1000, 500))
    assert file.stat().st_ino == inode


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01", b"x" * 500])
def test_half_a_header_and_another_array_are_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    assert kept_array(tmp_path / "a.npy", np.int32, (4,)).tolist() == [0] * 4
    assert kept_array(tmp_path / "a.npy", np.int64, (4,)).dtype == np.int64
    assert kept_array(tmp_path / "a.npy", np.int64, (5,)).shape == (5,)


def test_a_file_system_that_cannot_allocate_has_sparse_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    array = new_array(tmp_path / "a.npy", np.float32, (1000, 500))
    array[3] = 1
    array.flush()
    assert np.load(tmp_path / "a.npy")[2:5, 0].tolist() == [0, 1, 0]


def test_what_does_not_fit_is_refused_before_the_disk_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda path: 1000)
    message = rf"{tmp_path}/a\.npy: the array takes 3\.8 MB of disk, 1,000 bytes are free; make room there, .*out_dir"
    with pytest.raises(DiskFullError, match=message):
        new_array(tmp_path / "a.npy", np.float32, (1000, 1000))
    assert list(tmp_path.iterdir()) == []


# ---- errors -------------------------------------------------------------------------------------------------------


def test_a_folder_is_asked_for_its_space_before_it_is_there(tmp_path: Path) -> None:
    require_space(tmp_path / "new" / "er", 1, "something")
    with pytest.raises(DiskFullError, match=r"new: sorting edges takes 909 TB of disk, .* are free; make room"):
        require_space(tmp_path / "new", 10**15, "sorting edges")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large"), r"limit \(ulimit -f\) allows"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError("1048576 requested and 262128 written"), "could not be written in full"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "written in full"),
    ],
)
def test_every_way_to_say_that_a_disk_is_full_names_the_file(tmp_path: Path, error: Exception, reason: str) -> None:
    def fail() -> None:
        with disk_full_errors(tmp_path / "outer"), disk_full_errors(tmp_path / "inner", 3000):
            raise error

    with pytest.raises(DiskFullError, match=rf"^{tmp_path}/inner: .*{reason}.*; it takes 2\.9 kB, .* are free; make"):
        fail()


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), ValueError("(os error 5)"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with disk_full_errors(tmp_path):
            raise error

    with pytest.raises(type(error)) as found:
        fail()
    assert found.value is error


# ---- disks that are full ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _array(file: Path) -> None:
    new_array(file, np.float32, (MB,))


def _rows(file: Path) -> None:
    new_array(file, np.float32, (1000, 1024), np.arange(0, 1000))


def _block(file: Path) -> None:
    with NpyWriter(file, np.int64) as writer:
        writer.write(np.zeros(MB, dtype=np.int64))


def _blocks(file: Path) -> None:
    with NpyWriter(file, np.int64) as writer:
        for _ in range(MB // 100):
            writer.write(np.zeros(100, dtype=np.int64))


def _replaced(file: Path) -> None:
    with atomic_write(file) as opened:
        opened.write(b"x" * 4 * MB)


def _saved(file: Path) -> None:
    with disk_full_errors(file):
        np.save(file, np.zeros(MB))


def _weights(file: Path) -> None:
    with disk_full_errors(file):
        save_file({"a": torch.zeros(MB)}, file)


WRITERS = [_array, _rows, _block, _blocks, _replaced, _saved, _weights]


@pytest.mark.parametrize("write", WRITERS)
def test_a_full_disk_is_an_error_that_names_the_file(small_disk: Path, write: Callable[[Path], None]) -> None:
    (small_disk / "finished").write_bytes(b"x" * 1000)
    with pytest.raises(DiskFullError, match=rf"^{small_disk}/a\.npy: .* are free; make room there"):
        write(small_disk / "a.npy")
    assert (small_disk / "finished").read_bytes() == b"x" * 1000
    if write not in (_saved, _weights):
        assert [path.name for path in small_disk.iterdir()] == ["finished"]


def test_a_folder_on_a_full_disk_is_made_once_there_is_room(small_disk: Path) -> None:
    def make(folder: Path) -> None:
        new_array(folder / "a.npy", np.float32, (300_000,))[:] = 1

    (small_disk / "other").write_bytes(b"x" * MB)
    with pytest.raises(DiskFullError, match=r"/\.made\.part/a\.npy: the array takes 1\.1 MB of disk"):
        make_once(small_disk / "made", make)
    assert sorted(path.name for path in small_disk.iterdir()) == [".made.lock", "other"]
    (small_disk / "other").unlink()
    assert np.load(make_once(small_disk / "made", make) / "a.npy").sum() == 300_000


@pytest.mark.slow
def test_a_limit_on_files_is_the_same_kind_of_error(tmp_path: Path) -> None:
    """In a process of its own, whose files may have 1 MB; whoever may not mount a disk finds out here."""
    program = f"""
        import resource, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_disk import DiskFullError, WRITERS
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for write in WRITERS:
            try:
                write(Path(sys.argv[1], write.__name__))
            except DiskFullError as error:
                print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / write.__name__) for write in WRITERS]
    assert all("; make room there" in line for line in lines)
    assert lines[0].startswith(f"{tmp_path}/_array: the file is larger than")
    assert "; it takes 4.0 MB, " in lines[0]


# ---- sizes --------------------------------------------------------------------------------------------------------


def test_sizes_in_words() -> None:
    sizes = (0, 900, 1023, 1024, 2048, 102_400, (1 << 20) - 1, 5 << 20, 150.4 * (1 << 20), 3 << 40, 20_000 << 40)
    texts = ["0 bytes", "900 bytes", "1,023 bytes", "1.0 kB", "2.0 kB", "100 kB", "1,024 kB", "5.0 MB", "150 MB"]
    texts += ["3.0 TB", "20,000 TB"]
    assert [size_text(size) for size in sizes] == texts
