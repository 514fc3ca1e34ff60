"""A text classifier whose weights are split among processes, for models larger than a device (FSDP2).

Each process has its part of every weight, and so of gradients and optimizer. A transformer layer's weights are brought
together when its turn comes, in the forward and in the backward pass, and dropped again after it: all processes must
call the model equally often.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from glem_graphgym.models.text_encoder import TextClassifier, transformer_layers


def shard_by_layer(model: TextClassifier, mesh: DeviceMesh, dtype: torch.dtype) -> None:
    """Split rank 0's weights among the processes of ``mesh``, on their devices; a model that is split stays as it is.

    Args:
        dtype: in which the matrix products are computed. Layers are brought together in it, because autocast's own
            copies would be kept for the backward pass; norms, embeddings and head stay as they are.
    """
    if isinstance(model, FSDPModule):
        return
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as DDP does: what is new, as the head, each has drawn by itself
    half, single = (
        MixedPrecisionPolicy(param_dtype=kind, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for kind in (dtype, torch.float32)
    )
    for layer in transformer_layers(model.encoder.backbone) or ():
        norms = [module for module in layer.modules() if _is_norm(module)]
        if norms and dtype != torch.float32:
            fully_shard(norms, mesh=mesh, mp_policy=single)
        fully_shard(layer, mesh=mesh, mp_policy=half)
    fully_shard(model, mesh=mesh)


def _is_norm(module: nn.Module) -> bool:
    """Whether all parameters of a module are vectors, as in norms of any library."""
    own = list(module.parameters())
    return not list(module.children()) and bool(own) and all(parameter.ndim <= 1 for parameter in own)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """`state_dict` of a model; of one that is split, in all processes called together: on the CPU of rank 0 alone."""
    state: dict[str, Any] = model.state_dict()
    if not isinstance(model, FSDPModule):
        return state
    first = torch.distributed.get_rank() == 0
    whole = ((name, value.full_tensor() if isinstance(value, DTensor) else value) for name, value in state.items())
    return {name: value.cpu() for name, value in whole if first}


def local_part(value: Tensor) -> Tensor:
    """This process's part of a tensor that is split."""
    return value.to_local() if isinstance(value, DTensor) else value
