"""What is changed in a student's weights before it is trained: a part is drawn anew, or its hidden units change places.

Which part of a shared initialisation carries what a teacher gives beside its text is disputed: the whole of it (Cloud
et al. 2025, arXiv 2507.14805), or compatible output heads (arXiv 2605.23645). A student whose units have changed places
computes the same function, and training treats all units alike: what differs after it is rounding, so its arms show how
much of a study's differences is noise.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeInt
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_modules.model.pretrained import read_config

ResetPart = Literal["head", "embeddings", "vocabulary", "body", "all"]
# By `model_type`. Each one's layers are alike: what is fused, and what a norm spans, would differ in others.
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
NEOX_LIKE = ("gpt_neox",)


@dataclass(frozen=True)
class StudentStart:
    """What is changed in a student's weights before it is trained.

    Args:
        reset: Draw these weights anew, as the architecture initialises them: `head`, the output layer; `embeddings`,
            the input's; `vocabulary`, both, which are one where a model ties them; `body`, all between; or `all`.
        permuted_units: Let the units of each feed-forward layer, and the heads of each attention, change places: the
            same function in other weights. Of attention heads that share keys, each group stays together.
        seed: Of what is drawn.

    Raises:
        ValueError: There is a seed, but nothing is drawn.
    """

    reset: ResetPart | None = None
    permuted_units: bool = False
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        if self.seed and not self.changes:
            raise ValueError(f"model.start.seed {self.seed} would be ignored: nothing is reset or permuted")

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return self.reset is not None or self.permuted_units


def check_start(start: StudentStart, student: str, revision: str | None, has_adapter: bool) -> None:
    """Refuses a change that a student's architecture does not have, by its config alone.

    Args:
        start: What is to be changed.
        student: Hub id, local folder, GGUF file, checkpoint, or `model:NAME`.
        revision: Commit of a hub model.
        has_adapter: Whether an adapter is trained in place of the weights.

    Raises:
        ValueError: Head and embeddings are tied, units cannot be told apart, or the changed weights would be lost.
    """
    if not start.changes:
        return
    if has_adapter:
        raise ValueError("model.start changes weights that model.adapter takes as they are published; leave one out")
    config = read_config(student, revision)
    if config.tie_word_embeddings:
        _refuse_tied(start, student)
    if start.permuted_units and config.model_type not in (*LLAMA_LIKE, *NEOX_LIKE):
        raise ValueError(
            f"model.start.permuted_units: {student} is of architecture {config.model_type}, whose units are not known; "
            f"there are {', '.join((*LLAMA_LIKE, *NEOX_LIKE))}"
        )


def _refuse_tied(start: StudentStart, student: str) -> None:
    if start.reset in ("head", "embeddings"):
        raise ValueError(
            f"model.start.reset {start.reset}: {student} has one weight for its embeddings and its head "
            "(tie_word_embeddings); set it to vocabulary, which resets both"
        )


@torch.no_grad()
def change_start(model: PreTrainedModel, start: StudentStart, student: str) -> None:
    """Changes a student's weights in place.

    Args:
        model: The student.
        start: What is changed.
        student: Its name, for messages.

    Raises:
        ValueError: Head and embeddings are one weight, and only one of them was to be reset.
    """
    if start.reset is not None:
        _reset(model, start, student)
    if start.permuted_units:
        generator = torch.Generator().manual_seed(start.seed)
        for layer in model.base_model.layers:
            permute = _permute_llama if model.config.model_type in LLAMA_LIKE else _permute_neox
            permute(layer, model.config, generator)


def _reset(model: PreTrainedModel, start: StudentStart, student: str) -> None:
    embeddings = {id(weight) for weight in model.get_input_embeddings().parameters()}
    head = {id(weight) for weight in model.get_output_embeddings().parameters()}
    if embeddings & head:
        _refuse_tied(start, student)
    everything = {id(weight) for weight in model.parameters()}
    chosen = {
        "head": head, "embeddings": embeddings, "vocabulary": embeddings | head,
        "body": everything - embeddings - head, "all": everything,
    }[start.reset or "all"]  # fmt: skip
    state = torch.get_rng_state()
    try:
        torch.default_generator.manual_seed(start.seed)
        fresh = type(model)(copy.deepcopy(model.config))
    finally:
        torch.set_rng_state(state)
    drawn = dict(fresh.named_parameters())
    for name, weight in model.named_parameters():
        if id(weight) in chosen:
            weight.copy_(drawn[name])


def _move_rows(linears: Sequence[nn.Linear], order: Tensor) -> None:
    for linear in linears:
        linear.weight.copy_(linear.weight[order])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[order])


def _move_columns(linear: nn.Linear, order: Tensor) -> None:
    linear.weight.copy_(linear.weight[:, order])


def _spread(order: Tensor, width: int) -> Tensor:
    """Returns the places of blocks of `width` in this order."""
    return (order[:, None] * width + torch.arange(width)).flatten()


def _permute_llama(layer: Any, config: Any, generator: torch.Generator) -> None:
    mlp, attention = layer.mlp, layer.self_attn
    units = torch.randperm(mlp.down_proj.in_features, generator=generator)
    _move_rows([mlp.gate_proj, mlp.up_proj], units)
    _move_columns(mlp.down_proj, units)
    num_groups = config.num_key_value_heads
    size = config.num_attention_heads // num_groups
    groups = torch.randperm(num_groups, generator=generator)
    inner = torch.stack([torch.randperm(size, generator=generator) for _ in groups])
    heads = (groups[:, None] * size + inner).flatten()
    width = attention.q_proj.out_features // len(heads)
    _move_rows([attention.q_proj], _spread(heads, width))
    _move_rows([attention.k_proj, attention.v_proj], _spread(groups, width))
    _move_columns(attention.o_proj, _spread(heads, width))


def _permute_neox(layer: Any, config: Any, generator: torch.Generator) -> None:
    units = torch.randperm(layer.mlp.dense_4h_to_h.in_features, generator=generator)
    _move_rows([layer.mlp.dense_h_to_4h], units)
    _move_columns(layer.mlp.dense_4h_to_h, units)
    heads = torch.randperm(config.num_attention_heads, generator=generator)
    width = layer.attention.dense.in_features // len(heads)
    # Query, key and value of a head lie together.
    _move_rows([layer.attention.query_key_value], _spread(heads, 3 * width))
    _move_columns(layer.attention.dense, _spread(heads, width))
