from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock, Timeout

from glem_graphgym import files
from glem_graphgym.files import (
    atomic_write,
    fingerprint,
    forget_unfinished,
    make_once,
    read_json,
    sampled_fingerprint,
    write_json,
)

# ---- files --------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_as_a_whole_once_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text, before in (("θ → φ", None), ("new", "θ → φ")):
        with atomic_write(path, "w") as file:
            file.write(text)
            file.flush()
            assert (path.read_text(encoding="utf-8") if path.exists() else None) == before
        assert path.read_bytes() == text.encode()
        assert path.stat().st_mode & 0o777 == 0o644  # others may read it
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_write(path, "w") as file:
            file.write("half of the n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_and_strictness(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(tmp_path / "a.json", {"loss": bad})
    assert read_json(tmp_path / "a.json") == value


# ---- folders made once --------------------------------------------------------------------------------------------


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "a").write_text("made")

    for _ in range(2):
        assert make_once(tmp_path / "deep" / "x", make) == tmp_path / "deep" / "x"
    assert len(calls) == 1
    assert (tmp_path / "deep" / "x" / "a").read_text() == "made"


def test_a_failed_make_leaves_no_folder_and_the_next_one_succeeds(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        make_once(tmp_path / "x", fail)
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / ".x.part").exists()
    make_once(tmp_path / "x", _quickly)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


def test_what_a_killed_make_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".x.part").mkdir()
    (tmp_path / ".x.part" / "half").write_text("")
    make_once(tmp_path / "x", _quickly)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a"]


def test_what_can_be_resumed_is_handed_over_as_it_was_left(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("so far")
        raise RuntimeError("killed")

    def go_on(folder: Path) -> None:
        assert (folder / "half").read_text() == "so far"
        (folder / "half").rename(folder / "whole")

    with pytest.raises(RuntimeError, match="killed"):
        make_once(tmp_path / "x", fail, resume=True)
    assert not (tmp_path / "x").exists()
    make_once(tmp_path / "x", go_on, resume=True)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["whole"]
    assert not (tmp_path / ".x.part").exists()


def _quickly(folder: Path) -> None:
    (folder / "a").write_text("whole")


def _slowly(folder: Path) -> None:
    with (folder.parent / "calls").open("a") as calls:
        calls.write("call\n")
    time.sleep(0.3)
    (folder / "a").write_text("made")


def _make(folder: Path, results: multiprocessing.Queue) -> None:
    make_once(folder, _slowly)
    results.put((folder / "a").read_text())


def test_processes_side_by_side_wait_for_the_first(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_make, args=(tmp_path / "x", results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=30) for _ in processes] == ["made"] * 3
    for process in processes:
        process.join()
    assert (tmp_path / "calls").read_text() == "call\n"


def test_what_was_left_of_other_sources_is_removed_but_not_what_is_being_made(tmp_path: Path) -> None:
    ours, old, busy = (fingerprint(name) for name in ("ours", "old", "busy"))
    stay = [f".table-{ours}.part", f".table-{busy}.part", f".{old}.part", ".table-notes.part", f".others-{old}.part"]
    for name in (*stay, f".table-{old}.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("")
    (tmp_path / f".table-{old[::-1]}.part").write_text("a file is no folder")
    with FileLock(tmp_path / f".table-{busy}.lock"):
        forget_unfinished(tmp_path / f"table-{ours}")
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set(stay)
    assert not (tmp_path / f".table-{old}.lock").exists()
    assert (tmp_path / f".table-{old[::-1]}.part").exists()


def test_nobody_begins_to_fill_a_folder_while_it_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, old = (fingerprint(name) for name in ("ours", "old"))
    (tmp_path / f".table-{old}.part").mkdir()
    refused = []

    def begin(path: Path, **_: Any) -> None:
        with pytest.raises(Timeout), FileLock(tmp_path / f".table-{old}.lock", timeout=0):
            pass
        refused.append(path.name)

    monkeypatch.setattr("shutil.rmtree", begin)
    forget_unfinished(tmp_path / f"table-{ours}")
    assert refused == [f".table-{old}.part"]


# ---- fingerprints -------------------------------------------------------------------------------------------------


def test_fingerprint_is_the_same_on_every_machine() -> None:
    """Written down: caches and results of earlier releases are found by it."""
    parts = (b"bytes", np.arange(3, dtype=np.int64), {"b": 1, "a": [None, "ü"]}, 0.5)
    assert fingerprint(*parts) == "7869a5e965593a76"
    assert fingerprint(b"bytes", np.arange(3), json.loads('{"a": [null, "ü"], "b": 1}'), 0.5) == fingerprint(*parts)


def test_fingerprint_tells_types_shapes_values_and_boundaries_apart() -> None:
    zero = np.zeros(4, dtype=np.int32)
    different = [(zero,), (zero.astype(np.int64),), (zero.reshape(2, 2),), (zero[:2], zero[:2]), (zero.tobytes(),)]
    different += [("ab", "c"), ("a", "bc"), (b"ab", b"c"), (b"abc",), (), (None,), ({"a": 1},), ({"a": "1"},)]
    assert len({fingerprint(*parts) for parts in different}) == len(different)


def test_fingerprint_of_a_view_is_that_of_its_copy(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert fingerprint(array[:, ::2]) == fingerprint(array[:, ::2].copy())
    np.save(tmp_path / "a.npy", array)
    assert fingerprint(np.load(tmp_path / "a.npy", mmap_mode="r")) == fingerprint(array)


@pytest.mark.parametrize("block_bytes", [1, 8, 100, 1 << 24])
def test_fingerprint_of_an_array_in_blocks_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """Against what was computed before arrays were read in blocks."""
    monkeypatch.setattr(files, "BLOCK_BYTES", block_bytes)
    whole = np.arange(60, dtype=np.int64).reshape(3, 4, 5)
    arrays = [whole, whole[:, ::2], whole[::2], whole[..., 1], np.asfortranarray(whole), whole.T, whole.astype(">f4")]
    arrays += [np.float16(3), np.array(7), whole[:0], whole[:, :0], np.array(["ü", "abc"]), whole > 7]
    arrays += [whole[:1, :1, :1]]
    arrays += [np.broadcast_to(whole[0, 0], (2, 5)), whole.view("M8[s]"), np.zeros(3, dtype="i4,f8")]
    for array in arrays:
        data = f"{array.dtype.str}{array.shape}".encode() + array.tobytes()
        expected = hashlib.sha256(len(data).to_bytes(8, "little") + data).hexdigest()[:16]
        assert fingerprint(array) == expected, (array.dtype, array.shape)


def test_fingerprint_of_a_large_array_takes_no_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4000, 2000)))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        fingerprint(mapped)
        contiguous = tracemalloc.get_traced_memory()[1]
        fingerprint(mapped[:, 1:])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert contiguous < 1e6
    assert peak < 2 * files.BLOCK_BYTES + 1e6


def test_sampled_fingerprint_finds_files_that_were_cut_or_made_anew(tmp_path: Path) -> None:
    size = 10_000_000  # more than all samples together
    path, other = tmp_path / "a.bin", tmp_path / "b.bin"
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    data.tofile(path)
    before = sampled_fingerprint(path)
    assert sampled_fingerprint(path) == before
    other.write_bytes(data.tobytes())
    assert sampled_fingerprint(other) != before  # by its name
    assert sampled_fingerprint(path, other) != sampled_fingerprint(other, path)
    for changed in (data[:-1], np.append(data, data[:1]), data[::-1].copy(), np.roll(data, 1), data * 0):
        changed.tofile(path)
        assert sampled_fingerprint(path) != before
    for place in (0, size - 1, (size - files.SAMPLE_BYTES) // (files.SAMPLES - 1)):
        changed = data.copy()
        changed[place] ^= 1
        changed.tofile(path)
        assert sampled_fingerprint(path) != before
    data.tofile(path)
    assert sampled_fingerprint(path) == before


@pytest.mark.parametrize("size", [0, 1, 63, 100_000])
def test_sampled_fingerprint_of_a_small_file_is_of_every_byte(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.bin"
    seen = set()
    for place in {-1, 0, size // 2, size - 1} if size else {-1}:
        data = bytearray(size)
        if place >= 0:
            data[place] = 1
        path.write_bytes(data)
        seen.add(sampled_fingerprint(path))
    assert len(seen) == len({-1, 0, size // 2, size - 1} if size else {-1})
