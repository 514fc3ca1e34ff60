"""TokenStore: the token ids of all texts, made once, ragged on disk, memory-mapped; batches of similar length."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from glem_graphgym.data.errors import DataError, reading_data
from glem_graphgym.data.text_graph import Texts
from glem_graphgym.disk import disk_full_errors, require_space
from glem_graphgym.files import fingerprint, make_once, read_json, write_json
from glem_graphgym.progress import Progress

SAMPLED_TEXTS = 1000  # texts tokenized to estimate the number of tokens of all
IDS_AT_ONCE, BLOCKS_COUNTED = 1 << 20, 64  # ids per block; most blocks in which unknown ids are counted
TEXTS_AT_ONCE = 16_384  # texts handed to the tokenizer's threads at a time; bounds memory, not speed


class TokenStore:
    """Token ids of N texts, special tokens included, without padding.

    Attributes:
        ids: uint16 or int32 (T,), all texts one after the other; 2 bytes per token if the vocabulary allows.
        offsets: int64 (N+1,), where each text begins.
        pad_id: the id that pads a batch.
        unknown_id: the id of unknown tokens; None if there is none, or if it is also that of a special token, as in
            GPT-2.
        ids_below: exclusive upper bound of the tokenizer's ids; None if it is not known.
    """

    def __init__(
        self,
        ids: np.ndarray,
        offsets: np.ndarray,
        pad_id: int,
        unknown_id: int | None = None,
        ids_below: int | None = None,
    ) -> None:
        self.ids, self.offsets, self.pad_id = ids, offsets, pad_id
        self.unknown_id, self.ids_below = unknown_id, ids_below
        self.lengths = np.diff(offsets)

    @classmethod
    def of(cls, ids: np.ndarray, offsets: np.ndarray, tokenizer: Any) -> TokenStore:
        """Store of texts that ``tokenizer`` made into ids; the further attributes are the tokenizer's."""
        special_ids = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        unknown_id = None if tokenizer.unk_token_id in special_ids else tokenizer.unk_token_id
        return cls(ids, offsets, padding_id(tokenizer), unknown_id, ids_below(tokenizer))

    @functools.cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max(initial=0))

    def largest_id(self) -> int:
        """The largest id in the texts; -1 if there are no ids. Reads all of them."""
        starts = range(0, len(self.ids), IDS_AT_ONCE)
        return max((int(self.ids[start : start + IDS_AT_ONCE].max()) for start in starts), default=-1)

    def __len__(self) -> int:
        return len(self.lengths)

    def unknown_share(self) -> float:
        """Share 0-1 of unknown tokens; for a large store, in blocks spread evenly over it."""
        if self.unknown_id is None or not len(self.ids):
            return 0.0
        starts = np.unique(np.linspace(0, max(len(self.ids) - IDS_AT_ONCE, 0), BLOCKS_COUNTED).astype(np.int64))
        if len(self.ids) <= IDS_AT_ONCE * BLOCKS_COUNTED:
            starts = np.arange(0, len(self.ids), IDS_AT_ONCE)
        blocks = [self.ids[start : start + IDS_AT_ONCE] for start in starts]
        return sum(int((block == self.unknown_id).sum()) for block in blocks) / sum(map(len, blocks))

    def pad(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pad the nodes' texts to the longest, L tokens: ids int64 (B, L) and attention mask int64 (B, L)."""
        lengths = self.lengths[nodes]
        mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
        # Position of every token of the batch in `ids`: a running count that jumps at each text's first token.
        shift = self.offsets[nodes] - (np.cumsum(lengths) - lengths)
        flat = np.arange(lengths.sum()) + np.repeat(shift, lengths)
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = self.ids[flat]
        return ids, mask.astype(np.int64)


def open_token_store(texts: Texts, tokenizer: Any, max_length: int, cache: Path) -> TokenStore:
    """Open the store for these texts, tokenizer and length under ``cache``; makes it, or finishes it, if necessary.

    Args:
        texts: N texts.
        tokenizer: a Hugging Face tokenizer, maybe `Prompted`; fast ones run on all cores.
        max_length: most tokens to keep of a text, special tokens included.
        cache: folder of stores, one per (texts, tokenizer, max_length); concurrent jobs may share it.

    Raises:
        DataError: a stored file is damaged.
        DiskFullError: the disk has no room; texts tokenized so far are kept.
    """
    folder = token_folder(texts, tokenizer, max_length, cache)
    make_once(folder, lambda path: _tokenize(texts, tokenizer, max_length, path), resume=True)
    with contextlib.suppress(OSError):  # not there any more, or the folder can only be read
        (folder / "lengths.bin").unlink()  # not before: without it, a killed process's work would be lost
    with reading_data(f"{folder}: damaged token store", "delete the folder to have it remade"):
        meta = read_json(folder / "tokens.json")
        offsets = np.load(folder / "offsets.npy")
        ids = np.empty(0, dtype=meta["dtype"])
        if offsets[-1]:  # an empty file cannot be mapped
            ids = np.memmap(folder / "ids.bin", dtype=meta["dtype"], mode="r", shape=(int(offsets[-1]),))
    if len(offsets) != len(texts) + 1:
        raise DataError(f"{folder}: holds {len(offsets) - 1} texts, expected {len(texts)}; delete it to have it remade")
    return TokenStore.of(ids, offsets, tokenizer)


def padding_id(tokenizer: Any) -> int:
    """The id that pads a batch, hidden by the attention mask; GPT-2 and Llama have no padding token of their own."""
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    return next((number for number in candidates if number is not None), 0)


def token_folder(texts: Texts, tokenizer: Any, max_length: int, cache: Path) -> Path:
    """Folder of the store for these texts, tokenizer and length."""
    return cache / f"tokens-{fingerprint(texts.fingerprint(), tokenizer_identity(tokenizer), max_length)}"


def id_type(tokenizer: Any) -> np.dtype:
    """Type of the stored ids: 2 bytes per token if the vocabulary allows."""
    return np.dtype(np.uint16 if ids_below(tokenizer) <= np.iinfo(np.uint16).max + 1 else np.int32)


def ids_below(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer, whose vocabulary may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def tokenizer_identity(tokenizer: Any) -> str:
    """Hash of all that determines a text's tokens: the serialised fast tokenizer, or class and vocabulary."""
    if isinstance(tokenizer, Prompted):
        return fingerprint(tokenizer_identity(tokenizer.tokenizer), tokenizer.prefix, tokenizer.suffix)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        # Each call sets padding and truncation, except for the side of truncation.
        state = json.loads(backend.to_str())
        return fingerprint({**state, "padding": None, "truncation": tokenizer.truncation_side})
    return fingerprint(type(tokenizer).__name__, tokenizer.get_vocab())


def _tokenize(texts: Texts, tokenizer: Any, max_length: int, folder: Path) -> None:
    """Write the store into ``folder`` block by block, resuming after the last block in ``lengths.bin``."""
    dtype = id_type(tokenizer)
    if len(texts) > SAMPLED_TEXTS:
        bytes_written = sum(file.stat().st_size for file in folder.iterdir())
        require_space(
            folder, _estimated_bytes(texts, tokenizer, max_length) - bytes_written, f"tokenizing {len(texts):,} texts"
        )
    # Overlong texts are cut on purpose; the tokenizer would warn about each.
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    with (folder / "ids.bin").open("ab") as ids_file, (folder / "lengths.bin").open("ab") as lengths_file:
        finished = _truncate_to_blocks(ids_file, lengths_file, dtype)
        starts = range(finished, len(texts), TEXTS_AT_ONCE)
        blocks = -(-len(texts) // TEXTS_AT_ONCE)
        bar = {"unit": "block", "initial": blocks - len(starts), "total": blocks, "disable": blocks <= 1}
        for start in Progress(starts, desc="tokenizing", **bar):
            block = encode_texts(texts[start : start + TEXTS_AT_ONCE], tokenizer, max_length)
            ids = np.fromiter(itertools.chain.from_iterable(block), dtype=dtype)
            # The ids first: if a block's lengths are on disk, so are its ids, even if the machine crashes.
            for file, values in ((ids_file, ids), (lengths_file, np.array([len(text) for text in block], np.int32))):
                with disk_full_errors(Path(file.name)):
                    file.write(values.tobytes())
                    file.flush()
                    os.fsync(file.fileno())
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(np.fromfile(folder / "lengths.bin", dtype=np.int32), out=offsets[1:])
    np.save(folder / "offsets.npy", offsets)
    write_json(folder / "tokens.json", {"dtype": dtype.name, "max_length": max_length, "texts": len(texts)})


def _estimated_bytes(texts: Texts, tokenizer: Any, max_length: int) -> int:
    """Approximate bytes of the store on disk, with the file of lengths that exists until it is complete."""
    chosen = np.unique(np.linspace(0, len(texts) - 1, SAMPLED_TEXTS).astype(np.int64))
    sample = encode_texts([texts[node] for node in chosen], tokenizer, max_length)
    tokens = sum(map(len, sample)) * len(texts) // len(chosen)
    return tokens * id_type(tokenizer).itemsize + (8 + np.dtype(np.int32).itemsize) * (len(texts) + 1)


def _truncate_to_blocks(ids_file: BinaryIO, lengths_file: BinaryIO, dtype: np.dtype) -> int:
    """Truncate both files after the last complete block; returns the number of finished texts."""
    lengths = np.fromfile(lengths_file.name, dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int64)[TEXTS_AT_ONCE - 1 :: TEXTS_AT_ONCE] * dtype.itemsize
    blocks = int(np.searchsorted(ends, os.fstat(ids_file.fileno()).st_size, side="right"))
    ids_file.truncate(int(ends[blocks - 1]) if blocks else 0)
    lengths_file.truncate(blocks * TEXTS_AT_ONCE * lengths.itemsize)
    return blocks * TEXTS_AT_ONCE


def encode_texts(texts: list[str], tokenizer: Any, max_length: int | None) -> list[list[int]]:
    """Token ids of each text, special tokens included, truncated to ``max_length``; None = no truncation."""
    if isinstance(tokenizer, Prompted):
        return tokenizer.encode(texts, max_length)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options = {"truncation": max_length is not None, "max_length": max_length, "return_attention_mask": False}
        return tokenizer(texts, **options)["input_ids"]
    # Calls the library itself, multi-threaded, without the character offsets and masks that its wrapper requests.
    backend.no_padding()
    backend.no_truncation()
    if max_length is not None:
        backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return [encoding.ids for encoding in backend.encode_batch_fast(texts)]


@dataclass(frozen=True)
class Prompted:
    """A tokenizer that puts each text between ``prefix`` and ``suffix``; all else is the tokenizer's own.

    If a text is too long, only its own tokens are cut, on the tokenizer's truncation side: the prompt stays whole.
    """

    tokenizer: Any
    prefix: str
    suffix: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, texts: list[str], max_length: int | None) -> list[list[int]]:
        """Encode as `encode_texts` does; raises DataError if the prompt leaves no room for a text."""
        encoded = encode_texts([f"{self.prefix}{text}{self.suffix}" for text in texts], self.tokenizer, None)
        for i, ids in enumerate(encoded):
            if max_length is not None and len(ids) > max_length:
                encoded[i] = self._cut(texts[i], max_length)
        return encoded

    def _cut(self, text: str, max_length: int) -> list[int]:
        """Ids of the prompt and as much of a text that is too long as there is room for."""
        from_left = self.tokenizer.truncation_side == "left"
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # no offsets: searches for the number of characters that fit

            def ids_of(count: int) -> list[int]:
                return self.encode([text[len(text) - count :] if from_left else text[:count]], None)[0]

            count = bisect.bisect_right(range(len(text) + 1), max_length, key=lambda count: len(ids_of(count))) - 1
            cut_ids = ids_of(count) if count > 0 else None
        else:
            encoding = backend.encode(f"{self.prefix}{text}{self.suffix}")
            start, end = len(self.prefix), len(self.prefix) + len(text)
            spans = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            text_tokens = [
                i for i, ((a, b), special) in enumerate(spans) if start <= a < end and b <= end and not special
            ]
            excess = len(encoding.ids) - max_length
            dropped = set(text_tokens[:excess] if from_left else text_tokens[-excess:])
            cut_ids = (
                [number for i, number in enumerate(encoding.ids) if i not in dropped]
                if excess < len(text_tokens)
                else None
            )
        if cut_ids is None:
            raise DataError(
                f"lm.prompt leaves no room for texts: with special tokens it takes {len(self.encode([''], None)[0])} "
                f"tokens, and lm.max_length is {max_length}; expected a longer lm.max_length or a shorter lm.prompt"
            )
        return cut_ids


def shuffled_batches(
    lengths: np.ndarray, nodes: np.ndarray, batch_size: int, rng: np.random.Generator, pool: int = 50
) -> list[np.ndarray]:
    """Shuffle ``nodes`` into batches of ``batch_size`` texts of similar length, for training.

    Nodes, int64 (n,), are shuffled, sorted by their ``lengths``, int64 (N,), within pools of ``pool`` batches, and cut
    into batches, which are shuffled again.
    """
    order = rng.permutation(nodes)
    pools = np.split(order, range(batch_size * pool, len(order), batch_size * pool))
    ordered = np.concatenate([chunk[np.argsort(lengths[chunk], kind="stable")] for chunk in pools])
    batches = np.split(ordered, range(batch_size, len(ordered), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def budget_batches(lengths: np.ndarray, nodes: np.ndarray, tokens: int) -> Iterator[np.ndarray]:
    """Yield ``nodes`` in batches of at most ``tokens`` padded tokens, or of one longer text, for inference.

    The longest come first, so that memory runs out at the first batch or not at all.
    """
    order = nodes[np.argsort(-lengths[nodes], kind="stable")]
    start = 0
    while start < len(order):
        size = max(1, tokens // max(int(lengths[order[start]]), 1))
        yield order[start : start + size]
        start += size


def padded_tokens(lengths: np.ndarray, batches: Iterable[np.ndarray], micro_batches: int = 1) -> int:
    """Number of tokens in ``batches`` of nodes, padding included, if each is split into ``micro_batches``."""
    nonempty = (
        micro_batch
        for batch in batches
        for micro_batch in np.array_split(lengths[batch], micro_batches)
        if len(micro_batch)
    )
    return sum(len(micro_batch) * int(micro_batch.max()) for micro_batch in nonempty)
