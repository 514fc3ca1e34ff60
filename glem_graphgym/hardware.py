"""The device and precision that a stage computes with."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from glem_graphgym import processes


def sent(values: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """The values on ``device``; copies to a GPU are made from pinned memory and asynchronous."""
    x = torch.as_tensor(values)
    return x if x.device.type == device.type else x.pin_memory().to(device, non_blocking=True)


def processor() -> tuple[str, str]:
    """Name and instruction sets of the processor, "" if unknown; a virtual machine may hide some of them."""
    lines: list[str] = []
    with suppress(OSError):  # exists on Linux alone
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    name = fields.get("model name", platform.processor() or platform.machine())
    return name, fields.get("flags", fields.get("Features", ""))


class Autocast(MixedPrecision):
    """Half precision inside the model alone: targets stay float32, and graphs are no tensors to convert."""

    def convert_input(self, data: Any) -> Any:
        return data

    convert_output = convert_input


@dataclass(frozen=True)
class Hardware:
    """Device, precision and multi-process strategy that a stage computes with."""

    accelerator: str = "cpu"  # or cuda
    precision: str = "32-true"  # Lightning's name: or bf16-mixed, 16-mixed
    tf32: bool = False  # a GPU's matrix products of float32 round their factors to 10 bits of mantissa
    strategy: str = "ddp"  # or fsdp, which shards weights, gradients and optimizer state among the ranks

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products and of large stored inputs."""
        types = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return types[self.precision]

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients are scaled (float16); they are then clipped after unscaling, not by the optimizer."""
        return self.precision == "16-mixed"

    @property
    def shards(self) -> bool:
        """Whether the weights are sharded: with fsdp, if several ranks work together at present."""
        return self.strategy == "fsdp" and processes.world_size() > 1

    def mesh(self) -> DeviceMesh:
        """The devices of the ranks that work together at present, one per rank."""
        return init_device_mesh(self.accelerator, (processes.world_size(),))

    def autocast(self) -> torch.autocast:
        """Autocast with the precision of training, for forward passes outside `fit`."""
        self._choose_products()
        mixed = self.precision != "32-true"
        return torch.autocast(self.accelerator, dtype=self.dtype if mixed else None, enabled=mixed)

    def _choose_products(self) -> None:
        """Set torch's precision of float32 products; it is global, so it is set again before each computation."""
        if self.accelerator == "cuda":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")

    def fabric(self, shard: Callable[[], nn.Module], find_unused: bool = False) -> Fabric:
        """Lightning's Fabric for training: device, precision, and strategy for the ranks that work together at present.

        Args:
            shard: shards the weights of the trained module; called if the strategy is fsdp.
            find_unused: whether DDP must look for parameters without a part in the loss, in every step.
        """
        self._choose_products()
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # silences hints about unused devices
        plugins: list[Any] = [Precision()]
        if self.precision != "32-true":
            plugins = [Autocast(cast(Literal["bf16-mixed", "16-mixed"], self.precision), self.accelerator)]
        info = processes.rank_info()
        if info.size == 1:
            # A rank that trains alone must not read the variables that the launcher set for all ranks.
            plugins += [LightningEnvironment()] if processes.have_joined() else []
            return Fabric(accelerator=self.accelerator, devices=1, plugins=plugins)
        # Devices are passed explicitly: this process may see its own alone.
        device = torch.device("cuda", torch.cuda.current_device()) if self.accelerator == "cuda" else self.device
        strategy: ParallelStrategy
        if self.shards:
            strategy = ModelParallelStrategy(lambda *_: shard(), info.size, 1)
        else:
            strategy = DDPStrategy(
                forward_sync_buffers=False,  # they are equal on all ranks
                find_unused_parameters=find_unused,
                gradient_as_bucket_view=True,
            )
        strategy.parallel_devices = [device] * info.local_size
        strategy.cluster_environment = TorchElasticEnvironment()  # `processes.join` has set its variables
        fabric = Fabric(accelerator=self.accelerator, strategy=strategy, num_nodes=info.machines, plugins=plugins)
        fabric.launch()
        return fabric
