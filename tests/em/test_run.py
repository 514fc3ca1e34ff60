"""`run_em` and its parts: with learners that take notes, then with the real ones, as a configuration builds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build import run as build_run
from glem_graphgym.config import load_config
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em import m_step
from glem_graphgym.em.fit import FitLog, Fitted, Validation, Weights
from glem_graphgym.em.journal import FinishedStage, Journal, Scores, stage_seed
from glem_graphgym.em.objective import objective_report
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.run import EMSettings, Run
from glem_graphgym.files import read_json
from glem_graphgym.modes import UNTIL_PLATEAU, run_cascade, run_em, run_gnn, run_lm
from tests.em.test_journal import Killed, content

# ==== learners that take notes =====================================================================================

N, C, H = 10, 3, 2
GOLD = Gold(np.array([0, 1, 2]), np.array([0, 1, 2]), C)
REST = np.arange(3, N)


@dataclass
class Note:
    """One `fit`: what it was given."""

    title: str
    targets: StepTargets
    init: Weights | None = None
    features: np.ndarray | None = None


class Notebook:
    """Stands for both learners. A stage's predictions depend on its name and on what it was given, and on nothing else.

    Args:
        scores: title -> validation score of the stage; 0 where not named.
        dies_in: title of the stage in which the process is killed.
    """

    settings = SimpleNamespace(lr=0.5)
    validation = Validation(np.zeros(400, dtype=np.int64), lambda logits: float(logits[0, 0]))
    embedding_dim = H
    graphs = SimpleNamespace()

    def __init__(self, scores: dict[str, float] | None = None, dies_in: str = "") -> None:
        self.scores, self.dies_in = scores or {}, dies_in
        self.notes: list[Note] = []
        self.model: nn.Module | None = None

    def note(self, note: Note) -> Fitted:
        self.notes.append(note)
        self.model = nn.Linear(2, 2)
        with torch.no_grad():
            start = 0.0 if note.init is None else float(note.init["weight"][0, 0])
            teacher = 0.0 if note.targets.pseudo is None else float(np.abs(note.targets.pseudo.logits).sum())
            features = 0.0 if note.features is None else float(note.features.sum())
            for parameter in self.model.parameters():
                parameter.mul_(0.001).add_(len(note.title) + start + teacher / 7 + features / 11)
        if note.title == self.dies_in:
            raise Killed
        return Fitted(self, FitLog(1, 0.5, 1, [{"lr": 0.25}]))

    def fill(self, array: np.ndarray, kind: int) -> None:
        """Random numbers; the first of the logits is the stage's score."""
        assert self.model is not None
        array[:] = torch.randn(array.shape).numpy() + next(self.model.parameters())[0, 0].item() % 1 + kind
        if kind == 0:
            array[0, 0] = self.scores.get(self.notes[-1].title, 0.0)

    def of(self, title: str) -> Note:
        (note,) = [note for note in self.notes if note.title == title]
        return note


class FakeLM(Notebook):
    def fit(self, targets: StepTargets, title: str, init: Weights | None = None, checkpoint: Any = None) -> Fitted:
        return self.note(Note(title, targets, init))

    def predict(self, logits: np.ndarray, embeddings: np.ndarray, *_: Any) -> None:
        self.fill(logits, 0)
        self.fill(embeddings, 5)


class FakeGNN(Notebook):
    data_parallel = False
    predicted = None

    def fit(self, targets: StepTargets, features: np.ndarray, title: str, checkpoint: Any = None) -> Fitted:
        return self.note(Note(title, targets, features=np.array(features)))

    def predict(self, logits: np.ndarray) -> None:
        self.fill(logits, 0)


def evaluate(logits: np.ndarray) -> Scores:
    return {split: {"accuracy": float(logits[0, 0])} for split in ("train", "valid", "test")}


def fake_run(
    run_dir: Path,
    settings: EMSettings | None = None,
    scores: dict[str, float] | None = None,
    dies_in: str = "",
    candidates: np.ndarray = REST,
) -> tuple[Run, Notebook]:
    """A run whose learners take notes; the LM on gold, the LM in E-steps and the GNN share one notebook."""
    lm_gold, lm_em, gnn = FakeLM(scores, dies_in), FakeLM(scores, dies_in), FakeGNN(scores, dies_in)
    lm_em.notes = gnn.notes = lm_gold.notes
    run = Run(
        num_nodes=N,
        gold=GOLD,
        unlabelled=REST,
        candidates=candidates,
        settings=settings or EMSettings(),
        journal=Journal(run_dir, 3, evaluate, log=lambda line: None),
        features=lambda embeddings, _: np.zeros((N, 1)) if embeddings is None else np.asarray(embeddings, np.float32),
        pseudo_accuracy=lambda pseudo: 0.125,
        lm_gold=lm_gold,  # type: ignore[arg-type]
        lm_em=lm_em,  # type: ignore[arg-type]
        gnn=gnn,  # type: ignore[arg-type]
    )
    return run, lm_gold


def named(run: Run, name: str) -> FinishedStage:
    (stage,) = [stage for stage in run.journal.finished if stage.key.name == name]
    return stage


def names(run: Run) -> list[str]:
    return [stage.key.name for stage in run.journal.finished]


# ---- who learns from whom -----------------------------------------------------------------------------------------

TEACHERS = {
    "lm_first": {"e_step_1": "gnn_gold", "m_step_1": "e_step_1", "e_step_2": "m_step_1", "m_step_2": "e_step_2"},
    "gnn_first": {"m_step_1": "lm_gold", "e_step_1": "m_step_1", "m_step_2": "e_step_1", "e_step_2": "m_step_2"},
}
EMBEDDINGS = {
    "lm_first": {"gnn_gold": "lm_gold", "m_step_1": "e_step_1", "m_step_2": "e_step_2"},
    "gnn_first": {"gnn_gold": "lm_gold", "m_step_1": "lm_gold", "m_step_2": "e_step_1"},
}


ORDERS = pytest.mark.parametrize("order", ["lm_first", "gnn_first"])


def teacher_of(book: Notebook, step: str) -> np.ndarray:
    pseudo = book.of(step).targets.pseudo
    assert pseudo is not None
    return pseudo.logits


@ORDERS
def test_each_step_learns_from_the_other_models_latest_predictions(tmp_path: Path, order: str) -> None:
    run, book = fake_run(tmp_path, EMSettings(order=order, iterations=2))
    run_em(run)
    assert names(run) == ["lm_gold", "gnn_gold", *TEACHERS[order]]
    assert [stage.key.index for stage in run.journal.finished] == list(range(6))
    methods = {"l": "LM", "g": "Cascade", "e": "GLEM-LM", "m": "GLEM-GNN"}
    assert all(stage.key.method == methods[stage.key.name[0]] for stage in run.journal.finished)
    assert [stage.key.em_iteration for stage in run.journal.finished] == [0, 0, 1, 1, 2, 2]
    for step, teacher in TEACHERS[order].items():
        np.testing.assert_array_equal(teacher_of(book, step), named(run, teacher).logits)
    assert book.of("lm_gold").targets.pseudo is None and book.of("gnn_gold").targets.pseudo is None
    record = read_json(named(run, "e_step_1").folder / "stage.json")
    assert (record["params"], record["lr"]) == (6, 0.5)
    for step, lm in EMBEDDINGS[order].items():
        np.testing.assert_array_equal(book.of(step).features, named(run, lm).embeddings)
        assert run.teacher_of(named(run, step)) is named(run, lm)


@ORDERS
def test_external_predictions_replace_the_first_steps_teacher_and_nothing_else(tmp_path: Path, order: str) -> None:
    external = np.random.default_rng(0).normal(size=(N, C))
    run, book = fake_run(tmp_path, EMSettings(order=order, iterations=2))
    run_em(replace(run, first_predictions=external))
    first, *others = TEACHERS[order].items()
    np.testing.assert_array_equal(teacher_of(book, first[0]), external)
    for step, teacher in others:
        np.testing.assert_array_equal(teacher_of(book, step), named(run, teacher).logits)
    for step, lm in EMBEDDINGS[order].items():
        np.testing.assert_array_equal(book.of(step).features, named(run, lm).embeddings)


@pytest.mark.parametrize(
    ("init", "first", "starts"),
    [
        ("pretrained", "pretrained", [None, None, None]),
        ("previous", "previous", ["lm_gold", "e_step_1", "e_step_2"]),
        ("gold", "gold", ["lm_gold", "lm_gold", "lm_gold"]),
        ("previous", "pretrained", [None, "e_step_1", "e_step_2"]),
        ("pretrained", "gold", ["lm_gold", None, None]),
    ],
)
@ORDERS
def test_each_e_step_starts_from_the_weights_asked_for(
    tmp_path: Path, order: str, init: str, first: str, starts: list[str | None]
) -> None:
    settings = EMSettings(order=order, iterations=3, lm_init=init, lm_init_first=first, keep_all_weights=True)
    run, book = fake_run(tmp_path, settings)
    run_em(run)
    for iteration, start in enumerate(starts, start=1):
        given = book.of(f"e_step_{iteration}").init
        if start is None:
            assert given is None
        else:
            assert given is not None
            expected = named(run, start).weights()
            assert all(torch.equal(given[name], expected[name]) for name in expected)
    assert book.of("lm_gold").init is None


def test_the_knobs_of_each_step_reach_its_targets(tmp_path: Path) -> None:
    knobs: dict[str, Any] = {"alpha": 0.9, "beta": 0.1, "temperature": 0.4, "confidence": 0.5, "lm_redraw": True}
    settings = EMSettings(lm_ratio=2.0, gnn_ratio=0.5, **knobs)
    run, book = fake_run(tmp_path, settings)
    run_em(run)
    e, m = book.of("e_step_1").targets, book.of("m_step_1").targets
    assert (e.weight, e.ratio, e.redraw) == (0.9, 2.0, True)
    assert (m.weight, m.ratio, m.redraw) == (0.1, 0.5, True)
    seeds = [note.targets.seed for note in book.notes]
    assert seeds == [stage_seed(3, index) for index in range(4)]
    for targets in (e, m):
        assert targets.gold is GOLD
        assert targets.pseudo is not None
        assert (targets.pseudo.temperature, targets.pseudo.hard) == (0.4, False)
        assert len(targets.pseudo.nodes) == 4  # half of 7, rounded up
    run, book = fake_run(tmp_path / "hard", EMSettings(hard=True), candidates=REST[::2])
    run_em(run)
    pseudo = book.of("e_step_1").targets.pseudo
    assert pseudo is not None
    assert pseudo.hard
    assert pseudo.nodes.tolist() == REST[::2].tolist()


def test_gold_among_the_candidates_is_refused_before_a_step_is_done(tmp_path: Path) -> None:
    run, book = fake_run(tmp_path, candidates=np.arange(2, N))
    with pytest.raises(ValueError, match="pseudo-labels never replace gold labels"):
        run_em(run)
    assert [note.title for note in book.notes] == ["lm_gold", "gnn_gold"]


# ---- the parts alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "stages"),
    [
        (run_lm, [("lm_gold", "LM", "LM")]),
        (run_gnn, [("gnn_gold", "GNN", "GNN")]),
        (run_cascade, [("lm_gold", "LM", "LM"), ("gnn_gold", "GNN", "Cascade")]),
    ],
)
def test_baselines_do_their_stages_on_gold_alone(
    tmp_path: Path, mode: Callable[[Run], None], stages: list[tuple[str, str, str]]
) -> None:
    run, book = fake_run(tmp_path)
    mode(run)
    assert [(s.key.name, s.key.model, s.key.method) for s in run.journal.finished] == stages
    assert all(note.targets.pseudo is None for note in book.notes)
    if mode is run_gnn:  # which gets no embeddings
        np.testing.assert_array_equal(book.of("gnn_gold").features, np.zeros((N, 1)))


def test_zero_iterations_are_the_cascade(tmp_path: Path) -> None:
    run, _ = fake_run(tmp_path / "em", EMSettings(iterations=0))
    run_em(run)
    cascade, _ = fake_run(tmp_path / "cascade")
    run_cascade(cascade)
    assert content(tmp_path / "em") == content(tmp_path / "cascade")


@ORDERS
def test_diagnostics_are_those_of_q_and_p_as_they_stand_after_the_step(tmp_path: Path, order: str) -> None:
    settings = EMSettings(order=order, alpha=0.7, beta=0.2, temperature=0.5)
    run, _ = fake_run(tmp_path, settings)
    run_em(run)
    q, p = ("e_step_1", "gnn_gold") if order == "lm_first" else ("lm_gold", "m_step_1")
    steps = {"lm_first": "e_step_1", "gnn_first": "m_step_1"}
    for step, (lm, gnn) in ((steps[order], (q, p)), (names(run)[-1], ("e_step_1", "m_step_1"))):
        expected = objective_report(
            named(run, lm).logits,
            named(run, gnn).logits,
            GOLD,
            REST,
            alpha=0.7,
            beta=0.2,
            pseudo_labels=lambda logits: PseudoLabels(logits, REST, GOLD, temperature=0.5),
        )
        got = read_json(named(run, step).folder / "stage.json")["diagnostics"]
        assert {key: got[key] for key in expected} == expected
        assert (got["pseudo_accuracy_valid"], got["pseudo_candidates"]) == (0.125, 7)
    assert read_json(named(run, "gnn_gold").folder / "stage.json")["diagnostics"] == {}


def test_a_student_that_falls_behind_and_labels_that_collapse_are_warned_of(tmp_path: Path) -> None:
    """With 400 validation nodes a teacher's score of 0.75 has a margin of two standard errors, 4.3 points."""
    settings = EMSettings(iterations=2, temperature=1e-3)
    scores = {"gnn_gold": 0.75, "e_step_1": 0.71, "m_step_1": 0.75, "e_step_2": 0.70, "m_step_2": 0.70}
    logs: list[str] = []
    run, _ = fake_run(tmp_path, settings, scores)
    one_class = np.zeros((N, C), dtype=np.float16)
    one_class[:, 1], one_class[0, 0] = 1, 0.75
    run = replace(run, first_predictions=one_class, journal=Journal(tmp_path, 3, evaluate, log=logs.append))
    run_em(run)
    notes = named(run, "e_step_1").diagnostics
    assert notes["gain_valid"] == pytest.approx(-0.04, abs=1e-3)
    assert notes["gain_margin"] == pytest.approx(2 * np.sqrt(0.75 * 0.25 / 400))
    assert notes["pseudo_classes"] == pytest.approx(1) and notes["gold_classes"] == pytest.approx(C)
    warned = [" ".join(line.split()) for line in logs if line.startswith("Warning")]
    assert [re.split("[:;(]", line)[1:3] for line in warned] == [
        [" E-step 1", " its pseudo-labels collapse into 1.0 classes, of 3.0 among gold labels "],
        [" E-step 2", " the language model is 5.0 points worse on validation than its teacher "],
    ]
    assert "glem.class_weights" in warned[0] and "glem.lm_pseudo_ratio" in warned[1]
    assert max(len(part) for line in logs for part in line.splitlines()) <= 80


# ---- until the plateau --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "iterations"),
    [
        # The first iteration is always done; the one that raises neither is the last.
        ({"lm_gold": 0.5, "gnn_gold": 0.5}, 1),
        ({"lm_gold": 0.5, "gnn_gold": 0.5, "e_step_1": 0.5, "m_step_1": 0.5}, 1),
        ({"lm_gold": 0.5, "gnn_gold": 0.5, "e_step_1": 0.625}, 2),
        ({"lm_gold": 0.5, "gnn_gold": 0.5, "m_step_1": 0.625}, 2),
        ({"e_step_1": 0.25, "m_step_2": 0.25, "e_step_3": 0.5}, 4),
        # A rise that does not reach the best before is none; one model's best is no bar for the other.
        ({"lm_gold": 0.75, "gnn_gold": 0.75, "e_step_1": 0.5, "e_step_2": 0.625}, 1),
        ({"gnn_gold": 0.75, "e_step_1": 0.25, "e_step_2": 0.5, "e_step_3": 0.5}, 3),
        ({f"e_step_{i}": i / 8 for i in range(1, 8)}, 5),
    ],
)
def test_em_goes_on_until_an_iteration_raises_neither_score(
    tmp_path: Path, scores: dict[str, float], iterations: int
) -> None:
    run, _ = fake_run(tmp_path, EMSettings(iterations=UNTIL_PLATEAU, max_iterations=5), scores)
    run_em(run)
    assert max(stage.key.em_iteration for stage in run.journal.finished) == iterations
    # Typed again, the command finds the same end.
    again, book = fake_run(tmp_path, EMSettings(iterations=UNTIL_PLATEAU, max_iterations=5), scores)
    run_em(again)
    assert names(again) == names(run)
    assert book.notes == []


# ---- weights and resuming -----------------------------------------------------------------------------------------


def kept(run_dir: Path) -> set[str]:
    return {path.parent.name[3:] for path in run_dir.rglob("weights.safetensors")}


@pytest.mark.parametrize(
    ("order", "scores", "expected"),
    [
        # Gold, the latest LM, the best of both methods, and the LM that embeds for the best GNN.
        ("lm_first", {"e_step_1": 0.5, "m_step_2": 0.5}, {"lm_gold", "e_step_1", "e_step_2", "m_step_2", "e_step_3"}),
        ("lm_first", {"e_step_3": 0.5, "m_step_3": 0.5}, {"lm_gold", "e_step_3", "m_step_3"}),
        ("lm_first", {"lm_gold": 1.0, "gnn_gold": 1.0}, {"lm_gold", "e_step_1", "m_step_1", "e_step_3"}),
        ("gnn_first", {"e_step_3": 0.5, "m_step_3": 0.5}, {"lm_gold", "e_step_2", "m_step_3", "e_step_3"}),
        ("gnn_first", {"e_step_1": 0.5, "m_step_1": 0.5}, {"lm_gold", "e_step_1", "m_step_1", "e_step_3"}),
    ],
)
def test_weights_that_nothing_can_ask_for_any_more_are_forgotten(
    tmp_path: Path, order: str, scores: dict[str, float], expected: set[str]
) -> None:
    run, _ = fake_run(tmp_path / "needed", EMSettings(order=order, iterations=3), scores)
    run_em(run)
    assert kept(tmp_path / "needed") == expected
    run, _ = fake_run(tmp_path / "all", EMSettings(order=order, iterations=3, keep_all_weights=True), scores)
    run_em(run)
    assert kept(tmp_path / "all") == set(names(run))


STAGES = ["lm_gold", "gnn_gold", "e_step_1", "m_step_1", "e_step_2", "m_step_2"]


@pytest.mark.parametrize(("order", "init"), [("lm_first", "previous"), ("lm_first", "gold"), ("gnn_first", "previous")])
def test_a_run_killed_in_any_stage_resumes_and_ends_with_the_same_bits(tmp_path: Path, order: str, init: str) -> None:
    settings = EMSettings(order=order, iterations=2, lm_init=init, lm_init_first=init)
    scores = {"e_step_2": 0.5, "m_step_1": 0.5}
    run_em(fake_run(tmp_path / "whole", settings, scores)[0])
    whole = content(tmp_path / "whole")
    for stage in STAGES:
        folder = tmp_path / stage
        run, book = fake_run(folder, settings, scores, dies_in=stage)
        with pytest.raises(Killed):
            run_em(run)
        before = names(run)
        run, book = fake_run(folder, settings, scores)
        run_em(run)
        assert [note.title for note in book.notes] == names(run)[len(before) :]
        assert content(folder) == whole, stage


@pytest.mark.parametrize("init", ["previous", "gold"])
def test_a_finished_run_can_go_on_for_more_iterations(tmp_path: Path, init: str) -> None:
    settings = EMSettings(iterations=3, lm_init=init, lm_init_first=init)
    run_em(fake_run(tmp_path / "at once", settings)[0])
    for iterations in (1, 2, 3):
        run_em(fake_run(tmp_path / "by turns", replace(settings, iterations=iterations))[0])
    assert content(tmp_path / "by turns") == content(tmp_path / "at once")


# ==== the real learners, as a configuration builds them ============================================================

SMALL: dict[str, Any] = {
    **{"accelerator": "cpu", "lm.precision": 32, "gnn.precision": 32},
    **{"dataset.synthetic_nodes": 80, "dataset.synthetic_classes": 3, "dataset.synthetic_degree": 4},
    **{"dataset.synthetic_words": 3, "dataset.tag_split": [0.3, 0.2, 0.4]},
    **{"lm.max_length": 12, "lm.epochs": 1, "lm.batch_size": 16, "lm.lr": 1e-3},
    **{"model.type": "glem_sage", "gnn.layers_mp": 2, "gnn.layers_post_mp": 1, "gnn.dim_inner": 16},
    **{"optim.optimizer": "adam", "optim.base_lr": 0.01, "optim.max_epoch": 4, "train.eval_period": 4},
    **{"glem.temperature": 1.0, "glem.em_iterations": 2, "glem.alpha": 0.6, "glem.beta": 0.4},
}


@pytest.fixture
def real_run(tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[TextGraph, Run]]:
    """Makes a run of the small synthetic graph; ``change`` is applied to the graph before anything sees it."""
    load = build_run.load_text_graph_of

    def make(
        name: str = "run", change: Callable[[TextGraph], TextGraph] = lambda graph: graph, **options: Any
    ) -> tuple[TextGraph, Run]:
        file = tmp_path / "config.yaml"
        file.write_text("dataset: {format: TAG, name: synthetic}\ntrain: {mode: glem}\n")
        given = {key.replace("__", "."): value for key, value in options.items()}
        values = {**SMALL, "lm.model": tiny_lm, "dataset.dir": tmp_path / "datasets", **given}
        load_config(cfg, file, [str(word) for pair in values.items() for word in pair])
        cfg.run_dir = str(tmp_path / name)
        monkeypatch.setattr(build_run, "load_text_graph_of", lambda cfg: change(load(cfg)))
        return build_run.prepare(cfg)

    return make


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_e_step_leaves_every_gnn_weight_and_the_m_step_every_lm_weight_as_it_was(
    real_run: Callable[..., tuple[TextGraph, Run]],
) -> None:
    _, run = real_run(glem__lm_init="previous", glem__label_input=True, glem__keep_weights="all")
    first = q = run.fit_lm_on_gold()
    p = run.fit_gnn_on_gold(q)
    for iteration in (1, 2):
        gnn, files = p.weights(), content(p.folder)
        lm = q.weights()
        q = run.e_step(iteration, p.logits, q, first)
        assert content(p.folder) == files
        assert not same(q.weights(), lm)
        files = content(q.folder)
        p = run.m_step(iteration, q, q.logits)
        assert content(q.folder) == files
        assert not same(p.weights(), gnn)


# ---- labels of validation and test nodes --------------------------------------------------------------------------


def permute(*parts: str) -> Callable[[TextGraph], TextGraph]:
    """The graph with the labels of these splits, and those outside of all splits, turned round."""

    def change(graph: TextGraph) -> TextGraph:
        label = graph.label.copy()
        for part in parts:
            label[graph.split[part]] = (label[graph.split[part]] + 1) % graph.num_classes
        if "test" in parts:
            outside = np.setdiff1d(np.arange(graph.num_nodes), np.concatenate(list(graph.split.values())))
            assert len(outside) > 0
            label[outside] = -1
        return replace(graph, label=label)

    return change


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"glem__order": "lm_first", "glem__label_input": True, "glem__confidence": 0.7},
        {"glem__order": "gnn_first", "glem__lm_init": "previous", "glem__pseudo_nodes": "valid_test"},
        {"glem__order": "lm_first", "glem__setting": "inductive", "glem__targets": "hard"},
    ],
)
def test_labels_of_validation_and_test_nodes_change_no_loss_prediction_or_weight(
    real_run: Callable[..., tuple[TextGraph, Run]], tmp_path: Path, options: dict[str, Any]
) -> None:
    """With one evaluation per stage, so that validation has nothing to choose: its one lawful use."""
    runs: dict[str, dict[str, Any]] = {}
    for name, parts in {"as is": (), "permuted": ("valid", "test"), "train": ("train",)}.items():
        run_em(real_run(name, permute(*parts), **options, glem__keep_weights="all")[1])
        runs[name] = content(tmp_path / name / "stages")
    usual, permuted, train = runs.values()
    assert len(usual) == 6 * 4 + 3  # embeddings of the LM's stages
    for file, value in usual.items():
        if file.endswith((".npy", ".safetensors")):
            assert permuted[file] == value and train[file] != value, file
        elif file.endswith("stage.json"):
            scores, others = value["scores"], permuted[file]["scores"]
            assert scores["train"] == others["train"]
            assert scores["valid"] != others["valid"]  # the permutation did take place
            assert scores["test"]["loss"] != others["test"]["loss"]
        else:
            losses, others = ([row["loss"] for row in json.loads(text)] for text in (value, permuted[file]))
            assert losses == others


def test_equal_seeds_give_equal_bits_and_a_killed_run_too(
    real_run: Callable[..., tuple[TextGraph, Run]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"glem__em_iterations": 1, "glem__label_input": True, "lm__dropout": 0.2}
    run_em(real_run("whole", **options)[1])
    torch.randn(3)
    _, run = real_run("killed", **options)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(m_step.GNNTask, "predict", die)
        with pytest.raises(Killed):
            run_em(run)
    assert names(run) == ["lm_gold"]
    run_em(real_run("killed", **options)[1])
    assert content(tmp_path / "killed" / "stages") == content(tmp_path / "whole" / "stages")
    run_em(real_run("other seed", **options, seed=1)[1])
    file = "02_e_step_1/logits.npy"
    other = content(tmp_path / "other seed" / "stages")
    assert other[file] != content(tmp_path / "whole" / "stages")[file]
