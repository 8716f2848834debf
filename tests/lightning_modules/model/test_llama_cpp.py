"""Tests of GGUF files under llama.cpp: reading on, endings, sampling, and files that do not fit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lightning_modules.model.generation import generate_completions
from tests.tiny import build_llama, build_tokenizer

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from lightning_modules.export.architecture import convert
from lightning_modules.export.quantization import write_gguf
from lightning_modules.model.llama_cpp import LlamaCpp, check_gguf

PROMPT = [*range(2, 40)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, torch.nn.Module]:
    tokenizer = build_tokenizer()
    model = build_llama(len(tokenizer), width=64, context=128)
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, convert(model, tokenizer), "f32", {}, {})
    return str(path), model


def test_what_is_read_on_is_as_if_read_at_once(pair) -> None:
    engine = LlamaCpp(pair[0])
    for ids in (PROMPT, [*PROMPT, 7, 8], [*PROMPT[:20], 9], PROMPT):
        found = engine.read(ids, 2)
        fresh = LlamaCpp(pair[0], longest=64)
        np.testing.assert_allclose(found, fresh.read(ids, 2), atol=1e-3)
        fresh.close()
        with torch.inference_mode():
            np.testing.assert_allclose(found, pair[1](torch.tensor([ids])).logits[0, -2:].numpy(), atol=0.05)
    engine.forget()
    first = engine.read(PROMPT)
    engine.forget()
    np.testing.assert_array_equal(first, engine.read(PROMPT))
    engine.close()


def test_texts_and_scores_are_the_models(pair) -> None:
    path, model = pair
    engine = LlamaCpp(path)
    for temperature, seeds in ((0.0, None), (1.0, [5])):
        # The cache holds half floats, so that two tokens that are nearly alike may change places later on.
        [wanted] = generate_completions(model, [PROMPT], [1], 3, temperature, seeds)
        engine.forget()
        assert engine.generate(PROMPT, [1], 3, temperature, seeds and seeds[0]) == wanted
    stopped, reason = engine.generate(PROMPT, [1], 12, has_stopped=lambda ids: len(ids) == 3)
    assert (len(stopped), reason) == (3, "stop")
    endings = [[4], [5, 6, 7]]
    with torch.inference_mode():
        rows = [model(torch.tensor([[*PROMPT, *own]])).logits[0].log_softmax(-1) for own in endings]
    last = len(PROMPT) - 1
    wanted = [
        sum(float(row[last + n, token]) for n, token in enumerate(own)) for row, own in zip(rows, endings, strict=True)
    ]
    assert engine.score_endings(PROMPT, endings) == pytest.approx(wanted, abs=0.05)
    engine.close()


def test_files_that_do_not_fit_are_refused(pair, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    check_gguf(pair[0], tokenizer, 128, "x", len(tokenizer) - 1)
    with pytest.raises(ValueError, match=r"x is 129, more than the context of 128 tokens"):
        check_gguf(pair[0], tokenizer, 129, "x", 5)
    with pytest.raises(ValueError, match="tokens, but is given token 5000: of another model"):
        check_gguf(pair[0], tokenizer, 9, "x", 5000)
    tokenizer.eos_token = "A"
    with pytest.raises(ValueError, match=r'does not stop at token \d+ \("A"\)'):
        check_gguf(pair[0], tokenizer, 9, "x", 5)
    (tmp_path / "torn.gguf").write_bytes(Path(pair[0]).read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"torn\.gguf: llama\.cpp cannot load it"):
        LlamaCpp(str(tmp_path / "torn.gguf"))
