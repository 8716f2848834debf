"""A model's logits of the supervised rows only, a few rows at a time: never [B, S, V]."""

from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_modules.model.output_head import HeadSettings, find_head_settings, get_head, needs_padding_mask

# Rows of a chunk times vocabulary: 64 MiB of float32. On a GPU each chunk's reading of the whole head must be hidden.
CPU_CHUNK_ELEMENTS, GPU_CHUNK_ELEMENTS = 1 << 24, 1 << 27


class RowHead:
    """Runs a model up to its output head, and the head on chunks of the rows that are wanted.

    Where the model cannot be split, or its weights are sharded and the head is not whole outside the forward pass,
    the model's own forward is called with a head that is made to see the wanted rows alone, all at once.

    Args:
        model: A causal language model.
        is_sharded: Whether its weights are spread over processes.
    """

    def __init__(self, model: PreTrainedModel, is_sharded: bool = False):
        self.model, self.is_sharded = model, is_sharded
        self._settings: HeadSettings | None = None
        self._is_probed = is_sharded
        self._needs_mask = True

    @property
    def settings(self) -> HeadSettings | None:
        """How logits come from the last hidden states; None where the head is not split off."""
        if not self._is_probed:
            self._settings, self._is_probed = find_head_settings(self.model), True
            self._needs_mask = self._settings is None or needs_padding_mask(self.model)
        return self._settings

    def project(self, hidden_ND: Tensor) -> Tensor:
        """Returns logits of last hidden states, in float32 at least."""
        assert self.settings is not None
        return get_head(self.model, self.settings).project(hidden_ND)

    def run(self, batch: dict[str, Any]) -> "HeadRows":
        """Runs the model on a batch of `collate_examples`."""
        # Which looks whether the mask is needed.
        mask = batch["attention_mask"] if self.settings is None or self._needs_mask else None
        inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "use_cache": False}
        return self.run_rows(inputs, batch["rows"])

    def run_rows(self, inputs: dict[str, Any], rows_N: Tensor) -> "HeadRows":
        """Runs the model on its own arguments, a key-value cache among them, for some of its flattened rows."""
        if self.settings is not None:
            hidden = self.model.base_model(**inputs).last_hidden_state
            return HeadRows(self, rearrange(hidden, "b s d -> (b s) d")[rows_N], None)
        captured = []

        def select_rows(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            captured.append(rearrange(args[0], "b s d -> (b s) d")[rows_N])
            return (captured[0][None],)

        handle = self.model.get_output_embeddings().register_forward_pre_hook(select_rows)
        try:
            logits_NV = self.model(**inputs).logits[0]
        finally:
            handle.remove()
        [hidden_ND] = captured
        return HeadRows(self, hidden_ND, logits_NV)

    def export(self) -> dict[str, Any]:
        """Returns the head's parameters by name, and its `scale` and `softcap`."""
        assert self.settings is not None
        linear = self.model.get_output_embeddings()
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in linear.named_parameters()}
        return {**tensors, **self.settings._asdict()}


class HeadRows:
    """The wanted rows of one batch.

    Attributes:
        hidden_ND: Last hidden states.
    """

    def __init__(self, head: RowHead, hidden_ND: Tensor, logits_NV: Tensor | None):
        self._head, self.hidden_ND, self._logits_NV = head, hidden_ND, logits_NV

    def iterate_logits(self) -> Iterator[Tensor]:
        """Yields float32 logits, which may be overwritten, of the rows, chunk by chunk."""
        elements = CPU_CHUNK_ELEMENTS if self.hidden_ND.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        size = max(1, elements // self._head.model.config.get_text_config().vocab_size)
        for first in range(0, len(self.hidden_ND), size):
            rows = slice(first, first + size)
            if self._logits_NV is None:
                yield self._head.project(self.hidden_ND[rows])
            else:
                # A copy, since float() is none where the logits are float32.
                yield self._logits_NV[rows].to(torch.float32, copy=True)
