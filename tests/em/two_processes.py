"""What `test_two_processes` has one process do, and two: train language models in several ways, and predict."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from glem_graphgym import processes
from glem_graphgym.data.text_graph import Texts
from glem_graphgym.data.tokens import open_token_store
from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.em.e_step import LMLearner, LMSettings, open_predictions
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.sharding import local_part, whole_weights
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder

N, C = 31, 3
GOLD, VALID = np.arange(0, 24, 3), np.arange(24, 31)


@dataclass(frozen=True)
class Case:
    strategy: str = "fsdp"
    precision: str = "32-true"
    encoder: dict[str, Any] = field(default_factory=dict)
    unused: bool = False  # a module that takes no part in the loss
    machines: int = 1
    killed: bool = False  # between two checkpoints, and resumed


CASES = {
    "ddp": Case("ddp"),
    "ddp, two machines": Case("ddp", machines=2),
    "ddp, unused parameters": Case("ddp", unused=True),
    "fsdp": Case(),
    "fsdp, two machines": Case(machines=2),
    "fsdp, killed": Case(killed=True),
    "fsdp, checkpointing": Case(encoder={"gradient_checkpointing": True}),
    "fsdp, frozen layers": Case(encoder={"freeze_layers": 1}),
    "fsdp, LoRA": Case(encoder={"lora_rank": 4}, killed=True),
    "fsdp, LoRA, checkpointing, bf16": Case("fsdp", "bf16-mixed", {"lora_rank": 4, "gradient_checkpointing": True}),
    "fsdp, bf16": Case("fsdp", "bf16-mixed"),
    "fsdp, bf16 and base": Case("fsdp", "bf16-mixed", {"lora_rank": 4, "base_precision": "bf16"}),
}


class Killed(Exception):
    """Stands for SIGKILL."""


def learner_of(case: Case, model: str, folder: Path) -> LMLearner:
    rng = np.random.default_rng(0)
    texts = Texts.of([" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))) for _ in range(N)])
    tokens = processes.broadcast(lambda: open_token_store(texts, load_tokenizer(model), 16, folder))

    def build() -> TextClassifier:
        torch.manual_seed(processes.rank())  # rank 0's weights count
        none = {"dropout": 0.0, "attention_dropout": 0.0, "lora_dropout": 0.0}
        encoder = load_text_encoder(EncoderConfig(model, attention="glem_cpu", **none, **case.encoder))
        head: Any = LMHead(encoder.dim, C, 0.0)
        if case.unused:
            head.unused = nn.Linear(2, 2)
        return TextClassifier(encoder, head)

    scores: list[float] = []
    improving = Validation(VALID, lambda logits: scores.append(float(np.abs(logits).sum())) or len(scores))  # type: ignore[func-returns-value]
    settings = LMSettings(epochs=2, batch_size=6, grad_accumulation=2, lr=1e-2, infer_tokens=40, clip=0.5)
    return LMLearner(tokens, build, settings, improving, Hardware("cpu", case.precision, strategy=case.strategy))


def targets() -> StepTargets:
    gold, rest = Gold(GOLD, np.arange(len(GOLD)) % C, C), np.setdiff1d(np.arange(24), GOLD)
    pseudo = PseudoLabels(np.random.default_rng(1).normal(size=(N, C)), rest, gold)
    return StepTargets(gold, pseudo, weight=0.3, ratio=1.5, seed=5)


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Training that ends in an error after so many micro-batches."""
    from glem_graphgym.em import fit

    count, usual = 0, fit._State.record_loss

    def trained(state: Any, loss: Any) -> None:
        nonlocal count
        count += 1
        if count > steps:
            raise Killed
        usual(state, loss)

    fit._State.record_loss = trained  # type: ignore[method-assign]
    try:
        yield
    finally:
        fit._State.record_loss = usual  # type: ignore[method-assign]


def do(case: Case, model: str, folder: Path) -> dict[str, Any]:
    """History, weights, logits and embeddings; the share of the weights that this process had."""
    learner = learner_of(case, model, folder)
    checkpoint: Callable[[], Checkpoint] = lambda: Checkpoint(folder, minutes=0)  # noqa: E731
    if case.killed:
        with killed_after(steps=9), suppress(Killed):
            learner.fit(targets(), "stage", checkpoint=checkpoint())
    task, log = learner.fit(targets(), "stage", checkpoint=checkpoint() if case.killed else None)
    parameters = list(task.model.parameters())
    share = sum(local_part(p).numel() for p in parameters) / sum(p.numel() for p in parameters)
    logits, embeddings = (open_predictions(folder, name, N, dim) for name, dim in (("l", C), ("e", task.embedding_dim)))
    task.predict(logits, embeddings)
    found = {"logits": np.array(logits), "embeddings": np.array(embeddings), "history": log.history, "share": share}
    return {**found, "weights": whole_weights(task.model), "files": sorted(p.name for p in folder.rglob("*.pt"))}


def main(model: str, folder: str) -> None:
    warnings.filterwarnings("ignore")
    info = processes.rank_from_environment()
    assert info is not None
    processes.join(info, "cpu")
    torch.set_num_threads(1)
    looked: list[bool] = []
    usual = Hardware.fabric

    def fabric(hardware: Hardware, shard: Any, find_unused: bool = False) -> Any:
        looked.append(find_unused)
        return usual(hardware, shard, find_unused)

    Hardware.fabric = fabric  # type: ignore[method-assign]
    for number, (name, case) in enumerate(CASES.items()):
        own = Path(folder) / str(number)
        if info.rank == 0:
            own.mkdir()
        assert processes._group is not None
        processes._group.info = replace(info, local_rank=0, local_size=1) if case.machines == 2 else info
        processes._write_environment(processes._group.info)
        found = do(case, model, own)
        if info.rank == 0:
            torch.save(found, own / "found")
        assert looked.pop() == case.unused, name
        if case.killed:  # what another strategy would go on from
            other = Checkpoint(own, minutes=0)
            try:
                other.read("stage")
            except ValueError as error:
                (own / f"refused-{info.rank}").write_text(str(error))
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
