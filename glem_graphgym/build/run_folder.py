"""Guards a run folder: ``run.json`` records what the run depends on; a run with other settings is refused."""

from __future__ import annotations

import json
import logging
import re
import shutil
import statistics
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from yacs.config import CfgNode

from glem_graphgym.build.graph import readout_for
from glem_graphgym.config import KEYS, flat_settings, metric_of, reads_texts
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.files import fingerprint, read_json, reading, sha256_of, write_json
from glem_graphgym.models.pretrained import find_model, prompt_of
from glem_graphgym.renamed import in_new_names
from glem_graphgym.scores import METRIC

RESTORE = "restore it, or start that seed anew with --overwrite"  # remedy for a damaged run.json
SEED = re.compile("-?[0-9]+")  # name of a seed's folder
RECORDED_PACKAGES = ("ogb", "torch", "torch_geometric", "transformers")

# Keys that no result depends on: paths, printing, number of threads, and the like.
_INDIFFERENT_KEYS = {
    *("out_dir", "print", "cfg_dest", "round", "num_workers", "num_threads", "metric_agg", "gpu_mem"),
    "metric_best",  # recorded as ``metric``, the score that selects models
    *("tensorboard_each_run", "tensorboard_agg", "dataset.dir", "dataset.tag_source", "lm.infer_tokens"),
    # The mode is checked separately; a finished run may be extended by more EM iterations.
    *("train.mode", "glem.em_iterations", "glem.em_max_iterations", "glem.keep_weights", "glem.ensemble"),
    *("glem.checkpoint_minutes", "glem.search_trials", "glem.track"),
    *("devices", "lm.strategy"),  # results agree up to rounding
    *("glem.share_lm_gold", "glem.memory_budget_gb"),  # hops on disk equal those in memory up to rounding
}


class RunError(RuntimeError):
    """A run folder lacks something that is needed, or holds another run; the message says what to do."""


def identity_of(cfg: CfgNode, graph: TextGraph | None) -> dict[str, Any]:
    """The facts that a run depends on: seed, mode, settings, content of the graph and of the files that settings name.

    Package ``versions``, numbers of EM iterations and search trials, and the graph's ``facts`` are recorded only for
    reports: a run may resume with others.
    """
    graph_facts: dict[str, Any] = {}
    if graph is not None:
        graph_facts = {"fingerprint": graph.fingerprint(), "origin": graph.origin, "facts": graph.facts()}
        graph_facts |= {"metric": metric_of(cfg)}
    return {
        "seed": cfg.seed,
        "mode": cfg.train.mode,
        "dataset": cfg.dataset.name if graph is None else graph.name,
        **graph_facts,
        "settings": {**decisive_settings(cfg), **resolved_settings(cfg)},
        "files": file_hashes(cfg),
        "versions": package_versions(),
        **({"search_trials": cfg.glem.search_trials} if cfg.glem.search_trials else {}),
        **({"em_iterations": cfg.glem.em_iterations} if cfg.train.mode == "glem" else {}),
    }


def seconds_of_other_seeds(run_dir: Path) -> dict[str, float]:
    """Stage -> its mean seconds over the experiment's other seeds; unreadable records are skipped."""
    stage_seconds: dict[str, list[float]] = {}
    for file in run_dir.parent.glob("*/stages/[0-9]*/stage.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            record = read_json(file)
            if file.parents[2] != run_dir:
                stage_seconds.setdefault(record["name"], []).append(float(record["seconds"]))
    return {name: statistics.fmean(seconds) for name, seconds in stage_seconds.items()}


def package_versions() -> dict[str, str]:
    """Package -> version, for the installed ones of `RECORDED_PACKAGES`; does not import them."""
    versions = {}
    for name in RECORDED_PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def decisive_settings(cfg: CfgNode) -> dict[str, object]:
    """``group.key`` -> value of every setting that a result can depend on."""
    return {name: value for name, value in flat_settings(cfg) if name not in _INDIFFERENT_KEYS}


def resolved_settings(cfg: CfgNode) -> dict[str, object]:
    """Values of ``auto`` settings as the model resolves them; ValueError if it is missing or rules a setting out."""
    if not reads_texts(cfg):
        return {"lm.prompt": ""}
    prompt = "{text}".join(prompt_of(cfg.lm.model, cfg.lm.prompt))
    return {
        "lm.pooling": str(readout_for(cfg)),
        "lm.prompt": "" if prompt == "{text}" else prompt,
    }


def shared_lm_gold(cfg: CfgNode, graph: TextGraph, encoded: np.ndarray | None) -> Path:
    """The folder in which runs share the LM fine-tuned on gold, named by a fingerprint of all that it depends on.

    That is graph, seed, LM settings, weights, class weights, metric, device, and ``encoded``, int64, the nodes whose
    texts are encoded; None = all.
    """
    settings = {key: value for key, value in decisive_settings(cfg).items() if key.startswith("lm.")}
    settings |= resolved_settings(cfg)
    hashes = file_hashes(cfg).get("lm.model")
    key = fingerprint(
        graph.fingerprint(), cfg.seed, settings, hashes, cfg.accelerator, cfg.glem.class_weights, metric_of(cfg)
    )
    return Path(cfg.dataset.dir) / "lm_gold" / (key if encoded is None else fingerprint(key, encoded))


def file_hashes(cfg: CfgNode) -> dict[str, str]:
    """Key -> SHA-256 of the file or local model that its value names; hub ids have none."""
    hashes = {}
    for key in ("feature_file", "first_predictions"):
        if cfg.glem[key] and Path(cfg.glem[key]).is_file():
            hashes[f"glem.{key}"] = sha256_of([Path(cfg.glem[key])])
    if cfg.dataset.format == "TAG" and Path(cfg.lm.model).is_dir():
        hashes["lm.model"] = sha256_of(find_model(cfg.lm.model).decisive())
    return hashes


@contextmanager
def lock_run_folder(run_dir: Path) -> Iterator[None]:
    """Context that locks the folder against other processes; RunError if another process holds the lock."""
    try:
        lock = FileLock(run_dir.parent / f".{run_dir.name}.lock", timeout=0).acquire()
    except Timeout:
        raise RunError(
            f"another process is working on {run_dir}; wait for it, or choose another out_dir or seed"
        ) from None
    with lock:
        yield


def check_run_folder(run_dir: Path, identity: dict[str, Any], overwrite: int = 0, *, to_predict: bool = False) -> None:
    """Refuse a folder that holds another run, or an experiment whose other seeds ran with other settings.

    Args:
        overwrite: number of seeds, from this one on, to do anew; their folders are not checked.
        to_predict: the run is finished and only predicts, so that other seeds are not checked.

    Raises:
        RunError: lists up to five differences.
    """
    if not overwrite and _has_results(run_dir):
        record = _read_record(run_dir)
        if not record:
            raise RunError(f"{run_dir} holds stages but no run.json that says whose; start it anew with --overwrite")
        remedy = "choose another out_dir, or start it anew with --overwrite"
        _check_same(run_dir, record, identity, "give the options that it was trained with" if to_predict else remedy)
    if to_predict:
        return
    overwritten_seeds = range(identity["seed"], identity["seed"] + overwrite)
    for sibling in sorted(run_dir.parent.glob("*")):
        if sibling == run_dir or not SEED.fullmatch(sibling.name) or int(sibling.name) in overwritten_seeds:
            continue
        record = _read_record(sibling)
        if record and _has_results(sibling):
            remedy = "seeds of one experiment share their settings; choose another out_dir"
            _check_same(sibling, record, identity, remedy, ignored={"seed"})


def take_run_folder(run_dir: Path, identity: dict[str, Any], overwrite: int = 0) -> None:
    """Claim the folder: write ``identity`` to ``run.json``.

    Args:
        overwrite: number of seeds, from this one on, whose files of an earlier run are first deleted: all at once, so
            that after an interruption the same command without ``--overwrite`` resumes and finds no old results.

    Raises:
        RunError: another process is working on one of these seeds.
    """
    for seed in reversed(range(identity["seed"], identity["seed"] + overwrite)):
        folder = run_dir if seed == identity["seed"] else run_dir.with_name(str(seed))
        with lock_run_folder(folder) if folder != run_dir else nullcontext():  # the caller has locked its own
            _empty(folder)
    if not _has_results(run_dir):
        write_json(run_dir / "run.json", identity)
        return
    record = _read_record(run_dir)
    if not record.get("finished") or record.get("em_iterations") != identity.get("em_iterations"):
        _record_versions(run_dir, record, identity["versions"])


def _empty(run_dir: Path) -> None:
    """Delete all but the log."""
    (run_dir / "run.json").unlink(missing_ok=True)  # first: without it, stages that a kill leaves are refused
    for path in run_dir.glob("*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != "logging.log":
            path.unlink()


def _record_versions(run_dir: Path, record: dict[str, Any], versions: dict[str, str]) -> None:
    """Append the package versions under which a run resumes to those under which it began: ``"2.13.0, 2.14.0"``."""
    recorded: dict[str, str] = record.get("versions", {})
    changed = {name: current for name, current in versions.items() if current not in recorded.get(name, "").split(", ")}
    if not changed:
        return
    for name, current in changed.items():
        logging.warning(f"{run_dir} was begun with {name} {recorded.get(name, '(not noted)')}, goes on with {current}")
    joined = {
        name: f"{recorded[name]}, {current}" if name in recorded else current for name, current in changed.items()
    }
    write_json(run_dir / "run.json", {**record, "versions": {**recorded, **joined}})


def is_finished(run_dir: Path) -> bool:
    """Whether the folder's run has finished once; it may since have been extended by more EM iterations."""
    return bool(_read_record(run_dir).get("finished"))


def require_finished(run_dir: Path) -> None:
    """Raise RunError if the folder's run is missing or unfinished."""
    if not is_finished(run_dir):
        remedy = "train first with the same --cfg, out_dir and seed"
        if seeds := sorted(run_dir.glob("[0-9]*/run.json")):
            remedy = f"name that of a seed, such as {seeds[0].parent}"
        raise RunError(f"{run_dir} holds no finished run; {remedy}")


def _read_record(run_dir: Path) -> dict[str, Any]:
    path = run_dir / "run.json"
    with reading(path, RESTORE), suppress(FileNotFoundError):  # no run, or another process is deleting it
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _has_results(run_dir: Path) -> bool:
    return "finished" in _read_record(run_dir) or any((run_dir / "stages").glob("[0-9]*"))


def _check_same(
    run_dir: Path, record: dict[str, Any], current: dict[str, Any], remedy: str, ignored: Collection[str] = ()
) -> None:
    """Raise RunError if the recorded run differs from the current one, in more than the ``ignored`` settings."""
    with reading(run_dir / "run.json", RESTORE):
        mode, settings, files = record["mode"], in_new_names(record["settings"]), record["files"]
    if current["mode"] != mode:
        raise RunError(f"{run_dir} holds a run of train.mode {mode}, now {current['mode']}; {remedy}")
    if record.get("fingerprint") != current.get("fingerprint"):
        raise RunError(
            f"{run_dir} holds a run on another version of {current['dataset']} (fingerprint "
            f"{record.get('fingerprint')}, now {current.get('fingerprint')}); {remedy}"
        )
    # A key that is newer than the run counts as its default, which has no effect; older runs had no prompts.
    defaults = {**{key.name: key.default for key in KEYS if key.name in current["settings"]}, "lm.prompt": ""}
    recorded_settings = {**defaults, **settings, "metric_best": record.get("metric", METRIC)}
    current_settings = {**current["settings"], "metric_best": current.get("metric", METRIC)}
    changed = [
        f"{key} was {old.get(key)!r}, now {new.get(key)!r}"
        for old, new in ((recorded_settings, current_settings), (files, current["files"]))
        for key in sorted({*old, *new}.difference(ignored))
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise RunError(
            f"{run_dir} holds a run with another configuration: {'; '.join(changed[:5])}. {remedy.capitalize()}"
        )
