from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from glem_graphgym.models import deberta
from glem_graphgym.models.deberta import attention_weights, use_fast_attention

SIZES: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    **{"relative_attention": True, "max_position_embeddings": 10, "type_vocab_size": 0},
    **{"position_biased_input": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
}
V1: Any = transformers.DebertaConfig
V2: Any = transformers.DebertaV2Config
BOTH = ["c2p", "p2c"]
CONFIGS = {
    "v1": V1(**SIZES, pos_att_type=BOTH),
    "v1, by content of the query alone": V1(**SIZES, pos_att_type=["c2p"]),
    "v1, talking heads": V1(**SIZES, pos_att_type=BOTH, talking_head=True),
    "v1, no positions": V1(**{**SIZES, "relative_attention": False}, pos_att_type=[]),
    "v2": V2(**SIZES, pos_att_type=BOTH, norm_rel_ebd="layer_norm"),
    "v2, by content of the key alone": V2(**SIZES, pos_att_type=["p2c"]),
    "v3": V2(**SIZES, pos_att_type=BOTH, share_att_key=True, position_buckets=4, norm_rel_ebd="layer_norm"),
}


def pair(config: Any) -> tuple[nn.Module, nn.Module]:
    """The same random weights with transformers' attention, and with ours."""
    torch.manual_seed(0)
    theirs = transformers.AutoModel.from_config(config).train()
    for weight in theirs.parameters():
        nn.init.normal_(weight, std=0.3)
    ours = copy.deepcopy(theirs)
    use_fast_attention(ours)
    return theirs, ours


def batch(length: int) -> tuple[Tensor, Tensor]:
    """Three texts, the second half as long, the third of one token."""
    ids = torch.arange(3 * length).view(3, length) % 50
    mask = torch.arange(length)[None] < torch.tensor([[length], [(length + 1) // 2], [1]])
    return ids, mask.long()


def passes(model: nn.Module, length: int) -> Iterator[Tensor]:
    """States of the tokens, then each weight's gradient."""
    ids, mask = batch(length)
    states = model(ids, mask).last_hidden_state * mask[..., None]
    states.sin().sum().backward()
    yield states
    yield from (weight.grad for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("length", [1, 2, 7, 14])  # beyond the 10 positions of v1 too
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_states_and_gradients_are_those_of_transformers(config: Any, length: int) -> None:
    theirs, ours = (list(passes(model.double(), length)) for model in pair(config))
    assert len(theirs) == len(ours) > 10
    for one, other in zip(theirs, ours, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)  # softmax and norm are in single precision


def test_attention_that_cannot_be_compiled_runs_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton and a C compiler may be installed without Python's headers, which Triton needs too."""
    attempts: list[Any] = []

    def fail(*arguments: Any) -> Tensor:
        attempts.append(arguments)
        raise RuntimeError("fatal error: Python.h: No such file or directory")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "triton")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.compile", lambda function, **options: fail)
    arguments = torch.randn(2, 2, 5, 5), None, None, torch.ones(2, 1, 1, 5), 0.0, False
    weights = deberta._weights_function.__wrapped__("cuda")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            torch.testing.assert_close(weights(*arguments), attention_weights(*arguments))
    assert len(attempts) == len(caplog.records) == 1
    assert "Python.h" in caplog.text


def test_compiled_attention_that_runs_out_of_memory_says_so() -> None:
    def fail(*arguments: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        deberta._with_fallback(fail, attention_weights)()
