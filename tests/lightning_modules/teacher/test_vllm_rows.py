"""Tests of rows from vLLM's `prompt_logprobs`, made as vLLM makes them; with its own class where it is installed."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules.logit_cache.codec import decode_rows, encode_rows
from datamodules.logit_cache.reader import LogitCache
from lightning_modules.teacher.teacher import LogitScorer
from lightning_modules.teacher.vllm_backend import VLLMBackend
from lightning_modules.teacher.vllm_rows import read_prompt_logprobs, score_sequences
from tests.lightning_modules.conftest import World
from tests.logit_rows import describe, make_example, make_logits, make_rows
from tests.tiny import capture


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
        rows.append(entries | {i: make(row[i].item(), index + 1) for index, i in enumerate(best)})
    return rows


class Engine:
    """A teacher that answers to vLLM's calls, without vLLM: one token is generated, the prompt's are returned.

    Attributes:
        calls: The prompts of each call of the newest engine.
    """

    calls: ClassVar[list[int]] = []

    def __init__(self, model: str, max_logprobs: int, max_model_len: int, logprobs_mode: str, **options: Any):
        assert logprobs_mode == "raw_logprobs" and not options["trust_remote_code"]
        self.model = AutoModelForCausalLM.from_pretrained(model).eval()
        self.max_logprobs, self.max_model_len = max_logprobs, max_model_len
        self.calls.clear()

    @torch.no_grad()
    def generate(self, prompts: list[dict], sampling: dict, use_tqdm: bool) -> list[SimpleNamespace]:
        number = sampling["prompt_logprobs"]
        assert number <= self.max_logprobs and sampling["temperature"] == 1 and sampling["max_tokens"] == 1
        answers = []
        self.calls.append(len(prompts))
        for prompt in prompts:
            ids = prompt["prompt_token_ids"]
            assert len(ids) + 1 <= self.max_model_len
            log_p = self.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            rows: list = [None]
            for token, row in zip(ids[1:], log_p, strict=False):
                kept = {*row.topk(number).indices.tolist(), token}
                rows.append({token_id: OwnLogprob(row[token_id].item()) for token_id in kept})
            answers.append(SimpleNamespace(prompt_logprobs=rows))
        return answers


@pytest.mark.parametrize("kind", ["top_k", "labels"])
def test_a_cache_read_by_vllm_is_the_cache_read_by_transformers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """vLLM itself does not run here; its calls are answered by the same teacher in transformers."""
    vllm = SimpleNamespace(LLM=Engine, SamplingParams=dict, TokensPrompt=dict)
    monkeypatch.setattr("lightning_modules.teacher.vllm_backend.import_vllm", lambda: vllm)
    common: dict[str, Any] = {"kind": kind, **({"values": "float16"} if kind == "top_k" else {"top_k": None})}
    caches = [
        LogitCache(Path(capture(tmp_path / name, world.teacher, world.questions, [world.rationales], **common, **own)))
        for name, own in {
            "transformers": {"temperatures": [1.0] if kind == "top_k" else None},
            "vllm": {"vllm": VLLMBackend(), "temperatures": None, "max_length": 512, "tokens_per_batch": None},
        }.items()
    ]
    # An engine gets them at once.
    assert Engine.calls == [8]
    assert len(caches[0]) == len(caches[1]) > 0
    for (own_id, own), (other_id, other) in zip(*(cache.read_all() for cache in caches), strict=True):
        assert own_id == other_id and own.keys() == other.keys()
        np.testing.assert_allclose(own["label_log_prob"], other["label_log_prob"], atol=2e-3)
        if kind == "labels":
            continue
        np.testing.assert_array_equal(own["support"], other["support"])
        np.testing.assert_allclose(own["log_probs"], other["log_probs"], atol=2e-3)
        np.testing.assert_allclose(own["log_tails"], other["log_tails"], atol=2e-2)


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


def flatten(rows: list, tokens: list[int]) -> SimpleNamespace:
    """Returns the same as vLLM's `FlatLogprobs`: each token itself, and again where it is one of the most probable."""
    flat = OwnFlat(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
    for token, row in zip(tokens, rows, strict=True):
        flat.start_indices.append(len(flat.token_ids))
        entries = [] if row is None else [(token, row[token]) for token in (token, *row)]
        entries = [entry for index, entry in enumerate(entries) if index == 0 or entry[1].rank <= 12]
        flat.token_ids += [token for token, _ in entries]
        flat.logprobs += [entry.logprob for _, entry in entries]
        flat.end_indices.append(len(flat.token_ids))
    return flat


class OwnFlat(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.start_indices)


def test_flat_rows_are_the_same_rows() -> None:
    made, example = describe(temperatures=(1.0,), top_k=12), make_example(4)
    tokens = example.token_ids.tolist()
    entries = list_logprobs(made, example, 12)
    entries[1] = {tokens[1]: OwnLogprob(-1.0, 1)}
    # vLLM's mappings have the token's own entry first, whatever its rank.
    expected = read_prompt_logprobs(entries, tokens, 2, made)
    found = read_prompt_logprobs(flatten(entries, tokens), tokens, 2, made)
    assert expected is not None and found is not None
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_ids_beyond_the_tokenizer_make_vllm_be_asked_for_more() -> None:
    """A head of 80 rows, of which the tokenizer knows 60: the likeliest tokens are unknown ones."""
    made, numbers = describe(vocabulary=60, temperatures=(1.0,), top_k=2), []

    def ask(sequences: list[list[int]], number: int) -> list:
        numbers.append((len(sequences), number))
        row = {token: OwnLogprob(-1.0 - 0.1 * place) for place, token in enumerate([*range(60, 80), 5, 3])}
        others = {token: OwnLogprob(-1.0 - 0.1 * place) for place, token in enumerate([61, 7, *range(20, 59)])}
        rows = {9: row, 8: others}
        return [
            [None, {token: rows[ids[0]][token] for token in [*rows[ids[0]]][:number]} | {3: OwnLogprob(-9.0)}]
            for ids in sequences
        ]

    found = score_sequences(ask, [[9, 3], [8, 3]], [1, 1], made, num_padded=20)
    assert [rows["support"].tolist() for rows in found] == [[[5, 3]], [[7, 20]]]
    assert numbers == [(2, 10), (1, 22)]
    numbers.clear()
    with pytest.raises(ValueError, match="vLLM returned fewer than the 10 log-probabilities that it was asked for"):
        score_sequences(ask, [[9, 3]], [1], made, num_padded=8)


def test_what_vllm_cannot_tell_is_refused() -> None:
    for settings in ({"temperatures": [2.0]}, {"kind": "adaptive"}):
        with pytest.raises(ValueError, match="prompt_logprobs give kinds labels and top_k at temperature 1 only, not"):
            LogitScorer("owner/teacher", vllm=VLLMBackend(), **settings)


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
