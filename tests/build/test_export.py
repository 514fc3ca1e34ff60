"""An exported run: its LM is a `lm.model` again and gives the run's own embeddings; what lies beside it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.export import export_run
from glem_graphgym.build.graph import load_text_graph_of, open_tokens
from glem_graphgym.build.language_model import untuned_lm
from glem_graphgym.build.run import train_run
from glem_graphgym.build.run_folder import RunError
from glem_graphgym.files import read_json
from glem_graphgym.models.pooling import load_dense, readout_of
from glem_graphgym.modes import MODES
from glem_graphgym.report.stats import finish_run

CLASSES = 3
LMS = {
    "plain": [],
    "bottleneck": ["lm.shrink_dim", 8],
    "first token": ["lm.pooling", "cls"],
    "LoRA": ["lm.lora_rank", 4],
    "adapter": ["lm.lora_rank", 4, "lm.shrink_dim", 8],
    "prompt": ["lm.prompt", "a b: "],
}


@pytest.fixture
def run_of(configure_run: Callable[..., Path]) -> Callable[..., Path]:
    """The folder of a run that is trained with these options."""

    def train(*options: object) -> Path:
        run_dir = configure_run(*options)
        train_run(cfg)
        finish_run(run_dir)
        return run_dir

    return train


def embeddings_of(model: Path, configure_run: Callable[..., Path]) -> np.ndarray:
    """float16 (N, H) of the graph's texts by ``model`` as it is."""
    configure_run("lm.model", model, "lm.pooling", "auto", run="again")
    graph = load_text_graph_of(cfg)
    task = untuned_lm(cfg, open_tokens(cfg, graph)).start()
    logits, embeddings = (np.zeros((graph.num_nodes, width), np.float16) for width in (1, task.embedding_dim))
    task.predict(logits, embeddings)
    return embeddings


@pytest.mark.parametrize("name", LMS)
def test_the_lm_is_a_model_again_with_the_runs_embeddings(
    name: str, run_of: Callable[..., Path], configure_run: Callable[..., Path], tmp_path: Path
) -> None:
    if "lm.lora_rank" in LMS[name]:
        pytest.importorskip("peft", reason="the extra 'lora' is missing")
    stage = run_of("train.mode", "glem_lm", *LMS[name]) / "stages" / "00_lm_gold"
    out = tmp_path / "out"
    export_run(cfg, out, adapter=name == "adapter")
    texts = [*load_text_graph_of(cfg).texts]
    assert (out / "lm" / "adapter_config.json").exists() == (name == "adapter")
    width = 8 if "lm.shrink_dim" in LMS[name] else 32
    pooled = "cls" if name == "first token" else "mean"
    assert str(readout_of(str(out / "lm"), "auto")) == (f"{pooled} + 2_Dense" if width == 8 else pooled)

    expected = np.load(out / "embeddings.npy")
    assert expected.shape == (len(texts), width)
    np.testing.assert_array_equal(expected, np.load(stage / "embeddings.npy"))
    np.testing.assert_allclose(embeddings_of(out / "lm", configure_run), expected, atol=2e-3)
    head = load_dense(out / "lm" / "head", pretrained=True)
    logits = head(torch.from_numpy(expected.astype(np.float32))).detach()
    np.testing.assert_allclose(logits, np.load(out / "lm_logits.npy"), atol=5e-3)

    st = pytest.importorskip("sentence_transformers", reason="the extra 'demo' is missing")
    theirs = st.SentenceTransformer(str(out / "lm"), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, expected, atol=2e-3)


def test_a_run_of_glem_leaves_its_best_models_and_all_nodes(run_of: Callable[..., Path], tmp_path: Path) -> None:
    stages = run_of("glem.keep_weights", "all", "glem.em_iterations", 2) / "stages"
    export_run(cfg, tmp_path / "best")
    export_run(cfg, tmp_path / "named", stage="lm_gold")
    valid = {file.parent.name: read_json(file)["scores"]["valid"]["accuracy"] for file in stages.glob("*/stage.json")}
    lm, gnn = (
        max(sorted(name for name in valid if kind in name), key=valid.__getitem__) for kind in ("e_step", "m_step")
    )
    for folder, of in ((tmp_path / "best", lm), (tmp_path / "named", "00_lm_gold")):
        np.testing.assert_array_equal(np.load(folder / "embeddings.npy"), np.load(stages / of / "embeddings.npy"))
        np.testing.assert_array_equal(np.load(folder / "lm_logits.npy"), np.load(stages / of / "logits.npy"))
        np.testing.assert_array_equal(np.load(folder / "gnn_logits.npy"), np.load(stages / gnn / "logits.npy"))
    weights, kept = (load_file(file / "weights.safetensors") for file in (tmp_path / "best" / "gnn", stages / gnn))
    assert weights.keys() == kept.keys() and all(torch.equal(weights[key], kept[key]) for key in kept)
    settings = read_json(tmp_path / "best" / "gnn" / "settings.json")
    assert settings["stage"] == gnn[3:] and settings["embeddings_of"] == gnn[3:].replace("m_step", "e_step")
    assert settings["settings"]["gnn.dim_inner"] == 8 and len(settings["classes"]) == CLASSES

    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is missing")
    table = parquet.read_table(tmp_path / "best" / "nodes.parquet").to_pandas()
    graph = load_text_graph_of(cfg)
    assert table["node"].tolist() == [*range(graph.num_nodes)]
    np.testing.assert_array_equal(np.stack(table["embedding"]), np.load(tmp_path / "best" / "embeddings.npy"))
    classes = np.load(stages / gnn / "logits.npy").argmax(-1)
    assert table["GLEM-GNN"].tolist() == [graph.class_names[each] for each in classes]
    assert table["GLEM-LM probability"].between(1 / CLASSES - 1e-4, 1).all()


@pytest.mark.parametrize("mode", ["glem_gnn", "glem_joint"])
def test_runs_of_other_modes(
    mode: str, run_of: Callable[..., Path], configure_run: Callable[..., Path], tmp_path: Path
) -> None:
    run_of("train.mode", mode, "gnn.fan_out", "[2, 2]", "glem.node_features", "static" if "gnn" in mode else "text")
    out = tmp_path / "out"
    export_run(cfg, out)
    weights = load_file(out / "gnn" / "weights.safetensors")
    assert weights and not any(name.startswith("encoder.") for name in weights)
    assert (out / "lm").exists() == MODES[mode].joint
    if MODES[mode].joint:
        expected = np.load(out / "embeddings.npy")
        np.testing.assert_allclose(embeddings_of(out / "lm", configure_run), expected, atol=2e-3)


def test_what_cannot_be_exported_is_refused(
    run_of: Callable[..., Path],
    configure_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure_run()
    with pytest.raises(RunError, match="holds no finished run"):
        export_run(cfg, tmp_path / "out")
    run_dir = run_of()
    for options, said in (
        ({"stage": "e_step_7"}, "--stage is 'e_step_7', expected one of: lm_gold, gnn_gold, e_step_1, m_step_1"),
        ({"adapter": True}, "lm.lora_rank is 0"),
    ):
        with pytest.raises((RunError, ValueError), match=said):
            export_run(cfg, tmp_path / "out", **options)
    (run_dir / "stages" / "02_e_step_1" / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="were not kept"):
        export_run(cfg, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(RunError, match=r"run is not empty; name another --out"):
        export_run(cfg, run_dir)
    monkeypatch.setattr("glem_graphgym.build.export.making", lambda folder: nullcontext())  # as if it were there now
    with pytest.raises(RunError, match=r"out has been made by another process meanwhile"):
        export_run(cfg, tmp_path / "out")
