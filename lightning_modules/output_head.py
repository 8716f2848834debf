"""A teacher's logits of the supervised rows only, a few rows at a time: never [B, S, V]."""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

# Rows of a chunk times vocabulary: 64 MiB of float32.
CHUNK_ELEMENTS = 1 << 24
_PROBED_ROWS = 4


class OutputHead:
    """Runs a model up to its output head, and the head on chunks of the rows that are wanted.

    The model's own forward is called, so that a model whose weights are sharded gathers them as always; its head is
    made to see the wanted rows alone. Where head, scale and soft cap, applied from outside, give the model's own
    logits, which the first batch shows, they are applied to one chunk at a time. Where they do not, or where the
    weights are sharded and the head is not whole outside the forward, the head is applied to all rows within it.

    Args:
        model: A causal language model.
        is_sharded: Whether its weights are spread over processes.
    """

    def __init__(self, model: PreTrainedModel, is_sharded: bool = False):
        self.model = model
        self.head: nn.Module = model.get_output_embeddings()
        config = model.config.get_text_config().to_dict()
        self.scale = (config.get("logit_scale") or 1.0) / (config.get("logits_scaling") or 1.0)
        self.softcap: float | None = config.get("final_logit_softcapping")
        # Unknown until the first batch.
        self.is_chunked: bool | None = False if is_sharded else None

    def project(self, hidden_ND: Tensor) -> Tensor:
        """Returns float32 logits of last hidden states."""
        logits_NV = self.head(hidden_ND).float()
        if self.scale != 1:
            logits_NV *= self.scale
        if self.softcap is not None:
            logits_NV = self.softcap * (logits_NV / self.softcap).tanh()
        return logits_NV

    def _forward(self, batch: dict[str, Any], num_passed: int | None) -> tuple[Tensor, Tensor]:
        """Returns the wanted rows' last hidden states [N, d], and the model's own logits of the first so many."""
        captured = []

        def select_rows(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            hidden_ND = rearrange(args[0], "b s d -> (b s) d")[batch["rows"]]
            captured.append(hidden_ND)
            return (hidden_ND[None, :num_passed],)

        handle = self.head.register_forward_pre_hook(select_rows)
        try:
            output = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        finally:
            handle.remove()
        [hidden_ND] = captured
        return hidden_ND, output.logits[0]

    def run(self, batch: dict[str, Any]) -> "HeadRows":
        """Runs the model on a batch of `collate_examples`."""
        hidden_ND, own_NV = self._forward(batch, {None: _PROBED_ROWS, True: 1, False: None}[self.is_chunked])
        if self.is_chunked is None:
            self.is_chunked = torch.allclose(
                self.project(hidden_ND[:_PROBED_ROWS]), own_NV.float(), rtol=1e-3, atol=1e-3
            )
            if not self.is_chunked:
                warnings.warn("the teacher's logits are not those of its head alone; all rows are kept", stacklevel=2)
                hidden_ND, own_NV = self._forward(batch, None)
        return HeadRows(self, hidden_ND, None if self.is_chunked else own_NV)


class HeadRows:
    """The wanted rows of one batch.

    Attributes:
        hidden_ND: Last hidden states.
    """

    def __init__(self, head: OutputHead, hidden_ND: Tensor, logits_NV: Tensor | None):
        self._head, self.hidden_ND, self._logits_NV = head, hidden_ND, logits_NV

    def iterate_logits(self) -> Iterator[Tensor]:
        """Yields float32 logits, which may be overwritten, of the rows, chunk by chunk."""
        size = max(1, CHUNK_ELEMENTS // self._head.model.config.get_text_config().vocab_size)
        for first in range(0, len(self.hidden_ND), size):
            rows = slice(first, first + size)
            if self._logits_NV is None:
                yield self._head.project(self.hidden_ND[rows])
            else:
                # A copy, since float() is none where the logits are float32.
                yield self._logits_NV[rows].to(torch.float32, copy=True)
