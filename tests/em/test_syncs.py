"""A step of training never waits for the GPU: counted on CPU by what is called, on a GPU by what CUDA says."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from glem_graphgym.em.e_step import LMTask
from glem_graphgym.em.fit import Batches, _State, prefetched
from glem_graphgym.em.hop_step import HopTask
from glem_graphgym.em.joint_step import JointTask
from glem_graphgym.em.m_step import FullBatchTask
from glem_graphgym.em.sampled_step import SampledTask
from glem_graphgym.models.text_encoder import TextEncoder
from tests.bad_inputs.conftest import load_program
from tests.golden.cases import arguments_of

aten = torch.ops.aten
READ = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.nonzero.default),
    *(aten.masked_select.default, aten.unique_consecutive.default, aten._unique2.default, aten.unique_dim.default),
    aten.bincount.default,
}
INDEX = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Waits(TorchDispatchMode):
    """Counts calls in this thread after which Python has to know what a tensor holds, or how long it has become."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = func in INDEX and any(index is not None and index.dtype == torch.bool for index in args[1])
        repeats = func is aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
        if func in READ or by_mask or repeats:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_by_cuda() -> Iterator[list[str]]:
    """A block whose waits torch warns of."""
    with warnings.catch_warnings():
        found: list[str] = []
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: found.append(str(message))  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_on_cpu() -> Iterator[list[str]]:
    with Waits() as waits:
        yield waits.found


RUNS = [
    *("glem", "glem_inductive", "glem_gat_smoothed", "glem_revgat", "glem_accumulated", "gnn_label_reuse"),
    *("glem_sampled", "glem_sampled_on_disk", "glem_hops", "glem_hops_on_disk", "gnn_consistent", "joint"),
]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize("name", RUNS)
def test_no_training_step_waits(
    name: str, accelerator: str, tmp_path: Path, tiny_lm: Path, fresh_config: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one loss to the next, but for validation, the host's part of an epoch and transformers' look at a mask."""
    steps: list[list[str]] = []
    trained = _State.record_loss

    with (counted_on_cpu if accelerator == "cpu" else counted_by_cuda)() as found:

        def left_out(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                before = len(found)
                out = function(*args, **kwargs)
                del found[before:]
                return out

            return called

        def step(state: _State, loss: Tensor) -> None:
            if state.losses or state.log.history:  # in the first step of a stage the graph's transpose is made
                steps.append(found[:])
            trained(state, loss)
            found.clear()

        monkeypatch.setattr(_State, "record_loss", step)
        monkeypatch.setattr(_State, "validate", left_out(_State.validate))
        monkeypatch.setattr(TextEncoder, "forward", left_out(TextEncoder.forward))
        for task in (LMTask, FullBatchTask, SampledTask, HopTask, JointTask):
            monkeypatch.setattr(task, "batches", left_out(task.batches))
        if accelerator == "cpu":  # in a thread, whose calls are not counted: they are on tensors in memory
            monkeypatch.setattr(Batches, "prepared", lambda batches, _: prefetched(batches.prepare, batches.items, 1))
        arguments = [*arguments_of(name, tmp_path, tiny_lm), "accelerator", accelerator]
        assert load_program("main").main(arguments) == 0
    assert len(steps) >= 3
    assert not any(steps), max(steps, key=len)


def test_what_would_wait_is_counted() -> None:
    x = torch.arange(3.0)
    calls: list[Callable[[], Any]] = [lambda: x[x > 1], x.nonzero, x.unique, lambda: int(x.sum()), lambda: x.equal(x)]
    for call in calls:
        with counted_on_cpu() as found:
            call()
        assert found
    with counted_on_cpu() as found:
        x.index_select(0, torch.tensor([2])).where(x[:1] > 0, 0.0).sum().clamp(min=1)
    assert not found
