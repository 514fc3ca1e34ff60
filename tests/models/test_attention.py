from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from glem_graphgym.models import attention
from glem_graphgym.models.attention import CPU_ATTENTION, cpu_attention
from glem_graphgym.models.text_encoder import EncoderConfig, load_text_encoder
from tests.models.families import save_random


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """query, key, value (5, 2, 7, 4) and an additive mask (5, 1, 7, 7) that hides the ends of some texts."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 5, 2, 7, 4, dtype=dtype).unbind()
    mask = torch.zeros(5, 1, 7, 7, dtype=dtype)
    mask[1, :, :, 3:] = mask[3, :, :, 6:] = torch.finfo(dtype).min
    return query, key, value, mask


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("at_once", [1, 2 * 7 * 7 * 2, 1 << 20])
@pytest.mark.parametrize("scaling", [None, 0.1])
@pytest.mark.parametrize("sdpa_from", [(0, 0), (1, 1)])
def test_outputs_are_those_of_torch(
    masked: bool, at_once: int, scaling: float | None, sdpa_from: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    *qkv, mask = inputs()
    attn_mask = mask if masked else None
    wanted = torch.nn.functional.scaled_dot_product_attention(*qkv, attn_mask=attn_mask, scale=scaling)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            out, weights = cpu_attention(torch.nn.Identity(), *qkv, attn_mask, scaling, sdpa_from=sdpa_from)
        assert weights is None
        assert out.is_contiguous()
        torch.testing.assert_close(out, wanted.transpose(1, 2), rtol=1e-5, atol=1e-6)  # softmax is in single precision


def test_dropout_acts_on_the_weights_in_training_alone() -> None:
    query, key, value, _ = inputs(torch.float32)
    module = torch.nn.Identity()
    plain = cpu_attention(module.eval(), query, key, value, None, dropout=0.5)[0]
    assert torch.equal(plain, cpu_attention(module, query, key, value, None)[0])
    torch.manual_seed(0)
    draws = torch.stack([cpu_attention(module.train(), query, key, value, None, dropout=0.5)[0] for _ in range(4000)])
    assert not torch.equal(draws[0], plain)
    torch.testing.assert_close(draws.mean(0), plain, rtol=0, atol=0.12)


@pytest.mark.parametrize("fault", ["different", "error"])
def test_a_model_that_would_come_out_otherwise_keeps_its_own(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strange(module: torch.nn.Module, *args: Tensor, **kwargs: object) -> tuple[Tensor, None]:
        if fault == "error":
            raise TypeError("unexpected keyword argument")
        return cpu_attention(module, *args, **kwargs)[0] * 1.1, None  # type: ignore[arg-type]

    monkeypatch.setattr(attention, "cpu_attention", strange)
    save_random("bert", tmp_path)
    encoder = load_text_encoder(EncoderConfig(str(tmp_path), attention=CPU_ATTENTION))
    assert encoder.backbone.config._attn_implementation == "eager"  # type: ignore[union-attr]
    assert encoder.training


def test_what_is_wanted_beyond_a_mask_is_refused() -> None:
    query, key, value, mask = inputs()
    with pytest.raises(TypeError, match="softcap"):
        cpu_attention(torch.nn.Identity(), query, key, value, mask, softcap=30.0)
    cpu_attention(torch.nn.Identity(), query, key, value, mask, softcap=None, sliding_window=4)


def test_sdpa_takes_over_from_the_length_in_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Tensor, *args: Tensor, **kwargs: object) -> Tensor:
        taken.append(query.shape[2])
        return sdpa(query, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    save_random("bert", tmp_path)
    ours, shared = (
        load_text_encoder(EncoderConfig(str(tmp_path), attention=name)) for name in ("glem_cpu", "glem_cpu_9_5")
    )
    taken.clear()  # of the batch by which a model is tried
    for length, training in ((4, False), (5, False), (8, True), (9, True)):
        ids, mask = torch.arange(2 * length).view(2, length) % 20, torch.ones(2, length, dtype=torch.long)
        mask[1, 3:] = 0
        with torch.set_grad_enabled(training):
            torch.testing.assert_close(shared.eval()(ids, mask), ours.eval()(ids, mask), rtol=1e-5, atol=1e-5)
    assert set(taken) == {5, 9}
