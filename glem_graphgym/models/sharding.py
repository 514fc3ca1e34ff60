"""A text classifier sharded over the ranks, for models larger than a device (FSDP2).

Each rank stores a shard of every weight, gradient and optimizer state. A transformer layer's weights are gathered for
its forward and its backward pass, and freed afterwards, so all ranks must call the model equally often.
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
    """Shard rank 0's weights over the ranks of ``mesh``; a model that is sharded already stays as it is.

    Args:
        dtype: type of the matrix products. Layers are gathered in it, because casts by autocast would be kept for the
            backward pass; norms, embeddings and head keep their type.
    """
    if isinstance(model, FSDPModule):
        return
    for tensor in (*model.parameters(), *model.buffers()):
        torch.distributed.broadcast(tensor.data, 0)  # as DDP does: each rank has drawn new weights, such as the head
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
    """Whether a module has no submodules and only vectors as parameters, as norms of any library do."""
    parameters = list(module.parameters())
    return not list(module.children()) and bool(parameters) and all(parameter.ndim <= 1 for parameter in parameters)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Unsharded `state_dict`. For a sharded model all ranks must call this: rank 0 gets it on the CPU, others {}."""
    state: dict[str, Any] = model.state_dict()
    if not isinstance(model, FSDPModule):
        return state
    is_rank_zero = torch.distributed.get_rank() == 0
    full_tensors = (
        (name, value.full_tensor() if isinstance(value, DTensor) else value) for name, value in state.items()
    )
    return {name: value.cpu() for name, value in full_tensors if is_rank_zero}


def local_part(value: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor; any other tensor as it is."""
    return value.to_local() if isinstance(value, DTensor) else value
