from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from glem_graphgym.data.text_graph import Texts
from glem_graphgym.data.tokens import TokenStore, open_token_store
from glem_graphgym.em.e_step import LMLearner, LMSettings, LMTask, encode_in_parts, padded, text_parts
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.attention import CPU_ATTENTION
from glem_graphgym.models.pretrained import load_tokenizer
from glem_graphgym.models.text_encoder import EncoderConfig, LMHead, TextClassifier, load_text_encoder

N, C = 30, 3
GOLD = np.arange(0, 24, 3)  # 8 nodes
REST = np.setdiff1d(np.arange(24), GOLD)
VALID = np.arange(24, 30)


class Watched(TokenStore):
    """Remembers the nodes of every batch it padded."""

    seen: list[list[int]]

    def pad(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.seen.append(nodes.tolist())
        return super().pad(nodes)


@pytest.fixture
def tokens(tiny_lm: Path, tmp_path: Path) -> Watched:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), rng.integers(1, 12))) for _ in range(N)]
    store = open_token_store(Texts.of(texts), load_tokenizer(str(tiny_lm)), 16, tmp_path)
    watched = Watched(store.ids, store.offsets, store.pad_id)
    watched.seen = []
    return watched


@pytest.fixture
def learner(tokens: Watched, tiny_lm: Path) -> Callable[..., LMLearner]:
    """Makes a learner without dropout; ``score`` judges validation logits, the rest goes into its settings."""

    def make(
        score: Callable[[np.ndarray], float] = lambda logits: 0.5,
        dropout: float = 0.0,
        hardware: Hardware | None = None,
        build: Callable[[], TextClassifier] | None = None,
        **options: Any,
    ) -> LMLearner:
        config = EncoderConfig(str(tiny_lm), dropout=dropout, attention_dropout=dropout, attention="eager")

        def pretrained() -> TextClassifier:
            return TextClassifier(load_text_encoder(config), LMHead(32, C, dropout))

        defaults: dict[str, Any] = {"epochs": 1, "batch_size": 64, "lr": 1e-3, "clip": 0.0}
        settings = LMSettings(**{**defaults, **options})
        return LMLearner(tokens, build or pretrained, settings, Validation(VALID, score), hardware or Hardware())

    return make


def step_targets(pseudo: bool = True, **options: Any) -> StepTargets:
    gold = Gold(GOLD, np.arange(len(GOLD)) % C, C)
    logits = np.random.default_rng(1).normal(size=(N, C))
    defaults = {"weight": 0.3, "ratio": 1.5, "redraw": False, "seed": 5}
    return StepTargets(gold, PseudoLabels(logits, REST, gold) if pseudo else None, **{**defaults, **options})


def weights_of(task: LMTask) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in task.model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def predictions(task: LMTask) -> tuple[np.ndarray, np.ndarray]:
    logits, embeddings = np.zeros((N, C), np.float32), np.zeros((N, 32), np.float32)
    task.predict(logits, embeddings)
    return logits, embeddings


# ---- what is trained on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("smoothing", "smooth_pseudo"), [(0.0, False), (0.9, False), (0.9, True)])
def test_the_loss_is_the_objective_over_the_steps_nodes(
    learner: Callable[..., LMLearner], smoothing: float, smooth_pseudo: bool
) -> None:
    lm, targets = learner(lr=0.0, label_smoothing=smoothing, smooth_pseudo=smooth_pseudo), step_targets()
    task, log = lm.fit(targets, "test")
    nodes, target, is_gold = targets.batch(0)
    logits = torch.from_numpy(predictions(task)[0][nodes])
    expected, other = (glem_loss(logits, target, is_gold, 0.3, smoothing, None, of) for of in (smooth_pseudo, True))
    assert log.history[0]["loss"] == pytest.approx(float(expected), rel=1e-3)
    if smoothing and not smooth_pseudo:
        assert log.history[0]["loss"] != pytest.approx(float(other), rel=1e-3)


def test_an_epoch_goes_through_each_node_once_in_batches(learner: Callable[..., LMLearner], tokens: Watched) -> None:
    targets = step_targets()
    learner(batch_size=6, epochs=2).fit(targets, "test")
    valid = [seen for seen in tokens.seen if set(seen) <= set(VALID.tolist())]
    train = [seen for seen in tokens.seen if not set(seen) <= set(VALID.tolist())]
    assert [sorted(seen) for seen in valid] == [VALID.tolist()] * 2
    assert [len(seen) for seen in train].count(6) == 6
    nodes = sorted(targets.batch(0)[0].tolist())
    for epoch in (train[:4], train[4:]):
        assert sorted(node for seen in epoch for node in seen) == nodes
    assert sorted(map(sorted, train[:4])) != sorted(map(sorted, train[4:]))  # mixed anew


@pytest.mark.parametrize("redraw", [True, False])
def test_pseudo_nodes_are_drawn_once_a_step_or_every_epoch(
    learner: Callable[..., LMLearner], tokens: Watched, redraw: bool
) -> None:
    targets = step_targets(redraw=redraw, ratio=0.5)
    learner(epochs=3).fit(targets, "test")
    train = [sorted(seen) for seen in tokens.seen if not set(seen) <= set(VALID.tolist())]
    assert train == [sorted(targets.batch(epoch)[0].tolist()) for epoch in range(3)]
    assert len(set(map(tuple, train))) == (3 if redraw else 1)


@pytest.mark.parametrize(("pseudo", "steps"), [(False, 1), (True, 3)])
def test_accumulated_parts_make_the_step_of_the_whole_batch(
    learner: Callable[..., LMLearner], pseudo: bool, steps: int
) -> None:
    """Also where a part holds other shares of gold and pseudo nodes than its batch."""
    targets = step_targets(pseudo=pseudo)
    parts, logs = [], []
    for grad_accumulation in (1, 2, 4):
        torch.manual_seed(0)
        lm = learner(batch_size=8, grad_accumulation=grad_accumulation, epochs=2, lr=1e-3, warmup_epochs=0)
        task, log = lm.fit(targets, "test")
        logs.append(log)
        parts.append(weights_of(task))
    assert [[row["step"] for row in log.history] for log in logs] == [[steps, 2 * steps]] * 3
    assert [log.history[0]["loss"] for log in logs] == pytest.approx([logs[0].history[0]["loss"]] * 3, rel=1e-4)
    for other in parts[1:]:
        for name, value in parts[0].items():
            # AdamW's first steps are of the size of the rate whatever the gradient's, so rounding may turn a sign.
            close = (other[name] - value).abs() < 1e-5
            assert close.float().mean() > 0.995, name


# ---- where it starts and what it keeps ----------------------------------------------------------------------------


def test_without_epochs_the_weights_are_exactly_those_of_the_start(
    learner: Callable[..., LMLearner], tiny_lm: Path
) -> None:
    """Those that it is given stay as they are when they are trained on, too."""
    trained = weights_of(learner().fit(step_targets(), "test").task)
    init = copy.deepcopy(trained)
    assert not same(weights_of(learner().fit(step_targets(), "test", init).task), trained)
    assert same(init, trained)
    task, log = learner(epochs=0).fit(step_targets(), "test", init)
    assert same(weights_of(task), trained) and log.history == []
    pretrained = load_text_encoder(EncoderConfig(str(tiny_lm))).state_dict()
    fresh = weights_of(learner(epochs=0).fit(step_targets(), "test").task)
    got = {name.removeprefix("encoder."): value for name, value in fresh.items() if "head" not in name}
    assert same(got, dict(pretrained))


def test_the_best_weights_by_validation_are_kept(learner: Callable[..., LMLearner]) -> None:
    seen: list[np.ndarray] = []
    scores = iter([0.1, 0.8, 0.3])

    def score(logits: np.ndarray) -> float:
        seen.append(logits)
        return next(scores)

    task, log = learner(score, epochs=3).fit(step_targets(), "test")
    assert log.best_epoch == 2
    logits, _ = predictions(task)
    np.testing.assert_allclose(logits[VALID], seen[1], rtol=1e-3, atol=1e-5)  # kept in half precision
    assert np.abs(seen[2] - seen[1]).max() > 1e-3


def test_dropout_acts_in_training_and_not_in_prediction(learner: Callable[..., LMLearner]) -> None:
    losses = []
    for seed in (0, 1):
        lm = learner(lr=0.0, dropout=0.5)
        torch.manual_seed(0)
        init = weights_of(lm.start())
        torch.manual_seed(seed)
        task, log = lm.fit(step_targets(), "test", init)
        losses.append(log.history[0]["loss"])
        first, second = predictions(task), predictions(task)
        np.testing.assert_array_equal(first[0], second[0])
    assert losses[0] != losses[1]


# ---- schedule -----------------------------------------------------------------------------------------------------


def test_the_rate_warms_up_in_epochs_and_falls_to_zero_at_the_end(learner: Callable[..., LMLearner]) -> None:
    # 20 nodes in batches of 5 are 4 steps an epoch; 0.5 epochs of warm-up are 2 of the 8 steps.
    lm = learner(batch_size=5, epochs=2, lr=0.3, warmup_epochs=0.5, evals_per_epoch=4)
    _, log = lm.fit(step_targets(ratio=1.5), "test")
    up, down = [0.1, 0.2], [0.3 * (1 - k / 6) for k in range(6)]
    assert [row["lr"] for row in log.history] == pytest.approx(up + down)
    assert [row["epoch"] for row in log.history] == [k / 4 for k in range(1, 9)]


def test_steps_are_counted_after_accumulation(learner: Callable[..., LMLearner]) -> None:
    lm = learner(batch_size=10, grad_accumulation=2, epochs=2, lr=0.3, warmup_epochs=0, evals_per_epoch=2)
    _, log = lm.fit(step_targets(ratio=1.5), "test")
    assert [row["step"] for row in log.history] == [1, 2, 3, 4]
    assert [row["lr"] for row in log.history] == pytest.approx([0.3, 0.225, 0.15, 0.075])


# ---- prediction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("infer_tokens", [1, 40, 8192])
def test_predictions_of_all_nodes_are_those_of_each_text_alone(
    learner: Callable[..., LMLearner], tokens: Watched, infer_tokens: int
) -> None:
    torch.manual_seed(0)
    task = learner(infer_tokens=infer_tokens).start()
    logits, embeddings = predictions(task)
    assert task.embedding_dim == 32
    for node in range(N):
        ids, mask = tokens.pad(np.array([node]))
        expected, embedding = task.model(torch.from_numpy(ids), torch.from_numpy(mask))
        np.testing.assert_allclose(logits[node], expected[0].detach(), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(embeddings[node], embedding[0].detach(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "longest", "length"), [("cuda", 20, 16), ("cuda", 16, 16), ("cuda", 14, 14), ("cpu", 20, 13)]
)
def test_a_batch_for_a_gpu_is_as_long_as_its_tensor_cores_want(kind: str, longest: int, length: int) -> None:
    store = TokenStore(np.arange(16 + longest, dtype=np.int32), np.array([0, 3, 16, 16 + longest]), pad_id=99)
    ids, mask = padded(store, np.array([0, 1]), torch.device(kind))
    assert ids.shape == mask.shape == (2, length)
    assert mask.sum(1).tolist() == [3, 13]
    assert ids[1, :13].tolist() == list(range(3, 16)) and set(ids[mask == 0].tolist()) == {99}


def test_texts_encoded_in_parts_come_in_the_order_of_nodes(learner: Callable[..., LMLearner], tokens: Watched) -> None:
    encoder, nodes = learner().start().model.encoder.eval(), np.random.default_rng(0).permutation(N)
    with torch.no_grad():
        found, *alone = (encode_in_parts(encoder, text_parts(tokens, part, 40)) for part in (nodes, *nodes[:, None]))
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_bfloat16_predicts_what_single_precision_does_up_to_rounding(learner: Callable[..., LMLearner]) -> None:
    results = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        task, _ = learner(hardware=Hardware("cpu", precision)).fit(step_targets(), "test")
        results.append(predictions(task)[0])
        assert {value.dtype for value in weights_of(task).values() if value.is_floating_point()} == {torch.float32}
    assert 0 < np.abs(results[0] - results[1]).max() < 0.1


class PlainAdamW(torch.optim.AdamW):
    """AdamW on dense gradients, clipped by torch."""

    def __init__(self, groups: list[dict], lr: float, weight_decay: float, clip: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay)
        self.clip = clip

    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], self.clip)
        super().step()


def test_the_lean_path_on_cpu_trains_as_the_plain_one(
    learner: Callable[..., LMLearner], tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sparse gradients, clipping inside the optimizer and our attention, against dense, `clip_grad_norm_` and eager."""

    def trained(attention: str, sparse: bool) -> LMTask:
        config = EncoderConfig(str(tiny_lm), dropout=0.0, attention_dropout=0.0, attention=attention)

        def build() -> TextClassifier:
            torch.manual_seed(0)
            encoder = load_text_encoder(config)
            encoder.backbone.get_input_embeddings().sparse = sparse  # type: ignore[operator, union-attr]
            return TextClassifier(encoder, LMHead(encoder.dim, C))

        return learner(epochs=3, clip=0.5, batch_size=8, build=build).fit(step_targets(), "test").task

    lean = weights_of(trained(CPU_ATTENTION, True))
    monkeypatch.setattr("glem_graphgym.em.e_step.ClippedAdamW", PlainAdamW)
    plain = weights_of(trained("eager", False))
    for name, value in plain.items():
        if not name.endswith("key.bias"):  # whose gradient is mere rounding, which Adam makes large
            torch.testing.assert_close(lean[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")
