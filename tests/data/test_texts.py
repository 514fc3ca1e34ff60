from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glem_graphgym.data import texts as module
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.texts import Texts, TextsWriter
from glem_graphgym.disk import NpyWriter
from glem_graphgym.files import fingerprint
from tests.checks import peak_of

STRINGS = st.lists(st.text(st.characters(exclude_categories=["Cs"])))


def read(folder: Path, stem: str = "text") -> Texts:
    texts = Texts.load(folder, stem)
    assert (texts.buffer.dtype, texts.offsets.dtype) == (np.uint8, np.int64)
    return texts


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TEXTS_AT_ONCE": 7, "SHARDS": 9}.items():
        monkeypatch.setattr(module, name, value)


# ---- reading ----------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(STRINGS)
def test_texts_read_like_the_list_they_were_made_of(strings: list[str]) -> None:
    texts = Texts.of(strings)
    assert list(texts) == strings
    assert len(texts) == len(strings)
    assert texts[:] == strings
    assert texts[1:-1] == strings[1:-1]
    assert texts[3:1] == []
    assert texts[::-2] == strings[::-2]
    assert [texts[-1 - i] for i in range(len(strings))] == strings[::-1]


def test_iteration_goes_over_many_blocks(few_at_once: None) -> None:
    strings = [str(i) * (i % 3) for i in range(50)]
    assert list(Texts.of(strings)) == strings


def test_a_text_index_out_of_range_is_an_error() -> None:
    texts = Texts.of(["a", "b"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            texts[index]


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    assert list(Texts.of(["a\ud800b"])) == ["a?b"]
    with TextsWriter(tmp_path, 1) as writer:
        writer.put([(0, "a\ud800b")])
    assert read(tmp_path) == ["a?b"]


def test_texts_of_texts_are_the_same_object() -> None:
    texts = Texts.of(["a"])
    assert Texts.of(texts) is texts


def test_texts_are_equal_to_whatever_holds_the_same_strings() -> None:
    texts = Texts.of(["ab", "", "c"])
    for same in (["ab", "", "c"], ("ab", "", "c"), Texts.of(["ab", "", "c"])):
        assert texts == same and same == texts
    for other in (["ab", "", "d"], ["ab", ""], ["a", "b", "c"], [], "abc", None, 3, Texts.of(["a", "b", "c"])):
        assert texts != other and other != texts


def test_fingerprint_of_texts_tells_where_one_ends() -> None:
    several = [["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""], ["", "abc"]]
    assert len({Texts.of(texts).fingerprint() for texts in several}) == len(several)
    assert Texts.of(["ab", "c"]).fingerprint() == Texts.of(("ab", "c")).fingerprint()


def test_fingerprint_of_texts_is_that_of_earlier_releases_and_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = Texts.of(["ab", "ü", ""])
    assert texts.fingerprint() == "6661d8b7d77cc625" == fingerprint(texts.offsets, texts.buffer)
    monkeypatch.setattr(module, "fingerprint", lambda *_: pytest.fail("computed again"))
    assert texts.fingerprint() == "6661d8b7d77cc625"


# ---- writing ----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(strings=STRINGS)
def test_what_is_written_in_order_is_what_is_read(tmp_path_factory: pytest.TempPathFactory, strings: list[str]) -> None:
    folder = tmp_path_factory.mktemp("texts")
    with TextsWriter(folder, len(strings)) as writer:
        writer.put(enumerate(strings[:3]))
        for row, text in enumerate(strings[3:], start=3):
            writer.put([(row, text)])
    texts = read(folder)
    assert texts == strings
    assert texts.fingerprint() == Texts.of(strings).fingerprint()
    assert names(folder) == ["text.npy", "text_offsets.npy"]


@pytest.mark.parametrize("seed", range(20))
def test_rows_in_any_order_with_holes_and_repeats(tmp_path: Path, few_at_once: None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 300))
    rows = rng.integers(0, n, rng.integers(0, 2 * n))
    rows = np.sort(rows) if seed % 3 == 0 else rows
    strings = ["ü" * int(rng.integers(0, 9)) + str(i) for i in range(len(rows))]
    expected: dict[int, str] = {}
    for row, text in zip(rows.tolist(), strings, strict=True):
        expected.setdefault(row, text)
    with TextsWriter(tmp_path, n, "node_id") as writer:
        for chosen in np.array_split(np.arange(len(rows)), rng.integers(1, 6)):
            writer.put((int(rows[i]), strings[i]) for i in chosen)
    assert read(tmp_path, "node_id") == [expected.get(row, "") for row in range(n)]
    assert writer.repeated == len(rows) - len(expected)
    assert np.flatnonzero(writer.written).tolist() == sorted(expected)
    assert names(tmp_path) == ["node_id.npy", "node_id_offsets.npy"]


def test_no_texts(tmp_path: Path) -> None:
    for n in (0, 3):
        with TextsWriter(tmp_path, n) as writer:
            writer.put([])
        assert read(tmp_path) == [""] * n


@pytest.mark.parametrize("rows", [[0, 3], [-1, 0]])
def test_a_row_out_of_range_is_an_error_and_leaves_nothing(tmp_path: Path, rows: list[int]) -> None:
    message = f"texts of rows {rows[0]} to {rows[1]}, expected 0 to 2"
    with pytest.raises(ValueError, match=message), TextsWriter(tmp_path, 3) as writer:
        writer.put(zip(rows, "ab", strict=True))
    assert names(tmp_path) == []


def test_a_block_that_fails_leaves_nothing_and_the_old_files_alone(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[int, str]]:
        yield 0, "new"
        raise OSError("disk pulled")

    with TextsWriter(tmp_path, 2) as writer:
        writer.put(enumerate(["old", "texts"]))
    with pytest.raises(OSError, match="disk pulled"), TextsWriter(tmp_path, 2) as writer:
        writer.put(rows())
    assert read(tmp_path) == ["old", "texts"]
    assert names(tmp_path) == ["text.npy", "text_offsets.npy"]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".text").mkdir()
    (tmp_path / ".text" / "0.texts").write_text("half")
    with TextsWriter(tmp_path, 1) as writer:
        writer.put([(0, "a")])
    assert read(tmp_path) == ["a"]
    assert names(tmp_path) == ["text.npy", "text_offsets.npy"]


def test_texts_that_the_disk_changes_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = NpyWriter.write
    monkeypatch.setattr(
        NpyWriter, "write", lambda self, block: write(self, block[::-1] if block.itemsize == 1 else block)
    )
    message = r"text \d is not what was written, nor are 1 more of 2"
    with pytest.raises(DataError, match=message), TextsWriter(tmp_path, 2) as writer:
        writer.put(enumerate(["ab", "c"]))
    assert names(tmp_path) == []


@pytest.mark.parametrize("in_order", [True, False])
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_order: bool) -> None:
    """40 MB of texts, written in their order or backwards, 1 MB at a time."""
    monkeypatch.setattr(module, "TEXTS_AT_ONCE", 500)
    n = 20_000

    rows = range(n) if in_order else range(n)[::-1]

    def write() -> None:
        with TextsWriter(tmp_path, n) as writer:
            writer.put((row, f"{row:>2000}") for row in rows)

    assert peak_of(write) < 12_000_000
    assert [text.lstrip() for text in read(tmp_path)] == [str(row) for row in range(n)]
