"""Export of a finished run for use elsewhere: its LM, its GNN's weights, embeddings and predictions.

`export_run` writes a folder with

    lm/                            the tuned LM as a sentence-transformers folder; lm/head/ is the classification head
    gnn/                           weights.safetensors, and settings.json with their stage, classes and settings
    embeddings.npy                 float16 (N, H), of the LM; zeros for nodes that the run did not encode
    lm_logits.npy, gnn_logits.npy  float16 (N, C)
    nodes.parquet                  one row per predicted node, in their order (with the extra ``parquet``)
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from yacs.config import CfgNode

from glem_graphgym.build.graph import tokenizer_of
from glem_graphgym.build.prediction import classes_of, finished_run, names_of
from glem_graphgym.build.run import predicted_nodes
from glem_graphgym.build.run_folder import RunError
from glem_graphgym.config import flat_settings
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import Prompted, padding_id
from glem_graphgym.em.journal import FinishedStage
from glem_graphgym.em.run import Run
from glem_graphgym.files import making, write_json
from glem_graphgym.models.saving import save_dense, save_text_encoder
from glem_graphgym.models.text_encoder import JointModel

ROWS = 1 << 16  # nodes per Parquet row group
GNN_KEY_PREFIXES = ("model.", "gnn.", "glem.node_features", "glem.label_input", "glem.setting")


def export_run(cfg: CfgNode, folder: Path, stage: str | None = None, adapter: bool = False) -> None:
    """Write the finished run in ``cfg.run_dir`` into ``folder``.

    Args:
        folder: created; may exist if it is empty.
        stage: name of the stage to export, such as ``e_step_2``. The other model, or with None both, is exported from
            its best stage by validation; in GLEM, the best one of the EM iterations.
        adapter: write only the adapters of an LM with LoRA.

    Raises:
        RunError: the folder is not empty, or there is no such stage; see also `finished_run`.
        ValueError: there are no adapters to write.
        FileNotFoundError: the run has not kept the weights of a stage.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty; name another --out, or delete it")
    graph, run = finished_run(cfg)
    lm, gnn = _stages(run, stage)
    if adapter and lm is None:
        raise ValueError(f"--adapter asks for the LM's adapters, but train.mode {cfg.train.mode} trains no LM")
    if folder.is_dir():
        folder.rmdir()
    with making(folder) as partial_folder:
        if partial_folder is None:
            raise RunError(f"{folder} has been made by another process meanwhile; name another --out")
        if lm:
            _export_lm(cfg, graph, run, lm, partial_folder, adapter)
        if gnn:
            _export_gnn(cfg, graph, run, gnn, partial_folder / "gnn")
        for name, model_stage in {"lm": lm if lm is not gnn else None, "gnn": gnn}.items():
            if model_stage:
                shutil.copyfile(model_stage.folder / "logits.npy", partial_folder / f"{name}_logits.npy")
        nodes = predicted_nodes(cfg, graph, run.candidates)
        _export_table(
            graph, np.arange(graph.num_nodes) if nodes is None else nodes, lm, gnn, partial_folder / "nodes.parquet"
        )


def _stages(run: Run, name: str | None) -> tuple[FinishedStage | None, FinishedStage | None]:
    """The stages to export LM and GNN from; the same one if they were trained as one model."""
    lm, gnn = run.best_of("LM"), run.best_of("GNN")
    if name is not None:
        trained = {stage.key.name: stage for stage in run.journal.finished if stage.key.model not in ("none", "given")}
        if name not in trained:
            raise RunError(f"--stage is '{name}', expected one of: {', '.join(trained)}")
        if trained[name].key.model.startswith("LM"):
            lm = trained[name]
        else:
            gnn = trained[name]
    return gnn if run.joint else lm, gnn


def _export_lm(
    cfg: CfgNode, graph: TextGraph, run: Run, stage: FinishedStage, export_folder: Path, adapter: bool
) -> None:
    weights = stage.weights()
    if run.joint:
        model: Any = run.joint.start(run.gnn_step_targets(stage.key, None), run.features(None), weights).model
    else:
        model = run.lm_of(stage).start(weights=weights).model
    tokenizer, prefix, suffix = tokenizer_of(cfg, graph.texts), "", ""
    if isinstance(tokenizer, Prompted):
        tokenizer, prefix, suffix = tokenizer.tokenizer, tokenizer.prefix, tokenizer.suffix
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
    folder = export_folder / "lm"
    folder.mkdir()
    save_text_encoder(model.encoder, tokenizer, folder, cfg.lm.model, cfg.lm.max_length, adapter)
    if prefix:
        prompts = {"prompts": {"default": prefix}, "default_prompt_name": "default"}
        write_json(folder / "config_sentence_transformers.json", prompts)
    if suffix:
        logging.warning(
            f"sentence-transformers knows no prompt behind a text: append {suffix!r} to what you give to lm/"
        )
    if not isinstance(model, JointModel):
        save_dense(model.head.linear, folder / "head", classes=list(graph.class_names))
    if stage.embeddings is not None:
        shutil.copyfile(stage.folder / "embeddings.npy", export_folder / "embeddings.npy")


def _export_gnn(cfg: CfgNode, graph: TextGraph, run: Run, stage: FinishedStage, folder: Path) -> None:
    weights = stage.weights()
    if run.joint:
        weights = {name: value for name, value in weights.items() if not name.startswith("encoder.")}
    folder.mkdir()
    save_file(weights, folder / "weights.safetensors")
    teacher = run.teacher_of(stage).key.name if run.lm_gold else None
    settings = {name: value for name, value in flat_settings(cfg) if name.startswith(GNN_KEY_PREFIXES)}
    facts = {"stage": stage.key.name, "embeddings_of": teacher, "classes": list(graph.class_names)}
    write_json(folder / "settings.json", {**facts, "settings": settings})


def _export_table(
    graph: TextGraph, nodes: np.ndarray, lm: FinishedStage | None, gnn: FinishedStage | None, file: Path
) -> None:
    """Write id, embedding, and each method's class and probability of ``nodes``; without pyarrow only log a hint."""
    if importlib.util.find_spec("pyarrow") is None:
        logging.info(f"{file.name} is left out: it needs pyarrow (pip install 'glem-graphgym[parquet]')")
        return
    import pyarrow as pa
    from pyarrow import parquet

    writer = None
    for start in range(0, len(nodes), ROWS):
        rows = nodes[start : start + ROWS]
        columns: dict[str, Any] = {"node": names_of(graph, rows)}
        if lm and lm.embeddings is not None:
            values = lm.embeddings[rows].astype(np.float32)
            columns["embedding"] = pa.FixedSizeListArray.from_arrays(values.reshape(-1), values.shape[1])
        for stage in {id(stage): stage for stage in (lm, gnn) if stage}.values():
            columns |= classes_of(graph, stage.key.method, stage.logits[rows])
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    if writer:
        writer.close()
