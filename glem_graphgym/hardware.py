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
    """The values on ``device``. A copy to a GPU is made from pinned memory, and neither side waits for the other."""
    x = torch.as_tensor(values)
    return x if x.device.type == device.type else x.pin_memory().to(device, non_blocking=True)


def processor() -> tuple[str, str]:
    """The processor's name and instructions, of which a virtual machine may hide some; "" where they are not told."""
    lines: list[str] = []
    with suppress(OSError):  # Linux alone has it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(lines)}
    name = found.get("model name", platform.processor() or platform.machine())
    return name, found.get("flags", found.get("Features", ""))


class Autocast(MixedPrecision):
    """Half precision inside the model alone: targets stay float32, and graphs are no tensors to be converted."""

    def convert_input(self, data: Any) -> Any:
        return data

    convert_output = convert_input


@dataclass(frozen=True)
class Hardware:
    """Device, precision and processes of a stage."""

    accelerator: str = "cpu"  # or cuda
    precision: str = "32-true"  # Lightning's name: or bf16-mixed, 16-mixed
    tf32: bool = False  # a GPU's matrix products of float32 round their factors to 10 bits of mantissa
    strategy: str = "ddp"  # of several processes: or fsdp, which splits weights, gradients and optimizer among them

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator)

    @property
    def dtype(self) -> torch.dtype:
        """The type that matrix products are computed in, and that large inputs are kept in."""
        types = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return types[self.precision]

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients are scaled (float16); whoever unscales them clips them then, not the optimizer."""
        return self.precision == "16-mixed"

    @property
    def shards(self) -> bool:
        """Whether processes that work together now have a part of each weight each."""
        return self.strategy == "fsdp" and processes.world_size() > 1

    def mesh(self) -> DeviceMesh:
        """The devices of the processes that work together now, one each."""
        return init_device_mesh(self.accelerator, (processes.world_size(),))

    def autocast(self) -> torch.autocast:
        """The precision of training, for a forward pass outside of it."""
        self._choose_products()
        mixed = self.precision != "32-true"
        return torch.autocast(self.accelerator, dtype=self.dtype if mixed else None, enabled=mixed)

    def _choose_products(self) -> None:
        """Torch keeps this for the process; whoever computes says it anew."""
        if self.accelerator == "cuda":
            torch.set_float32_matmul_precision("high" if self.tf32 else "highest")

    def fabric(self, shard: Callable[[], nn.Module], find_unused: bool = False) -> Fabric:
        """Devices, precision and the strategy of the processes that work together now, for training.

        Args:
            shard: splits the trained module's weights among the processes, where that is the strategy.
            find_unused: whether parameters without a part in the loss have to be looked for at every step of DDP.
        """
        self._choose_products()
        logging.getLogger("lightning_fabric").setLevel(logging.ERROR)  # hints about devices that are not used
        plugins: list[Any] = [Precision()]
        if self.precision != "32-true":
            plugins = [Autocast(cast(Literal["bf16-mixed", "16-mixed"], self.precision), self.accelerator)]
        info = processes.rank_info()
        if info.size == 1:
            # One of several processes that trains alone must not take the launcher's variables for its own.
            plugins += [LightningEnvironment()] if processes.have_joined() else []
            return Fabric(accelerator=self.accelerator, devices=1, plugins=plugins)
        # Given one by one: this process may see no device but its own.
        device = torch.device("cuda", torch.cuda.current_device()) if self.accelerator == "cuda" else self.device
        strategy: ParallelStrategy
        if self.shards:
            strategy = ModelParallelStrategy(lambda *_: shard(), info.size, 1)
        else:
            strategy = DDPStrategy(
                broadcast_buffers=False,  # they are the same everywhere
                find_unused_parameters=find_unused,
                gradient_as_bucket_view=True,
            )
        strategy.parallel_devices = [device] * info.local_size
        strategy.cluster_environment = TorchElasticEnvironment()  # `processes.join` has set its variables
        fabric = Fabric(accelerator=self.accelerator, strategy=strategy, num_nodes=info.machines, plugins=plugins)
        fabric.launch()
        return fabric
