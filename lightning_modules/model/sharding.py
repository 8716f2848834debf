"""FSDP2: a causal language model's weights spread over all processes, which gather one decoder block at a time."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from lightning_modules.run.checkpoints import agree_on_checkpoint, keep_previous, sync_folder

T = TypeVar("T")


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoint is a folder of one file for each process: its own shards, plain tensors.

    So no process holds the whole, and nothing is unpickled; but it is continued from with as many processes.
    """

    def __init__(self) -> None:
        super().__init__()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Lightning is to call `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns this process's shards of the weights."""
        state: dict[str, Any] = tree_map(local, self.lightning_module.state_dict())
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Returns this process's shards of the optimizer's state."""
        state: dict[str, Any] = tree_map(local, optimizer.state_dict())
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Writes all processes' files beside the target; the first process renames the folder when all are there."""
        target = Path(self.broadcast(filepath))
        temporary = target.with_name(f".{target.name}.tmp")
        if self.is_global_zero:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        self.barrier()
        torch.save(checkpoint, temporary / name_shard(self.global_rank, self.world_size))
        self.barrier()
        if self.is_global_zero:
            sync_folder(temporary)
            keep_previous(target)
            temporary.replace(target)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads this process's file, once all agree on the checkpoint.

        Raises:
            ValueError: Another number of processes wrote the checkpoint.
        """
        agree_on_checkpoint(Path(checkpoint_path))
        path = Path(checkpoint_path) / name_shard(self.global_rank, self.world_size)
        if not path.is_file():
            raise ValueError(
                f"{checkpoint_path}: not the checkpoint of {self.world_size} processes that share a model; continue "
                "with the number and the strategy that saved it"
            )
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=weights_only)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes this process's shards of the weights."""
        state = self.lightning_module.state_dict()
        assert not strict or state.keys() == checkpoint["state_dict"].keys()
        with torch.no_grad():
            for name, shard in checkpoint["state_dict"].items():
                local(state[name]).copy_(shard)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this process's shards of the optimizer's state."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for number, values in state["state"].items():
                like = parameters[number]
                for name, shard in values.items():
                    if isinstance(like, DTensor) and shard.ndim:  # AdamW's step is a number
                        values[name] = DTensor.from_local(
                            shard, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
                        )
            optimizer.load_state_dict(state)


def name_shard(rank: int, world_size: int) -> str:
    """Returns the name of a process's file in a checkpoint."""
    return f"{rank}-of-{world_size}.pt"


def local(value: Any) -> Any:
    """Returns this process's part of a tensor that is spread over the processes; anything else as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def is_sharded(trainer: L.Trainer) -> bool:
    """Returns whether the trainer's strategy spreads a model's weights over its processes."""
    return isinstance(trainer.strategy, ModelParallelStrategy)


def count_shards(trainer: L.Trainer) -> int:
    """Returns over how many processes the trainer's strategy spreads a model's weights."""
    return trainer.world_size if is_sharded(trainer) else 1


def check_strategy(trainer: L.Trainer) -> None:
    """Refuses a strategy that would not shard as it says.

    Raises:
        ValueError: FSDP's first version, one process, or a loss scale that shards do not share.
    """
    if isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError("trainer.strategy fsdp is FSDP's first version, which is not supported; use fsdp2")
    if not is_sharded(trainer):
        return
    if trainer.world_size == 1:
        raise ValueError(
            "trainer.strategy fsdp2 spreads a model over processes, but there is one; raise trainer.devices"
        )
    if trainer.precision == "16-mixed":
        raise ValueError("trainer.precision 16-mixed scales each shard's loss on its own; use bf16-mixed")


def refuse_sharding(trainer: L.Trainer, other: str) -> None:
    """Raises a ValueError if the trainer's strategy is to spread a model that this stage keeps whole.

    Args:
        trainer: The trainer.
        other: What to do with a model that is too large for a device, for the message.
    """
    if is_sharded(trainer) or isinstance(trainer.strategy, FSDPStrategy):
        raise ValueError(f"trainer.strategy: this stage keeps a whole model on each device; use ddp, or {other}")


@contextmanager
def taking_turns(trainer: L.Trainer) -> Iterator[None]:
    """Lets a node's processes through one after another, since each holds a whole model meanwhile."""
    for _ in range(trainer.local_rank):
        trainer.strategy.barrier()
    yield
    for _ in range(trainer.num_devices - trainer.local_rank):
        trainer.strategy.barrier()


def shard_causal_lm(model: PreTrainedModel, trainer: L.Trainer, dtype: torch.dtype | None = None) -> None:
    """Spreads each decoder block, and what is left around them, over all of the trainer's processes.

    Weights become `dtype` where it is given, block by block, so that no process ever holds all of them in it. In
    `bf16-mixed`, they are gathered in bfloat16; gradients are averaged, and weights kept, in float32.
    """
    is_mixed = trainer.precision == "bf16-mixed"
    is_half = is_mixed or trainer.precision in ("bf16-true", "16-true")
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if is_mixed else None, reduce_dtype=torch.float32 if is_half else None
    )
    # Whatever dimensions the strategy gave its own mesh.
    mesh = init_device_mesh(trainer.strategy.root_device.type, (trainer.world_size,))
    for block in (*model.base_model.layers, model):
        for parameter in block.parameters():
            if dtype is not None and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(dtype)
        fully_shard(block, mesh=mesh, mp_policy=policy)


def call_inside(model: nn.Module, function: Callable[[], T]) -> T:
    """Calls `function` in place of the model's forward, so that a sharded model's own weights are whole meanwhile."""
    own = model.forward
    model.forward = function
    try:
        result: T = model()
        return result
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
