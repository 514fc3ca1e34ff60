"""Growth of out-of-core runs with the graph: whole runs on generated graphs in the format of ogbn-papers100M.

For each number of nodes three programs run, one after the other, as a user would call them:
``run/make_papers100m_like.py``, ``run/prepare.py`` and ``run/main.py`` with ``configs_gg/glem_gamlp_papers100m.yaml``
and a tiny transformer: text embeddings and hops 64 wide, 3 hops, GAMLP. Memory is the sum over the processes of a
program, without pages of files, which the system can reclaim. Files are the peak on disk, temporary ones included.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from rehearsal.papers100m import CLASSES, VOCABULARY

from benchmarks.measure import Row
from glem_graphgym.data.synthetic import word_list

RUN = Path(__file__).resolve().parent.parent
CONFIG = RUN.parent / "configs_gg" / "glem_gamlp_papers100m.yaml"
SIZES = (500_000, 1_000_000, 2_500_000, 5_000_000)
PAPERS100M = 111_059_956
EDGES_A_NODE = 12
WIDTH = 64  # of the features, the tiny transformer and GAMLP's hops
BUDGET_GB = 0.2  # memory for graph, features and hops per million nodes: a quarter of their size
OPTIONS = {
    "lm.shrink_dim": 0, "lm.max_length": 64, "lm.epochs": 1, "lm.batch_size": 64, "lm.grad_accumulation": 1,
    "lm.lr": 1e-3, "e_step.epochs": 1, "e_step.batch_size": 64, "e_step.lr": 1e-3,
    "gnn.hops": 3, "gnn.layers_mp": 2, "gnn.dim_inner": 128, "gnn.batch_size": 10_000,
    "optim.max_epoch": 5, "optim.patience": 0,
}  # fmt: skip
SAMPLED_EVERY = 0.1  # s


@dataclass
class Used:
    """Cost of a program: seconds, peak memory in GB, peak size of files in GB."""

    seconds: float
    memory: float
    files: float


def scale(repeats: int, device: str = "cpu", sizes: Sequence[int] = SIZES, folder: Path | None = None) -> Iterator[Row]:
    """Seconds, memory and files of each program per size; then their growth, and an extrapolation to papers100M.

    Args:
        sizes: numbers of nodes.
        folder: for temporary files, 6 kB per node; None = the system's temporary folder.
    """
    totals: dict[str, list[float]] = {"s": [], "GB of memory": [], "GB of files": []}
    for nodes in sizes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            data = Path(name)
            lm = make_tiny_lm(data / "tiny_lm")
            options = {
                **OPTIONS, "glem.memory_budget_gb": BUDGET_GB * nodes / 1e6, "accelerator": device,
                "dataset.dir": data, "out_dir": data / "results", "lm.model": lm,
            }  # fmt: skip
            settings = [str(word) for pair in options.items() for word in pair]
            size_text = f"{nodes:,} nodes, {EDGES_A_NODE * nodes:,} edges"
            graph = ["--folder", str(data / "ogbn_papers100M"), "--nodes", str(nodes)]
            graph += ["--edges", str(EDGES_A_NODE * nodes), "--features", str(WIDTH)]
            total = Used(0.0, 0.0, 0.0)
            for title, command in (
                ("writing the graph", ["make_papers100m_like.py", *graph]),
                ("prepare", ["prepare.py", "--cfg", str(CONFIG), *settings]),
                ("the run", ["main.py", "--cfg", str(CONFIG), *settings]),
            ):
                cost = watched([sys.executable, str(RUN / command[0]), *command[1:]], data)
                yield Row(f"{size_text}: {title}", cost.seconds, "s")
                yield Row(f"{size_text}: {title}, memory", cost.memory, "GB")
                yield Row(f"{size_text}: {title}, files", cost.files, "GB")
                if title == "writing the graph":
                    continue  # a user of papers100M downloads it
                memory, files = max(total.memory, cost.memory), max(total.files, cost.files)
                total = Used(total.seconds + cost.seconds, memory, files)
            for stage in sorted(data.glob("results/*/0/stages/*/stage.json")):
                stage_json = json.loads(stage.read_text())
                yield Row(f"{size_text}: {stage_json['name']}", stage_json["seconds"], "s")
        for values, value in zip(totals.values(), (total.seconds, total.memory, total.files), strict=True):
            values.append(value)
        yield Row(f"{size_text}: prepare and run", total.seconds, "s")
        yield Row(f"{size_text}: files at most, with the downloaded graph", total.files, "GB")
    if len(sizes) > 1:
        for unit, values in totals.items():
            power, extrapolated = growth(sizes, values)
            yield Row(f"growth of {unit}: power of the number of nodes", power, "")
            yield Row(f"straight line through them, at {PAPERS100M:,} nodes", extrapolated, unit)


def growth(sizes: Sequence[int], values: Sequence[float]) -> tuple[float, float]:
    """Exponent b of a power law a·N^b (least squares of the logarithms); value of a fitted line at papers100M's size.

    An exponent of 1 means proportional growth; below 1, a part is constant.
    """
    power, _ = np.polyfit(np.log(sizes), np.log(values), 1)
    slope, start = np.polyfit(sizes, values, 1)
    return float(power), float(start + slope * PAPERS100M)


def watched(command: Sequence[str], folder: Path, shown: bool = False) -> Used:
    """Run a program and measure it with the processes that it starts, and the files under ``folder``.

    Raises:
        RuntimeError: the program failed; the message has the end of its output unless that was ``shown``.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        program = subprocess.Popen(
            command, stdout=None if shown else output, stderr=None if shown else subprocess.STDOUT
        )
        process, memory, files = psutil.Process(program.pid), 0, 0
        stopped = threading.Event()

        def sample() -> None:
            nonlocal memory, files
            while not stopped.wait(SAMPLED_EVERY):
                memory = max(memory, own_bytes(process))
                files = max(files, bytes_under(folder))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            code = program.wait()
        finally:
            program.kill()
            stopped.set()
            sampler.join()
        seconds = time.perf_counter() - start
        if code != 0:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{output.read()[-2000:]}".rstrip(":\n"))
    return Used(seconds, memory / 1e9, max(files, bytes_under(folder)) / 1e9)


def own_bytes(program: psutil.Process) -> int:
    """Resident memory of a process and its descendants without pages of files; 0 if it has ended."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (program, *program.children(recursive=True)):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    return total


def bytes_under(folder: Path) -> int:
    """Disk space of the files in a folder; unwritten parts of sparse files take none."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += 512 * Path(directory, name).lstat().st_blocks
            except FileNotFoundError:  # gone in between
                continue
    return total


def make_tiny_lm(folder: Path) -> Path:
    """Make a folder of a BERT of two layers, width `WIDTH` and random weights, and a tokenizer for generated texts."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", ":", "Title", "Abstract", *word_list(VOCABULARY * CLASSES)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=4 * WIDTH, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder
