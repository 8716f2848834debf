"""What losses make of converted rows of the student's own tokens: what they make of the rows themselves."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from datamodules.examples.alignment import STRICT
from losses.distillation import DistillationLoss
from losses.fused_head import OutputHead
from losses.targets import SoftenedTarget, SparseTarget
from tests.datamodules.logit_cache.toy_models import SPECIALS, align_toys, cut_support, make_converter
from tests.losses.reference import DIVERGENCES

TOKENS = [*(bytes([65 + number]) for number in range(9)), *SPECIALS]


def draw_sparse(seed: int, rows: int, vocabulary: int, temperatures: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Draws rows as a cache of float32 decodes them, some places unused."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 2, (rows, vocabulary))
    logits -= np.log(np.exp(logits).sum(1, keepdims=True))
    model = {
        "token_ids": generator.integers(0, vocabulary, rows).astype(np.int32),
        "support": np.tile(np.arange(vocabulary, dtype=np.int32), (rows, 1)),
        "log_probs": logits,
        "log_normalizers": np.stack([np.log(np.exp(logits / T).sum(1)) for T in temperatures], 1),
    }
    cut = cut_support(model, temperatures, 5)
    cut["label_log_prob"] = logits[np.arange(rows), cut["token_ids"]]
    cut["log_normalizers"][:, temperatures.index(1.0)] = 0
    return {name: value if value.dtype == np.int32 else value.astype(np.float32) for name, value in cut.items()}


def measure(loss: DistillationLoss, target, labels: np.ndarray, order: Sequence[int], size: int, fused: bool) -> tuple:
    """Returns the loss of a student whose ids are ordered so, in a head padded to `size`, and its gradient."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(len(labels), 6, generator=generator, requires_grad=True)
    weight = torch.zeros(size, 6)
    weight[list(order)] = torch.randn(len(order), 6, generator=generator)
    head = OutputHead(weight.requires_grad_())
    inputs = (torch.tensor(labels).long(), torch.arange(len(labels)) % 2 == 0, target)
    step = loss.at(0.0)
    sums = step.from_hidden(hidden, head, *inputs) if fused else step(head.project(hidden), *inputs)
    sums.total.backward()
    parts = {name: value.item() for name, (value, _) in sums.parts.items()}
    return sums.total.detach(), hidden.grad, weight.grad, parts


def soften(planes: dict[str, np.ndarray], temperatures: tuple[float, ...]) -> SoftenedTarget:
    tensors = {name: torch.from_numpy(plane) for name, plane in planes.items()}
    support = tensors["support"].long()
    return SoftenedTarget(support, tensors["log_probs"], tensors["log_tails"], temperatures, tensors["has_target"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("tail", ["bucket", "renormalize", "ignore"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_an_identical_tokenizer_changes_no_bit(divergence: str, tail: str, fused: bool) -> None:
    tokens, temperatures = TOKENS, (0.5, 1.0, 2.0)
    rows = draw_sparse(0, 8, 12, temperatures)
    assert set(rows["support"].flat) >= {9, 10, 11}
    ids = [*rows["token_ids"][:-1] % 9, 11]
    rows["token_ids"] = np.array(ids, np.int32)
    alignment = align_toys(tokens, ids, tokens, ids)
    assert (alignment.classes == STRICT).all()
    own = {name: torch.from_numpy(rows[name]) for name in ("support", "log_probs", "log_normalizers", "log_tails")}
    sparse = SparseTarget(own["support"].long(), *list(own.values())[1:], temperatures)
    for kind, spans in (("strict", "skip"), ("bytes", "skip"), ("bytes", "chain")):
        converter = make_converter(tokens, tokens, alignment=kind, spans=spans, temperatures=temperatures)
        converted = converter.convert(rows, [alignment], np.array(ids))
        assert converted["has_target"].all()
        target = soften(converted, converter.temperatures)
        target.check(12)
        for temperature in converter.temperatures:
            loss = DistillationLoss(kl_weight=0.3, temperature=temperature, divergence=divergence, tail=tail)
            total, *gradients, parts = measure(loss, target, np.array(ids), range(12), 12, fused)
            expected, *wanted, wanted_parts = measure(loss, sparse, np.array(ids), range(12), 12, fused)
            assert torch.equal(total, expected) and parts == wanted_parts
            for gradient, one in zip(gradients, wanted, strict=True):
                assert torch.equal(gradient, one)


@pytest.mark.parametrize("kind", ["strict", "bytes"])
def test_other_ids_and_a_padded_head_are_the_same_loss(kind: str) -> None:
    tokens, temperatures = TOKENS, (1.0, 2.0)
    generator = np.random.default_rng(3)
    order = generator.permutation(11)
    student = [tokens[number] for number in np.argsort(order)]
    rows = draw_sparse(4, 8, 12, temperatures)
    assert set(rows["support"].flat) >= {9, 10, 11}
    ids = [*(rows["token_ids"][:-1] % 9).tolist(), 11]
    rows["token_ids"] = np.array(ids, np.int32)
    labels = [*(int(order[number]) for number in ids[:-1]), 11]
    own = {name: torch.from_numpy(rows[name]) for name in ("support", "log_probs", "log_normalizers", "log_tails")}
    sparse = SparseTarget(own["support"].long(), *list(own.values())[1:], temperatures)
    converter = make_converter(tokens, student, alignment=kind, spans="skip", temperatures=temperatures)
    alignment = align_toys(student, labels, tokens, ids)
    target = soften(converter.convert(rows, [alignment], np.array(labels)), temperatures)
    for divergence in DIVERGENCES:
        loss = DistillationLoss(kl_weight=0.3, temperature=2.0, divergence=divergence)
        # The padding's logits are 0 in both.
        total, hidden_gradient, *_ = measure(loss, target, np.array(labels), [*order, 11], 16, True)
        expected, wanted, *_ = measure(loss, sparse, np.array(ids), range(12), 16, True)
        torch.testing.assert_close(total, expected)
        torch.testing.assert_close(hidden_gradient, wanted)
