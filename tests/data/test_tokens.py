from __future__ import annotations

import errno
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from glem_graphgym import disk
from glem_graphgym.data import tokens
from glem_graphgym.data.text_graph import DataError, Texts
from glem_graphgym.data.tokens import (
    Prompted,
    TokenStore,
    budget_batches,
    encode_texts,
    open_token_store,
    padding_id,
    shuffled_batches,
    tokenizer_identity,
)
from glem_graphgym.disk import DiskFullError
from glem_graphgym.models.pretrained import load_tokenizer
from tests.checks import cut, emptied, refused

TEXTS = ["abc def", "", "a, b: c", "zürich 123 " * 20, "€", "short"]


@pytest.fixture(scope="module")
def tokenizer(tiny_lm: Path) -> Any:
    return load_tokenizer(str(tiny_lm))


def word_tokenizer(size: int, pad: str | None = "[PAD]") -> Any:
    """A tokenizer with ``size`` words: the numbers below size - 2, [PAD] and [UNK]."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, **{str(i): i + 2 for i in range(size - 2)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=pad)


# ---- batches out of a store ---------------------------------------------------------------------------------------


@st.composite
def ragged(draw: st.DrawFn) -> tuple[list[list[int]], np.ndarray, int]:
    """Token lists, nodes in any order with repeats, and a padding id that may occur in the texts."""
    rows = draw(st.lists(st.lists(st.integers(0, 65_535), max_size=7), min_size=1, max_size=9))
    nodes = draw(st.lists(st.integers(0, len(rows) - 1), max_size=12))
    return rows, np.array(nodes, dtype=np.int64), draw(st.sampled_from([0, 1, 65_535]))


def store_of(rows: list[list[int]], pad_id: int = 0) -> TokenStore:
    ids = np.array([token for row in rows for token in row], dtype=np.uint16)
    return TokenStore(ids, np.cumsum([0, *map(len, rows)]), pad_id)


@settings(max_examples=300, deadline=None)
@given(ragged())
def test_padding_equals_text_by_text(drawn: tuple[list[list[int]], np.ndarray, int]) -> None:
    rows, nodes, pad_id = drawn
    ids, mask = store_of(rows, pad_id).pad(nodes)
    width = max([1, *(len(rows[node]) for node in nodes)])
    assert ids.tolist() == [rows[node] + [pad_id] * (width - len(rows[node])) for node in nodes]
    assert mask.tolist() == [[1] * len(rows[node]) + [0] * (width - len(rows[node])) for node in nodes]
    assert (ids.dtype, mask.dtype) == (np.int64, np.int64)
    assert ids.shape == mask.shape == (len(nodes), width)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(0, 200), min_size=1, max_size=80),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_training_batches_hold_each_node_exactly_once(
    lengths: list[int], batch_size: int, pool: int, seed: int, data: st.DataObject
) -> None:
    nodes = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=100)))
    batches = shuffled_batches(np.array(lengths), nodes, batch_size, np.random.default_rng(seed), pool)
    assert sorted(np.concatenate(batches)) == sorted(nodes)
    sizes = sorted((len(batch) for batch in batches), reverse=True)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= batch_size


def test_training_batches_are_random_but_repeatable() -> None:
    lengths = np.random.default_rng(0).integers(1, 99, 500)

    def batches(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in shuffled_batches(lengths, np.arange(500), 16, np.random.default_rng(seed))]

    assert batches(1) == batches(1)
    assert sorted(map(sorted, batches(1))) != sorted(map(sorted, batches(2)))
    # The order of batches is not that of lengths.
    means = [lengths[batch].mean() for batch in batches(1)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_training_batches_pad_far_less_than_random_ones() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 129, 3200)
    padded = sum(len(batch) * lengths[batch].max() for batch in shuffled_batches(lengths, np.arange(3200), 32, rng))
    assert padded < 1.1 * lengths.sum()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(1, 200), st.data())
def test_inference_batches_cover_all_nodes_within_the_budget(
    lengths: list[int], budget: int, data: st.DataObject
) -> None:
    nodes = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=80)), dtype=np.int64)
    array = np.array(lengths)
    batches = list(budget_batches(array, nodes, budget))
    assert sorted(node for batch in batches for node in batch) == sorted(nodes)
    longest = [int(array[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * length <= budget
    # No batch could have taken the next node as well.
    for batch, length in zip(batches[:-1], longest, strict=False):
        assert (len(batch) + 1) * max(length, 1) > budget


# ---- the store on disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [3, 8, 64])
def test_ids_are_those_of_the_tokenizer(tmp_path: Path, tokenizer: Any, max_length: int) -> None:
    store = open_token_store(Texts.of(TEXTS), tokenizer, max_length, tmp_path)
    assert len(store) == len(TEXTS)
    assert store.pad_id == tokenizer.pad_token_id
    ids, mask = store.pad(np.arange(len(TEXTS)))
    for node, text in enumerate(TEXTS):
        expected = tokenizer(text, truncation=True, max_length=max_length)["input_ids"]
        assert ids[node][mask[node] == 1].tolist() == expected
        assert len(expected) <= max_length
    together = tokenizer(TEXTS, truncation=True, max_length=max_length, padding=True, return_tensors="np")
    np.testing.assert_array_equal(ids, together["input_ids"])
    np.testing.assert_array_equal(mask, together["attention_mask"])


def test_room_for_the_tokens_is_asked_for_before_the_first(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = Texts.of([f"text {number}" for number in range(40)])
    monkeypatch.setattr(tokens, "SAMPLED_TEXTS", 10)
    whole = open_token_store(texts, tokenizer, 8, tmp_path / "whole")
    size = whole.ids.nbytes + 12 * 41  # offsets, and the lengths that go in the end
    for free, fits in ((0.85 * size, False), (1.15 * size, True)):
        with monkeypatch.context() as patch:
            patch.setattr(disk, "free_bytes", lambda path, free=free: round(free))
            if fits:
                open_token_store(texts, tokenizer, 8, tmp_path / "store")
            else:
                with pytest.raises(DiskFullError, match=r"tokenizing 40 texts takes .* are free; make room"):
                    open_token_store(texts, tokenizer, 8, tmp_path / "store")


def test_blocks_of_texts_join_without_a_seam(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_token_store(Texts.of(TEXTS), tokenizer, 16, tmp_path / "whole")
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 4)
    blocks = open_token_store(Texts.of(TEXTS), tokenizer, 16, tmp_path / "blocks")
    np.testing.assert_array_equal(blocks.ids, whole.ids)
    np.testing.assert_array_equal(blocks.offsets, whole.offsets)


@pytest.mark.parametrize(("words", "dtype", "size"), [(65_536, np.uint16, 2), (65_537, np.int32, 4)])
def test_two_bytes_a_token_where_the_vocabulary_allows(tmp_path: Path, words: int, dtype: type, size: int) -> None:
    """The highest id of 65,536 words still fits."""
    last = str(words - 3)
    store = open_token_store(Texts.of([f"7 {last}", last]), word_tokenizer(words), 8, tmp_path)
    assert isinstance(store.ids, np.memmap)
    assert store.ids.dtype == dtype
    assert store.ids.tolist() == [9, words - 1, words - 1]
    (file,) = tmp_path.rglob("ids.bin")
    assert file.stat().st_size == 3 * size


no_tokenizing = Mock(side_effect=AssertionError("tokenized again"))


@pytest.mark.parametrize("torn", ["nothing", "ids", "lengths", "lost ids"])
def test_a_killed_process_leaves_what_it_tokenized_to_the_next(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, torn: str
) -> None:
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 4)
    texts = Texts.of([f"text number {i} of {'many ' * (i % 5)}" for i in range(18)])
    whole = open_token_store(texts, tokenizer, 12, tmp_path / "whole")
    usual, seen = tokens.encode_texts, 0

    def killed(block: list[str], *args: Any) -> list[list[int]]:
        nonlocal seen
        seen += len(block)
        if seen > 12:
            raise KeyboardInterrupt
        return usual(block, *args)

    with monkeypatch.context() as patch:
        patch.setattr(tokens, "encode_texts", killed)
        with pytest.raises(KeyboardInterrupt):
            open_token_store(texts, tokenizer, 12, tmp_path / "killed")
    (left,) = (tmp_path / "killed").glob(".*.part")
    if torn in ("ids", "lengths"):
        with (left / f"{torn}.bin").open("ab") as file:
            file.write(b"\1\0\0\0\0")
    elif torn == "lost ids":
        with (left / "ids.bin").open("ab") as file:
            file.truncate(file.tell() - 1)
    again: list[int] = []
    monkeypatch.setattr(tokens, "encode_texts", lambda block, *args: again.append(len(block)) or usual(block, *args))
    store = open_token_store(texts, tokenizer, 12, tmp_path / "killed")
    assert again == ([4, 4, 2] if torn == "lost ids" else [4, 2])
    assert np.array_equal(store.ids, whole.ids) and np.array_equal(store.offsets, whole.offsets)
    (folder,) = (path for path in (tmp_path / "killed").iterdir() if path.is_dir())
    assert sorted(path.name for path in folder.iterdir()) == ["ids.bin", "offsets.npy", "tokens.json"]


def test_a_kill_just_before_the_store_is_complete_loses_no_block(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "TEXTS_AT_ONCE", 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)
    monkeypatch.setattr(tokens, "encode_texts", no_tokenizing)
    assert len(open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)) == len(TEXTS)


def test_texts_without_a_single_token_have_a_store(tmp_path: Path) -> None:
    for _ in range(2):
        store = open_token_store(Texts.of(["", ""]), word_tokenizer(50), 8, tmp_path)
        assert store.lengths.tolist() == [0, 0] and store.pad(np.arange(2))[1].tolist() == [[0], [0]]


def test_a_tokenizer_that_was_used_otherwise_in_between_finds_its_store(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding and truncation leave traces in a fast tokenizer; they are no part of what it is."""
    open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=5)
    monkeypatch.setattr(tokens, "_tokenize", no_tokenizing)
    open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)


def test_a_store_on_a_disk_that_can_only_be_read_is_opened(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)

    read_only = OSError(errno.EROFS, "Read-only file system")  # of a mount, also for a file that is missing
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=read_only))
    again = open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)
    np.testing.assert_array_equal(again.ids, store.ids)


def test_other_texts_lengths_and_tokenizers_get_stores_of_their_own(tmp_path: Path, tokenizer: Any) -> None:
    changed = [*TEXTS[:-1], "other"]
    stores = [
        open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path),
        open_token_store(Texts.of(TEXTS), tokenizer, 9, tmp_path),
        open_token_store(Texts.of(changed), tokenizer, 8, tmp_path),
        open_token_store(Texts.of(TEXTS), word_tokenizer(50), 8, tmp_path),
        open_token_store(Texts.of(TEXTS), Prompted(tokenizer, "a", ""), 8, tmp_path),
        open_token_store(Texts.of(TEXTS), Prompted(tokenizer, "", "a"), 8, tmp_path),
    ]
    assert len(list(tmp_path.glob("tokens-*"))) == 6
    assert stores[0].lengths.max() == 8
    assert stores[1].lengths.max() == 9
    assert len({store.ids.tobytes() for store in stores}) == 6


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("kind", ["fast", "slow"])
@pytest.mark.parametrize(("before", "after"), [("topic: ", ""), ("", " : topic"), ("a b ", " y z")])
def test_a_prompt_stays_whole_where_a_text_is_cut(
    kind: str, side: str, before: str, after: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "slow":
        tokenizer = ByT5Tokenizer()
    monkeypatch.setattr(tokenizer, "truncation_side", side)
    first, last = ([2], [3]) if kind == "fast" else ([], [1])
    long = "abcd efgh ijkl mnop qrst"
    of_before, of_long, of_after = tokenizer([before, long, after], add_special_tokens=False)["input_ids"]
    room = 16 - len(first + of_before + of_after + last)
    kept = of_long[:room] if side == "right" else of_long[-room:]
    short_ids, long_ids = encode_texts(["e", long], Prompted(tokenizer, before, after), 16)
    assert short_ids == tokenizer(f"{before}e{after}")["input_ids"]
    assert long_ids == [*first, *of_before, *kept, *of_after, *last]
    with pytest.raises(DataError, match=r"lm\.prompt leaves no room .* tokens, and lm\.max_length is 4"):
        encode_texts(["e", long], Prompted(tokenizer, before, after), 4)


def test_a_tokenizer_that_cuts_the_other_end_gets_a_store_of_its_own(tmp_path: Path, tiny_lm: Path) -> None:
    kept = []
    for side in ("right", "left"):
        tokenizer = load_tokenizer(str(tiny_lm))
        tokenizer.truncation_side = side
        kept.append(open_token_store(Texts.of(["a b c d e"]), tokenizer, 4, tmp_path).ids.tolist())
    start, end = (tokenizer.convert_tokens_to_ids(list(letters)) for letters in ("ab", "de"))
    assert [ids[1:3] for ids in kept] == [start, end]


def test_identity_tells_tokenizers_apart_by_what_they_do(tokenizer: Any, tiny_lm: Path) -> None:
    assert tokenizer_identity(tokenizer) == tokenizer_identity(load_tokenizer(str(tiny_lm)))
    assert tokenizer_identity(word_tokenizer(50)) != tokenizer_identity(word_tokenizer(51))

    class Slow:
        def __init__(self, words: dict[str, int]) -> None:
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return self.words

    assert tokenizer_identity(Slow({"a": 0})) == tokenizer_identity(Slow({"a": 0}))
    assert tokenizer_identity(Slow({"a": 0})) != tokenizer_identity(Slow({"a": 1}))


def _open(folder: Path, lm: Path, results: multiprocessing.Queue) -> None:
    make = tokens._tokenize

    def slowly(*args: Any) -> None:
        with (folder / "calls").open("a") as calls:
            calls.write("call\n")
        time.sleep(0.3)
        make(*args)

    tokens._tokenize = slowly  # type: ignore[assignment]
    store = open_token_store(Texts.of(TEXTS), load_tokenizer(str(lm)), 8, folder)
    results.put(store.ids.tolist())


def test_processes_side_by_side_share_one_store(tmp_path: Path, tiny_lm: Path, tokenizer: Any) -> None:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(tmp_path, tiny_lm, results)) for _ in range(2)]
    for process in processes:
        process.start()
    ids = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert (tmp_path / "calls").read_text() == "call\n"
    assert ids[0] == ids[1] == open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path).ids.tolist()


def test_a_tokenizer_without_padding_fills_up_with_another_token(tmp_path: Path) -> None:
    tokenizer = word_tokenizer(50, pad=None)
    assert tokenizer.pad_token_id is None
    store = open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)
    ids, mask = store.pad(np.arange(len(TEXTS)))
    assert set(ids[mask == 0]) == {tokenizer.unk_token_id}
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(3)
    assert padding_id(tokenizer) == 3


def made(cache: Path, tokenizer: Any) -> Path:
    """The folder of a finished store."""
    open_token_store(Texts.of(TEXTS), tokenizer, 8, cache)
    (folder,) = cache.glob("tokens-*")
    return folder


@pytest.mark.parametrize("damage", [Path.unlink, cut, emptied])
@pytest.mark.parametrize("name", ["ids.bin", "offsets.npy", "tokens.json"])
def test_a_damaged_store_is_an_error_that_names_the_folder(
    tmp_path: Path, tokenizer: Any, name: str, damage: Callable[[Path], None]
) -> None:
    folder = made(tmp_path, tokenizer)
    damage(folder / name)
    remedy = "delete the folder to have it remade"
    refused(lambda: open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path), str(folder), remedy)


def test_a_store_of_another_number_of_texts_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    folder = made(tmp_path, tokenizer)
    np.save(folder / "offsets.npy", np.load(folder / "offsets.npy")[:-1])
    with pytest.raises(DataError, match=f"holds {len(TEXTS) - 1} texts, expected {len(TEXTS)}"):
        open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)


def test_a_store_with_an_unknown_type_of_ids_is_an_error(tmp_path: Path, tokenizer: Any) -> None:
    folder = made(tmp_path, tokenizer)
    meta = json.loads((folder / "tokens.json").read_text())
    for changed in ({}, {**meta, "dtype": "uint17"}):
        (folder / "tokens.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match="damaged token store"):
            open_token_store(Texts.of(TEXTS), tokenizer, 8, tmp_path)
