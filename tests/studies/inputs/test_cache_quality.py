"""Tests of what the kinds of logit cache lose, against the whole distribution in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.logit_cache.codec import decode_rows, encode_rows
from lightning_modules.model.output_head import OutputHead
from studies.inputs.cache_quality import Quality, compute_gradient, compute_kl, plot_qualities
from tests.logit_rows import VOCABULARY, describe, make_example, make_logits, make_rows
from tests.tiny import build_llama

EXAMPLE = make_example(4)
HEAD = OutputHead(build_llama(VOCABULARY))


def reduce(kind: str, **settings) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Returns (decoded rows, teacher's logits, a student's probabilities)."""
    made = describe(kind, **settings)
    logits = make_logits(made, EXAMPLE)
    q = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)).softmax(-1)
    return decode_rows(made, encode_rows(made, make_rows(made, EXAMPLE))), logits, q


def test_kl_is_over_the_support_and_one_bucket() -> None:
    for kind, settings in (("top_k", {"top_k": 12}), ("adaptive", {"top_k": 64}), ("top_k", {"top_k": VOCABULARY})):
        rows, logits, _ = reduce(kind, **settings)
        p = logits.double().softmax(-1).numpy()
        for row, found in enumerate(compute_kl(rows, logits, HEAD)):
            ids = rows["support"][row][rows["support"][row] >= 0]
            inside, outside = p[row, ids], np.delete(p[row], ids).sum()
            decoded = np.exp(rows["log_probs"][row][: len(ids)].astype(np.float64))
            expected = (inside * np.log(inside / decoded)).sum()
            if outside > 0:
                expected += outside * (np.log(outside) - rows["log_tails"][row, 0])
            assert found == pytest.approx(expected, abs=1e-9) and -1e-7 < found < 1e-3


def test_gradients_are_those_of_automatic_differentiation() -> None:
    rows, _, q = reduce("top_k", top_k=12)
    z = q.log().requires_grad_()
    r, tail = torch.from_numpy(rows["log_probs"]).exp(), torch.from_numpy(rows["log_tails"][:, 0]).exp()
    log_q = z.log_softmax(-1).gather(1, torch.from_numpy(rows["support"]))
    loss = -(r * log_q).sum() - (tail * torch.log1p(-log_q.exp().sum(1))).sum()
    loss.backward()
    torch.testing.assert_close(compute_gradient(rows, q, HEAD), z.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["top_k", "hybrid"])
def test_a_support_of_the_whole_vocabulary_has_the_full_gradient(kind: str) -> None:
    rows, logits, q = reduce(kind, top_k=VOCABULARY, values="float16")
    torch.testing.assert_close(compute_gradient(rows, q, HEAD), q - logits.softmax(-1), rtol=0, atol=1e-3)


def test_table_and_plot_name_every_kind(tmp_path: Path) -> None:
    qualities = [Quality("top_k 8", 45.0, 1e-5, 1e-4, 3.0, 8.0), Quality("sampled 50", 40.0, np.nan, np.nan, 0.5, 12.5)]
    table = Quality.format_all(qualities, "a text")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert ["top_k 8", "45.0", "8.0", "1.0e-05", "1.0e-04", "3.00°"] in rows
    assert ["sampled 50", "40.0", "12.5", "–", "–", "0.50°"] in rows
    plot_qualities({"a text": qualities}, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
