"""The part ``cost`` of run/benchmark.py: bisection, what a process measures, and the table that is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import cost
from benchmarks.cost import ENCODING, GLEM, JOINT, LM, M_STEP, WORK, Cost, Job, largest_fitting, run_job

NODES = 300


@pytest.fixture
def job(tmp_path: Path, tiny_lm: Path) -> Job:
    graph = ("dataset.name", "synthetic", "dataset.synthetic_nodes", str(NODES), "dataset.tag_split", "[0.3, 0.3, 0.4]")
    small = ("lm.model", str(tiny_lm), "lm.max_length", "16", "gnn.dim_inner", "8")
    return Job(LM, batch=8, warm_up=1, steps=3, options=(*graph, *small), data=str(tmp_path))


@pytest.fixture
def same_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_largest_power_of_two_that_fits() -> None:
    for threshold, expected in ((0, 0), (1, 1), (700, 512), (4096, 2048)):
        assert largest_fitting(lambda size, most=threshold: size <= most, 2048) == expected  # type: ignore[misc]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "per_epoch", "texts"), [(LM, 12, 8), (JOINT, 12, None), (GLEM, 38, 8), (M_STEP, 1, 0), (ENCODING, 1, 0)]
)
def test_a_process_counts_steps_and_texts(
    job: Job, same_threads: None, method: str, per_epoch: int, texts: int | None
) -> None:
    """90 gold nodes are 12 batches of 8, with all 210 pseudo nodes 38; joint training reads neighbours' texts too."""
    found = cost.do(replace(job, method=method))
    assert len(found.seconds) == job.steps
    assert all(second > 0 for second in found.seconds)
    assert found.steps_per_epoch == per_epoch
    if texts is None:
        assert 2 * job.batch < found.texts_per_step <= (1 + 5 + 5 * 3) * job.batch
    else:
        assert found.texts_per_step == texts
    assert 100 < found.peak_mb < 100_000


def test_more_steps_than_gold_nodes_are_refused(job: Job, same_threads: None) -> None:
    with pytest.raises(ValueError, match="320 gold nodes are wanted for the steps, but synthetic has 90"):
        cost.do(replace(job, batch=80))


@pytest.mark.slow
def test_processes_of_their_own(job: Job) -> None:
    found = run_job(replace(job, method=M_STEP, limit_mb=8000))
    assert found is not None
    assert found.steps_per_epoch == 1 and len(found.seconds) == 3
    large = (*job.options, "gnn.layers_mp", "3", "gnn.dim_inner", "40000")  # 6.4 GB of weights
    assert run_job(replace(job, method=M_STEP, limit_mb=3000, options=large)) is None
    with pytest.raises(RuntimeError, match=r"unknown key 'gnn\.dim_outer'"):
        run_job(replace(job, options=(*job.options, "gnn.dim_outer", "3")))


def test_a_process_that_takes_too_long_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "LIMIT_S", 0.05)
    with pytest.raises(RuntimeError, match=r"LM alone with batches of 8 was not done after 0\.05 s"):
        run_job(job)


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (-9, "", True),
        (
            1,
            "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried",
            True,
        ),
        (1, "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 5.96 GiB", True),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", True),
        (1, "RuntimeError: could not create a primitive", True),
        (1, "ConfigError: unknown key", False),
        (-11, "", False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(code: int, stderr: str, expected: bool) -> None:
    assert cost.is_out_of_memory(code, stderr) is expected


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """With processes that take 10 ms and 1 MB per text: joint training reads 16 texts per node, the others one."""
    jobs: list[Job] = []

    def fake(job: Job) -> Cost | None:
        jobs.append(job)
        texts = job.batch * (16 if job.method == JOINT else 1)
        if job.limit_mb and texts > 2 * job.limit_mb:
            return None
        steps = {LM: 100, JOINT: 100, GLEM: 200}.get(job.method, 1)
        return Cost([0.01 * texts, 0.02 * texts, 0.01 * texts], steps, texts, 100.0 + texts)

    monkeypatch.setattr(cost, "run_job", fake)
    rows = {row.what: row for row in cost.cost(1, memory_gb=1.0, options=("a", "b"), largest=2048)}
    assert all(job.options == ("a", "b") for job in jobs)
    joint = rows["joint training, epoch over gold nodes: 100 steps, extrapolated from 3"]
    assert (joint.value, joint.low, joint.high, joint.rival) == (512.0, 512.0, 1024.0, None)
    assert rows["GLEM's E-step, epoch over gold and pseudo nodes: 200 steps, extrapolated from 3"].value == 64.0
    glem = rows["GLEM's E-step, step, batches of 32"]
    assert (glem.value, glem.rival, glem.rival_name, glem.times) == (0.32, 5.12, JOINT, 16.0)
    assert rows["GLEM's E-step, texts encoded with gradient per step"].times == 16
    assert rows["LM alone, peak memory, batches of 32"].value == 132
    assert rows["GLEM's E-step, peak memory, batches of 32"].rival == 612
    assert rows["GLEM's M-step, epoch, full batch"].unit == "s"
    largest = {what.split(",")[0]: row.value for what, row in rows.items() if "largest batch" in what}
    assert largest == {LM: 512, JOINT: 32, GLEM: 512}  # 100 MB and 1 MB per text in 1024 MB
    assert {job.limit_mb for job in jobs} == {0, 2048}
    assert set(WORK) == {job.method for job in jobs}


def test_what_does_not_fit_without_a_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "run_job", lambda job: None)
    with pytest.raises(MemoryError, match="LM alone with batches of 32 does not fit"):
        list(cost.cost(1, options=()))
