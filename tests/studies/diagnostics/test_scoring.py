"""Scores against one forward pass for each text, in float64, one token after the other."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_modules.model.row_head import RowHead
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.scoring import Span, score_spans
from studies.diagnostics.texts import Reading
from tests.studies.diagnostics.conftest import LOCAL_STEPS


def compute_reference(model: Any, prompt_ids: list[int], token_ids: list[int]) -> dict[str, np.ndarray]:
    """Returns what `TokenScores` holds, from the whole sequence's logits."""
    ids = [*prompt_ids, *token_ids]
    logits_SV = model.double()(torch.tensor([ids])).logits[0].detach().numpy()
    model.float()
    planes: dict[str, list[float]] = {"nll": [], "rank": [], "entropy": []}
    for place in range(max(len(prompt_ids), 1), len(ids)):
        logits_V = logits_SV[place - 1]
        p_V = np.exp(logits_V - logits_V.max()) / np.exp(logits_V - logits_V.max()).sum()
        planes["nll"].append(-np.log(p_V[ids[place]]))
        planes["rank"].append(1 + sum(p > p_V[ids[place]] for p in p_V))
        planes["entropy"].append(-sum(p * np.log(p) for p in p_V))
    return {name: np.array(values) for name, values in planes.items()}


def test_texts_read_together_are_scored_as_one_by_one(reader: StudentReader, readings: list[Reading]) -> None:
    assert len({len(reading.text.steps) for reading in readings}) > 2
    for reading in readings:
        text = reading.text
        prompt_ids = reader.prompts[text.question.id]
        expected = compute_reference(reader.model, prompt_ids, text.token_ids)
        assert np.allclose(reading.nll, expected["nll"], atol=1e-4)
        assert np.array_equal(reading.rank, expected["rank"])
        assert np.allclose(reading.entropy, expected["entropy"], atol=1e-4)
        assert np.allclose(reading.alone, compute_reference(reader.model, [], text.token_ids)["nll"], atol=1e-4)
        bounds = [*text.steps.tolist(), len(text.token_ids)]
        assert len(reading.local) == len(text.steps)
        for index, mean in enumerate(reading.local):
            first = bounds[max(0, index - LOCAL_STEPS)]
            step = compute_reference(reader.model, prompt_ids, text.token_ids[first : bounds[index + 1]])["nll"]
            assert mean == pytest.approx(step[bounds[index] - first :].mean(), abs=1e-4)


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_batches_change_nothing(reader: StudentReader, tokens_per_batch: int) -> None:
    rng = np.random.default_rng(0)
    spans = [Span(rng.integers(5, 90, length).tolist(), start) for length, start in [(9, 0), (2, 1), (17, 6), (3, 0)]]
    head = RowHead(reader.model)
    for prompt_ids in ([], [7], [7, 8, 9]):
        scores = score_spans(head, prompt_ids, spans, tokens_per_batch)
        for span, score in zip(spans, scores, strict=True):
            expected = compute_reference(reader.model, prompt_ids, list(span.token_ids))
            start = span.start if prompt_ids else max(span.start - 1, 0)
            assert np.allclose(score.nll, expected["nll"][start:], atol=1e-4)
            assert np.array_equal(score.rank, expected["rank"][start:])
            assert np.isnan(score.kl).all()


def test_a_model_that_cannot_be_split_is_scored_alike(reader: StudentReader) -> None:
    spans = [Span([5, 6, 7, 8]), Span([9, 4])]
    whole = RowHead(reader.model, is_sharded=True)
    pairs = zip(
        score_spans(RowHead(reader.model), [3, 2], spans, 64), score_spans(whole, [3, 2], spans, 64), strict=True
    )
    for first, second in pairs:
        assert np.allclose(first.nll, second.nll, atol=1e-5) and np.array_equal(first.rank, second.rank)
