"""The GNN tried on a few nodes before a run: what cannot be trained is found now, not after the LM has been."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.graphgym.register import network_dict
from yacs.config import CfgNode

from glem_graphgym.config import ConfigError
from glem_graphgym.hardware import Hardware
from glem_graphgym.registered.language_model import first_line, hardware_for, random_state_kept
from glem_graphgym.registered.networks import LMNetwork, Structure, build_gnn, sees_hops
from glem_graphgym.registered.optim import gnn_optimizer

NODES = 8  # of a ring


def check_network(cfg: CfgNode, num_classes: int, width: int, joint: bool, smallest_batch: int = NODES) -> None:
    """Build the GNN and its optimizer, take a training step's passes on a tiny graph, and predict.

    Draws no number that a run would draw.

    Args:
        num_classes: C.
        width: columns D of the node features, without labels.
        joint: whether it is trained together with the LM, whose optimizer it then has.
        smallest_batch: nodes in the smallest batch of training.

    Raises:
        ConfigError: it cannot be built, trained or asked for predictions; names ``model.type`` or the keys at fault.
        ValueError: a network of ours refuses a setting.
    """
    mode, hardware = cfg.train.mode, hardware_for(cfg, cfg.lm.precision if joint else cfg.gnn.precision)
    if network_dict.get(cfg.model.type) is LMNetwork:
        raise ConfigError(
            f"model.type {cfg.model.type} is the language model, for train.mode standard, but train.mode {mode} trains "
            "a GNN; expected one, such as glem_sage (the language model is what lm.* describes)"
        )
    with random_state_kept(hardware):
        try:
            network = build_gnn(width if sees_hops() else width + _label_columns(cfg, num_classes), num_classes)
        except ValueError:  # which names what is wrong already
            raise
        except Exception as error:
            raise ConfigError(f"model.type {cfg.model.type} cannot be built: {first_line(error)}") from error
        if cfg.glem.label_input and getattr(network, "label_hops", 1) == 0:
            raise ConfigError(
                f"glem.label_input is True, but model.type {cfg.model.type} takes no labels; set it to False"
            )
        if smallest_batch < 2 and any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
            size = "lm.batch_size / lm.grad_accumulation" if joint else "gnn.batch_size"
            raise ConfigError(
                f"{size} leaves a training batch of one node, and batch norm (gnn.norm {cfg.gnn.norm}) in model.type "
                f"{cfg.model.type} needs at least two; raise {size}, label more nodes, or set gnn.norm to layer or none"
            )
        if not joint:
            _check_optimizer(cfg, network, hardware)
        try:
            _try(cfg, network, num_classes, width, hardware)
        except Exception as error:
            raise ConfigError(
                f"model.type {cfg.model.type} cannot be the GNN of train.mode {mode}: {first_line(error)}; expected a "
                f"network that takes a batch with x (n, {width}) and edge_index, and gives logits (n, {num_classes}) "
                "and labels"
            ) from error


def _label_columns(cfg: CfgNode, num_classes: int) -> int:
    return num_classes if cfg.glem.label_input else 0


def _check_optimizer(cfg: CfgNode, network: nn.Module, hardware: Hardware) -> None:
    try:
        gnn_optimizer(cfg)(network.parameters())
    except Exception as error:
        raise ConfigError(
            f"optim.optimizer {cfg.optim.optimizer} with optim.scheduler {cfg.optim.scheduler} cannot be made for "
            f"model.type {cfg.model.type}: {first_line(error)}"
        ) from error


def _try(cfg: CfgNode, network: nn.Module, num_classes: int, width: int, hardware: Hardware) -> None:
    """Forward and backward pass, then a prediction.

    Raises:
        ValueError: logits are none.
    """
    inputs = _inputs(cfg, num_classes, width, hardware)
    network.to(hardware.device).train()
    with hardware.autocast():
        logits = network(*inputs)
    if not isinstance(logits, Tensor) or logits.shape != (NODES, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"of {NODES} nodes it gives {found}, expected ({NODES}, {num_classes})")
    F.cross_entropy(logits.float(), torch.zeros(NODES, dtype=torch.long, device=logits.device)).backward()
    network.eval()
    with torch.inference_mode(), hardware.autocast():
        network(*_inputs(cfg, num_classes, width, hardware))


def _inputs(cfg: CfgNode, num_classes: int, width: int, hardware: Hardware) -> tuple[Tensor, Structure | Tensor | None]:
    """What the network's ``forward`` takes: features and a ring, or hops of features and of labels."""
    device, labels = hardware.device, _label_columns(cfg, num_classes)
    if sees_hops():
        hops = torch.rand(cfg.gnn.hops + 1, NODES, width).to(device, hardware.dtype)
        return hops, torch.rand(1, NODES, labels).to(device, hardware.dtype) if labels else None
    ring = torch.stack([torch.arange(NODES), torch.arange(NODES).roll(1)])
    structure = Structure(torch.cat([ring, ring.flip(0)], dim=1), NODES).to(device)
    return torch.rand(NODES, width + labels).to(device, hardware.dtype), structure
