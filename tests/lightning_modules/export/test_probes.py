"""Tests of what files are checked on: no evaluation question, and enough texts of every kind."""

from pathlib import Path

import pytest

from datamodules.examples.tokenization import load_tokenizer
from datamodules.tasks.prompts import get_prompt
from lightning_modules.export.probes import NUM_TEXTS, collect
from tests.lightning_modules.export.conftest import MODELS, QUESTIONS, save_rationales
from tests.tiny import build_tokenizer


@pytest.mark.parametrize("has_bytes", [True, False])
def test_texts_are_those_that_the_tokenizer_writes(has_bytes: bool, tmp_path: Path) -> None:
    tokenizer = build_tokenizer() if has_bytes else load_tokenizer(str(MODELS / "a-student"))
    path = save_rationales(tmp_path / "r.parquet")
    probes = collect(tokenizer, QUESTIONS, [path], get_prompt("plain"), 8, 2048)
    assert len(probes.texts) == NUM_TEXTS and bool(probes.unwritable) != has_bytes
    assert any("你好" in text for text in probes.texts) == has_bytes
    assert (len(probes.calibration), len(probes.measured), len(probes.prompts)) == (8, 4, 24)
    assert not {own.id for own in probes.calibration} & {own.id for own in probes.measured}
    with pytest.raises(ValueError, match=r"0 rationales fit 4 tokens \(--calibration_length\), with their prompts"):
        collect(tokenizer, QUESTIONS, [path], get_prompt("plain"), 8, 4)
