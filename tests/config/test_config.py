"""Config keys: defaults, types, bounds, contradictions; writing and reading; every YAML of ours builds its models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_geometric.graphgym import register
from torch_geometric.graphgym.config import assert_cfg, cfg, set_cfg
from yacs.config import CfgNode

from glem_graphgym.build import run as build_run
from glem_graphgym.config import (
    KEYS,
    ConfigError,
    Key,
    check_config,
    dump_config,
    feature_kinds,
    keys_table,
    load_config,
    trains_features,
)
from glem_graphgym.em.journal import StageKey
from glem_graphgym.modes import MODES

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs_gg").glob("*.yaml"))
GLEM = {"dataset": {"format": "TAG", "name": "synthetic"}, "train": {"mode": "glem"}}


def write(folder: Path, values: dict[str, Any] | str) -> Path:
    file = folder / "config.yaml"
    file.write_text(values if isinstance(values, str) and values else yaml.safe_dump(values or {}))
    return file


def load(folder: Path, values: dict[str, Any] | str, *options: str) -> None:
    load_config(cfg, write(folder, values), options)


def value_of(name: str) -> Any:
    group, _, key = name.rpartition(".")
    return (cfg[group] if group else cfg)[key]


# ---- the keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_registered_two_levels_deep(key: Key) -> None:
    assert key.name.count(".") == 1
    assert value_of(key.name) == key.default
    assert type(value_of(key.name)) is type(key.default)
    assert (key.default in (None, [])) == (key.kind is not None)
    key.check(key.default)
    assert key.meaning.endswith(".")
    assert not key.choices or key.default in key.choices


def test_keys_are_not_graphgyms_own() -> None:
    """A key that GraphGym has already would change the default of every stock configuration."""
    from torch_geometric.graphgym.register import config_dict

    ours, other = config_dict.pop("glem_graphgym"), CfgNode()
    try:
        set_cfg(other)
    finally:
        config_dict["glem_graphgym"] = ours
    names = [key.name for key in KEYS]
    assert len(set(names)) == len(names)
    for name in names:
        group, key = name.split(".")
        assert key not in other.get(group, {})


def test_the_table_of_keys_has_a_row_per_key() -> None:
    lines = keys_table().splitlines()
    assert len(lines) == 2 + len(KEYS)
    for key, line in zip(KEYS, lines[2:], strict=True):
        assert line.startswith(f"| `{key.name}` | `")
        assert line.count("|") == 5
        assert key.meaning in line
    assert "| `glem.beta` | `0.05` | weight | Weight β of the pseudo-label term in the M-step. |" in lines
    assert "| `e_step.lr` | `null` |  | lm.lr in E-steps; null = the same. |" in lines


# ---- loading ------------------------------------------------------------------------------------------------------


# text of the file, options, key -> value
ACCEPTED: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("glem: {alpha: 0.3, beta: 0.2}\n", ("glem.beta", "0.9", "gnn.dim_inner", "7"),
     {"glem.alpha": 0.3, "glem.beta": 0.9, "gnn.dim_inner": 7}),
    ("", (), {"glem.alpha": 0.8, "optim.max_epoch": 200, "gnn.dim_inner": 16}),  # whatever was loaded before
    # yacs refuses an int for a float, and YAML reads 2e-5 as text.
    *((f"lm:\n  lr: {text}\noptim:\n  base_lr: {text}\n", ("glem.alpha", text),
       dict.fromkeys(("lm.lr", "optim.base_lr", "glem.alpha"), float(text.strip("'"))))
      for text in ("0", "1", "2e-5", "1.0e-3", "'0.25'")),
    ("lm:\n  precision: 32\n", ("lm.model", "2024"), {"lm.precision": "32", "lm.model": "2024"}),
    ("lm:\n  model: somewhere\n",
     ("dataset.tag_split", "[0.5, 0.25, 0.25]", "optim.steps", "[1, 2]", "lm.model", ""),
     {"dataset.tag_split": [0.5, 0.25, 0.25], "optim.steps": [1, 2], "lm.model": ""}),
    ("devices: null\noptim: {scheduler: step}\n", ("optim.scheduler", "null"),
     {"devices": None, "optim.scheduler": None}),
    *((text, (), {"e_step.lr": None, "e_step.epochs": None})
      for text in ("e_step: {lr: null, epochs: ~}", "e_step: {lr: , epochs: null}", "e_step: {}", "seed: 1")),
    ("e_step: {lr: 1e-4, epochs: 2}", ("e_step.lr", "null", "e_step.epochs", "3", "e_step.dropout", "-1"),
     {"e_step.lr": None, "e_step.epochs": 3, "e_step.dropout": -1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "expected"), ACCEPTED)
def test_what_is_loaded_and_dumped(
    text: str, options: tuple[str, ...], expected: dict[str, Any], tmp_path: Path
) -> None:
    load(tmp_path, {"glem": {"alpha": 0.7}, "optim": {"max_epoch": 3}})
    load(tmp_path, text, *options)
    for _ in ("loaded", "dumped and loaded"):
        found = {name: value_of(name) for name in expected}
        assert found == expected
        assert list(map(type, found.values())) == list(map(type, expected.values()))
        dump_config(cfg, tmp_path / "dumped.yaml")
        load_config(cfg, tmp_path / "dumped.yaml")


def test_the_default_list_is_never_shared(tmp_path: Path) -> None:
    load(tmp_path, "", "dataset.tag_split", "[0.5, 0.25, 0.25]")
    set_cfg(cfg)
    assert cfg.dataset.tag_split == [0.1, 0.1, 0.8]


REFUSED = [
    ("glem:\n  aplha: 0.3\n", (), "{file}: unknown key 'glem.aplha'; did you mean 'glem.alpha'?"),
    ("glemm:\n  alpha: 0.3\n", (), "{file}: unknown key 'glemm'; did you mean 'glem'?"),
    ("zzz: 1\n", (), "{file}: unknown key 'zzz'; known here: accelerator, "),
    ("", ("lm.modle", "x"), "command line: unknown key 'lm.modle'; did you mean 'lm.model'?"),
    ("", ("lm.model.name", "x"), "command line: unknown key 'lm.model.name'; did you mean 'lm.model'?"),
    ("", (".seed", "3"), "command line: unknown key ''"),
    ("", ("seed=3",), "options are written as 'key value', without an equals sign; found 'seed=3'"),
    ("", ("seed", "3", "lm.lr=2e-5", "glem.alpha=0.5"), "without an equals sign; found 'lm.lr=2e-5'"),
    ("lm: 3\n", (), "{file}: 'lm' is a group of keys, found the value 3"),
    ("lm:\n", (), "{file}: 'lm' is a group of keys, found nothing"),
    ("lm:\n  epochs: many\n", (), "{file}: lm.epochs is 'many', expected a whole number"),
    ("lm:\n  epochs: 2.5\n", (), "{file}: lm.epochs is '2.5', expected a whole number"),
    ("lm:\n  epochs: true\n", (), "{file}: lm.epochs is 'true', expected a whole number"),
    ("lm:\n  lr: high\n", (), "{file}: lm.lr is 'high', expected a number"),
    ("lm:\n  lr: true\n", (), "{file}: lm.lr is 'true', expected a number"),
    ("lm:\n  pretrained: 1\n", (), "{file}: lm.pretrained is '1', expected True or False"),
    ("lm:\n  model: [a]\n", (), "{file}: lm.model is ['a'], expected a text"),
    ("", ("dataset.tag_split", "0.5"), "command line: dataset.tag_split is '0.5', expected a list"),
    ("lm:\n  lr: null\n", (), "lm.lr is 'null', expected a number"),
    ("glem:\n  em_iterations:\n", (), "glem.em_iterations has no value, expected a whole number"),
    ("gnn:\n  dim_inner: null\n", (), "{file}: gnn.dim_inner is 'null', expected a whole number"),
    ("gnn:\n  act:\n", (), "{file}: gnn.act has no value, expected a text"),
    ("devices: null\n", ("devices", "two"), "command line: devices is 'two', expected a whole number"),
    ("", ("optim.scheduler", "[a]"), "optim.scheduler is '[a]', expected one of: none, step, cos"),
    ("glem:\n  alpha: .nan\n", (), "glem.alpha is '.nan', expected a number"),
    ("glem:\n  alpha: 1.5\n", (), "glem.alpha is 1.5, expected 0 to 1"),
    ("glem:\n  temperature: 0\n", (), "glem.temperature is 0.0, expected at least 0.001"),
    ("glem:\n  em_iterations: -2\n", (), "glem.em_iterations is -2, expected at least 0, or -1"),
    ("glem:\n  order: lm\n", (), "glem.order is 'lm', expected one of: lm_first, gnn_first"),
    ("train:\n  mode: em\n", (), "train.mode is 'em', expected one of: standard, glem_lm, "),
    ("e_step: {lr: high}\n", (), "{file}: e_step.lr is 'high', expected a number"),
    ("", ("e_step.epochs", "1.5"), "command line: e_step.epochs is '1.5', expected a whole number"),
    ("", ("e_step.lr", "-1"), "e_step.lr is -1.0, expected 0 to 100"),
    ("gnn: {input_norm: true}\n", (), "gnn.input_norm is 'true', expected one of: none, standardise, batch, layer"),
    ("", ("seed",), "options must be pairs 'key value'; 'seed' stands alone"),
    ("- 1\n- 2\n", (), "{file}: expected 'key: value' lines, found a list"),
    ("a: [1\n", (), "{file}: not valid YAML"),
    ("lm:\n  mod\tle: [\n", (), "{file}: not valid YAML"),
]


@pytest.mark.parametrize(("text", "options", "message"), REFUSED, ids=[row[2][:60] for row in REFUSED])
def test_what_is_refused(text: str, options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text, *options)
    assert message.format(file=tmp_path / "config.yaml") in str(error.value)


STOCK = ("dataset.format", "PyG", "model.type", "gnn")
NAMES = [
    (("dataset.task", "nodes"), "node, edge, graph, link_pred"),
    (("dataset.task_type", "multilabel"), "classification, regression, classification_binary, classification_multi"),
    (("dataset.format", "NetworkX"), "PyG, OGB, TAG"),
    (("dataset.name", "Cora", "dataset.format", "TAG"), "debian, ogbn-arxiv, "),
    (("optim.optimizer", "adamm"), "adam, sgd, "),
    (("optim.scheduler", "steps"), "none, step, cos, "),
    (("model.type", "gcn"), "gnn, "),
    (("model.loss_fun", "bce"), "cross_entropy, mse, glem_pseudo_label"),
    (("model.size_average", "none"), "mean, sum"),
    (("model.graph_pooling", "sum", "gnn.head", "graph"), "add, mean, max"),
    (("model.edge_decoding", "cosine", "dataset.task", "link_pred"), "dot, cosine_similarity, concat"),
    (("gnn.layer_type", "gcn"), "linear, mlp, gcnconv, "),
    (("gnn.layer_type", "gcn", "model.type", "glem_sage"), "linear, mlp, gcnconv, "),
    (("gnn.stage_type", "stak"), "skipconcat, skipsum, stack"),
    (("gnn.act", "rleu"), "relu, "),
    (("gnn.head", "nodes"), "node, "),
    (("gnn.agg", "avg"), "add, mean, max, or another aggregation of torch_geometric.nn"),
    (("gnn.agg", "quantile"), "add, mean, max, or another aggregation of torch_geometric.nn that needs no arguments"),
    (("gnn.self_msg", "cat"), "none, add, concat"),
    (("gnn.msg_direction", "boht"), "single, both"),
    (("dataset.node_encoder_name", "Atoms", "dataset.node_encoder", "True"), "Integer, Atom, "),
    (("dataset.edge_encoder_name", "Bonds", "dataset.edge_encoder", "True"), "Bond"),
    (("custom_metrics", "[ogb_acc]"), "ogb_accuracy"),
    (("train.sampler", "full"), "full_batch, neighbor, "),
    (("val.sampler", "full"), "full_batch, neighbor, "),
    (("metric_agg", "max"), "argmax, argmin"),
    (("print", "loudly"), "stdout, file, both"),
]


@pytest.mark.parametrize(("options", "known"), NAMES, ids=[f"{row[0][0]} {row[0][1]}" for row in NAMES])
def test_names_that_graphgym_looks_up_later(options: tuple[str, ...], known: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, "", *STOCK, *options)
    assert f"{options[0]} is '{options[1].strip('[]')}', expected one of: {known}" in str(error.value)


@pytest.mark.parametrize("agg", ["add", "mean", "max", "sum", "min", "std", "softmax"])
def test_every_aggregation_of_pyg_is_known(agg: str, tmp_path: Path) -> None:
    load(tmp_path, "", *STOCK, "gnn.agg", agg)


CUSTOM = {
    "gnn.layer_type": register.layer_dict,
    "gnn.stage_type": register.stage_dict,
    "gnn.act": register.act_dict,
    "gnn.head": register.head_dict,
    "optim.optimizer": register.optimizer_dict,
    "optim.scheduler": register.scheduler_dict,
    "model.type": register.network_dict,
    "model.graph_pooling": register.pooling_dict,
    "dataset.node_encoder_name": register.node_encoder_dict,
    "dataset.edge_encoder_name": register.edge_encoder_dict,
    "custom_metrics": register.metric_dict,
    "model.loss_fun": register.loss_dict,
    "dataset.format": register.loader_dict,
}


@pytest.mark.parametrize("key", CUSTOM)
def test_names_of_other_plugins_are_known(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss and a loader answer to other names than those that they are registered under, where they like."""
    monkeypatch.setitem(CUSTOM[key], "another" if key in ("model.loss_fun", "dataset.format") else "custom", Path)
    more = ["dataset.node_encoder", "True", "dataset.edge_encoder", "True", "dataset.edge_encoder_name", "Bond"]
    more += ["gnn.head", "graph"] if key == "model.graph_pooling" else []
    more += ["metric_best", "custom"] if key == "custom_metrics" else []
    load(tmp_path, "", *STOCK, *more, key, "[custom]" if key == "custom_metrics" else "custom")


def test_another_network_may_have_names_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(register.network_dict, "custom", Path)
    load(tmp_path, "", *STOCK, "model.type", "custom", "gnn.layer_type", "its_own", "gnn.stage_type", "its_own")


def test_graphgyms_own_way_in_takes_null_and_numbers(tmp_path: Path) -> None:
    cfg.merge_from_file(str(write(tmp_path, {"e_step": {"lr": 0.001, "epochs": None}})))
    assert (cfg.e_step.lr, cfg.e_step.epochs) == (0.001, None)
    assert_cfg(cfg)
    check_config(cfg)
    cfg.merge_from_list(["e_step.epochs", "high"])
    with pytest.raises(ConfigError, match=r"e_step\.epochs is 'high', expected a whole number"):
        check_config(cfg)


def test_a_missing_file(tmp_path: Path) -> None:
    missing = r"--cfg .*words\.yml: cannot be read \(No such file or directory\); "
    with pytest.raises(ConfigError, match=f"{missing}expected a YAML file"):
        load_config(cfg, tmp_path / "words.yml")
    (tmp_path / "words.yaml").touch()
    with pytest.raises(ConfigError, match=rf"{missing}did you mean .*/words\.yaml\?"):
        load_config(cfg, tmp_path / "words.yml")


def test_a_plugin_that_ends_the_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "exits_at_once.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(ConfigError, match=r"glem\.plugins: .* cannot be imported \(SystemExit: 3\)"):
        load(tmp_path, "", "glem.plugins", f"[{tmp_path}/exits_at_once.py]")


@pytest.mark.parametrize(("features", "trained"), [("static+raw", False), ("text", True), ("bow+text:title", True)])
def test_features_that_change_in_training(features: str, trained: bool) -> None:
    assert trains_features(features) == trained


def test_a_stock_configuration_is_not_checked_for_ours(tmp_path: Path) -> None:
    load(tmp_path, {"dataset": {"format": "PyG", "task": "graph"}, "lm": {"grad_accumulation": 5}})
    assert cfg.train.mode == "standard"


# ---- writing and reading again ------------------------------------------------------------------------------------


def without_run(config: CfgNode) -> dict[str, Any]:
    copy = {key: value for key, value in config.items() if key not in ("share", "run_dir", "params")}
    return {key: dict(value) if isinstance(value, CfgNode) else value for key, value in copy.items()}


def test_what_is_dumped_loads_again_after_a_run(tmp_path: Path) -> None:
    load(tmp_path, GLEM, "glem.alpha", "0.123", "lm.precision", "16", "gnn.head", "default")
    before = without_run(cfg.clone())
    # What GraphGym writes into the configuration while it runs.
    cfg.share.dim_in, cfg.share.num_splits = 3, 3
    cfg.run_dir, cfg.params = "somewhere", 12
    dump_config(cfg, tmp_path / "out" / "dumped.yaml")
    assert cfg.params == 12
    fresh = CfgNode()  # as in a new process: the global one keeps the keys that the run has added
    load_config(fresh, tmp_path / "out" / "dumped.yaml")
    assert without_run(fresh) == before
    assert fresh.glem.alpha == 0.123


def values_of(key: Key) -> st.SearchStrategy[Any]:
    low = -1e6 if key.low is None else key.low
    high = next((bound for bound in (key.high, key.below) if bound is not None), 1e6)
    if key.default == []:
        items = st.sampled_from(["text=a", "label=b"]) if key.kind is str else st.integers(1, 50) | st.just(-1)
        return st.lists(items, max_size=3, unique=key.kind is str)
    if key.kind:
        return st.none() | values_of(replace(key, default=key.kind(0), kind=None))
    if key.choices:
        return st.sampled_from(key.choices)
    if isinstance(key.default, bool):
        return st.booleans()
    if isinstance(key.default, int):
        return st.integers(int(low), int(high))
    if isinstance(key.default, float):
        numbers = st.floats(low, high, exclude_max=key.below is not None)
        return numbers | st.just(-1.0) if key.or_minus_one else numbers
    if key.default == ["all-linear"]:
        return st.lists(st.sampled_from(["attention", "query"]), min_size=1, max_size=2)
    if isinstance(key.default, list):
        return st.lists(st.floats(0, 1), min_size=3, max_size=3)
    return st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="$~"), max_size=8)


# Other keys, or modules that there are, decide which of their values are allowed.
COUPLED = ("train.mode", "lm.base_precision", "glem.plugins")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.fixed_dictionaries({key.name: values_of(key) for key in KEYS if key.name not in COUPLED}))
def test_any_allowed_values_survive_dump_and_load(values: dict[str, Any], tmp_path: Path) -> None:
    set_cfg(cfg)
    for name, value in values.items():
        group, key = name.split(".")
        cfg[group][key] = value
    cfg.train.mode = "standard"
    dump_config(cfg, tmp_path / "any.yaml")
    load_config(cfg, tmp_path / "any.yaml")
    assert {name: value_of(name) for name in values} == values


# ---- every YAML of ours -------------------------------------------------------------------------------------------


def small(tmp_path: Path, tiny_lm: Path) -> list[str]:
    """The configuration's own components and knobs, on a graph and with models that are small."""
    features = tmp_path / "features.npy"
    np.save(features, np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32))
    options = f"""dataset.dir {tmp_path}/datasets dataset.name synthetic dataset.tag_split [0.3,0.3,0.4]
        dataset.synthetic_nodes 90 dataset.synthetic_classes 3 dataset.synthetic_words 4 dataset.synthetic_features 5
        lm.model {tiny_lm} gnn.dim_inner 16 num_threads 1"""
    needs_file = "file" in feature_kinds(cfg.glem.node_features)
    unread = ["dataset.tag_source", "", "dataset.tag_max_nodes", "0"]
    return [*options.split(), *unread, "glem.feature_file", str(features) if needs_file else ""]


@pytest.mark.slow
@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_yaml_loads_and_builds_its_models(file: Path, tmp_path: Path, tiny_lm: Path) -> None:
    load_config(cfg, file)
    assert cfg.metric_best == "accuracy"
    # Files that only a user has: the published features, and what another configuration's run leaves.
    load_config(cfg, file, [*small(tmp_path, tiny_lm), "glem.first_predictions", ""])
    cfg.run_dir = str(tmp_path / "run")
    Path(cfg.run_dir).mkdir()
    graph, run = build_run.prepare(cfg)  # which tries every model on a few nodes or texts
    mode = MODES[cfg.train.mode]
    assert (run.joint is not None, run.lm_gold is not None, run.lm_em is not None, run.gnn is not None) == (
        *(mode.joint, mode.lm, mode.lm),
        mode.gnn,
    )
    logits = np.full((graph.num_nodes, graph.num_classes), np.nan)
    targets = run.gnn_step_targets(StageKey(0, "first", "GNN", "GNN"), None)
    if run.joint:
        task = run.joint.start(targets, run.features(None))
        task.predict(logits, np.zeros((graph.num_nodes, task.embedding_dim), dtype=np.float16))
    embeddings = None
    if run.lm_em:
        lm = run.lm_em.start()
        embeddings = np.zeros((graph.num_nodes, lm.embedding_dim), dtype=np.float16)
        lm.predict(logits, embeddings)
    if run.gnn:
        run.gnn.start(targets, run.features(embeddings)).predict(logits)
    assert np.isfinite(logits).all()
