"""Joint co-training of text encoder and GNN: its step by hand, what it may see, and runs of it from a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import train_dict

from glem_graphgym.build import graph as loader
from glem_graphgym.build.prediction import predict_run
from glem_graphgym.build.run import prepare
from glem_graphgym.config import ConfigError, load_config
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em import joint_step
from glem_graphgym.em.joint_step import JointInput, JointLearner, JointTask
from glem_graphgym.em.pseudo_labels import Gold, StepTargets
from glem_graphgym.em.sampled_step import StoredSampledLearner
from glem_graphgym.files import read_json
from glem_graphgym.report.stats import finish_run
from tests.changed_graphs import with_other_test_nodes, with_permuted_labels

NODES, CLASSES, H = 90, 3, 32  # H: the tiny model's width

Configure = Callable[..., None]


@pytest.fixture
def configure(tmp_path: Path, tiny_lm: Path) -> Configure:
    """Loads the configuration of a small joint run under ``tmp_path``, with options as on the command line."""
    file = tmp_path / "joint.yaml"
    file.write_text(
        f"""
num_threads: 1
dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets, tag_split: [0.3, 0.2, 0.4],
  synthetic_nodes: {NODES}, synthetic_classes: {CLASSES}, synthetic_degree: 4.0, synthetic_words: 4,
  synthetic_text_signal: 0.9, synthetic_structure_signal: 0.9}}
lm: {{model: {tiny_lm}, max_length: 16, precision: 32, epochs: 2, batch_size: 8, lr: 4.0e-3, micro_batch_tokens: 64}}
model: {{type: glem_sage}}
gnn: {{dim_inner: 8, layers_mp: 2, layers_post_mp: 1, dropout: 0.2, fan_out: [3, 2]}}
optim: {{optimizer: adamw, scheduler: none, base_lr: 0.01}}
train: {{mode: glem_joint}}
"""
    )

    def load(*options: object, run: str = "run") -> None:
        load_config(cfg, file, [str(option) for option in options])
        cfg.run_dir = str(tmp_path / run)
        Path(cfg.run_dir).mkdir(exist_ok=True)

    return load


STILL = ("lm.dropout", 0.0, "lm.attention_dropout", 0.0, "gnn.dropout", 0.0, "gnn.norm", "layer")  # nothing is random
ALL = ("gnn.fan_out", "[-1, -1]")


def learner_of(configure: Configure, *options: object) -> tuple[JointLearner, StepTargets, np.ndarray]:
    """A learner with the targets and further features that a run would give it."""
    configure(*options)
    _, run = prepare(cfg)
    assert run.joint is not None
    return run.joint, StepTargets(run.gold, seed=5), run.features(None)


def started(configure: Configure, *options: object) -> JointTask:
    learner, targets, features = learner_of(configure, *options)
    torch.manual_seed(0)
    return learner.start(targets, features)


def around(task: JointTask, nodes: np.ndarray) -> JointInput:
    return task.around(nodes, np.random.default_rng(0))


def gradients(task: JointTask, loss: Tensor) -> dict[str, Tensor]:
    named = dict(task.model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


def train_and_finish() -> Path:
    train_dict[cfg.train.mode]()
    finish_run(Path(cfg.run_dir))
    return Path(cfg.run_dir)


def stage_of(run: Path) -> dict[str, Any]:
    return read_json(run / "stages" / "00_joint" / "stage.json")


def weights_of(run: Path) -> dict[str, Tensor]:
    return load_file(run / "stages" / "00_joint" / "weights.safetensors")


# ---- a step by hand -----------------------------------------------------------------------------------------------


def full_logits(task: JointTask) -> Tensor:
    """(N, C), with gradient: every text encoded at once, the GNN on the whole graph."""
    model: Any = task.model
    ids, mask = (torch.from_numpy(array) for array in task.tokens.pad(np.arange(NODES)))
    embeddings = model.encoder(ids, mask)
    normed = F.layer_norm(embeddings, (H,), model.norm.weight, model.norm.bias)
    return model.gnn(torch.cat([normed, task.inputs.x], 1), task.learner.graphs.predict)


@pytest.mark.parametrize("network", ["glem_sage", "glem_gcn", "glem_gat"])
def test_with_all_neighbours_a_step_is_that_of_the_whole_graph(network: str, configure: Configure) -> None:
    task = started(configure, *STILL, *ALL, "model.type", network)
    gold = task.targets.gold
    labels = torch.from_numpy(gold.labels)
    found = task.logits(around(task, gold.nodes))
    full = full_logits(task)[gold.nodes]
    torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-5)
    ours, theirs = (gradients(task, F.cross_entropy(logits, labels)) for logits in (found, full))
    assert ours.keys() == theirs.keys()
    assert any(name.startswith("encoder") for name in ours)
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-5)


def test_gradients_reach_the_texts_of_neighbours(configure: Configure) -> None:
    task = started(configure, *STILL)
    node, tokens = task.targets.gold.nodes[:1], task.tokens
    hood = around(task, node)
    own = set(tokens.pad(node)[0].ravel().tolist())
    others = set(tokens.pad(hood.nodes[1:])[0].ravel().tolist()) - own
    assert others
    found = gradients(task, task.logits(hood).sum())
    (words,) = [grad for name, grad in found.items() if name.endswith("word_embeddings.weight")]
    assert (words[sorted(others)].abs().sum(1) > 0).all()


def test_parts_of_texts_and_their_recomputation_change_nothing(configure: Configure) -> None:
    """Dropouts included: a part that is computed anew draws the same ones."""
    results = []
    for options in (("lm.gradient_checkpointing", False), ("lm.gradient_checkpointing", True)):
        task = started(configure, *options)
        assert task.settings.recompute == options[1]
        hood = around(task, task.targets.gold.nodes[:6])
        torch.manual_seed(1)
        logits = task.logits(hood)
        results.append((logits, gradients(task, logits.square().sum())))
    (logits, grads), (again, grads_again) = results
    assert torch.equal(logits, again)
    assert all(torch.equal(grad, grads_again[name]) for name, grad in grads.items())
    whole, parts = (started(configure, *STILL, "lm.micro_batch_tokens", most) for most in (100_000, 20))
    nodes = np.random.default_rng(0).permutation(NODES)[:40]
    found, expected = (task.logits(around(task, nodes)) for task in (parts, whole))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_accumulated_parts_are_one_batch(configure: Configure) -> None:
    """With all neighbours and nothing random the parts' losses add up to the batch's, and so do gradients."""
    trained = []
    for grad_accumulation in (1, 4):
        options = ("lm.grad_accumulation", grad_accumulation, "lm.epochs", 1)
        learner, targets, features = learner_of(configure, *STILL, *ALL, *options)
        torch.manual_seed(0)
        task, log = learner.fit(targets, features, "test")
        trained.append(dict(task.model.named_parameters()))
        assert task.costs(log)["steps"] == -(-len(targets.gold.nodes) // 8)
    for name, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][name], rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize(("frozen", "free"), [("lm.lr", "gnn"), ("optim.base_lr", "encoder")])
def test_each_part_has_a_learning_rate_of_its_own(frozen: str, free: str, configure: Configure) -> None:
    learner, targets, features = learner_of(configure, frozen, 1e-30)
    torch.manual_seed(0)
    fresh = learner.build(0, CLASSES).state_dict()
    torch.manual_seed(0)
    named = learner.fit(targets, features, "test").task.model.named_parameters()
    changed = {name.split(".")[0] for name, value in named if (value - fresh[name]).abs().max() > 1e-20}
    assert free in changed
    assert changed <= ({"gnn", "norm"} if free == "gnn" else {"encoder"})


# ---- what may be seen ---------------------------------------------------------------------------------------------


def test_no_node_sees_its_own_label_and_all_see_those_of_others(configure: Configure) -> None:
    task = started(configure, *STILL, *ALL, "glem.label_input", True)
    gold, weights = task.targets.gold, task.model.state_dict()
    seeds = gold.nodes[:5]

    def logits_with(changed: int | None) -> Tensor:
        labels = gold.labels.copy()
        if changed is not None:
            place = int(np.flatnonzero(gold.nodes == changed)[0])
            labels[place] = (labels[place] + 1) % CLASSES
        other = StepTargets(Gold(gold.nodes, labels, CLASSES))
        with torch.no_grad():
            changed_task = task.learner.start(other, np.zeros((NODES, 0)), weights)
            return changed_task.logits(around(changed_task, seeds))

    usual = logits_with(None)
    assert all(torch.equal(logits_with(int(seed)), usual) for seed in seeds)
    near = set(around(task, seeds).nodes.tolist()) & set(gold.nodes[5:].tolist())
    assert near
    assert all(not torch.equal(logits_with(node), usual) for node in near)


def watched(monkeypatch: pytest.MonkeyPatch, training: bool) -> list[np.ndarray]:
    """Nodes of the neighbourhoods that go through a model from now on, in training or in validation."""
    seen: list[np.ndarray] = []
    usual = JointTask.logits

    def logits(task: JointTask, hood: JointInput) -> Tensor:
        if task.training == training:
            seen.append(hood.nodes)
        return usual(task, hood)

    monkeypatch.setattr(JointTask, "logits", logits)
    return seen


def test_validation_sees_the_same_neighbourhoods_every_time(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, targets, features = learner_of(configure, "lm.epochs", 3)
    seen, valid = watched(monkeypatch, training=False), learner.validation.nodes
    learner.fit(targets, features, "test")
    first, second, third = (nodes.tolist() for nodes in seen)
    assert first == second == third
    assert sorted(first[: len(valid)]) == valid.tolist()


def test_many_validation_nodes_are_taken_some_at_a_time(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = []
    for most in (5, 8192):
        monkeypatch.setattr(joint_step, "VALIDATED_AT_ONCE", most)
        learner, targets, features = learner_of(configure, *ALL, "lm.epochs", 1)
        torch.manual_seed(0)
        scores.append(learner.fit(targets, features, "test").log.best_score)
    assert scores[0] == scores[1]


def two_runs(
    change: Callable[[TextGraph], TextGraph], configure: Configure, monkeypatch: pytest.MonkeyPatch, *options: object
) -> list[dict[str, Tensor]]:
    """The weights of a run and of one on the changed graph; one validation each, so that selection has no choice."""
    usual = loader.GRAPHS["synthetic"]
    weights = []
    for name, make in {"usual": usual, "other": lambda cfg: change(usual(cfg))}.items():
        monkeypatch.setitem(loader.GRAPHS, "synthetic", make)
        configure("lm.epochs", 1, *options, run=name)
        weights.append(weights_of(train_and_finish()))
    return weights


def test_labels_outside_of_training_reach_no_weight(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = two_runs(with_permuted_labels, configure, monkeypatch, "glem.label_input", True)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("setting", ["inductive", "structure_free", "transductive"])
def test_test_nodes_change_no_weight_unless_training_sees_them(
    setting: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_runs(with_other_test_nodes, configure, monkeypatch, "glem.setting", setting)
    assert all(torch.equal(value, other[name]) for name, value in one.items()) == (setting != "transductive")


# ---- prediction ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["text", "text+static", "raw+text"])
def test_prediction_sees_all_neighbours_of_all_nodes(features: str, configure: Configure) -> None:
    """Whatever the fan-outs of training: logits and embeddings are those of the whole graph, by hand."""
    options = ("glem.node_features", features, "dataset.synthetic_features", 4, "gnn.fan_out", "[1, 1]")
    learner, targets, further = learner_of(configure, *options)
    task, _ = learner.fit(targets, further, "test")
    assert task.embedding_dim == H
    assert further.shape == (NODES, {"text": 0, "text+static": H, "raw+text": 4}[features])
    logits, embeddings = np.zeros((NODES, CLASSES), np.float16), np.zeros((NODES, H), np.float16)
    task.predict(logits, embeddings)
    with torch.no_grad():
        ids, mask = (torch.from_numpy(array) for array in task.tokens.pad(np.arange(NODES)))
        np.testing.assert_allclose(embeddings, task.model.eval().encoder(ids, mask), atol=3e-3)
        np.testing.assert_allclose(logits, full_logits(task), atol=2e-2)


def test_without_input_norm_the_gnn_sees_embeddings_as_they_are(configure: Configure) -> None:
    embeddings, model = torch.randn(4, H), started(configure, "gnn.input_norm", "none").model
    assert torch.equal(model.node_features(embeddings, torch.zeros(4, 0)), embeddings)
    model = started(configure).model
    torch.testing.assert_close(model.node_features(embeddings, torch.zeros(4, 0)).mean(1), torch.zeros(4))


# ---- within a budget of memory, and of the nodes that are needed -----------------------------------------------------

BUDGET = ("glem.memory_budget_gb", 9e-5)  # a step fits into it, the graph and its features do not
WIDE = ("gnn.dim_inner", 64, "lm.batch_size", 4, "gnn.fan_out", "[2, 1]")


@pytest.mark.slow
@pytest.mark.parametrize("label_input", [False, True])
@pytest.mark.parametrize("features", ["text", "text+static"])
def test_a_run_within_a_budget_ends_as_one_in_memory(label_input: bool, features: str, configure: Configure) -> None:
    options = ("glem.label_input", label_input, "glem.node_features", features, *WIDE)
    configure(*options, run="memory")
    memory = train_and_finish()
    wide = ("glem.memory_budget_gb", 1.6e-4)  # more features, more weights
    configure(*options, *(BUDGET if features == "text" else wide), run="budget")
    _, run = prepare(cfg)
    assert run.joint is not None and run.joint.layerwise is not None
    budget = train_and_finish()
    for name, value in weights_of(memory).items():
        torch.testing.assert_close(weights_of(budget)[name], value)
    one, other = (np.load(run / "stages/00_joint/logits.npy").astype(float) for run in (memory, budget))
    np.testing.assert_allclose(other, one, atol=4e-3)
    assert not (budget / "working").exists()
    predict_run(cfg)
    assert read_json(budget / "predictions.json")["Joint"] == stage_of(budget)["scores"]


@pytest.mark.parametrize("budget", [(), BUDGET])
def test_only_texts_that_scored_nodes_see_are_encoded(budget: tuple[object, ...], configure: Configure) -> None:
    options = ("dataset.tag_split", "[0.1, 0.04, 0.04]", "lm.epochs", 1, *WIDE, *budget)
    configure(*options, run="all")
    every = train_and_finish()
    configure(*options, "glem.encode_nodes", "needed", run="needed")
    graph, run = prepare(cfg)
    assert run.encoded is not None and len(run.encoded) < NODES
    needed = train_and_finish()
    assert stage_of(needed)["scores"] == stage_of(every)["scores"]
    scored = np.unique(np.concatenate(list(graph.split.values())))
    arrays = {
        name: [np.load(run / f"stages/00_joint/{name}.npy") for run in (every, needed)]
        for name in ("logits", "embeddings")
    }
    for nodes, (one, other) in ((scored, arrays["logits"]), (run.encoded, arrays["embeddings"])):
        assert np.array_equal(one[nodes], other[nodes]) and np.abs(other[nodes]).sum(1).all()
        assert not np.delete(other, nodes, 0).any()
    predict_run(cfg)
    assert len(pd.read_csv(needed / "predictions.csv.gz")) == len(scored)


# ---- a run --------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_one_row_with_its_costs(configure: Configure) -> None:
    configure("lm.epochs", 6)
    run = train_and_finish()
    record = stage_of(run)
    assert (record["model"], record["method"], record["name"], record["lr"]) == ("GNN", "Joint", "joint", 4e-3)
    # Of 36 nodes chance gets a third right, two standard deviations above it half; other draws gave 0.58 at least.
    assert record["scores"]["test"]["accuracy"] > 0.5
    (row,) = read_json(run / "summary.json")
    assert (row["method"], row["params"]) == ("Joint", record["params"])
    encoder = sum(value.numel() for name, value in weights_of(run).items() if name.startswith("encoder."))
    assert encoder < record["params"] < encoder + 5000
    notes = record["diagnostics"]
    assert notes["steps"] == 6 * -(-27 // 8)
    # A node has at most 3 neighbours, and these at most 2 each.
    assert 7 < notes["texts_per_step"] < 7 * (1 + 3 + 6)
    assert notes["texts_per_step"] < notes["most_texts_at_once"] <= 70
    assert 4 * notes["texts_per_step"] < notes["tokens_per_step"] < 16 * notes["texts_per_step"]
    assert 0 < notes["train_seconds_per_epoch"] * 6 < record["seconds"]
    val = [json.loads(line) for line in (run / "val" / "stats.json").read_text().splitlines()]
    assert val[0]["gnn_accuracy"] == val[0]["accuracy"] > 0
    assert np.load(run / "stages/00_joint/embeddings.npy").shape == (NODES, H)


def test_texts_per_step_are_counted_right(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, targets, features = learner_of(configure, "lm.grad_accumulation", 2)
    seen = watched(monkeypatch, training=True)
    task, log = learner.fit(targets, features, "test")
    texts, costs = [len(nodes) for nodes in seen], task.costs(log)
    assert costs["steps"] * 2 == len(texts) == 2 * 2 * 4
    assert costs["texts_per_step"] == pytest.approx(2 * np.mean(texts), abs=0.06)
    assert costs["most_texts_at_once"] == max(texts)


def test_a_finished_stage_is_not_done_again_and_predictions_repeat(configure: Configure) -> None:
    configure("glem.label_input", True, "glem.correct_and_smooth", True)
    run = train_and_finish()
    assert [row["method"] for row in read_json(run / "summary.json")] == ["Joint", "Joint+C&S"]
    before = (run / "stages/00_joint/stage.json").stat().st_mtime_ns
    train_and_finish()
    assert (run / "stages/00_joint/stage.json").stat().st_mtime_ns == before
    predict_run(cfg)
    assert read_json(run / "predictions.json")["Joint"] == stage_of(run)["scores"]
    table = pd.read_csv(run / "predictions.csv.gz")
    assert list(table.columns) == ["node", "Joint", "Joint probability"]
    assert len(table) == NODES


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            MemoryError,
            r"a step on the \d+ texts \(\d+ tokens\) around 7 ",
        ),
        (RuntimeError("can't allocate memory"), MemoryError, r"around 7 nodes did not fit"),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_a_step_that_does_not_fit_into_memory_says_how_large_it_was(
    error: Exception, expected: type, message: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, targets, features = learner_of(configure)

    def fails(*_: object) -> Tensor:
        raise error

    monkeypatch.setattr(JointTask, "logits", fails)
    with pytest.raises(expected, match=message):
        learner.fit(targets, features, "test")


# ---- settings that contradict -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["gnn.fan_out", "[]"], r"glem_joint .*gnn\.fan_out is \[\]; expected one number for each layer"),
        (["gnn.fan_out", "[5]"], r"gnn\.fan_out is \[5\], but gnn\.layers_mp is 2"),
        (["gnn.fan_out", "[5, 0]"], r"gnn\.fan_out is \[5, 0\], expected at least 1, or -1"),
        (["gnn.fan_out", "[5, 2.5]"], r"gnn\.fan_out is \[5, 2\.5\], expected a list of a whole number each"),
        (["glem.node_features", "static"], r"glem\.node_features is 'static', but train\.mode glem_joint"),
        (["optim.optimizer", "adam"], r"optim\.optimizer is 'adam' and optim\.scheduler 'none'.*expected 'adamw'"),
        (["optim.scheduler", "cos"], r"optim\.scheduler 'cos'"),
        (["model.type", "glem_revgat", "gnn.symmetric_norm", True], r"gnn\.symmetric_norm True"),
    ],
)
def test_contradictions_are_named(options: list[object], message: str, configure: Configure) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(*options)


@pytest.mark.parametrize("mode", ["glem_joint", "glem_cascade"])
def test_networks_on_hop_features_are_refused(mode: str, configure: Configure) -> None:
    configure("model.type", "glem_gamlp", "train.mode", mode)
    with pytest.raises(ConfigError, match=r"model\.type glem_gamlp"):
        train_and_finish()
    assert not list(Path(cfg.run_dir).glob("stages/*"))


def test_a_sampled_m_step_within_a_budget_ends_as_one_in_memory(configure: Configure) -> None:
    options = ("train.mode", "glem", "gnn.batch_size", 4, "optim.max_epoch", 4, "glem.label_input", True, *WIDE)
    runs = []
    for name, budget in (("memory", ()), ("budget", BUDGET)):
        configure(*options, *budget, run=name)
        _, run = prepare(cfg)
        assert isinstance(run.gnn, StoredSampledLearner) == bool(budget)
        runs.append(train_and_finish())
    rows = read_json(runs[0] / "stages/03_m_step_1/history.json")
    assert rows[-1]["step"] > rows[-1]["epoch"] == 4  # several steps per epoch
    for stage in ("01_gnn_gold", "03_m_step_1"):
        one, other = (np.load(run / f"stages/{stage}/logits.npy").astype(float) for run in runs)
        np.testing.assert_allclose(other, one, atol=2e-2)
    predict_run(cfg)
    scores = read_json(runs[1] / "predictions.json")
    assert scores["GLEM-GNN"] == read_json(runs[1] / "stages/03_m_step_1/stage.json")["scores"]
