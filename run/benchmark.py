"""Measure what the code's choices rest on: ``python run/benchmark.py [part ...]``; a table to the terminal and JSON.

Parts: ``attention`` (LM training and inference by attention implementation and text length), ``propagation`` (sparse
products against PyG's gather-scatter), ``allocator`` (an M-step epoch with and without keeping freed memory).
Seeds are fixed; every figure is the median of several repetitions after a warm-up, alternating between the candidates.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.optim import adamw
from glem_graphgym.em.stage import Hardware
from glem_graphgym.memory import keep_freed_memory
from glem_graphgym.models.lm_head import LMHead
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sage import SAGE
from glem_graphgym.models.text_encoder import EncoderConfig, TextClassifier, load_text_encoder

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
CLASSES = 56
NODES, EDGES, WIDTH = 63_666, 296_480, 256  # the Debian graph and the GNN that is trained on it


def medians(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate; they take turns, so a machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 2):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn >= 2:  # the first turns warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def attention(repeats: int) -> Iterator[dict[str, Any]]:
    """Texts a second of all-MiniLM-L6-v2 in bf16, by attention implementation and tokens a text."""
    hardware = Hardware("cpu", "bf16-mixed")
    models = {name: _classifier(name) for name in ("eager", "sdpa")}
    optimizers = {name: adamw(model.parameters(), 1e-6, 0.0) for name, model in models.items()}
    for length in (21, 64, 128, 256):
        for training in (True, False):
            size = max(4, (1344 if training else 8192) // length)  # about as many tokens a batch at every length
            ids = torch.randint(1000, 20000, (size, length))
            runs = {
                name: partial(_train, model, optimizers[name], ids, hardware)
                if training
                else partial(_infer, model, ids, hardware)
                for name, model in models.items()
            }
            found = medians(runs, repeats)
            yield {
                "part": "attention",
                "what": f"{'training' if training else 'inference'}, {length} tokens, batch {size}",
                **{f"{name} texts/s": round(size / value, 1) for name, value in found.items()},
            }


def _classifier(implementation: str) -> TextClassifier:
    torch.manual_seed(0)
    encoder = load_text_encoder(EncoderConfig(MODEL, attention=implementation))
    return TextClassifier(encoder, LMHead(encoder.dim, CLASSES))


def _train(model: TextClassifier, optimizer: torch.optim.Optimizer, ids: torch.Tensor, hardware: Hardware) -> None:
    model.train()
    target = torch.full((len(ids), CLASSES), 1 / CLASSES)
    with hardware.autocast():
        logits, _ = model(ids, torch.ones_like(ids))
    loss = glem_loss(logits, target, torch.ones(len(ids), dtype=torch.bool), 0.5)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _infer(model: TextClassifier, ids: torch.Tensor, hardware: Hardware) -> None:
    model.eval()
    with torch.inference_mode(), hardware.autocast():
        model(ids, torch.ones_like(ids))


def propagation(repeats: int) -> Iterator[dict[str, Any]]:
    """Mean aggregation on a random graph of the Debian graph's size: ours, torch's CSR, PyG's gather-scatter."""
    from torch_geometric.utils import scatter

    adjacency, edge_index = _random_graph()
    mean = adjacency.mean()
    x = torch.randn(NODES, WIDTH, requires_grad=True)
    degree = torch.bincount(edge_index[1], minlength=NODES).clamp(min=1)
    values = (1 / degree)[edge_index[1]]
    csr = torch.sparse_coo_tensor(edge_index.flip(0), values, (NODES, NODES)).coalesce().to_sparse_csr()

    def backward(product: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return lambda: product().sum().backward()

    products = {
        "ours": lambda: mean @ x,
        "torch CSR": lambda: csr @ x,
        "gather-scatter": lambda: scatter(x[edge_index[0]], edge_index[1], 0, NODES, "mean"),
    }
    found = medians({name: backward(product) for name, product in products.items()}, repeats)
    what = f"mean aggregation and its gradient, {NODES:,} nodes, {2 * EDGES:,} entries, width {WIDTH}"
    yield {"part": "propagation", "what": what, **{f"{name} ms": round(1e3 * s, 1) for name, s in found.items()}}


def _random_graph() -> tuple[Adjacency, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(NODES, (2, EDGES), generator=generator)
    edge_index = torch.cat([ends, ends.flip(0)], dim=1)
    return Adjacency.from_edge_index(edge_index, NODES), edge_index


def allocator(repeats: int) -> Iterator[dict[str, Any]]:
    """A full-batch SAGE training step, in processes of their own with and without `keep_freed_memory`."""
    row: dict[str, Any] = {"part": "allocator", "what": f"SAGE 3×{WIDTH} training step, {NODES:,} nodes, 384 features"}
    for name, option in (("kept", "--kept"), ("given back", "--given-back")):
        command = [sys.executable, __file__, "--step", option, "--repeats", str(repeats)]
        row[f"{name} ms"] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    yield row


def _sage_step(kept: bool, repeats: int) -> float:
    if kept:
        keep_freed_memory()
    adjacency, _ = _random_graph()
    torch.manual_seed(0)
    model: nn.Module = SAGE(384, WIDTH, CLASSES, 3)
    x = torch.randn(NODES, 384)
    optimizer = adamw(model.parameters(), 1e-3, 0.0)

    def step() -> None:
        model(x, adjacency).logsumexp(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return round(1e3 * medians({"step": step}, repeats)["step"], 1)


PARTS: dict[str, Callable[[int], Iterator[dict[str, Any]]]] = {
    "attention": attention,
    "propagation": propagation,
    "allocator": allocator,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"which of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--repeats", type=int, default=7, help="counted repetitions of each figure (default: 7)")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--step", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kept", action=argparse.BooleanOptionalAction, help=argparse.SUPPRESS)
    parser.add_argument("--given-back", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(_sage_step(bool(args.kept), args.repeats))
        return 0
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]}; expected some of: {', '.join(PARTS)}")
    rows = []
    for part in args.parts or PARTS:
        for row in PARTS[part](args.repeats):
            rows.append(row)
            print("; ".join(f"{key}: {value}" for key, value in row.items()), flush=True)
    machine = {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    machine["torch"] = torch.__version__
    print(machine)
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
