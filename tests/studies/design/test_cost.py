"""Tests of what models take; `tests/scripts/common/test_dry_run.py` holds the bytes against real runs."""

import pytest

from studies.design.cost import (
    Device,
    count_parameters,
    find_device,
    generation_seconds,
    reading_flops,
    training_flops,
)


def test_formulas():
    assert training_flops(10, 7) == 420 and training_flops(10, 7, is_adapter=True) == 280
    assert reading_flops(10, 7) == 140
    device = Device(peak_flops=100.0, bandwidth=10.0, utilisation=0.5)
    # 3 steps of 2 x 10 bytes at 10 a second, against 140 operations at 50 a second.
    assert generation_seconds(10, "bfloat16", 7, 3, device) == 6.0
    assert generation_seconds(10, "bfloat16", 70, 3, device) == 28.0


@pytest.mark.parametrize(("model", "parameters"), [
    ("model:qwen2.5-7b-instruct", 7e9), ("model:qwen2.5-0.5b-instruct", 5e8), ("model:gemma-3-270m-it", 2.7e8),
    ("meta-llama/Llama-3.2-1B", 1e9), ("models/SmolLM2-135M-Instruct-Q8_0.gguf", 1.35e8),
])  # fmt: skip
def test_a_name_tells_a_size(model, parameters):
    assert count_parameters(model) == parameters


@pytest.mark.parametrize(("what", "message"), [
    (lambda: count_parameters("owner/phi-4"), "owner/phi-4: its name says no size"),
    (lambda: find_device("abacus", 0.5), "--device=abacus: is unknown; there are B200"),
    (lambda: find_device("H100", 1.5), "--utilisation=1.5: a share above 0"),
])  # fmt: skip
def test_what_gives_no_estimate_is_refused(what, message):
    with pytest.raises(ValueError, match=message):
        what()
