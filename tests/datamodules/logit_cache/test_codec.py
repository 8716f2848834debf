"""Tests of the bytes of a logit cache: what is decoded adds up to one, and is as near as the bytes allow."""

import numpy as np
import pytest
import torch

from datamodules.logit_cache.codec import LOG_RATIOS, decode_rows, encode_rows
from datamodules.logit_cache.format import CacheDescription, Sparsity, list_planes
from lightning_modules.teacher.sparsify import sparsify
from tests.logit_rows import describe, make_example, make_logits, make_rows

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)
VOCABULARIES = (50, 65_536, 65_537, 151_936, 262_144)


def round_trip(made: CacheDescription, number: int = 4) -> tuple[dict, dict, np.ndarray]:
    """Returns (rows as captured, rows as decoded, the whole distribution in float64)."""
    example = make_example(number, made.vocabulary)
    rows = make_rows(made, example)
    planes = encode_rows(made, rows)
    assert list(planes) == list(list_planes(made))
    decoded = decode_rows(made, planes)
    np.testing.assert_array_equal(decoded["token_ids"], example.token_ids[2:])
    log_p = make_logits(made, example).double().log_softmax(-1)
    label = log_p[np.arange(len(log_p)), example.token_ids[2:]]
    np.testing.assert_allclose(decoded["label_log_prob"], label, rtol=1e-3)
    return rows, decoded, log_p.numpy()


def assert_sums_to_one(decoded: dict, temperatures: tuple[float, ...]) -> None:
    for index, temperature in enumerate(temperatures):
        log_p = decoded["log_probs"] / temperature - decoded["log_normalizers"][:, index, None]
        total = np.exp(log_p).sum(1) + np.exp(decoded["log_tails"][:, index])
        np.testing.assert_allclose(total, 1, atol=2e-6)
    assert (decoded["log_normalizers"][:, temperatures.index(1.0)] == 0).all()


@pytest.mark.parametrize("values", ["uint8", "float16"])
@pytest.mark.parametrize("kind", ["top_k", "adaptive"])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_decoded_rows_are_the_teachers(vocabulary: int, kind: str, values: str) -> None:
    made = describe(kind, vocabulary, TEMPERATURES, top_k=40, values=values)
    rows, decoded, log_p = round_trip(made)
    assert {name: plane.dtype for name, plane in decoded.items() if plane.ndim == 2} == {
        "support": np.int32, "log_probs": np.float32, "log_normalizers": np.float32, "log_tails": np.float32,
    }  # fmt: skip
    assert_sums_to_one(decoded, TEMPERATURES)
    for row, exact in enumerate(log_p):
        used = decoded["support"][row] >= 0
        assert np.array_equal(used, np.isfinite(decoded["log_probs"][row]))
        ids = decoded["support"][row][used]
        assert set(ids) == set(rows["support"][row][rows["support"][row] >= 0])
        for index, temperature in enumerate(TEMPERATURES):
            softened = exact / temperature - np.logaddexp.reduce(exact / temperature)
            found = decoded["log_probs"][row][used] / temperature - decoded["log_normalizers"][row, index]
            bound = 0.002 if values == "float16" else 0.02
            np.testing.assert_allclose(np.exp(found), np.exp(softened[ids]), atol=bound * np.exp(softened[ids]).max())
            outside = np.delete(softened, ids)
            if len(outside):
                expected = np.exp(np.logaddexp.reduce(outside))
                assert np.exp(decoded["log_tails"][row, index]) == pytest.approx(expected, rel=0.03, abs=1e-6)
            else:
                assert decoded["log_tails"][row, index] == -np.inf


def test_the_code_of_a_log_ratio_is_the_nearest() -> None:
    assert LOG_RATIOS[0] == 0 and LOG_RATIOS[-1] == pytest.approx(4 * np.log(1 / 256))
    made = describe(top_k=40, temperatures=(1.0,))
    rows, _, _ = round_trip(made)
    codes = encode_rows(made, rows)["values"].reshape(-1, 40)
    ratios = rows["log_probs"] - rows["log_probs"].max(1, keepdims=True)
    nearest = np.abs(ratios[..., None] - LOG_RATIOS).min(-1)
    np.testing.assert_allclose(np.abs(ratios - LOG_RATIOS[codes]), nearest, atol=1e-5)


def test_adaptive_keeps_the_smallest_support_of_the_mass() -> None:
    made = describe("adaptive", 200, (1.0,), top_k=100, min_k=3, mass=0.9)
    _, decoded, log_p = round_trip(made)
    sizes = (decoded["support"] >= 0).sum(1)
    for size, exact in zip(sizes, log_p, strict=True):
        p = -np.sort(-np.exp(exact))
        smallest = np.searchsorted(p.cumsum(), 0.9) + 1
        assert size == min(max(smallest, 3), 100)
    assert len(set(sizes)) > 2
    assert (round_trip(describe("adaptive", 200, (1.0,), top_k=2, mass=1.0))[1]["support"] >= 0).all()


@pytest.mark.parametrize("vocabulary", [50, 151_936])
@pytest.mark.parametrize("kind", ["sampled", "hybrid"])
def test_weights_of_draws_are_unbiased_and_sum_to_one(kind: str, vocabulary: int) -> None:
    made = describe(kind, vocabulary)
    example = make_example(4, vocabulary)
    p = make_logits(made, example).double().softmax(-1)
    mean, repeats = torch.zeros_like(p), 400 if vocabulary == 50 else 2
    for seed in range(repeats):
        rows = make_rows(made, example)
        if seed:
            generator = torch.Generator().manual_seed(seed)
            tokens = torch.from_numpy(example.token_ids[2:]).long()
            streams = [(generator, len(tokens))]
            rows |= {k: v.numpy() for k, v in sparsify(make_logits(made, example), tokens, made, streams).items()}
        decoded = decode_rows(made, encode_rows(made, rows))
        assert set(decoded) == {"token_ids", "label_log_prob", "support", "weights"}
        np.testing.assert_allclose(decoded["weights"].sum(1), 1, atol=2e-6)
        assert ((decoded["support"] >= 0) == (decoded["weights"] > 0)).all()
        weights, support = torch.from_numpy(decoded["weights"]).double(), torch.from_numpy(decoded["support"]).long()
        mean.scatter_add_(1, support.clamp(min=0), weights / repeats)
    if vocabulary == 50:
        # Draws alone have a standard error of sqrt(p (1 - p) / (20 * 400)) at most: 0.006.
        np.testing.assert_allclose(mean, p, atol=0.025)
    if kind == "hybrid":
        head = p.topk(8).indices
        np.testing.assert_allclose(mean.gather(1, head), p.gather(1, head), rtol=0.05, atol=1e-3)


def test_hybrid_without_a_tail_draws_nothing() -> None:
    _, decoded, log_p = round_trip(describe("hybrid", 30, top_k=64))
    assert decoded["support"].shape[1] == 30
    weights = np.zeros_like(log_p)
    np.put_along_axis(weights, decoded["support"].astype(np.int64), decoded["weights"], 1)
    np.testing.assert_allclose(weights, np.exp(log_p), atol=0.02)


@pytest.mark.parametrize(("values", "bound"), [("float32", 0), ("float16", 2**-11), ("bfloat16", 2**-8)])
def test_hidden_states_are_rounded_to_the_nearest(values: str, bound: float) -> None:
    rows, decoded, _ = round_trip(describe("hidden", values=values))
    np.testing.assert_allclose(decoded["hidden"], rows["hidden"], rtol=bound)
    if values == "bfloat16":
        nearest = torch.from_numpy(rows["hidden"]).bfloat16().float().numpy()
        np.testing.assert_array_equal(decoded["hidden"], nearest)


def test_a_bfloat16_in_the_middle_is_rounded_to_the_even_one() -> None:
    made = describe("hidden", values="bfloat16")
    rows = make_rows(made, make_example(4))
    rows["hidden"][0, :3] = 1 + 2**-8, 1 + 3 * 2**-8, -1 - 3 * 2**-8
    assert decode_rows(made, encode_rows(made, rows))["hidden"][0, :3].tolist() == [1, 1 + 2**-6, -1 - 2**-6]


def test_a_hidden_state_that_does_not_fit_is_refused() -> None:
    made, example = describe("hidden"), make_example(4)
    rows = make_rows(made, example)
    rows["hidden"][2, 3] = 1e5
    with pytest.raises(ValueError, match=r"larger than float16 holds; set model.values to bfloat16 or float32"):
        encode_rows(made, rows)


def test_large_supports_and_many_draws_have_wider_counts() -> None:
    for made in (describe(vocabulary=70_000, top_k=300), describe("adaptive", 70_000, top_k=300, mass=1.0)):
        rows, decoded, _ = round_trip(made)
        assert all(set(a) == set(b) for a, b in zip(decoded["support"], rows["support"], strict=True))
        assert_sums_to_one(decoded, (1.0, 2.0))
    np.testing.assert_allclose(round_trip(describe("sampled", draws=500))[1]["weights"].sum(1), 1, atol=2e-6)


def test_a_very_sure_teacher_keeps_a_finite_tail() -> None:
    made = describe(vocabulary=100, temperatures=TEMPERATURES, top_k=4)
    example = make_example(0, 100)
    logits = torch.full((1, 100), -60.0)
    logits[0, 7] = 40
    rows = {k: v.numpy() for k, v in sparsify(logits, torch.tensor([7]), made).items()}
    decoded = decode_rows(made, encode_rows(made, rows | {"token_ids": example.token_ids[2:]}))
    assert_sums_to_one(decoded, TEMPERATURES)
    assert np.isfinite(decoded["log_tails"]).all() and decoded["log_tails"][0, 1] == pytest.approx(-95.4, abs=0.1)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        ("top_k", {"mass": 0.9}, "model.mass is given, but kind top_k ignores it; it has top_k, values"),
        ("sampled", {"top_k": 4}, "model.top_k is given, but kind sampled ignores it"),
        ("hidden", {"draws": 4}, "model.draws is given, but kind hidden ignores it"),
        ("adaptive", {"min_k": 9, "top_k": 8}, "model.min_k 9 is more than model.top_k 8"),
        ("adaptive", {"mass": 1.5}, "model.mass must be above 0 and at most 1, not 1.5"),
        ("top_k", {"values": "bfloat16"}, "model.values must be one of uint8, float16 for kind top_k"),
        ("hidden", {"values": "uint8"}, "model.values must be one of float16, bfloat16, float32 for kind hidden"),
    ],
)
def test_settings_that_would_be_ignored_or_make_no_sense_are_refused(kind, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sparsity.resolve(kind, **given)
