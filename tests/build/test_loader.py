"""dataset.format TAG: the text graph as GraphGym's loaders and samplers see it, and what is said when it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.loader import create_dataset, create_loader, load_dataset
from torch_geometric.graphgym.register import loader_dict

from glem_graphgym.build.graph import GRAPHS, load_text_graph_of, open_tokens, tokenizer_of
from glem_graphgym.build.language_model import TextEmbeddings
from glem_graphgym.build.preparation import prepare_dataset
from glem_graphgym.build.run_folder import resolved_settings
from glem_graphgym.config import load_config
from glem_graphgym.data.stand_in import sampled_tokens
from glem_graphgym.data.text_graph import DataError
from glem_graphgym.data.tokens import open_token_store
from glem_graphgym.registered.loader import load_text_graph_dataset

NODES = """id,text,label,split,height,width
a,first text,x,train,1.0,0.5
b,second text,y,train,2.0,0.5
c,,x,val,3.0,0.5
d,fourth one,y,test,4.0,0.25
e,has a label and no split,x,,5.0,0.25
f,has neither,,,6.0,0.25
"""
EDGES = "source,target\na,b\nb,c\nc,d\ne,a\nb,a\nf,f\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "nodes.csv").write_text(NODES)
    (folder / "edges.csv").write_text(EDGES)
    return folder


def configure(tmp_path: Path, **options: object) -> None:
    """A configuration of a table of our own or, without one, of a small generated graph."""
    file = tmp_path / "config.yaml"
    file.write_text(f"dataset: {{format: TAG, name: synthetic, dir: {tmp_path}/datasets}}\n")
    words = [str(word) for name, value in options.items() for word in (name.replace("__", "."), value)]
    small = ["dataset.synthetic_nodes", "60", "dataset.synthetic_classes", "3", "dataset.synthetic_degree", "4"]
    shares = ["dataset.tag_split", "[0.2, 0.2, 0.6]"]
    load_config(cfg, file, [*small, *shares, *words])


def test_other_formats_are_left_to_other_loaders(tmp_path: Path) -> None:
    configure(tmp_path)
    assert loader_dict["glem_text_graph"] is load_text_graph_dataset
    assert load_text_graph_dataset("PyG", "Cora", str(tmp_path)) is None
    assert load_text_graph_dataset("OGB", "ogbn-arxiv", str(tmp_path)) is None
    # GraphGym's own loader gets its turn.
    cfg.dataset.format, cfg.dataset.name = "PyG", "Karate"
    assert load_dataset()[0].num_nodes == 34


def test_the_graph_as_graphgym_gets_it(table: Path, tmp_path: Path) -> None:
    configure(tmp_path, dataset__name="table", dataset__tag_source=table, glem__node_features="raw")
    dataset = create_dataset()
    assert len(dataset) == 1
    data = dataset[0]
    assert data.x.dtype == torch.float32
    assert data.x.tolist() == [[1, 0.5], [2, 0.5], [3, 0.5], [4, 0.25], [5, 0.25], [6, 0.25]]
    assert data.n_id.tolist() == list(range(6))
    edges = {(int(a), int(b)) for a, b in data.edge_index.T}
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (2, 3), (3, 2), (0, 4), (4, 0)}
    assert data.edge_index.shape == (2, 8)
    # Nodes without a label, or with one and in no split, are in no mask; -1 would count as a class.
    assert data.train_mask.tolist() == [True, True, False, False, False, False]
    assert data.val_mask.tolist() == [False, False, True, False, False, False]
    assert data.test_mask.tolist() == [False, False, False, True, False, False]
    assert data.y[:5].tolist() == [0, 1, 0, 1, 0]
    assert (cfg.share.dim_in, cfg.share.dim_out, cfg.share.num_splits) == (2, 2, 3)


def test_no_key_inflates_the_number_of_splits(tmp_path: Path) -> None:
    """GraphGym counts a split for any key with 'val' or 'test' in it."""
    configure(tmp_path, glem__node_features="raw", dataset__synthetic_features=3)
    loaders = create_loader()
    assert cfg.share.num_splits == len(loaders) == 3
    (batch,) = loaders[0]
    assert {key for key in list(batch.keys()) if "val" in key or "test" in key} == {"val_mask", "test_mask"}


def test_nodes_keep_their_index_in_sampled_parts(tmp_path: Path) -> None:
    configure(tmp_path, glem__node_features="raw", dataset__synthetic_features=3)
    graph = load_text_graph_of(cfg)
    assert graph.features is not None
    cfg.train.sampler, cfg.train.train_parts = "random_node", 4
    parts = list(create_loader()[0])
    assert len(parts) == 4
    assert sorted(int(node) for part in parts for node in part.n_id) == list(range(60))
    for part in parts:
        assert torch.equal(part.x, torch.from_numpy(graph.features[part.n_id.numpy()]))


def test_the_text_encoder_needs_no_features(tmp_path: Path) -> None:
    encoder = {"dataset__node_encoder": True, "dataset__node_encoder_name": "glem_text"}
    configure(tmp_path, model__type="gnn", **encoder)
    assert load_dataset()[0].x.shape == (60, 1)
    configure(tmp_path, model__type="glem_lm")
    assert load_dataset()[0].x.shape == (60, 1)


def test_static_features_are_the_untuned_models_embeddings(tmp_path: Path, tiny_lm: Path) -> None:
    configure(tmp_path, glem__node_features="static", lm__model=tiny_lm, lm__precision="32")
    data = load_dataset()[0]
    assert data.x.shape == (60, 32)
    assert data.x.dtype == torch.float32
    (cached,) = (tmp_path / "datasets" / "static").glob("*/embeddings.npy")
    assert np.array_equal(data.x.numpy(), np.load(cached).astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset__name": "table"}, "dataset.name is 'table', but dataset.tag_source is empty"),
        ({}, "glem.node_features is 'text' and the graph has no raw features; expected static"),
        ({"glem__node_features": "raw"}, "glem.node_features is 'raw' and the graph has no raw features"),
        ({"glem__node_features": "raw+static"}, "glem.node_features is 'raw+static'"),
        ({"dataset__tag_split": "[0.5, 0.5]"}, "[0.5, 0.5]"),
        ({"dataset__tag_split": "[0.5, 0.5, 0.5]"}, "a sum of at most 1"),
    ],
)
def test_what_cannot_be_loaded(options: dict[str, object], message: str, tmp_path: Path) -> None:
    configure(tmp_path, **options)
    with pytest.raises(DataError) as error:
        load_dataset()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("ogbn-arxiv", "tag_undirected", "False"),
        ("ogbn-arxiv", "tag_source", "somewhere"),
        ("synthetic", "tag_max_nodes", "50"),
        ("synthetic", "tag_text", "{title}"),
        ("wordnet", "tag_source", "somewhere"),
        ("debian", "tag_columns", "[text=a]"),
        ("debian", "tag_valid_share", "0.1"),
    ],
)
def test_a_key_that_the_dataset_does_not_read_is_refused(name: str, key: str, value: str, tmp_path: Path) -> None:
    configure(tmp_path, dataset__name=name, **{f"dataset__{key}": value})
    with pytest.raises(DataError, match=f"dataset.{key} is .*, which dataset.name {name} does not read; expected"):
        load_text_graph_of(cfg)


def test_keys_reach_the_generator(tmp_path: Path) -> None:
    signals = {"dataset__synthetic_text_signal": 1.0, "dataset__synthetic_structure_signal": 1.0}
    configure(tmp_path, dataset__synthetic_words=3, dataset__synthetic_features=2, dataset__tag_seed=5, **signals)
    graph = GRAPHS["synthetic"](cfg)
    assert (graph.num_nodes, graph.num_edges, graph.num_classes) == (60, 120, 3)
    assert {part: len(nodes) for part, nodes in graph.split.items()} == {"train": 12, "valid": 12, "test": 36}
    assert {len(text.split()) for text in graph.texts} == {3}
    assert graph.features is not None
    assert graph.features.shape == (60, 2)
    row, col = graph.edge_index()
    assert (graph.label[row] == graph.label[col]).all()
    cfg.dataset.tag_seed = 6
    assert GRAPHS["synthetic"](cfg).fingerprint() != graph.fingerprint()


def test_keys_reach_the_table(table: Path, tmp_path: Path) -> None:
    lines = [line.rsplit(",", 3) for line in NODES.splitlines()]
    (table / "nodes.csv").write_text("".join(f"{left},{a},{b}\n" for left, _, a, b in lines))
    shares = {"dataset__tag_split": "[0.4, 0.4, 0.2]", "dataset__tag_seed": 3}
    configure(tmp_path, dataset__name="table", dataset__tag_source=table, **shares)
    graph = GRAPHS["table"](cfg)
    assert graph.name == "words"
    assert {part: len(nodes) for part, nodes in graph.split.items()} == {"train": 2, "valid": 2, "test": 1}
    assert graph.origin["split"] == {"shares": [0.4, 0.4, 0.2], "seed": 3}


@pytest.mark.parametrize(
    ("source", "called", "given"),
    [("", "frozen.load_frozen", ["debian", "ROOT"]), ("apt", "debian.load_debian", ["ROOT", "apt"])],
)
def test_keys_reach_debian(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, called: str, given: list[object]
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(f"glem_graphgym.data.{called}", lambda *args, **options: seen.extend([*args, options]))
    options = {"dataset__tag_max_nodes": 500, "dataset__tag_seed": 7} | (
        {"dataset__tag_source": source} if source else {}
    )
    configure(tmp_path, dataset__name="debian", **options)
    GRAPHS["debian"](cfg)
    root = tmp_path / "datasets"
    assert seen == [
        *(root if one == "ROOT" else one for one in given),
        {"shares": [0.2, 0.2, 0.6], "seed": 7, "max_nodes": 500},
    ]


def test_tokens_go_by_model_and_length(tmp_path: Path, tiny_lm: Path) -> None:
    configure(tmp_path, lm__model=tiny_lm, lm__max_length=8)
    graph = load_text_graph_of(cfg)
    tokens = open_tokens(cfg, graph)
    assert len(tokens) == 60
    assert tokens.lengths.max() == 8
    ids, mask = tokens.pad(np.array([7]))
    assert ids[0, 0] == 2 and ids[0, -1] == 3 and mask.all()  # [CLS] and [SEP]
    again = TextEmbeddings(cfg).tokens
    assert np.array_equal(again.ids, tokens.ids)
    cfg.lm.max_length = 9
    assert open_tokens(cfg, graph).lengths.max() == 9
    assert len(list((tmp_path / "datasets" / "tokens").glob("tokens-*"))) == 2


def test_texts_are_given_with_the_prompt_of_the_model_or_the_users(tmp_path: Path, tiny_lm: Path) -> None:
    own = shutil.copytree(tiny_lm, tmp_path / "own")
    settings = {"prompts": {"query": "ask : "}, "default_prompt_name": "query"}
    (own / "config_sentence_transformers.json").write_text(json.dumps(settings))
    configure(tmp_path, lm__model=own, lm__max_length=12)
    cfg.train.mode = "glem_lm"
    graph = load_text_graph_of(cfg)
    of_model = open_tokens(cfg, graph)
    stores = {}
    for prompt in ("", "ask : ", "ask : {text}", "{text} ask"):
        cfg.lm.prompt = prompt
        stores[prompt] = (open_tokens(cfg, graph).ids.tolist(), resolved_settings(cfg)["lm.prompt"])
    cfg.lm.prompt = "auto"
    assert stores["ask : "] == stores["ask : {text}"] == (of_model.ids.tolist(), resolved_settings(cfg)["lm.prompt"])
    assert stores[""][1] == "" and len({str(store) for store in stores.values()}) == 3
    # Whatever else makes tokens of texts makes the same ones: a dry run, prepare.py, GraphGym's own training.
    texts, ids = graph.texts, open_token_store(graph.texts, tokenizer_of(cfg, graph.texts), 12, tmp_path / "other").ids
    assert TextEmbeddings(cfg).tokens.ids.tolist() == of_model.ids.tolist() == ids.tolist()
    sampled = sampled_tokens(texts, tokenizer_of(cfg, texts), 12)
    assert sampled.lengths.sum() == of_model.lengths.sum()
    assert prepare_dataset(cfg)[-1].what == "tokens"
    settings["default_prompt_name"] = "passage"
    (own / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"lm\.model '.*own': .*json names 'passage' .* set lm\.prompt"):
        open_tokens(cfg, graph)


def test_a_text_encoder_needs_texts(tmp_path: Path) -> None:
    configure(tmp_path)
    cfg.dataset.format = "PyG"
    with pytest.raises(ValueError, match=r"dataset\.format is 'PyG', but a text encoder needs texts"):
        TextEmbeddings(cfg)
