"""FSDP: the model's weights divided among the processes, by the settings that `accelerate launch` puts into the environment."""

from __future__ import annotations

from accelerate import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor

from medgraft import hardware
from medgraft.config import RunConfig
from medgraft.errors import ConfigError
from medgraft.strategies import Strategy


def check_sharded(config: RunConfig, strategy: Strategy, *, evaluate: bool) -> None:
    """ConfigError if the run is to be sharded and cannot be; checked before anything is loaded."""
    if not hardware.is_sharded():
        return
    obstacles = {
        "accelerate shards over several GPUs; on a CPU, leave FSDP out": _on_cpus(),
        "fsdp_version 1 is not supported; set fsdp_version: 2": hardware.fsdp_version() != 2,
        "nothing is trained, so nothing need be sharded; start one process": not strategy.trains,
        f"a base in {strategy.quantization} cannot be sharded; choose a strategy without quantization": (
            strategy.quantization != "none"
        ),
        "AdaLoRA moves rank between whole layers; choose another strategy": strategy.method == "ADALORA",
        "sharded weights caption nothing; add --no-eval, and then use medgraft evaluate on the adapter": evaluate,
        "sharded weights are not kept for later; leave train.best_by out": config.train.best_by is not None,
        "checkpoints of sharded weights are not written; leave train.save_steps out": config.train.save_steps is not None,
        "kernels need whole weights; leave acceleration.kernels out": config.acceleration.kernels not in ("auto", "none"),
    }
    for obstacle, there in obstacles.items():
        if there:
            raise ConfigError(f"FSDP: {obstacle}.")


def gather_trained(model: nn.Module) -> None:
    """Put whole tensors in the place of the trained parameters, in every process; the model then computes no more."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and isinstance(parameter, DTensor):
                whole = parameter.full_tensor().detach()
                setattr(module, name, nn.Parameter(whole))


def _on_cpus() -> bool:
    return bool(hardware.processes().distributed_type == DistributedType.MULTI_CPU)
