"""What several processes train on: their parts of a batch are the batch, and their losses add up to its loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from glem_graphgym import processes
from glem_graphgym.data.text_graph import Texts, csr_from_edges
from glem_graphgym.data.tokens import open_token_store
from glem_graphgym.em.e_step import LMLearner, LMSettings, LMTask
from glem_graphgym.em.fit import Task, Validation
from glem_graphgym.em.hop_step import Consistency, HopLearner, HopTask
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.models.sgc import SGC
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder
from glem_graphgym.processes import RankInfo

N, C = 30, 3
GOLD, VALID = np.arange(0, 24, 3), np.arange(24, 30)
REST = np.setdiff1d(np.arange(24), GOLD)
FEATURES = np.random.default_rng(4).normal(size=(N, 5)).astype(np.float32)
VALIDATION = Validation(VALID, lambda logits: 0.0)


def targets() -> StepTargets:
    gold = Gold(GOLD, np.arange(len(GOLD)) % C, C)
    pseudo = PseudoLabels(np.random.default_rng(1).normal(size=(N, C)), REST, gold)
    return StepTargets(gold, pseudo, weight=0.3, ratio=1.5, seed=5)


def act_as(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    monkeypatch.setattr(processes, "rank_info", lambda: RankInfo(rank, size, rank, size))


def losses(task: Task) -> list[float]:
    with torch.no_grad():
        return [float(task(batch)) for batch in task.batches(0).prepared(torch.device("cpu"))]


def lm_task(tiny_lm: Path, folder: Path, grad_accumulation: int) -> LMTask:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))) for _ in range(N)]
    tokens = open_token_store(Texts.of(texts), load_tokenizer(str(tiny_lm)), 16, folder)
    torch.manual_seed(0)
    encoder = load_text_encoder(EncoderConfig(str(tiny_lm), dropout=0.0, attention_dropout=0.0, attention="eager"))
    settings = LMSettings(
        batch_size=6, grad_accumulation=grad_accumulation, label_smoothing=0.1, smooth_pseudo=True, infer_tokens=32
    )
    learner = LMLearner(tokens, lambda: TextClassifier(encoder, LMHead(32, C, 0.0)), settings, VALIDATION, Hardware())
    return learner.start(targets()).eval()


# 20 nodes in batches of 6: the smallest has 2 of them, fewer than there are parts.
@pytest.mark.parametrize(("size", "grad_accumulation"), [(2, 1), (2, 3), (3, 2), (1, 3)])
def test_parts_of_a_batch_of_texts_add_up_to_it(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, grad_accumulation: int
) -> None:
    whole = losses(lm_task(tiny_lm, tmp_path, 1))
    found = []
    for rank in range(size):
        act_as(monkeypatch, rank, size)
        found.append(losses(lm_task(tiny_lm, tmp_path, grad_accumulation)))
    assert {len(of_process) for of_process in found} == {len(whole) * grad_accumulation}
    steps = np.sum(found, axis=0).reshape(len(whole), grad_accumulation).sum(1)
    np.testing.assert_allclose(steps, whole, rtol=1e-5)


def test_all_processes_together_validate_everything(
    tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, seen = lm_task(tiny_lm, tmp_path, 1), []
    for rank in range(9):  # more than there are batches
        act_as(monkeypatch, rank, 9)
        seen += [nodes for nodes, _ in task.validated()]
    assert sorted(np.concatenate(seen)) == sorted(VALID)


def test_a_score_is_of_all_processes_logits_in_node_order(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[Tensor] = []
    task = Task(torch.nn.Linear(1, 1), Validation(VALID, lambda logits: judged.append(logits) or 0.25))  # type: ignore[func-returns-value]
    own = [(np.array([5, 2]), torch.tensor([[5.0], [2.0]]))]
    monkeypatch.setattr(task, "validated", lambda: iter(own))
    others = [(np.array([9, 3]), np.array([[9.0], [3.0]])), (np.array([2]), np.array([[2.0]]))]
    monkeypatch.setattr(processes, "gather", lambda mine: [list(mine), others])
    assert task.score() == 0.25
    assert judged[0].tolist() == [[2.0], [3.0], [5.0], [9.0]]


def hop_learner(batch_size: int, consistency: float = 0.0) -> HopLearner:
    rng = np.random.default_rng(0)
    rowptr, col = csr_from_edges(rng.integers(0, N, 90), rng.integers(0, N, 90), N)
    adjacency = Adjacency(torch.from_numpy(rowptr), torch.from_numpy(col))
    learner = HopLearner(
        lambda dim_in, classes: SGC(dim_in, classes),
        GraphViews(adjacency, adjacency),
        lambda params: (None, None),
        GNNSettings(),
        VALIDATION,
        Hardware(),
        hops=2,
        batch_size=batch_size,
        consistency=Consistency(consistency, np.arange(N)) if consistency else None,
    )
    return learner


def hop_task(learner: HopLearner) -> HopTask:
    torch.manual_seed(0)
    return learner.start(targets(), FEATURES)  # type: ignore[return-value]


@pytest.mark.parametrize(("size", "batch_size"), [(2, 6), (3, 0), (4, 2)])
def test_parts_of_a_batch_of_hops_add_up_to_it(monkeypatch: pytest.MonkeyPatch, size: int, batch_size: int) -> None:
    learner = hop_learner(batch_size)
    whole = losses(hop_task(learner))
    found, seen = [], []
    for rank in range(size):
        act_as(monkeypatch, rank, size)
        task = hop_task(learner)
        found.append(losses(task))
        seen += [node for nodes, _ in task.validated() for node in nodes]
    np.testing.assert_allclose(np.sum(found, axis=0), whole, rtol=1e-5)
    assert sorted(seen) == VALID.tolist()


def test_which_networks_are_trained_together() -> None:
    assert hop_learner(0).data_parallel
    assert not hop_learner(0, consistency=1.0).data_parallel
    assert not GNNLearner.data_parallel.fget(None)  # type: ignore[attr-defined]
