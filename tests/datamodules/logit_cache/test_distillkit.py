"""Tests of DistillKit's bytes: decoded as an encoder of the test's own has written them, and refused otherwise."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from datamodules.logit_cache.distillkit import read_compression
from tests.distillkit import EXACT, compress, pack_bits

# The first three are those that DistillKit's README names.
CONFIGS = {
    "recommended": {"k": 24, "exact_k": 16, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, 2, 3, 4, "sqrt"],
                    "delta_encoding": False},
    "budget": {"k": 24, "exact_k": 1, "exact_dtype": "bfloat16", "polynomial_terms": [0, 1, "sqrt"],
               "delta_encoding": False},
    "differences": {"k": 24, "exact_k": 12, "polynomial_terms": [0, 1, 2]},
    "exact": {"k": 24, "exact_k": 24, **EXACT},
    "half": {"k": 24, "exact_k": 4, "exact_dtype": "float16", "polynomial_terms": [0, "exp"], "term_dtype": "float64",
             "normalize_t": True, "delta_encoding": False},
    "bins": {"k": 24, "exact_k": 2, "polynomial_terms": [0, 1], "delta_encoding": False, "residual_bins": [
        {"scale_dtype": "float16", "element_bits": 8, "num_elements": 5},
        {"scale_dtype": "bfloat16", "element_bits": 3, "num_elements": 7},
        {"scale_dtype": "float32", "element_bits": 1, "num_elements": 3},
    ]},
    "bins alone": {"k": 24, "exact_k": 0, "delta_encoding": False, "residual_bins": [
        {"scale_dtype": "float64", "element_bits": 17, "num_elements": 24},
    ]},
}  # fmt: skip
BIN = {"scale_dtype": "float16", "element_bits": 8, "num_elements": 2}
D = 1000


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Ids and falling log-probabilities of six rows, from sure to unsure."""
    generator = np.random.default_rng(0)
    logits = np.linspace(1, 6, 6)[:, None] * generator.standard_normal((6, D))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    ids = np.argsort(-log_probs, axis=1)[:, :24]
    return ids, np.take_along_axis(log_probs, ids, axis=1)


def write(folder: Path, config: dict) -> Path:
    path = folder / "compression_config.yaml"
    path.write_text(yaml.safe_dump({"d": D, "residual_bins": [], **config}))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_are_decoded_as_they_were_written(tmp_path: Path, rows: tuple[np.ndarray, np.ndarray], name: str) -> None:
    ids, log_probs = rows
    config = {"residual_bins": [], **CONFIGS[name]}
    compression = read_compression(write(tmp_path, config))
    written = [compress(row, config) for row in log_probs.tolist()]
    values = np.array([[*content] for content, _ in written], np.uint8)
    indices = np.array([[*pack_bits(row, 10)] for row in ids.tolist()], np.uint8)
    assert values.shape[1] == compression.num_value_bytes and indices.shape[1] == compression.num_index_bytes
    found_ids, found = compression.decode(values, indices)
    assert (found_ids == ids).all()
    left = np.array([row for _, row in written])
    assert found == pytest.approx(left, rel=1e-5, abs=2e-4)
    exact, precision = compression.exact_k, 2**-8 if compression.exact_dtype == "bfloat16" else 1e-3
    assert found[:, :exact] == pytest.approx(log_probs[:, :exact], rel=precision)


def test_what_was_not_captured_so_is_refused(tmp_path: Path, rows: tuple[np.ndarray, np.ndarray]) -> None:
    ids, log_probs = rows
    half = CONFIGS["half"] | {"residual_bins": []}
    values = np.array([[*compress(row, half)[0]] for row in log_probs.tolist()], np.uint8)
    indices = np.array([[*pack_bits(row, 10)] for row in ids.tolist()], np.uint8)
    compression = read_compression(write(tmp_path, half))
    compression.decode(values, indices)
    twice = indices.copy()
    twice[3, :5] = [0, 0, 0, 0, 0]
    for changed in (
        (values[:, ::-1].copy(), indices),
        (values, twice),
        (values, np.full_like(indices, 255)),
        (np.where(np.arange(values.shape[1]) < 8, 0, values).astype(np.uint8), indices),
    ):
        with pytest.raises(ValueError, match="its compression config is another"):
            compression.decode(*changed)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"codebook": 3}, "unknown setting 'codebook'"),
        ({"k": 0}, "k must be from 1 to d"),
        ({"k": D + 1}, "k must be from 1 to d"),
        ({"k": "24"}, "k must be a whole number, not '24'"),
        ({"exact_k": 25}, "exact_k must be from 0 to k"),
        ({"exact_dtype": "int8"}, "exact_dtype must be one of float16"),
        ({"polynomial_terms": ["log"]}, "polynomial_terms must be powers, sqrt or exp"),
        ({"polynomial_terms": None}, "neither polynomial_terms nor residual_bins"),
        ({"delta_encoding": 1}, "delta_encoding must be true or false, not 1"),
        ({"residual_bins": [{"scale_dtype": "float16", "element_bits": 8}]}, "lacks the setting 'num_elements'"),
        ({"residual_bins": [BIN | {"num_elements": 9}]}, "more values than k"),
        ({"residual_bins": [BIN | {"element_bits": 64}]}, "1 to 32 element_bits"),
        ({"polynomial_degree": 8}, "legacy compression"),
    ],
)
def test_an_unknown_scheme_is_refused(tmp_path: Path, change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match) as refused:
        read_compression(write(tmp_path, CONFIGS["recommended"] | change))
    assert str(refused.value).startswith(str(tmp_path)) and "\n" not in str(refused.value)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ValueError, match="is no mapping"):
        read_compression(path)
    path.write_text("k: 3\n")
    with pytest.raises(ValueError, match="lacks the setting 'd'"):
        read_compression(path)
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        read_compression(tmp_path / "nowhere.yaml")
