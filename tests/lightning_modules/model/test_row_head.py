"""Tests of the head on chunks of rows: the model's own logits, whatever it does to them, and never all of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from lightning_modules.model import row_head
from lightning_modules.model.row_head import RowHead
from tests.tiny import build_llama

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
GROUPED = {**SIZES, "num_key_value_heads": 1}
BATCH = {
    "input_ids": torch.arange(1, 25).reshape(2, 12),
    "attention_mask": torch.ones(2, 12, dtype=torch.int64),
    "rows": torch.tensor([2, 3, 4, 5, 6, 7, 15, 16, 17, 22]),
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: build_llama(50),
    "soft cap": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=2.0)),
    "scale": lambda: CohereForCausalLM(CohereConfig(**GROUPED, logit_scale=0.25)),
    "scaling": lambda: GraniteForCausalLM(GraniteConfig(**GROUPED, logits_scaling=8.0)),
    "another name": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


def collect(head: RowHead) -> torch.Tensor:
    found = head.run(BATCH)
    assert found.hidden_ND.shape == (10, 16)
    parts = list(found.iterate_logits())
    assert [len(logits) for logits in parts] == [3, 3, 3, 1]
    return torch.cat(parts)


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_the_models_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_head, "CPU_CHUNK_ELEMENTS", 150)
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        expected = model(BATCH["input_ids"], BATCH["attention_mask"]).logits.reshape(24, 50)[BATCH["rows"]]
        sizes = []
        handle = model.get_output_embeddings().register_forward_hook(lambda m, a, out: sizes.append(out.shape[-2]))
        head = RowHead(model)
        for _ in range(2):
            torch.testing.assert_close(collect(head), expected, rtol=1e-5, atol=1e-5)
        # The probe's eight tokens are all that the head saw as a module.
        assert head.settings is not None and sizes == [8]
        handle.remove()
        sharded = RowHead(model, is_sharded=True)
        torch.testing.assert_close(collect(sharded), expected, rtol=1e-5, atol=1e-5)
        # A chunk may be overwritten, which must not reach the rest.
        for logits in sharded.run(BATCH).iterate_logits():
            logits.zero_()


def test_logits_of_a_model_that_cannot_be_split_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_head, "CPU_CHUNK_ELEMENTS", 150)
    model = BertLMHeadModel(BertConfig(**SIZES, is_decoder=True)).eval()
    with torch.no_grad():
        expected = model(BATCH["input_ids"]).logits.reshape(24, 50)[BATCH["rows"]]
        head = RowHead(model)
        with pytest.warns(UserWarning, match="BertLMHeadModel cannot be split"):
            assert head.settings is None
        torch.testing.assert_close(collect(head), expected, rtol=1e-5, atol=1e-5)
