"""Shared by all tests: one thread a worker, no network, one seed, a tiny language model, GraphGym's state put back."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", GLEM_TRACEBACK="1")
os.environ["GLEM_MEASURE"] = "0"  # what a busy machine measures must not decide what tests see

import torch
from torch_geometric.graphgym.config import cfg, set_cfg

import glem_graphgym  # noqa: F401 - registers the plugin once for the whole session
from glem_graphgym.em.journal import seed_everything

torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # after others have been left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first, dealt out by files: each of several workers (``--dist worksteal``) begins with its share."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for _, of_file in itertools.groupby(slow, key=lambda item: item.path):
        min(shares, key=len).extend(of_file)
    for number, share in enumerate(shares, start=1):
        missing = len(items) * number // workers - sum(map(len, shares[:number]))
        share += quick[:missing] if number < workers else quick
        del quick[: max(missing, 0)]
    items[:] = itertools.chain.from_iterable(shares)


@pytest.fixture(autouse=True)
def fresh_config() -> Iterator[None]:
    """GraphGym's configuration is one global object: every test starts from its defaults."""
    set_cfg(cfg)
    yield
    cfg.clear()
    set_cfg(cfg)


@pytest.fixture(autouse=True)
def level_of_logging() -> Iterator[None]:
    """A program that a test calls here sets it for the whole process."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect() -> None:
    """The collector passes over what earlier modules left: each stage of a run calls it, and libraries are large."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests that ran before it; nor is it what weights were drawn with."""
    seed_everything(1234)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Hugging Face BERT of two layers, width 32, random weights, and a letter-piece tokenizer."""
    return make_tiny_lm(tmp_path_factory.mktemp("tiny_lm"))


def make_tiny_lm(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [f"##{a}{b}" for a in letters[:26] for b in letters[:26]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder
