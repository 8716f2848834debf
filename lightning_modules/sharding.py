"""FSDP2: a causal language model's weights spread over all processes, which gather one decoder block at a time."""

from collections.abc import Callable
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

T = TypeVar("T")


def is_sharded(trainer: L.Trainer) -> bool:
    """Returns whether the trainer's strategy spreads a model's weights over its processes."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def check_strategy(trainer: L.Trainer) -> None:
    """Refuses a strategy that would not shard as it says.

    Raises:
        ValueError: FSDP's first version, one process, or a loss scale that shards do not share.
    """
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("trainer.strategy: shard a model with ModelParallelStrategy (FSDP2), not with FSDPStrategy")
    if not is_sharded(trainer):
        return
    if trainer.world_size == 1:
        raise ValueError(
            "trainer.strategy shards a model over several processes, but there is one; see trainer.devices"
        )
    if trainer.precision == "16-mixed":
        raise ValueError("trainer.precision 16-mixed scales each shard's loss on its own; use bf16-mixed")


def shard_causal_lm(model: PreTrainedModel, trainer: L.Trainer) -> None:
    """Spreads each decoder block, and what is left around them, over all of the trainer's processes.

    In `bf16-mixed`, weights are gathered in bfloat16; gradients are averaged, and weights kept, in float32.
    """
    is_mixed = trainer.precision == "bf16-mixed"
    is_half = is_mixed or trainer.precision in ("bf16-true", "16-true")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_mixed else None, reduce_dtype=torch.float32 if is_half else None
    )
    # Whatever dimensions the strategy gave its own mesh.
    mesh = init_device_mesh(trainer.strategy.root_device.type, (trainer.world_size,))
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def call_inside(model: nn.Module, function: Callable[[], T]) -> T:
    """Calls `function` in place of the model's forward, so that a sharded model's own weights are whole meanwhile."""
    own = model.forward
    model.forward = function
    try:
        return model()
    finally:
        model.forward = own


def count_forwards(trainer: L.Trainer, own: int) -> int:
    """Returns the largest number of forward passes that a process will run, from each one's own number."""
    number = torch.tensor(own, device=trainer.strategy.root_device)
    return int(trainer.strategy.reduce(number, reduce_op="max"))


def run_idle(model: PreTrainedModel, number: int, device: torch.device) -> None:
    """Runs a sharded model for the processes that still have batches, since all gather its weights together."""
    for _ in range(number):
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=device), use_cache=False)


def gather_state(model: nn.Module, trainable_only: bool = False) -> dict[str, Any]:
    """Returns a sharded model's whole weights, on the CPU of the first process; every process calls it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trainable_only)
    return get_model_state_dict(model, options=options)


def whole(tensor: Tensor) -> Tensor:
    """Returns a tensor that may be spread over the processes as each would compute it alone."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
