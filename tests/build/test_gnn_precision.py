"""The precision of the M-step, by device: CUDA is only named here, nothing runs on it."""

from __future__ import annotations

import pytest
import torch
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build.language_model import gnn_hardware, hardware_for
from glem_graphgym.hardware import Hardware


@pytest.mark.parametrize(
    ("precision", "on_gpu"),
    [
        ("auto", Hardware("cuda", "32-true", tf32=True)),
        ("tf32", Hardware("cuda", "32-true", tf32=True)),
        ("32", Hardware("cuda", "32-true")),
        ("bf16", Hardware("cuda", "bf16-mixed")),
    ],
)
def test_on_a_gpu_auto_is_tf32_and_the_choice_holds_while_it_computes(
    precision: str, on_gpu: Hardware, fresh_config: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    chosen: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", chosen.append)
    cfg.accelerator, cfg.gnn.precision = "cuda", precision
    assert gnn_hardware(cfg) == on_gpu
    on_gpu._choose_products()
    assert chosen == ["high" if on_gpu.tf32 else "highest"]
    cfg.accelerator = "cpu"
    assert gnn_hardware(cfg) == hardware_for(cfg, "32" if precision == "tf32" else precision)
