"""Tests of rows from vLLM's `prompt_logprobs`, made as vLLM makes them; with its own class where it is installed."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from datamodules.logit_codec import decode_rows, encode_rows
from lightning_modules.vllm_teacher import read_prompt_logprobs
from tests.logit_rows import describe, make_example, make_logits, make_rows


@dataclass
class OwnLogprob:
    """The fields of `vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


def list_logprobs(made, example, number: int, make=OwnLogprob) -> list:
    """Returns what vLLM answers: the most probable tokens, and the prompt's own token whatever its rank."""
    rows: list = [None, {0: make(-1.0, 1)}]
    log_p = make_logits(made, example).double().log_softmax(-1)
    for token, row in zip(example.token_ids[2:].tolist(), log_p, strict=True):
        best = row.topk(number).indices.tolist()
        rank = int((row > row[token]).sum()) + 1
        entries = {token: make(row[token].item(), rank)}
        rows.append(entries | {i: make(row[i].item(), place + 1) for place, i in enumerate(best)})
    return rows


def test_rows_are_those_of_the_scorer() -> None:
    made, example = describe(temperatures=(1.0,), top_k=12), make_example(4)
    rows = read_prompt_logprobs(list_logprobs(made, example, 12), example.token_ids.tolist(), 2, made)
    expected = make_rows(made, example)
    np.testing.assert_array_equal(rows["support"], expected["support"])
    for name in ("log_probs", "log_tails", "label_log_prob"):
        np.testing.assert_allclose(rows[name], expected[name], rtol=1e-3, atol=1e-5)
    decoded = decode_rows(made, encode_rows(made, rows))
    total = np.exp(decoded["log_probs"]).sum(1) + np.exp(decoded["log_tails"][:, 0])
    np.testing.assert_allclose(total, 1, atol=2e-6)


def test_vllms_own_class_is_read() -> None:
    logprobs = pytest.importorskip("vllm.logprobs")
    made, example = describe(temperatures=(1.0,), top_k=3), make_example(4)
    entries = list_logprobs(made, example, 3, lambda value, rank: logprobs.Logprob(value, rank, None))
    assert len(read_prompt_logprobs(entries, example.token_ids.tolist(), 2, made)["support"]) == 5


def test_what_vllm_cannot_tell_is_refused() -> None:
    made, example = describe(temperatures=(1.0,), top_k=12), make_example(4)
    ids = example.token_ids.tolist()
    with pytest.raises(ValueError, match=r"vLLM returned 1[01] log-probabilities where top_k is 12; raise its max_log"):
        read_prompt_logprobs(list_logprobs(made, example, 10), ids, 2, made)
    for other in (describe(top_k=12), describe("adaptive", temperatures=(1.0,))):
        with pytest.raises(ValueError, match="prompt_logprobs give kind top_k at temperature 1 only, not"):
            read_prompt_logprobs(list_logprobs(made, example, 12), ids, 2, other)


def test_a_padded_heads_ids_and_a_sure_row_leave_a_tail() -> None:
    made, example = describe(vocabulary=60, temperatures=(1.0,), top_k=2), make_example(0, 60)
    entries = {
        int(example.token_ids[2]): OwnLogprob(-30.0),
        3: OwnLogprob(0.0),
        61: OwnLogprob(-1.0),
        7: OwnLogprob(-9.0),
    }
    rows = read_prompt_logprobs([None, None, entries], example.token_ids.tolist(), 2, made)
    assert rows["support"].tolist() == [[3, 7]] and rows["log_tails"][0, 0] == pytest.approx(np.log(2**-24))
    assert torch.isfinite(torch.from_numpy(encode_rows(made, rows)["log_normalizers"])).all()
