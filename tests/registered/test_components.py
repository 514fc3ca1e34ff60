"""What GraphGym finds by name: networks, text encoder, head, loss, optimizer, schedules, metric."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.graphgym import register
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.loader import create_loader
from torch_geometric.graphgym.loss import compute_loss
from torch_geometric.graphgym.model_builder import create_model
from torch_geometric.graphgym.optim import create_optimizer, create_scheduler

from glem_graphgym.build.gnn import GNN, build_gnn, gnn_optimizer
from glem_graphgym.build.graph import load_text_graph_of, open_tokens
from glem_graphgym.build.language_model import hardware_for
from glem_graphgym.config import load_config
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.propagation import Adjacency
from glem_graphgym.registered.loader import TextGraphDataset
from glem_graphgym.registered.loss import pseudo_label_loss
from glem_graphgym.registered.metrics import accuracy_of, ogb_accuracy_metric

NODES, DIM, CLASSES = 60, 6, 3


def test_every_name_is_registered() -> None:
    modes = ("glem", "glem_lm", "glem_gnn", "glem_cascade", "glem_joint")
    for registry, names in (
        (register.network_dict, (*FULL_BATCH, *ON_HOPS, "glem_lm")),
        (register.node_encoder_dict, ("glem_text",)),
        (register.head_dict, ("glem_lm_head",)),
        (register.loss_dict, ("glem_pseudo_label",)),
        (register.optimizer_dict, ("adamw", "rmsprop")),
        (register.scheduler_dict, ("linear_warmup", "cosine_warmup", "constant_warmup")),
        (register.metric_dict, ("ogb_accuracy",)),
        (register.loader_dict, ("glem_text_graph",)),
        (register.train_dict, modes),
    ):
        assert set(names) <= set(registry)


# ---- GNNs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph() -> TextGraph:
    sizes = {"num_nodes": NODES, "num_classes": CLASSES, "avg_degree": 4, "feature_dim": DIM}
    return make_synthetic(**sizes, shares=(0.3, 0.3, 0.4), text_signal=0.3, structure_signal=0.8)


def batch_of(graph: TextGraph, **more: Any) -> Batch:
    """A full batch as GraphGym's loader makes it."""
    data = TextGraphDataset(graph, np.array(graph.features))[0]
    data.y = torch.from_numpy(graph.label)
    batch = Batch.from_data_list([data])
    for name, value in more.items():
        batch[name] = value
    return batch


def small_gnn() -> None:
    cfg.gnn.dim_inner, cfg.gnn.layers_mp, cfg.gnn.layers_post_mp, cfg.gnn.head = 8, 2, 1, "node"


FULL_BATCH = ["glem_gcn", "glem_sage", "glem_mlp", "glem_gat", "glem_revgat"]
ON_HOPS = ["glem_sgc", "glem_sign", "glem_sagn", "glem_gamlp"]


@pytest.mark.parametrize("name", ["glem_revgat", "glem_gamlp"])
def test_input_norm_in_the_network(name: str) -> None:
    small_gnn()
    sizes = {}
    for cfg.gnn.input_norm in ("none", "batch"):
        sizes[cfg.gnn.input_norm] = sum(p.numel() for p in register.network_dict[name](DIM, CLASSES).parameters())
    assert sizes["batch"] - sizes["none"] == 2 * DIM  # weight and bias of the norm


@pytest.mark.parametrize("name", [*FULL_BATCH, *ON_HOPS])
def test_networks_read_out_the_split_or_all(name: str, graph: TextGraph) -> None:
    small_gnn()
    torch.manual_seed(0)
    network = register.network_dict[name](DIM, CLASSES).eval()
    everyone, labels = network(batch_of(graph))
    assert everyone.shape == (NODES, CLASSES)
    assert torch.equal(labels, torch.from_numpy(graph.label))
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        pred, true = network(batch_of(graph, split=split))
        assert torch.equal(pred, everyone[graph.split[part]])
        assert torch.equal(true, torch.from_numpy(graph.label[graph.split[part]]))
    without_labels = batch_of(graph)
    del without_labels["y"]
    pred, true = network(without_labels)
    assert torch.equal(pred, everyone) and true is None
    if name in FULL_BATCH:
        given = Adjacency(torch.from_numpy(graph.rowptr), torch.from_numpy(graph.col))
        assert torch.equal(network(batch_of(graph, adjacency=given))[0], everyone)


def test_gnn_keys_reach_the_network(graph: TextGraph) -> None:
    small_gnn()
    cfg.gnn.layers_mp, cfg.gnn.norm, cfg.gnn.dropout = 3, "layer", 0.25
    cfg.gnn.input_dropout, cfg.gnn.residual = 0.5, True
    net = register.network_dict["glem_sage"](DIM, CLASSES).net
    assert len(net.layers) == 3
    assert [type(activation.norm) for activation in net.activations] == [nn.LayerNorm] * 2
    assert [activation.norm.normalized_shape for activation in net.activations] == [(8,)] * 2
    assert [activation.dropout for activation in net.activations] == [0.25] * 2
    assert (net.input_dropout, net.residual) == (0.5, True)


DESIGN_SPACE = ["gcnconv", "sageconv", "gatconv", "generalconv"]


def adjacency_of(graph: TextGraph) -> Adjacency:
    return Adjacency.from_edge_index(torch.from_numpy(graph.edge_index()), graph.num_nodes)


@pytest.mark.parametrize("name", [*FULL_BATCH, *DESIGN_SPACE])
def test_any_network_learns_as_the_gnn_of_the_m_step(name: str, graph: TextGraph) -> None:
    small_gnn()
    cfg.model.type, cfg.gnn.layer_type = (name, "generalconv") if name.startswith("glem") else ("gnn", name)
    cfg.gnn.att_heads = 3
    cfg.optim.base_lr, cfg.optim.scheduler = 0.02, "none"
    valid, labels = graph.split["valid"], graph.label[graph.split["valid"]]

    adjacency = adjacency_of(graph)
    validation = Validation(valid, lambda logits: float((logits.argmax(-1) == labels).mean()))
    learner = GNNLearner(
        functools.partial(build_gnn, cfg),
        GraphViews(adjacency, adjacency),
        gnn_optimizer(cfg),
        GNNSettings(epochs=25),
        validation,
        Hardware(),
    )
    gold = Gold(graph.split["train"], graph.label[graph.split["train"]], CLASSES)
    teacher = np.eye(CLASSES)[np.random.default_rng(0).permutation(graph.label)].astype(np.float16)
    pseudo = PseudoLabels(teacher, graph.split["test"], gold)
    torch.manual_seed(0)
    assert graph.features is not None
    task, log = learner.fit(StepTargets(gold, pseudo, weight=0.05, ratio=0.5), graph.features, "m_step")
    losses = [row["loss"] for row in log.history]
    assert len(losses) == 25
    assert losses[-1] < 0.6 * losses[0]
    logits = np.zeros((NODES, CLASSES), dtype=np.float16)
    task.predict(logits)
    assert validation.score(logits[valid]) == log.best_score >= 0.5


def test_the_input_features_outlive_graphgyms_layers(graph: TextGraph) -> None:
    """They write batch.x in place; the next epoch must find the features as they were."""
    small_gnn()
    cfg.model.type, cfg.gnn.layer_type, cfg.mem.inplace = "gnn", "gcnconv", True
    x = torch.from_numpy(np.array(graph.features))
    before, gnn = x.clone(), build_gnn(cfg, DIM, CLASSES).eval()
    first = gnn(x, adjacency_of(graph))
    assert torch.equal(gnn(x, adjacency_of(graph)), first)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["gnn", "glem_sage"])
def test_two_classes_have_two_logits_in_our_modes_and_one_in_graphgyms(name: str, graph: TextGraph) -> None:
    small_gnn()
    cfg.model.type = name
    gnn = build_gnn(cfg, DIM, 2).eval()
    assert isinstance(gnn, GNN)
    assert gnn(torch.randn(NODES, DIM), adjacency_of(graph)).shape == (NODES, 2)
    model = create_model(to_device=False, dim_in=DIM, dim_out=2)
    pred, true = model(batch_of(graph, split="train"))
    assert pred.shape == (len(graph.split["train"]), 1)
    loss, score = compute_loss(pred, (true > 0).long())
    torch.testing.assert_close(loss, F.binary_cross_entropy(torch.sigmoid(pred[:, 0]), (true > 0).float()))
    assert score.shape == (len(true),)


@pytest.mark.parametrize("key", ["model.type", "gnn.layer_type", "gnn.act", "gnn.head", "gnn.stage_type"])
def test_unknown_names_of_a_gnn(key: str) -> None:
    cfg.model.type, cfg.gnn.head = "gnn", "node"
    group, name = key.split(".")
    cfg[group][name] = "nobodys"
    with pytest.raises(ValueError, match=r"model\.type \w+: .* asks for 'nobodys', which is not registered"):
        build_gnn(cfg, DIM, CLASSES)


# ---- text encoder, head, LM network -------------------------------------------------------------------------------


@pytest.fixture
def text_config(tmp_path: Path, tiny_lm: Path) -> TextGraph:
    """Sets the configuration to a small generated graph of texts, and gives the graph."""
    file = tmp_path / "text.yaml"
    file.write_text(
        f"""
dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets, tag_split: [0.3, 0.3, 0.4],
  synthetic_nodes: 60, synthetic_classes: 3, synthetic_degree: 4.0, synthetic_words: 4}}
lm: {{model: {tiny_lm}, max_length: 16, precision: 32}}
gnn: {{dim_inner: 8, layers_mp: 2, layers_post_mp: 1, layer_type: sageconv}}
accelerator: cpu
"""
    )
    load_config(cfg, file)
    return load_text_graph_of(cfg)


def use_text_encoder() -> None:
    cfg.model.type, cfg.dataset.node_encoder, cfg.dataset.node_encoder_name = "gnn", True, "glem_text"


def test_pretrained_weights_survive_graphgyms_init_weights(text_config: TextGraph, tiny_lm: Path) -> None:
    from transformers import AutoModel

    use_text_encoder()
    loaders = create_loader()
    model = create_model()
    kept = model.model.encoder.node_encoder.texts.encoder.backbone.state_dict()
    expected = AutoModel.from_pretrained(tiny_lm, add_pooling_layer=False).state_dict()
    assert set(kept) == set(expected)
    for name, value in expected.items():
        assert torch.equal(kept[name], value), name
    # What is not pretrained has GraphGym's initialisation: biases are zero.
    assert (model.model.encoder.node_encoder.project.bias == 0).all()
    assert len(loaders) == 3


def test_gradients_reach_the_whole_transformer(text_config: TextGraph) -> None:
    use_text_encoder()
    (batch,) = create_loader()[0]
    model = create_model()
    loss = model.training_step(batch)["loss"]
    loss.backward()
    encoder = model.model.encoder.node_encoder.texts.encoder
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        # A key's bias moves all scores of a query alike, which softmax does not see.
        if not name.endswith("key.bias"):
            assert parameter.grad.abs().max() > 1e-9, name


def test_the_encoder_looks_texts_up_by_node(text_config: TextGraph) -> None:
    use_text_encoder()
    torch.manual_seed(0)
    encoder = register.node_encoder_dict["glem_text"](8).eval()
    everyone = encoder(Data(n_id=torch.arange(60))).x
    assert everyone.shape == (60, 8)
    some = torch.tensor([41, 3, 3, 17])
    found = encoder(Data(n_id=some, x=torch.zeros(4, 1))).x
    torch.testing.assert_close(found, everyone[some], rtol=1e-4, atol=1e-5)


def test_the_encoder_embeds_what_transformers_does(text_config: TextGraph, tiny_lm: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = register.node_encoder_dict["glem_text"](8).eval()
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_lm), AutoModel.from_pretrained(tiny_lm).eval()
    for node in (0, 33):
        inputs = tokenizer(text_config.texts[node], truncation=True, max_length=16, return_tensors="pt", padding=True)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.no_grad():
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            expected = encoder.project(states.mean(1))
            torch.testing.assert_close(encoder(Data(n_id=torch.tensor([node]))).x, expected)


def test_texts_encoded_in_parts_give_the_same_embeddings_and_gradients(text_config: TextGraph) -> None:
    """A part's activations are computed again in the backward pass; dropout must then drop the same."""
    nodes = torch.tensor([41, 3, 3, 17, 8, 59, 0])
    found = []
    for budget in (0, 20):
        cfg.lm.infer_tokens = budget
        torch.manual_seed(0)
        encoder = register.node_encoder_dict["glem_text"](8).eval()
        out = encoder(Data(n_id=nodes)).x
        (out * torch.arange(8)).square().sum().backward()
        found.append((out, [p.grad for p in encoder.parameters()]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    for many, one in zip(found[1][1], found[0][1], strict=True):
        assert one is not None
        torch.testing.assert_close(many, one, rtol=1e-3, atol=1e-4)
    lengths: list[int] = []
    encoder.train().texts.encoder.register_forward_pre_hook(lambda module, args: lengths.append(args[0].numel()))
    encoder(Data(n_id=nodes)).x.sum().backward()
    assert max(lengths) <= 20
    assert len(lengths) % 2 == 0  # once forwards, once more backwards
    assert len(lengths) > 4


def test_the_lm_head_in_graphgyms_network(text_config: TextGraph) -> None:
    use_text_encoder()
    cfg.gnn.head, cfg.lm.head_dropout = "glem_lm_head", 0.4
    (batch,) = create_loader()[0]
    model = create_model()
    head = model.model.post_mp.head
    assert (head.dropout.p, head.linear.in_features, head.linear.out_features) == (0.4, 8, CLASSES)
    seen: dict[str, Tensor] = {}
    head.register_forward_hook(lambda module, inputs, output: seen.update(all=output))
    pred, true = model.eval()(batch_with(batch, "val"))
    assert torch.equal(pred, seen["all"][text_config.split["valid"]])
    assert torch.equal(true, torch.from_numpy(text_config.label[text_config.split["valid"]]))


def batch_with(batch: Any, split: str) -> Any:
    batch.split = split
    return batch


def test_the_lm_network_classifies_the_splits_texts(text_config: TextGraph) -> None:
    cfg.model.type = "glem_lm"
    (batch,) = create_loader()[0]
    model = create_model().eval()
    tokens = open_tokens(cfg, text_config)
    network = model.model
    everyone = network.head(network.texts.encoder(*map(torch.from_numpy, tokens.pad(np.arange(60)))))
    for part, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        pred, true = model(batch_with(batch, split))
        torch.testing.assert_close(pred, everyone[text_config.split[part]], rtol=1e-4, atol=1e-5)
        assert torch.equal(true, torch.from_numpy(text_config.label[text_config.split[part]]))


def test_hardware_that_is_not_there() -> None:
    for name in ["tpu", *([] if torch.cuda.is_available() else ["cuda"])]:
        cfg.accelerator = name
        with pytest.raises(ValueError, match=f"accelerator is '{name}', expected auto, cpu, or cuda"):
            hardware_for(cfg, "32")
    cfg.accelerator = "cpu"
    assert hardware_for(cfg, "bf16") == Hardware("cpu", "bf16-mixed")
    assert hardware_for(cfg, "32") == Hardware("cpu", "32-true")
    assert hardware_for(cfg, "auto").precision in ("32-true", "bf16-mixed")


# ---- the loss -----------------------------------------------------------------------------------------------------


def test_with_two_arguments_the_loss_is_cross_entropy() -> None:
    cfg.model.loss_fun = "glem_pseudo_label"
    pred, true = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    result = pseudo_label_loss(pred, true)
    assert result is not None
    torch.testing.assert_close(result[0], F.cross_entropy(pred, true))
    torch.testing.assert_close(result[1], F.log_softmax(pred, dim=-1))
    # GraphGym itself finds it.
    torch.testing.assert_close(compute_loss(pred, true)[0], F.cross_entropy(pred, true))


def test_with_two_arguments_the_binary_loss_is_bce() -> None:
    cfg.model.loss_fun = "glem_pseudo_label"
    pred, true = torch.tensor([0.5, -2.0, 3.0, 0.0]), torch.tensor([1, 0, 0, 1])
    loss, score = compute_loss(pred[:, None], true)
    torch.testing.assert_close(loss, F.binary_cross_entropy_with_logits(pred, true.float()))
    torch.testing.assert_close(score, torch.sigmoid(pred))


def test_other_losses_are_left_to_others() -> None:
    pred, true = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for name in ("cross_entropy", "mse", "other"):
        cfg.model.loss_fun = name
        assert pseudo_label_loss(pred, true) is None
        assert pseudo_label_loss(pred, true, torch.rand(3, 4), 0.5) is None


def test_with_targets_the_loss_is_glems() -> None:
    """w · CE(pseudo) + (1 − w) · CE(gold), by hand: logits 0 give log 2 everywhere, the others are computed."""
    cfg.model.loss_fun = "glem_pseudo_label"
    pred = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0], [0.0, np.log(4.0)]], dtype=torch.float64).float()
    true = torch.tensor([1, -1, -1])
    target = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.5, 0.5]])
    result = pseudo_label_loss(pred, true, target, 0.25)
    assert result is not None
    pseudo = (-np.log(3 / 4) - 0.5 * np.log(1 / 5) - 0.5 * np.log(4 / 5)) / 2
    assert float(result[0]) == pytest.approx(0.25 * pseudo + 0.75 * np.log(2), rel=1e-6)
    gold = F.one_hot(true.clamp(min=0), 2).float()
    mixed = torch.where((true >= 0)[:, None], gold, target)
    torch.testing.assert_close(result[0], glem_loss(pred, mixed, true >= 0, 0.25))


# ---- optimizer and schedules --------------------------------------------------------------------------------------


def test_adamw_by_hand() -> None:
    """Decoupled decay p(1 − lr·wd), then a first step of lr in the gradient's direction."""
    cfg.optim.optimizer, cfg.optim.base_lr, cfg.optim.weight_decay = "adamw", 0.1, 0.5
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = create_optimizer(iter([weight, frozen]), cfg.optim)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]
    weight.grad = torch.tensor([0.3, -4.0])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([0.95 - 0.1, -1.9 + 0.1]), rtol=1e-6, atol=1e-6)


def rates(scheduler: str, warmup: float, epochs: int) -> list[float]:
    """The learning rate of every epoch, and the one after the last."""
    cfg.optim.optimizer, cfg.optim.base_lr, cfg.optim.scheduler = "adamw", 0.1, scheduler
    cfg.optim.warmup_epochs, cfg.optim.max_epoch = warmup, epochs
    optimizer = create_optimizer(iter([nn.Parameter(torch.ones(1))]), cfg.optim)
    schedule = create_scheduler(optimizer, cfg.optim)
    found = []
    for _ in range(epochs + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_warmup_schedules_by_hand() -> None:
    up = [0.02, 0.04, 0.06, 0.08]
    down = [0.1 * (1 - k / 6) for k in range(7)]
    assert rates("linear_warmup", 4.0, 10) == pytest.approx([*up, *down])
    cosine = [0.05 * (1 + np.cos(np.pi * k / 6)) for k in range(7)]
    assert rates("cosine_warmup", 4.0, 10) == pytest.approx([*up, *cosine])
    assert rates("constant_warmup", 4.0, 10) == pytest.approx([*up, *[0.1] * 7])
    assert rates("linear_warmup", 0.0, 4) == pytest.approx([0.1, 0.075, 0.05, 0.025, 0.0])
    # Half an epoch of warm-up: the first epoch starts at 1 / 1.5 of the rate.
    assert rates("constant_warmup", 0.5, 2) == pytest.approx([0.1 / 1.5, 0.1, 0.1])


# ---- metric -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", ["debian", "ogbn-arxiv", "ogbn_arxiv"])
def test_accuracy_is_scikit_learns_and_ogbs_as_a_python_float(dataset: str) -> None:
    cfg.dataset.name, rng = dataset, np.random.default_rng(0)
    true, logits = rng.integers(0, 5, 101), torch.from_numpy(rng.normal(size=(101, 5)))
    parts = torch.from_numpy(true).split(60), logits.split(60)
    for found in (
        ogb_accuracy_metric(*map(list, parts), "classification_multi"),
        accuracy_of(dataset.replace("_", "-"))(true, logits.argmax(-1).numpy()),
    ):
        assert type(found) is float
        assert found == pytest.approx(accuracy_score(true, logits.argmax(-1)))


def test_binary_accuracy_goes_by_the_threshold() -> None:
    true, pred = [torch.tensor([0, 1, 1, 0])], [torch.tensor([0.1, 0.6, 0.4, 0.9])]
    assert ogb_accuracy_metric(true, pred, "classification_binary") == 0.5
    cfg.model.thresh = 0.3
    assert ogb_accuracy_metric(true, pred, "classification_binary") == 0.75


def test_a_dataset_that_ogb_does_not_score_by_accuracy() -> None:
    with pytest.raises(ValueError, match="OGB scores ogbn-proteins by 'rocauc', not by accuracy"):
        accuracy_of("ogbn-proteins")
