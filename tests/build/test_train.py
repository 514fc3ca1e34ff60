"""The train modes' adapters: what training may see, what settings mean, whom a run folder belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import train_dict

from glem_graphgym.build import graph as loader
from glem_graphgym.build.graph import metrics_of
from glem_graphgym.build.learners import graph_views_of, lm_learners, smoother
from glem_graphgym.build.prediction import predict_run
from glem_graphgym.build.run import em_settings, prepare, pseudo_accuracy, scores_of, unlabelled_nodes
from glem_graphgym.build.run_folder import RunError, decisive_settings
from glem_graphgym.config import KEYS, ConfigError
from glem_graphgym.data.text_graph import DataError, TextGraph, Texts, csr_from_edges
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.report.stats import finish_run
from tests.changed_graphs import with_other_test_nodes, with_permuted_labels

NODES, CLASSES = 100, 3
PAIRS = {"train": [0, 1], "valid": [2, 3], "test": [4, 5]}  # a node of each class of `path_graph`


def path_graph() -> TextGraph:
    """0 - 1 - 2 - 3 - 4 - 5 - 6 with train {0, 3}, valid {1}, test {2, 5}; 4 and 6 are in no split, 6 has no label."""
    nodes = np.arange(7)
    rowptr, col = csr_from_edges(nodes[:-1], nodes[1:], 7)
    return TextGraph(
        name="path",
        texts=Texts.of([f"text {node}" for node in nodes]),
        rowptr=rowptr,
        col=col,
        label=np.array([0, 1, 0, 1, 0, 1, -1]),
        split={"train": np.array([0, 3]), "valid": np.array([1]), "test": np.array([2, 5])},
        class_names=["a", "b"],
    )


@pytest.fixture
def configure(configure_run: Callable[..., Path]) -> Callable[..., Path]:
    return configure_run


@pytest.fixture
def two_runs(
    configure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[TextGraph], TextGraph], Sequence[object]], list[Path]]:
    """Folders of a run on the usual graph and of the same run on a changed one."""
    usual = loader.GRAPHS["synthetic"]

    def train(change: Callable[[TextGraph], TextGraph], options: Sequence[object]) -> list[Path]:
        folders = []
        for name, make in {"usual": usual, "other": lambda cfg: change(usual(cfg))}.items():
            monkeypatch.setitem(loader.GRAPHS, "synthetic", make)
            configure(*options, run=name)
            folders.append(train_and_finish())
        monkeypatch.setitem(loader.GRAPHS, "synthetic", usual)
        return folders

    return train


def train_and_finish() -> Path:
    train_dict[cfg.train.mode]()
    finish_run(Path(cfg.run_dir))
    return Path(cfg.run_dir)


# ---- who may get a pseudo-label -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "pseudo_nodes", "unlabelled", "candidates"),
    [
        ("transductive", "all", [1, 2, 4, 5, 6], [1, 2, 4, 5, 6]),
        ("transductive", "valid_test", [1, 2, 4, 5, 6], [1, 2, 5]),
        ("inductive", "all", [1, 4, 6], [1, 4, 6]),
        ("inductive", "valid_test", [1, 4, 6], [1]),
        ("structure_free", "all", [1, 4, 6], [1, 4, 6]),
    ],
)
def test_candidates(setting: str, pseudo_nodes: str, unlabelled: list[int], candidates: list[int]) -> None:
    cfg.glem.setting, cfg.glem.pseudo_nodes = setting, pseudo_nodes
    found = unlabelled_nodes(cfg, path_graph())
    assert [nodes.tolist() for nodes in found] == [unlabelled, candidates]


# ---- what the GNN sees of the edges -------------------------------------------------------------------------------


def edges(adjacency: Any, nodes: Sequence[int] = range(7)) -> set[tuple[int, int]]:
    """Undirected edges between ``nodes``, those of the adjacency in its order, seen in both of its forms."""
    assert adjacency.num_nodes == len(nodes)
    directed = {(int(a), int(b)) for a, b in adjacency.edge_index().T}
    rowptr, col = adjacency.rowptr, adjacency.col
    csr = {(row, int(to)) for row in range(len(nodes)) for to in col[rowptr[row] : rowptr[row + 1]]}
    assert csr == directed == {(b, a) for a, b in directed}
    return {(int(nodes[a]), int(nodes[b])) for a, b in directed if a < b}


@pytest.mark.parametrize(
    ("setting", "train", "predict"),
    [
        ("transductive", {(n, n + 1) for n in range(6)}, {(n, n + 1) for n in range(6)}),
        ("inductive", {(0, 1), (3, 4)}, {(n, n + 1) for n in range(6)}),
        ("structure_free", {(0, 1), (3, 4)}, {(0, 1), (3, 4)}),
    ],
)
def test_structures(setting: str, train: set[tuple[int, int]], predict: set[tuple[int, int]]) -> None:
    cfg.glem.setting = setting
    graphs = graph_views_of(cfg, path_graph())
    seen = range(7) if graphs.observed_nodes is None else graphs.observed_nodes
    assert (graphs.observed_nodes is None) == (setting == "transductive")
    assert set(range(7)) - set(seen) == (set() if setting == "transductive" else set(path_graph().split["test"]))
    assert edges(graphs.train, seen) == train
    assert edges(graphs.predict) == predict


def trained_weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted(run.glob("stages/[0-9]*/weights.safetensors"))
    return {f"{file.parent.name} {name}": value for file in files for name, value in load_file(file).items()}


SMOOTH = ["glem.correct_and_smooth", True]
HOPS = ["model.type", "glem_gamlp", "gnn.hops", 2, "glem.label_input", True, "gnn.batch_size", 20]


def changed_by_other_test_nodes(
    options: Sequence[object], two_runs: Callable[..., list[Path]]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two runs, the second with other texts, edges and labels of test nodes.

    Returns:
        int64, the nodes outside of the test split that are predicted; stage -> bool (N,), those of which it predicts
        something else.
    """
    one, other = map(logits_of, two_runs(with_other_test_nodes, options))
    assert list(one) == list(other)
    split = loader.GRAPHS["synthetic"](cfg).split
    seen = np.union1d(split["train"], split["valid"])
    if cfg.glem.encode_nodes == "all":
        seen = np.setdiff1d(np.arange(NODES), split["test"])
    return seen, {stage: (one[stage] != other[stage]).any(1) for stage in one}


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch's own optimizers ask for the pretended GPU")
def test_on_a_machine_with_a_gpu_a_run_on_the_cpu_leaves_it_alone(
    configure: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def used(*_: Any) -> None:
        raise AssertionError("the GPU was asked for its memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("reset_peak_memory_stats", "max_memory_allocated", "get_device_properties", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, used)
    configure(
        "train.mode", "glem_gnn", "glem.node_features", "raw", "dataset.synthetic_features", 6, "accelerator", "cpu"
    )
    train_dict[cfg.train.mode]()
    (record,) = (Path(cfg.run_dir) / "stages").glob("*/stage.json")
    assert json.loads(record.read_text())["peak_memory_mb"] > 50


ALONE = ["train.mode", "glem_gnn", "glem.node_features", "static"]
INDUCTIVE = {
    "structure-free": [*SMOOTH, *ALONE, "gnn.norm", "batch", "glem.label_input", True],
    "structure-free layer norm": [*SMOOTH, *ALONE, "gnn.norm", "layer", "glem.label_input", True],
    "structure-free glem": [*SMOOTH, "gnn.norm", "none", "glem.label_input", True],
    "structure-free hops": [*SMOOTH, *ALONE, *HOPS],
    "glem": [*SMOOTH, "glem.ensemble", True, "gnn.norm", "batch", "glem.label_input", True],
    "joint": [*SMOOTH, "train.mode", "glem_joint", "gnn.fan_out", "[2, 2]"],
    "sampled": [*SMOOTH, *ALONE, "gnn.fan_out", "[2, 2]"],
    "distilled": [*SMOOTH, *ALONE, "gnn.distillation", 0.5, "gnn.norm", "layer"],
    "revgat": [*SMOOTH, *ALONE, "model.type", "glem_revgat", "gnn.dim_inner", 4],
    "hops": [*SMOOTH, *ALONE, *HOPS],
    "hops on disk": [*SMOOTH, *ALONE, *HOPS, "glem.memory_budget_gb", 0.01],
    "self-training": [*ALONE, *HOPS, "gnn.rlu_rounds", 2, "gnn.rlu_threshold", 0.34],
    "consistency": [*ALONE, *HOPS, "gnn.scr_weight", 0.5, "gnn.scr_threshold", 0.34],
    "needed": ["glem.encode_nodes", "needed", *ALONE, *HOPS],
    "needed, sampled": ["glem.encode_nodes", "needed", *ALONE, "gnn.fan_out", "[2, 2]"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param([*options, "glem.setting", "structure_free" if "free" in name else "inductive"], id=name)
        for name, options in INDUCTIVE.items()
    ],
)
def test_test_nodes_change_no_weight_and_no_prediction_of_another_node(
    options: list[object], two_runs: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """In the inductive settings, bit for bit in every stage: neither training nor what follows without training."""
    if "needed" in options:
        options = [*options, "gnn.input_norm", "standardise"]  # over rows that must not depend on what is encoded
    seen, changed = changed_by_other_test_nodes([*options, "glem.keep_weights", "all"], two_runs)
    one, other = (trained_weights(tmp_path / name) for name in ("usual", "other"))
    assert list(one) == list(other)
    trained = [stage for stage in changed if not stage.endswith(("correct_and_smooth", "ensemble"))]
    assert sorted({name.split()[0] for name in one}) == trained
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert {stage: seen[changed[stage][seen]].tolist() for stage in changed} == {stage: [] for stage in changed}
    assert all(stage.any() for stage in changed.values())  # of test nodes, whose texts differ
    assert ("glem.correct_and_smooth" in options) == any("correct_and_smooth" in stage for stage in changed)


def test_transductive_smoothing_does_see_the_edges_of_test_nodes(two_runs: Callable[..., list[Path]]) -> None:
    """The test above can fail: here of smoothing alone, since raw features see no edges."""
    options = [*SMOOTH, "train.mode", "glem_gnn", "glem.node_features", "raw", "model.type", "glem_mlp"]
    options += ["dataset.synthetic_features", 4, "gnn.input_norm", "none"]
    seen, changed = changed_by_other_test_nodes(options, two_runs)
    assert [changed[stage][seen].any() for stage in ("00_gnn_gold", "01_correct_and_smooth")] == [False, True]


def test_smoothing_attaches_test_nodes_to_what_training_sees(configure: Callable[..., None]) -> None:
    """Inductive: of test nodes as on the whole graph, of the others as on the graph without test nodes."""
    configure(*SMOOTH)
    graph, rng = path_graph(), np.random.default_rng(0)
    logits = rng.normal(size=(7, 2)).astype(np.float32)
    gold = Gold(graph.split["train"], graph.label[graph.split["train"]], 2)
    found = {}
    for setting in ("transductive", "inductive", "structure_free"):
        cfg.glem.setting = setting
        smooth = smoother(cfg, graph_views_of(cfg, graph), gold)
        assert smooth is not None
        found[setting] = smooth(logits)
    test, alone = graph.split["test"], {6}  # 6 has no neighbour but 5
    seen = np.setdiff1d(np.arange(7), test)
    assert np.array_equal(found["inductive"][test], found["transductive"][test])
    assert np.array_equal(found["inductive"][seen], found["structure_free"][seen])
    assert (found["inductive"][seen] != found["transductive"][seen]).any()
    isolated = [*test, *alone]  # where no edge is left a prediction keeps its class
    assert np.array_equal(found["structure_free"][isolated].argmax(-1), logits[isolated].argmax(-1))


def test_transductive_training_does_see_test_nodes(two_runs: Callable[..., list[Path]]) -> None:
    """The test of inductive settings can fail: here every stage but the LM's on gold has other weights."""
    one, other = map(trained_weights, two_runs(with_other_test_nodes, ["glem.keep_weights", "all"]))
    changed = {name.split()[0] for name in one if not torch.equal(one[name], other[name])}
    assert changed == {"01_gnn_gold", "02_e_step_1", "03_m_step_1"}


def test_labels_outside_of_training_reach_no_weight(two_runs: Callable[..., list[Path]]) -> None:
    """With one validation of each step, at its end, even selection has no choice. Nor do they reach a prediction."""
    once = [*SMOOTH, "train.eval_period", 6, "glem.keep_weights", "all", "glem.label_input", True]
    usual, other = two_runs(with_permuted_labels, once)
    weights, logits = trained_weights(other), logits_of(other)
    assert all(torch.equal(value, weights[name]) for name, value in trained_weights(usual).items())
    assert len(logits) == 5  # with Correct & Smooth
    assert all(np.array_equal(value, logits[stage]) for stage, value in logits_of(usual).items())


# ---- a language model that cannot do what is asked of it ----------------------------------------------------------


@pytest.mark.parametrize(
    "options", [(), ("train.mode", "glem_joint", "gnn.fan_out", "[2, 2]")], ids=["glem", "glem_joint"]
)
def test_texts_longer_than_the_model_takes_are_refused_before_anything_is_trained(
    configure: Callable[..., None], options: tuple[object, ...]
) -> None:
    configure("lm.max_length", 512, "dataset.synthetic_words", 60, *options)
    message = r"the longest text, of 1\d\d tokens: .*; set lm.max_length, now 512, to what"
    with pytest.raises(ConfigError, match=message):
        train_dict[cfg.train.mode]()
    assert not (Path(cfg.run_dir) / "stages").exists()


@pytest.mark.parametrize(
    ("norm", "parts", "at_most"), [("batch", 8, 7), ("layer", 16, 15), ("batch", 4, None), ("layer", 8, None)]
)
def test_parts_of_a_joint_step_have_nodes_enough(
    configure: Callable[..., None], norm: str, parts: int, at_most: int | None
) -> None:
    """30 training nodes in two batches of 15; a part of one node has no variance for batch norm."""
    options = ("train.mode", "glem_joint", "gnn.fan_out", "[2, 2]", "gnn.norm", norm, "lm.epochs", 1)
    configure(*options, "lm.batch_size", 16, "lm.grad_accumulation", parts)
    if at_most is None:
        train_dict[cfg.train.mode]()
        return
    message = rf"lm.grad_accumulation is {parts}, but a batch has 15 .* at most {at_most} parts"
    with pytest.raises(ConfigError, match=message):
        train_dict[cfg.train.mode]()
    assert not (Path(cfg.run_dir) / "stages").exists()


def test_settings_of_the_e_step_alone_are_tried_before_anything_is_trained(
    configure: Callable[..., None], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, XLNetConfig, XLNetModel

    configure()
    tokenizer = AutoTokenizer.from_pretrained(cfg.lm.model)
    tokenizer.save_pretrained(tmp_path / "xlnet")
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64)
    XLNetModel(config).save_pretrained(tmp_path / "xlnet")
    configure("lm.model", tmp_path / "xlnet", "e_step.attention_dropout", 0.1)
    with pytest.raises(ValueError, match=r"^e_step.attention_dropout is 0.1, but model type 'xlnet' has no such"):
        train_dict[cfg.train.mode]()
    assert not (Path(cfg.run_dir) / "stages").exists()


@pytest.mark.parametrize("init", ["previous", "gold"])
def test_stages_with_adapters_keep_these_and_the_head_alone(init: str, configure: Callable[..., Path]) -> None:
    pytest.importorskip("peft", reason="the extra 'lora' is missing")
    options = ["lm.lora_rank", 2, "lm.lora_variant", "dora", "lm.prompt", "a:\n{text} b", "glem.lm_init", init]
    configure(*options, "glem.em_iterations", 2, "glem.keep_weights", "all")
    run = train_and_finish()
    of_lm = [name for name in trained_weights(run) if "encoder." in name or "head." in name]
    assert len(of_lm) == 3 * (12 * 3 + 2)  # of three stages
    assert all("lora_" in name or " head." in name for name in of_lm)
    records = [json.loads(file.read_text()) for file in run.glob("stages/[0-9]*/stage.json")]
    assert predict_run(cfg)["GLEM-LM"] in [each["scores"] for each in records if each["method"] == "GLEM-LM"]


# ---- settings -----------------------------------------------------------------------------------------------------


def learners(configure: Callable[..., None], *options: object) -> tuple[LMLearner, LMLearner]:
    configure(*options)
    graph = loader.load_text_graph_of(cfg)
    nobody = Validation(np.empty(0, dtype=np.int64), lambda logits: 0.0)
    return lm_learners(cfg, loader.open_tokens(cfg, graph), CLASSES, nobody)


def test_the_e_step_inherits_from_lm(configure: Callable[..., None]) -> None:
    gold, em = learners(configure, "lm.lr", "3e-4", "lm.epochs", 7, "lm.decay", "cosine", "lm.grad_accumulation", 2)
    assert gold.settings == em.settings
    assert (gold.settings.lr, gold.settings.epochs, gold.settings.decay) == (3e-4, 7, "cosine")
    assert (gold.settings.batch_size, gold.settings.grad_accumulation) == (8, 2)


OVERRIDES = {"epochs": 2, "lr": 1e-4, "batch_size": 4, "warmup_epochs": 0.0, "label_smoothing": 0.3}


@pytest.mark.parametrize("key", OVERRIDES)
def test_the_e_steps_own_settings_override(key: str, configure: Callable[..., None]) -> None:
    gold, em = learners(configure, f"e_step.{key}", OVERRIDES[key])
    assert getattr(em.settings, key) == OVERRIDES[key]
    assert replace(em.settings, **{key: getattr(gold.settings, key)}) == gold.settings
    assert getattr(gold.settings, key) == cfg.lm[key] != OVERRIDES[key]


def test_dropouts_of_both_steps(configure: Callable[..., None]) -> None:
    gold, em = learners(
        configure,
        *("lm.dropout", 0.25, "lm.head_dropout", 0.5),
        *("e_step.dropout", 0.0, "e_step.attention_dropout", 0.75, "e_step.head_dropout", 0.0),
    )
    found = []
    for learner in (gold, em):
        model = learner.build()
        config: Any = model.encoder.backbone.config
        head: Any = model.head
        found.append((config.hidden_dropout_prob, config.attention_probs_dropout_prob, head.dropout.p))
    # -1 keeps what the pretrained model has: 0.1 for BERT.
    assert found == [(0.25, 0.1, 0.5), (0.0, 0.75, 0.0)]


def test_em_settings_are_the_configurations() -> None:
    cfg.glem.order, cfg.glem.targets, cfg.glem.lm_init = "gnn_first", "hard", "previous"
    cfg.glem.lm_pseudo_ratio, cfg.glem.gnn_pseudo_ratio, cfg.glem.confidence = 0.5, 2.0, 0.9
    cfg.glem.lm_redraw, cfg.glem.keep_weights = "epoch", "all"
    found = em_settings(cfg)
    assert (found.order, found.hard) == ("gnn_first", True)
    assert (found.lm_init, found.lm_init_first) == ("previous", "previous")
    assert (found.lm_ratio, found.gnn_ratio, found.confidence) == (0.5, 2.0, 0.9)
    assert (found.lm_redraw, found.keep_all_weights) == (True, True)
    cfg.glem.lm_init_first = "gold"
    assert (em_settings(cfg).lm_init, em_settings(cfg).lm_init_first) == ("previous", "gold")


WARM_UP = ["optim.scheduler", "linear_warmup", "optim.warmup_epochs", 2, "glem.node_features", "static"]


@pytest.mark.parametrize(
    ("options", "rates"),
    [(["train.mode", "glem_cascade"], [4e-3, 0.03]), ([*WARM_UP, "train.mode", "glem_gnn"], [0.03])],
)
def test_the_learning_rate_of_a_stage_is_its_base_rate(
    options: list[object], rates: list[float], configure: Callable[..., None]
) -> None:
    """Not that of the epoch in which validation came first."""
    configure("optim.base_lr", 0.03, *options)
    files = sorted(train_and_finish().glob("stages/*/stage.json"))
    assert [json.loads(file.read_text())["lr"] for file in files] == rates


HOPS = ["model.type", "glem_gamlp", "gnn.hops", 2, "gnn.scr_weight", 1.0, "gnn.scr_threshold", 0.99]
JOINT = ["train.mode", "glem_joint", "gnn.fan_out", "[3, 3]"]


@pytest.mark.parametrize(
    ("learner", "options"),
    [("lm_em", []), ("gnn", []), ("gnn", ["gnn.fan_out", "[3, 3]"]), ("gnn", HOPS), ("joint", JOINT)],
)
def test_class_weights_are_in_the_loss_of_every_learner(
    learner: str, options: list[object], configure: Callable[..., None]
) -> None:
    """Weights of 2 double it."""
    configure("glem.class_weights", "balanced", "lm.label_smoothing", 0.1, *options)
    _, run = prepare(cfg)
    torch.testing.assert_close(run.gold.class_weights, run.gold.balanced().class_weights)
    logits = np.random.default_rng(0).normal(size=(NODES, CLASSES)).astype(np.float32)
    losses = []
    for weights in (None, torch.full((CLASSES,), 2.0)):
        gold = replace(run.gold, class_weights=weights)
        pseudo = None if learner == "joint" else PseudoLabels(logits, run.candidates, gold)
        targets = StepTargets(gold, pseudo, 0.5, 1.0)
        torch.manual_seed(0)
        task = getattr(run, learner).start(targets, *([logits] if learner != "lm_em" else [])).eval()
        losses.append(task(next(iter(task.batches(0).prepared(torch.device("cpu"))))).item())
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


# ---- scores -------------------------------------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    logits = np.zeros((7, 2), dtype=np.float16)
    logits[[0, 2, 5]] = [3, 0]
    scores = scores_of(path_graph(), logits, metrics_of(path_graph()))
    # Train: node 0 right, 3 undecided and taken for class 0. Test: 2 right, 5 wrong.
    assert {part: values["accuracy"] for part, values in scores.items()} == {"train": 0.5, "valid": 0, "test": 0.5}
    right, wrong = np.log1p(np.exp(-3)), np.log1p(np.exp(3))
    assert scores["train"]["loss"] == pytest.approx((right + np.log(2)) / 2, rel=1e-5)
    assert scores["valid"]["loss"] == pytest.approx(np.log(2), rel=1e-5)
    assert scores["test"]["loss"] == pytest.approx((right + wrong) / 2, rel=1e-5)
    assert all(type(value) is float for values in scores.values() for value in values.values())
    # All are taken for class 0, of two classes (in test and train) or of one (valid: 1) that are true.
    f1 = {part: values["macro_f1"] for part, values in scores.items()}
    assert f1 == pytest.approx({"train": (2 / 3) / 2, "valid": 0, "test": (2 / 3) / 2})
    balanced = {part: values["balanced_accuracy"] for part, values in scores.items()}
    assert balanced == {"train": 0.5, "valid": 0, "test": 0.5}
    assert "auc" not in scores["train"]  # validation has one class alone


def test_roc_auc_is_the_share_of_pairs_in_the_right_order() -> None:
    graph = replace(path_graph(), split={part: np.array(nodes) for part, nodes in PAIRS.items()})
    logits = np.array([[0, 1], [0, 2], [0, 3], [5, 6], [0, 0], [0, 0], [0, 0]], dtype=np.float16)
    scores = scores_of(graph, logits, metrics_of(graph))
    assert [scores[part]["auc"] for part in PAIRS] == [1.0, 0.0, 0.5]


def test_a_metric_that_a_graph_does_not_have_is_refused_before_any_work(configure: Callable[..., None]) -> None:
    configure("metric_best", "auc")
    with pytest.raises(ConfigError, match=r"'auc', which needs two .* 3 classes; expected one of: accuracy, macro_f1"):
        prepare(cfg)


def test_the_metric_selects_weights_and_stages_and_keeps_its_run_apart(configure: Callable[..., Path]) -> None:
    run_dir = configure("metric_best", "balanced_accuracy", "train.mode", "glem_cascade")
    graph, run = prepare(cfg)
    labels = graph.label[graph.split["valid"]]
    logits = np.eye(CLASSES, dtype=np.float32)[np.full(len(labels), np.bincount(labels).argmax())]
    assert run.gnn.validation.score(logits) == run.lm_gold.validation.score(logits) == pytest.approx(1 / CLASSES)
    assert run.journal.metric == json.loads((run_dir / "run.json").read_text())["metric"] == "balanced_accuracy"
    train_and_finish()
    record = json.loads(next(run_dir.glob("stages/01_*/stage.json")).read_text())
    history = json.loads(next(run_dir.glob("stages/01_*/history.json")).read_text())
    best = max(row["valid"] for row in history)
    assert record["scores"]["valid"]["balanced_accuracy"] == pytest.approx(best, abs=0.05)
    summary = json.loads((run_dir / "summary.json").read_text())[1]
    assert summary["valid"] == record["scores"]["valid"]["balanced_accuracy"]
    assert summary["test_macro_f1"] == record["scores"]["test"]["macro_f1"]
    configure("train.mode", "glem_cascade")
    with pytest.raises(RunError, match="metric_best was 'balanced_accuracy', now 'accuracy'"):
        prepare(cfg)


def test_accuracy_of_pseudo_labels_on_validation_nodes() -> None:
    graph = path_graph()
    gold = Gold(graph.split["train"], graph.label[graph.split["train"]], 2)
    logits = np.tile(np.array([[0.0, 1.0]], dtype=np.float32), (7, 1))
    assert pseudo_accuracy(graph, PseudoLabels(logits, np.array([1, 2]), gold)) == 1.0
    assert pseudo_accuracy(graph, PseudoLabels(-logits, np.array([1, 2]), gold)) == 0.0
    assert pseudo_accuracy(graph, PseudoLabels(logits, np.array([2, 5]), gold)) == 0.0


# ---- whom a run folder belongs to ---------------------------------------------------------------------------------


def lm_run(configure: Callable[..., None], *options: object) -> Path:
    configure("train.mode", "glem_lm", *options)
    return train_and_finish()


OTHER_RUNS: list[tuple[list[object], str]] = [
    (["lm.lr", "1e-5"], r"another configuration: lm\.lr was 0\.004, now 1e-05\. Choose another out_dir"),
    (["lm.epochs", 2, "seed", 5], r"lm\.epochs was 1, now 2; seed was 0, now 5"),
    (["dataset.tag_seed", 4], r"another version of synthetic \(fingerprint [0-9a-f]{16}, now [0-9a-f]{16}\)"),
    (["train.mode", "glem_cascade"], r"a run of train\.mode glem_lm, now glem_cascade"),
]


def test_a_run_folder_names_its_run_and_refuses_others(configure: Callable[..., None], tmp_path: Path) -> None:
    run = lm_run(configure)
    before = (run / "run.json").read_text()
    record = json.loads(before)
    graph = loader.load_text_graph_of(cfg)
    assert record["fingerprint"] == graph.fingerprint()
    assert (record["dataset"], record["mode"], record["metric"]) == ("synthetic", "glem_lm", "accuracy")
    assert (record["origin"], record["facts"]) == (graph.origin, graph.facts())
    assert record["finished"] is True
    for options, message in OTHER_RUNS:
        with pytest.raises(RunError, match=message):
            lm_run(configure, *options)
        assert (run / "run.json").read_text() == before
    stage = (run / "stages/00_lm_gold/stage.json").stat().st_mtime_ns
    elsewhere = ["out_dir", "x", "print", "file", "round", 2, "num_workers", 1, "dataset.dir", tmp_path / "other"]
    lm_run(configure, *elsewhere, "tensorboard_agg", False, "glem.em_iterations", 5, "glem.keep_weights", "all")
    assert (run / "stages/00_lm_gold/stage.json").stat().st_mtime_ns == stage


def test_a_folder_without_a_stage_is_free(configure: Callable[..., None], tmp_path: Path) -> None:
    configure("train.mode", "glem_lm")
    prepare(cfg)
    (Path(cfg.run_dir) / "stages" / ".00_lm_gold.part").mkdir(parents=True)
    run = lm_run(configure, "lm.lr", "1e-4")
    assert json.loads((run / "run.json").read_text())["settings"]["lm.lr"] == 1e-4


def test_decisive_settings_are_flat_and_whole() -> None:
    cfg.params = 3
    flat = decisive_settings(cfg)
    assert flat["glem.alpha"] == 0.8
    assert flat["optim.base_lr"] == 0.01
    assert flat["seed"] == 0
    assert not {"params", "run_dir", "share", "out_dir", "train.mode"} & set(flat)
    names = "checkpoint_minutes em_iterations em_max_iterations ensemble keep_weights memory_budget_gb share_lm_gold "
    names += "search_trials track"
    indifferent = {"dataset.tag_source", "lm.infer_tokens", "lm.strategy", *(f"glem.{name}" for name in names.split())}
    assert {key.name for key in KEYS} - set(flat) - {"train.mode"} == indifferent
    json.dumps(flat)


# ---- first predictions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(NODES, CLASSES + 1), (NODES - 1, CLASSES), (NODES,)])
def test_first_predictions_of_a_wrong_shape(
    shape: tuple[int, ...], configure: Callable[..., None], tmp_path: Path
) -> None:
    np.save(tmp_path / "first.npy", np.zeros(shape, dtype=np.float32))
    configure("glem.first_predictions", tmp_path / "first.npy")
    with pytest.raises(DataError) as error:
        train_and_finish()
    assert "glem.first_predictions" in str(error.value)
    assert f"shape {shape}, expected ({NODES}, {CLASSES}), in node order" in str(error.value)
    assert not list(Path(cfg.run_dir).glob("stages/*"))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["lm_first", "gnn_first"])
def test_first_predictions_stand_in_for_the_first_teacher(
    order: str, configure: Callable[..., None], tmp_path: Path
) -> None:
    """Equal to that teacher's own logits they change nothing; unequal, the first step and all after it."""
    usual = ["glem.order", order, "glem.em_iterations", 2]
    configure(*usual, run="usual")
    expected = logits_of(train_and_finish())
    teacher = "01_gnn_gold" if order == "lm_first" else "00_lm_gold"
    np.save(tmp_path / "first.npy", expected[teacher])
    configure(*usual, "glem.first_predictions", tmp_path / "first.npy", run="same")
    same = logits_of(train_and_finish())
    assert all(np.array_equal(logits, same[stage]) for stage, logits in expected.items())
    np.save(tmp_path / "first.npy", -expected[teacher])
    configure(*usual, "glem.first_predictions", tmp_path / "first.npy", run="other")
    other = logits_of(train_and_finish())
    changed = [stage for stage in expected if not np.array_equal(expected[stage], other[stage])]
    assert changed == [stage for stage in expected if stage >= "02"]


def logits_of(run: Path) -> dict[str, np.ndarray]:
    return {file.parent.name: np.load(file) for file in sorted(run.glob("stages/[0-9]*/logits.npy"))}


# ---- the pieces are put together ----------------------------------------------------------------------------------


def test_prepare_makes_what_a_mode_needs(configure: Callable[..., None]) -> None:
    configure("glem.setting", "inductive")
    graph, run = prepare(cfg)
    assert run.num_nodes == NODES
    assert np.array_equal(run.gold.nodes, graph.split["train"])
    assert np.array_equal(run.gold.labels, graph.label[graph.split["train"]])
    assert not np.isin(run.candidates, [*graph.split["test"], *graph.split["train"]]).any()
    assert run.lm_gold is not None and run.lm_em is not None and run.gnn is not None
    assert np.array_equal(run.gnn.validation.nodes, graph.split["valid"])
    right = np.eye(CLASSES)[graph.label[graph.split["valid"]]]
    assert run.gnn.validation.score(right) == run.lm_em.validation.score(right) == 1.0
    assert run.gnn.validation.score(-right) == 0.0


def test_a_gnn_on_raw_features_needs_no_language_model(configure: Callable[..., None], tmp_path: Path) -> None:
    options = ["glem.node_features", "raw", "dataset.synthetic_features", 4, "lm.model", tmp_path / "nowhere"]
    configure("train.mode", "glem_gnn", *options)
    run = train_and_finish()
    record = json.loads((run / "stages/00_gnn_gold/stage.json").read_text())
    assert record["params"] == (2 * 4 * 8 + 8) + 2 * 8 + (2 * 8 * 3 + 3)
    assert record["method"] == "GNN"


def test_a_diverging_run_says_what_to_do(configure: Callable[..., None]) -> None:
    optim = "optim.base_lr 1000 optim.weight_decay 1e12 optim.optimizer sgd"
    configure(*optim.split(), "train.mode", "glem_cascade", "gnn.norm", "none")
    with pytest.raises(FloatingPointError, match=r"gnn_gold: the training loss is .* lower the learning rate"):
        train_and_finish()
    assert [path.name for path in Path(cfg.run_dir).glob("stages/[0-9]*")] == ["00_lm_gold"]


@pytest.mark.parametrize(
    ("mode", "stage"),
    [("glem_gnn", "00_gnn_gold"), ("glem_cascade", "01_gnn_gold"), ("glem_joint", "00_joint")],
)
def test_static_embeddings_count_in_the_seconds_of_the_first_stage_that_sees_them(
    configure: Callable[..., None], tmp_path: Path, mode: str, stage: str
) -> None:
    """Of every run, whichever has made them."""
    features = "static" if mode == "glem_gnn" else "text+static"
    more = ("gnn.fan_out", "[2, 2]") if mode == "glem_joint" else ()
    for run in ("first", "second"):
        configure("train.mode", mode, "glem.node_features", features, *more, run=run)
        train_and_finish()
        (noted,) = (tmp_path / "datasets" / "static").glob("*/seconds.json")
        taken = json.loads((tmp_path / run / "stages" / stage / "stage.json").read_text())["seconds"]
        assert taken >= json.loads(noted.read_text())
        noted.write_text("1000.0")
    assert taken > 1000
