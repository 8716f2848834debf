"""Learning for few bits: the forward pass sees weights as a 4-bit file would hold them, the gradient does not.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432; quantisation-aware training, Jacob et al. 2018,
arXiv 1712.05877): the rounded weight takes the weight's place, and its gradient is taken for the weight's. The weights
themselves are what is kept, saved and exported.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

FakeQuant = Literal["Q4_0"]
# Weights of a row that share a scale.
BLOCK = 32


def round_to_q4_0(weight: Tensor) -> Tensor:
    """Returns weights as ggml's Q4_0 holds them: of each 32 of a row, 16 steps of a half-precision scale.

    The scale is the weight of the largest magnitude over -8, so that this one is exact but for the scale's rounding.

    Args:
        weight: [..., columns], with 32 dividing the columns.
    """
    blocks_NB = weight.float().reshape(-1, BLOCK)
    largest_N1 = blocks_NB.gather(-1, blocks_NB.abs().argmax(-1, keepdim=True))
    scale_N1 = largest_N1 / -8
    inverse_N1 = torch.where(scale_N1 == 0, 0.0, 1 / scale_N1)
    steps_NB = (blocks_NB * inverse_N1 + 8.5).trunc().clamp(0, 15) - 8
    return (steps_NB * scale_N1.half().float()).reshape(weight.shape).to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return round_to_q4_0(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _pass_through(weight: Tensor) -> Tensor:
    rounded: Tensor = _StraightThrough.apply(weight)  # type: ignore[no-untyped-call]  # torch left it untyped
    return rounded


def _multiply(linear: nn.Linear, inputs: Tensor) -> Tensor:
    return F.linear(inputs, _pass_through(linear.weight), linear.bias)


def _look_up(forward: Any, ids: Tensor) -> Tensor:
    # Blocks are of a row, so that rows may be rounded once they are chosen.
    return _pass_through(forward(ids))


def round_while_learning(model: PreTrainedModel, kind: FakeQuant | None) -> None:
    """Lets a model compute with the weights that a file of it rounds to 4 bits; None leaves it as it is.

    These are the linear layers but for the output head, which files hold in 6 or 8 bits, and the embedding where it is
    no head, too. Rows that 32 does not divide stay as they are, as in the file.

    Args:
        model: Its modules are changed in place; its weights and their names are not.
        kind: The file's type.
    """
    if kind is None:
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head and module.in_features % BLOCK == 0:
            vars(module)["forward"] = partial(_multiply, module)
    # llama.cpp's GPT-NeoX has no tied head: its file holds the embedding twice.
    is_head = head.weight is embedding.weight and model.config.model_type != "gpt_neox"
    if not is_head and embedding.embedding_dim % BLOCK == 0:
        vars(embedding)["forward"] = partial(_look_up, embedding.forward)


def check_rounding(fake_quant: FakeQuant | None, has_adapter: bool, is_compiled: bool) -> None:
    """Refuses what does not go with learning for few bits.

    Raises:
        ValueError: See there.
    """
    if fake_quant is not None and (has_adapter or is_compiled):
        other = "adapter, whose weights are added to others" if has_adapter else "compile"
        raise ValueError(f"model.fake_quant rounds the weights that are trained; leave out model.{other}")
