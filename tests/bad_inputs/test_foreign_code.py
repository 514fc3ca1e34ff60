"""Whatever is data is read without running it: a marker stands in every place that could run, and none appears."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
import yaml
from yacs.config import CfgNode

from glem_graphgym.build.features import load_matrix
from glem_graphgym.build.sizes import feature_widths
from glem_graphgym.data.errors import DataError
from glem_graphgym.data.ogb import load_ogbn_arxiv, load_ogbn_papers100m
from glem_graphgym.data.pickles import only_data_is_unpickled
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import Texts, load_text_graph, save_text_graph
from glem_graphgym.data.tokens import open_token_store
from tests import checks
from tests.bad_inputs.conftest import Marker, Program
from tests.data.ogb_files import MINIATURES, M, Miniature, arxiv_rows, complete_arxiv, complete_papers100m, write_lines
from tests.data.own_tables import load_table


@pytest.fixture
def marker(tmp_path: Path) -> Marker:
    return Marker(tmp_path / "it-ran")


def refused(call: Callable[[], object], marker: Marker, *names: str) -> None:
    checks.refused(call, *names, error=(DataError, ValueError, OSError))
    assert not marker.ran()


def as_torch(marker: Marker) -> bytes:
    buffer = io.BytesIO()
    torch.save(marker, buffer)
    return buffer.getvalue()


def as_old_torch(marker: Marker) -> bytes:
    buffer = io.BytesIO()
    torch.save(marker, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def as_tar(marker: Marker) -> bytes:
    """The format of torch 0.1, in which pickles lie as members of a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(marker)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def as_npy(marker: Marker, shape: tuple[int, ...] = (1,)) -> bytes:
    array = np.empty(shape, dtype=object)
    array[...] = marker
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


FORMS: dict[str, Callable[[Marker], bytes]] = {
    "torch": as_torch,
    "torch before 1.6": as_old_torch,
    "torch 0.1": as_tar,
    "a pickle": pickle.dumps,
    "an array of objects": as_npy,
}


def test_a_marker_appears_where_it_is_unpickled(marker: Marker, tmp_path: Path) -> None:
    """Without this the tests below could not fail."""
    for form, load in (
        (as_torch, lambda file: torch.load(file, weights_only=False)),
        (as_old_torch, lambda file: torch.load(file, weights_only=False)),
        (as_npy, lambda file: np.load(file, allow_pickle=True)),
        (pickle.dumps, pickle.load),
    ):
        load(io.BytesIO(form(marker))).close() if form is pickle.dumps else load(io.BytesIO(form(marker)))
        assert marker.ran()
        marker.path.unlink()


# ---- features and predictions of files ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".npy"])
@pytest.mark.parametrize("key", ["glem.feature_file", "glem.first_predictions"])
def test_a_matrix_is_no_code(marker: Marker, tmp_path: Path, key: str, ending: str, form: str) -> None:
    file = tmp_path / f"matrix{ending}"
    file.write_bytes(FORMS[form](marker))
    refused(lambda: load_matrix(str(file), 3, key), marker, key, str(file))
    cfg, graph = CfgNode({"glem": {"node_features": "file", "feature_file": str(file)}}), make_synthetic(num_nodes=100)
    assert feature_widths(cfg, graph)["file"] == 0 or ending == ".npy"
    assert not marker.ran()


@pytest.mark.parametrize("ending", [".pkl", ".pickle", ".npz", ".joblib"])
def test_other_endings_are_not_opened(marker: Marker, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"matrix{ending}"
    file.write_bytes(pickle.dumps(marker))
    refused(lambda: load_matrix(str(file), 3, "glem.feature_file"), marker, "glem.feature_file", ".npy")


@pytest.mark.parametrize("key", ["glem.feature_file", "glem.first_predictions"])
@pytest.mark.parametrize("ending", [".pt", ".npy"])
def test_a_run_does_not_run_its_matrix(program: Program, marker: Marker, key: str, ending: str) -> None:
    file = program.folder / f"matrix{ending}"
    file.write_bytes(as_torch(marker) if ending == ".pt" else as_npy(marker, (60, 2)))
    more = ("glem.node_features", "file", "train.mode", "glem_gnn") if key == "glem.feature_file" else ()
    program.refuses(*more, "dataset.tag_split", "[0.3, 0.2, 0.3]", key, file, names=[key, str(file)])
    assert not marker.ran()


# ---- OGB ------------------------------------------------------------------------------------------------------------

PICKLES = (
    "processed/geometric_data_processed.pt",
    "processed/pre_transform.pt",
    "processed/pre_filter.pt",
    "split/{split}/split_dict.pt",
)


@pytest.mark.parametrize("dataset", MINIATURES.values(), ids=MINIATURES)
def test_pickles_in_a_folder_of_ogb_are_not_opened(marker: Marker, tmp_path: Path, dataset: Miniature) -> None:
    folder = dataset.make(tmp_path)
    for name in PICKLES:
        file = folder / name.format(split=dataset.split)
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(as_torch(marker))
    assert dataset.load(tmp_path).num_nodes > 0
    assert not marker.ran()


def test_pickles_in_an_archive_of_ogb_are_not_opened_and_nothing_leaves_its_folder(
    marker: Marker, tmp_path: Path
) -> None:
    folder, root = complete_arxiv(tmp_path / "made"), tmp_path / "root"
    root.mkdir()
    with zipfile.ZipFile(root / "arxiv.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, f"arxiv/{path.relative_to(folder)}")
        for name in PICKLES:
            archive.writestr(f"arxiv/{name.format(split='time')}", as_torch(marker))
        archive.writestr("../outside.py", "x")
        archive.writestr("/tmp/outside-too.py", "x")
    write_lines(root / "titleabs.tsv.gz", arxiv_rows())
    assert load_ogbn_arxiv(root).num_nodes == 12
    assert not marker.ran()
    assert not (tmp_path / "outside.py").exists() and not (root / "outside.py").exists()
    assert not Path("/tmp/outside-too.py").exists()


@pytest.mark.parametrize("key", ["edge_index", "node_feat", "num_nodes_list", "num_edges_list", "node_label"])
def test_arrays_of_objects_in_ogbs_binary_files_are_refused(marker: Marker, tmp_path: Path, key: str) -> None:
    array = np.empty((M, 1), dtype=object)
    array[:] = marker
    complete_papers100m(tmp_path, **{key: array})
    marker.path.unlink(missing_ok=True)
    refused(lambda: load_ogbn_papers100m(tmp_path), marker, "node-label.npz" if key == "node_label" else "data.npz")


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_parquet_with_a_pickled_type_and_pickled_cells(marker: Marker, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = pickle.dumps(marker)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": content}
    count = 24
    columns = {"id": [f"n{i}" for i in range(count)], "text": [content] * count, "label": [i % 2 for i in range(count)]}
    fields = [
        pa.field("id", pa.string()),
        pa.field("text", pa.binary(), metadata=metadata),
        pa.field("label", pa.int64(), metadata=metadata),
    ]
    (tmp_path / "g").mkdir()
    pq.write_table(pa.table(columns, schema=pa.schema(fields)), tmp_path / "g/nodes.parquet")
    pd.DataFrame({"source": ["n0"], "target": ["n1"]}).to_parquet(tmp_path / "g/edges.parquet")
    assert load_table(tmp_path / "g", tmp_path / "cache").num_nodes == count
    assert not marker.ran()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["nodes.csv", "nodes.csv.gz", "nodes.parquet", "edges.csv"])
def test_a_table_is_no_code(marker: Marker, tmp_path: Path, name: str, form: str) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g/edges.csv").write_text("source,target\n")
    if name == "edges.csv":
        (tmp_path / "g/nodes.csv").write_text("id,text,label\n" + "".join(f"{i},x,{i % 2}\n" for i in range(24)))
    (tmp_path / "g" / name).write_bytes(FORMS[form](marker))
    refused(lambda: load_table(tmp_path / "g", tmp_path / "cache"), marker, name)


# ---- caches of ours, and run folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["text", "text_offsets", "rowptr", "col", "label", "features", "split_train", "node_id", "node_id_offsets"]
)
def test_a_frozen_graph_is_no_code(marker: Marker, tmp_path: Path, name: str) -> None:
    save_text_graph(make_synthetic(num_nodes=60, num_classes=2, feature_dim=3, shares=(0.3, 0.2, 0.3)), tmp_path)
    (tmp_path / f"{name}.npy").write_bytes(as_npy(marker))
    refused(lambda: load_text_graph(tmp_path), marker, str(tmp_path))


@pytest.mark.parametrize("name", ["offsets.npy", "ids.bin", "tokens.json"])
def test_stored_tokens_are_no_code(marker: Marker, tmp_path: Path, tiny_lm: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer, texts = AutoTokenizer.from_pretrained(tiny_lm), Texts.of(["one", "two"])
    open_token_store(texts, tokenizer, 8, tmp_path / "tokens")
    (file,) = (tmp_path / "tokens").glob(f"*/{name}")
    file.write_bytes(as_npy(marker) if name.endswith("npy") else pickle.dumps(marker))
    if name != "ids.bin":  # bytes are token ids, whatever they are
        refused(lambda: open_token_store(texts, tokenizer, 8, tmp_path / "tokens"), marker, str(tmp_path / "tokens"))
    else:
        open_token_store(texts, tokenizer, 8, tmp_path / "tokens")
        assert not marker.ran()


def test_a_run_that_is_resumed_runs_nothing_of_its_folder(program: Program, marker: Marker) -> None:
    split = ("dataset.tag_split", "[0.3, 0.2, 0.3]")
    program.accepts(*split)
    run = program.folder / "results/small/0"
    files = [*run.glob("stages/*/*.safetensors"), *run.glob("stages/*/logits.npy"), run / "run.json"]
    files += [next(run.glob("stages/*/stage.json")), *program.folder.glob("datasets/tokens/*/*.npy")]
    assert len(files) > 6
    for file in files:
        content = file.read_bytes()
        file.write_bytes(as_npy(marker) if file.suffix == ".npy" else as_torch(marker))
        started = "predict" if file.suffix == ".safetensors" else "main"
        with contextlib.suppress(Exception):  # what it says is another test's
            program.run(*split, program=started)
        assert not marker.ran(), file
        file.write_bytes(content)


# ---- configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/object/apply:subprocess.call"]
)
def test_a_configuration_is_no_code(program: Program, marker: Marker, tag: str) -> None:
    program.config.write_text(program.config.read_text() + f"seed: {tag} ['touch {marker.path}']\n")
    status, _, error = program.run()
    assert status == 1
    assert str(program.config) in error
    assert not marker.ran()


def test_an_option_is_no_code(program: Program, marker: Marker) -> None:
    option = f"!!python/object/apply:os.system ['touch {marker.path}']"
    with contextlib.suppress(yaml.YAMLError):
        program.run("seed", option)
    assert not marker.ran()


# ---- what PyG keeps -------------------------------------------------------------------------------------------------

NODES, WORDS = 600, 9


def write_planetoid(folder: Path) -> None:
    """Cora's raw files as they are published, in small: sparse matrices, arrays and a dict of lists, pickled."""
    rng = np.random.default_rng(0)
    train, known = 20, NODES - 40
    classes = np.eye(2, dtype=np.int32)[rng.integers(2, size=NODES)]
    words = scipy.sparse.csr_matrix(rng.integers(0, 2, size=(NODES, WORDS)).astype(np.float32))
    neighbours = defaultdict(list)
    for node in range(NODES):
        neighbours[node] = [int(other) for other in rng.integers(NODES, size=3)]
    parts = {
        "x": words[:train], "tx": words[known:], "allx": words[:known],
        "y": classes[:train], "ty": classes[known:], "ally": classes[:known], "graph": neighbours,
    }  # fmt: skip
    folder.mkdir(parents=True)
    for name, value in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(value, protocol=2))
    order = rng.permutation(np.arange(known, NODES))
    (folder / "ind.cora.test.index").write_text("".join(f"{node}\n" for node in order))


def planetoid(folder: Path) -> Any:
    from torch_geometric.datasets import Planetoid

    return Planetoid(str(folder), "Cora")[0]


def planetoid_of_data(folder: Path) -> Any:
    with only_data_is_unpickled(folder):
        return planetoid(folder)


def test_what_pyg_keeps_of_its_own_is_read_as_before(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_planetoid(tmp_path / name / "Cora/raw")
    expected = planetoid(tmp_path / "one")
    for _ in range(2):  # from the raw files, and from what was processed
        found = planetoid_of_data(tmp_path / "two")
        assert found.num_nodes == NODES
        for key in ("x", "y", "edge_index", "train_mask", "test_mask"):
            assert torch.equal(found[key], expected[key])


@pytest.mark.parametrize("form", ["torch", "torch before 1.6", "a pickle"])
@pytest.mark.parametrize("name", ["pre_transform.pt", "pre_filter.pt", "data.pt"])
def test_what_pyg_has_processed_is_no_code(marker: Marker, tmp_path: Path, name: str, form: str) -> None:
    write_planetoid(tmp_path / "Cora/raw")
    planetoid(tmp_path)
    file = tmp_path / "Cora/processed" / name
    file.write_bytes(FORMS[form](marker))
    refused(lambda: planetoid_of_data(tmp_path), marker, str(file))


@pytest.mark.parametrize("name", ["x", "allx", "ally", "graph"])
@pytest.mark.parametrize(
    "code", [Marker, lambda path: [Marker(path)], lambda path: np.array([Marker(path)], dtype=object)]
)
def test_raw_files_that_pyg_unpickles_are_no_code(
    marker: Marker, tmp_path: Path, name: str, code: Callable[[Path], Any]
) -> None:
    write_planetoid(tmp_path / "Cora/raw")
    file = tmp_path / f"Cora/raw/ind.cora.{name}"
    file.write_bytes(pickle.dumps(code(marker.path)))
    refused(lambda: planetoid_of_data(tmp_path), marker, str(file))


@pytest.mark.parametrize("code", ["builtins eval", "builtins exec", "builtins getattr", "os system", "posix system"])
def test_functions_are_not_even_found(tmp_path: Path, code: str) -> None:
    module, name = code.split()
    file = tmp_path / "raw"
    file.write_bytes(f"c{module}\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(DataError, match=rf"{file}.*{module}\.{name}"), only_data_is_unpickled(tmp_path):
        pickle.load(file.open("rb"))


def test_the_limit_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # a user's wish does not lift it
    before, environment = pickle.load, dict(os.environ)
    with only_data_is_unpickled(tmp_path):
        assert pickle.load is not before
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert pickle.load is before
    assert dict(os.environ) == environment


@pytest.mark.parametrize("name", ["raw/ind.cora.allx", "processed/pre_transform.pt"])
def test_graphgyms_own_training_runs_no_pickle(program: Program, marker: Marker, name: str) -> None:
    folder = program.folder / "datasets/Cora/Cora"
    write_planetoid(folder / "raw")
    if name.startswith("processed"):
        planetoid(folder.parent)
    (folder / name).write_bytes(as_torch(marker) if name.endswith(".pt") else pickle.dumps(marker))
    stock = ("train.mode", "standard", "dataset.format", "PyG", "dataset.name", "Cora", "model.type", "gnn")
    program.refuses(*stock, "dataset.task", "node", names=str(folder / name))
    assert not marker.ran()
