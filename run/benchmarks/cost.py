"""Cost of GLEM against the LM alone and joint training: time per step and epoch, memory, largest batch.

Every figure comes from a process of its own, in which the train modes' own learners do a fixed number of steps, after
uncounted ones, with the configurations ``configs_gg/{lm,joint,glem}_debian.yaml``. The time of an epoch is
extrapolated: its steps times the median step. The peak is of the whole process, Python and torch included. The largest
batch whose process stays within ``--memory_gb`` is found by bisection over powers of two; a limit on the process's
memory ends one that needs far more, before the machine swaps.

``python -m benchmarks.cost '<JSON of a Job>'`` is one such process: it prints its figures as JSON.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from joblib import cpu_count
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch_geometric.graphgym.config import cfg

import glem_graphgym  # noqa: F401 - registers the plugin
from benchmarks.measure import Row, now, row_of, seconds_of
from glem_graphgym.build.graph import load_text_graph_of, open_tokens
from glem_graphgym.build.language_model import encoder_config, hardware_for
from glem_graphgym.build.run import gnn_learner, joint_learner, lm_learners
from glem_graphgym.config import feature_kinds, load_config
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.memory import PeakMemory, keep_freed_memory
from glem_graphgym.models.text_encoder import TextEncoder, load_text_encoder

RUN = Path(__file__).resolve().parent.parent
LM, JOINT, GLEM = "LM alone", "joint training", "GLEM"
CONFIGS = {LM: "lm_debian", JOINT: "joint_debian", GLEM: "glem_debian"}
M_STEP, ENCODING = "GLEM's M-step", "GLEM's encoding"
BATCH, WARM_UP, STEPS = 32, 3, 12
LARGEST = 2048  # most gold nodes per step that are tried: the Debian graph has enough for two such steps
ENCODED = 4000  # texts, for the speed of encoding
SLACK_MB = 1024  # by which a process may exceed the budget before it is stopped: it maps more than it uses
LIMIT_S = 600  # per process, which takes half a minute on an idle machine
OUT_OF_MEMORY = re.compile(
    # Python, NumPy, C++, torch's allocator, the kernel, OpenMP, oneDNN
    "MemoryError|bad_alloc|llocate memory|out of memory|Thread creation failed|could not (create|execute) a "
)
DEBIAN: tuple[str, ...] = ("dataset.name", "debian")


@dataclass(frozen=True)
class Job:
    """The work of one measured process."""

    method: str  # LM, JOINT, GLEM (its E-step), M_STEP or ENCODING
    batch: int = BATCH  # gold nodes per step; in an E-step gold and pseudo nodes
    warm_up: int = WARM_UP  # uncounted optimizer steps
    steps: int = STEPS  # counted ones
    options: tuple[str, ...] = DEBIAN  # key, value, ... that override the configuration, among them the graph
    data: str = "datasets"  # folder for the graph and its tokens
    limit_mb: int = 0  # limit on the memory that the process maps; 0 = none
    accelerator: str = "cpu"


@dataclass(frozen=True)
class Cost:
    """The measured figures of a `Job`."""

    seconds: list[float] = field(default_factory=list)  # per counted step; M-step: per epoch; encoding: for all texts
    steps_per_epoch: int = 1
    texts_per_step: float = 0.0  # mean
    peak_mb: float = 0.0  # of the process, or of the GPU


def cost(
    repeats: int, device: str = "cpu", memory_gb: float = 4.0, options: tuple[str, ...] = DEBIAN, largest: int = LARGEST
) -> Iterator[Row]:
    """The rows of the table; ``options`` override the configurations, for instance with another graph."""
    limit_mb = round(1024 * memory_gb) + SLACK_MB if device == "cpu" else 0  # CUDA's driver maps more than it uses
    job = partial(Job, options=options, accelerator=device)
    costs_by_method: dict[str, Cost] = {}
    for method in CONFIGS:
        figures = costs_by_method[method] = measured(job(method, steps=max(STEPS, repeats)))
        yield from rows_of(method, figures, costs_by_method.get(JOINT) if method == GLEM else None)
    for method, quantity in ((M_STEP, "epoch, full batch"), (ENCODING, "all texts, once per iteration")):
        figures = measured(job(method, steps=max(3, repeats)))
        yield row_of(f"{method}, {quantity}", figures.seconds, "s")
    for method in CONFIGS:

        def fits(batch: int, method: str = method) -> bool:
            probed = run_job(job(method, batch, warm_up=1, steps=1, limit_mb=limit_mb))
            return probed is not None and probed.peak_mb <= 1024 * memory_gb

        batch = largest_fitting(fits, largest)
        quantity = f"{method}, largest batch in {memory_gb:g} GB (of powers of two up to {largest})"
        yield Row(quantity, batch, "nodes per step")


def rows_of(method: str, figures: Cost, joint: Cost | None) -> Iterator[Row]:
    """The figures of a method, compared with those of joint training if given."""
    name = "GLEM's E-step" if method == GLEM else method
    rival_seconds = joint.seconds if joint else ()
    yield row_of(f"{name}, step, batches of {BATCH}", figures.seconds, "s", rival=rival_seconds, rival_name=JOINT)
    nodes = "gold and pseudo nodes" if method == GLEM else "gold nodes"
    quantity = (
        f"{name}, epoch over {nodes}: {figures.steps_per_epoch:,} steps, extrapolated from {len(figures.seconds)}"
    )
    yield row_of(quantity, [figures.steps_per_epoch * second for second in figures.seconds], "s")
    for quantity, figure, unit in (
        ("texts encoded with gradient per step", "texts_per_step", "texts"),
        (f"peak memory, batches of {BATCH}", "peak_mb", "MB"),
    ):
        row = Row(f"{name}, {quantity}", getattr(figures, figure), unit)
        yield replace(row, rival=getattr(joint, figure), rival_name=JOINT) if joint else row


def largest_fitting(fits: Callable[[int], bool], limit: int) -> int:
    """The largest power of two up to ``limit`` that fits, 0 if 1 does not; assumes that smaller batches fit too."""
    powers = range(int(math.log2(limit)) + 1)
    fitting = bisect_left(powers, True, key=lambda power: not fits(2**power))
    return 2 ** (fitting - 1) if fitting else 0


# ---- processes ----------------------------------------------------------------------------------------------------


def measured(job: Job) -> Cost:
    """The figures of a job that must fit.

    Raises:
        MemoryError: the process ran out of memory.
    """
    figures = run_job(job)
    if figures is None:
        raise MemoryError(f"{job.method} with batches of {job.batch} does not fit into this machine's memory")
    return figures


def run_job(job: Job) -> Cost | None:
    """Measure in a process of its own; None if it ran out of memory.

    Raises:
        RuntimeError: it failed for another reason, or took too long.
    """
    command = [sys.executable, "-m", "benchmarks.cost", json.dumps(asdict(job))]
    path = os.pathsep.join([str(RUN), str(RUN.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(
            f"{job.method} with batches of {job.batch} was not done after {LIMIT_S} s; is this machine busy with "
            "something else?"
        ) from error
    if process.returncode == 0:
        return Cost(**json.loads(process.stdout.splitlines()[-1]))
    if is_out_of_memory(process.returncode, process.stderr):
        return None
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr[-2000:]}")


def is_out_of_memory(code: int, stderr: str) -> bool:
    """Whether a process ran out of memory: killed by the kernel, or reported by one of many libraries."""
    return code == -9 or bool(OUT_OF_MEMORY.search(stderr))


def do(job: Job) -> Cost:
    """Measure in this process."""
    if job.limit_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (job.limit_mb << 20, job.limit_mb << 20))
    memory = PeakMemory(job.accelerator)
    keep_freed_memory()
    torch.set_num_threads(cpu_count())
    seconds, per_epoch, texts = WORK[job.method](job, configured(job))
    return Cost(seconds, per_epoch, texts, round(memory.peak_mb(), 1))


def configured(job: Job) -> TextGraph:
    """Load the configuration into GraphGym's cfg, and the graph that it names."""
    batch_key = "e_step.batch_size" if job.method == GLEM else "lm.batch_size"
    settings = ["dataset.dir", job.data, "accelerator", job.accelerator, batch_key, str(job.batch)]
    settings += ["lm.epochs", "1", "e_step.epochs", "1"]
    settings += ["train.eval_period", "1000000", "optim.max_epoch", str(job.warm_up + job.steps), "optim.patience", "0"]
    config = RUN.parent / "configs_gg" / f"{CONFIGS.get(job.method, CONFIGS[GLEM])}.yaml"
    load_config(cfg, config, [*settings, *job.options])
    return load_text_graph_of(cfg)


# ---- what a process does ------------------------------------------------------------------------------------------

StepFigures = tuple[list[float], int, float]  # seconds per counted step, steps per epoch, texts per step


def figures_of_steps(job: Job, per_epoch: int, fit: Callable[[], Any]) -> StepFigures:
    """Time the optimizer steps of ``fit``, and count the texts that are encoded for training."""
    ends: list[float] = []  # of the steps
    texts: list[int] = []  # that had been encoded by then
    encoded, latest_step, forward = 0, (0, 0.0), TextEncoder.forward

    def counted_forward(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
        nonlocal encoded
        encoded += len(ids) * encoder.training
        return forward(encoder, ids, mask)

    def note(optimizer: Any, *_: Any) -> None:
        nonlocal latest_step
        step = (id(optimizer), float(next(iter(optimizer.state.values()))["step"]))
        if step != latest_step:  # torch reports a step twice if it calls that of its parent class
            latest_step = step
            ends.append(now())
            texts.append(encoded)

    hook = register_optimizer_step_post_hook(note)
    try:
        with mock.patch.object(TextEncoder, "forward", counted_forward):
            fit()
    finally:
        hook.remove()
    if len(ends) != job.warm_up + job.steps:
        raise RuntimeError(f"{len(ends)} steps were made, expected {job.warm_up + job.steps}")
    start = job.warm_up - 1  # the last uncounted step
    return np.diff(ends[start:]).tolist(), per_epoch, (texts[-1] - texts[start]) / job.steps


# A constant score: it selects nothing and takes no time.
VALIDATION = Validation(np.arange(32), lambda logits: 0.0)


def gold_of(graph: TextGraph, count: int | None = None) -> Gold:
    """The gold labels, or a random ``count`` of them.

    Raises:
        ValueError: the graph has fewer gold nodes.
    """
    nodes = graph.split["train"]
    if count is not None:
        if count > len(nodes):
            raise ValueError(f"{count} gold nodes are wanted for the steps, but {graph.name} has {len(nodes)}")
        nodes = np.sort(np.random.default_rng(0).choice(nodes, count, replace=False))
    return Gold(nodes, graph.label[nodes], graph.num_classes)


def pseudo_of(graph: TextGraph, gold: Gold, count: int | None = None) -> PseudoLabels:
    """Random pseudo-labels for all nodes without a gold label, or for a random ``count`` of them."""
    rng = np.random.default_rng(1)
    unlabelled = np.setdiff1d(np.arange(graph.num_nodes), graph.split["train"])
    if count is not None:
        unlabelled = np.sort(rng.choice(unlabelled, min(count, len(unlabelled)), replace=False))
    return PseudoLabels(rng.normal(size=(graph.num_nodes, graph.num_classes)).astype(np.float16), unlabelled, gold)


def language_model(job: Job, graph: TextGraph) -> StepFigures:
    """Steps of the LM alone, of joint training and of GLEM's E-step."""
    store = open_tokens(cfg, graph)
    gold_needed = job.batch * (job.warm_up + job.steps)
    gold_total, pseudo_total, features = len(graph.split["train"]), 0, []
    if job.method == GLEM:
        learner: Any = lm_learners(cfg, store, graph.num_classes, VALIDATION)[1]
        pseudo_total = min(round(gold_total * cfg.glem.lm_pseudo_ratio), graph.num_nodes - gold_total)
        gold = gold_of(graph, max(1, round(gold_needed * gold_total / (gold_total + pseudo_total))))
        pseudo = pseudo_of(graph, gold, gold_needed - len(gold.nodes))
        targets = StepTargets(gold, pseudo, cfg.glem.alpha, len(pseudo.nodes) / len(gold.nodes))
    elif job.method == JOINT:
        learner, features = joint_learner(cfg, graph, store, VALIDATION), [np.empty((graph.num_nodes, 0), np.float32)]
        targets = StepTargets(gold_of(graph, gold_needed))
    else:
        learner = lm_learners(cfg, store, graph.num_classes, VALIDATION)[0]
        targets = StepTargets(gold_of(graph, gold_needed))
    per_epoch = math.ceil((gold_total + pseudo_total) / job.batch)
    return figures_of_steps(job, per_epoch, lambda: learner.fit(targets, *features, job.method))


def m_step(job: Job, graph: TextGraph) -> StepFigures:
    learner = gnn_learner(cfg, graph, VALIDATION)
    dim = load_text_encoder(encoder_config(cfg, hardware_for(cfg, "32"))).dim
    shape = (graph.num_nodes, dim * len(feature_kinds(cfg.glem.node_features)))
    features = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    gold = gold_of(graph)
    targets = StepTargets(gold, pseudo_of(graph, gold), cfg.glem.beta, cfg.glem.gnn_pseudo_ratio)
    return figures_of_steps(job, 1, lambda: learner.fit(targets, features, job.method))


def encoding(job: Job, graph: TextGraph) -> StepFigures:
    all_texts = open_tokens(cfg, graph)
    count = min(ENCODED, len(all_texts))
    store = TokenStore(all_texts.ids, all_texts.offsets[: count + 1], all_texts.pad_id)
    task = lm_learners(cfg, store, graph.num_classes, VALIDATION)[0].start()
    logits, embeddings = (np.zeros((count, width), np.float16) for width in (graph.num_classes, task.embedding_dim))
    seconds = seconds_of({"": lambda: task.predict(logits, embeddings, job.method)}, job.steps)[""]
    return [second * len(all_texts) / count for second in seconds], 1, 0.0


WORK: dict[str, Callable[[Job, TextGraph], StepFigures]] = {
    **dict.fromkeys(CONFIGS, language_model),
    M_STEP: m_step,
    ENCODING: encoding,
}


def main() -> int:
    logging.disable(logging.INFO)
    job = json.loads(sys.argv[1])
    print(json.dumps(asdict(do(Job(**{**job, "options": tuple(job["options"])})))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
