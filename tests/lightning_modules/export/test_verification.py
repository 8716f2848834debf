"""Tests of the checks: a file that is not the student is refused, with what differs."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.examples.tokenization import load_tokenizer
from datamodules.tasks.prompts import get_prompt
from tests.tiny import build_llama, build_tokenizer

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from lightning_modules.export import verification
from lightning_modules.export.architecture import convert
from lightning_modules.export.probes import Probes, collect
from lightning_modules.export.quantization import write_gguf
from lightning_modules.export.verification import (
    check_template,
    check_tokens,
    compare_distributions,
    compare_greedy,
    refuse_difference,
)
from lightning_modules.model.llama_cpp import LlamaCpp
from lightning_modules.model.pretrained import load_causal_lm
from tests.lightning_modules.export.conftest import MODELS, QUESTIONS, Exported


@pytest.fixture(scope="module")
def student(exported: Exported) -> tuple[Any, Any, Probes]:
    tokenizer, model = load_tokenizer(str(MODELS / "a-student")), load_causal_lm(str(MODELS / "a-student")).eval()
    return tokenizer, model, collect(tokenizer, QUESTIONS, [exported.rationales], get_prompt("plain"), 8, 512)


def test_another_vocabulary_start_end_or_template_is_refused(exported: Exported, student) -> None:
    tokenizer, _, probes = student
    model = LlamaCpp(str(exported.file("Q8_0")))
    assert check_tokens(model, "Q8_0", tokenizer, probes) == 500
    text, ids = probes.prompts[0]
    with pytest.raises(ValueError, match=r"Q8_0: llama\.cpp reads a prompt as tokens"):
        check_tokens(model, "Q8_0", tokenizer, replace(probes, prompts=[(text, [1, *ids])]))
    other = load_tokenizer(str(MODELS / "b-student"))
    with pytest.raises(ValueError, match=r"Q8_0: llama\.cpp reads .* as tokens"):
        check_tokens(model, "Q8_0", other, probes)
    other = load_tokenizer(str(MODELS / "a-student"))
    other.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ValueError, match="another chat template"):
        check_tokens(model, "Q8_0", other, replace(probes, prompts=[]))
    other.chat_template, other.eos_token = None, "."
    with pytest.raises(ValueError, match="ends texts with token 2, but the student learned to write 4"):
        check_tokens(model, "Q8_0", other, replace(probes, prompts=[]))
    model.close()


def test_another_models_distributions_are_refused(exported: Exported, student) -> None:
    tokenizer, model, probes = student
    files = {kind: LlamaCpp(str(exported.file(kind))) for kind in ("f16", "Q4_K_M")}
    probes = replace(probes, prompts=probes.prompts[:6])
    found = compare_distributions(
        files, lambda ids: model(model.dummy_inputs["input_ids"].new_tensor([ids])).logits[0], probes
    )
    assert found["f16"]["kl"] < 1e-4 < found["Q4_K_M"]["kl"] < 0.2
    same = compare_greedy(files["f16"], model, tokenizer, probes, 8)
    assert same == {"prompts": 6, "greedy_equal": 6, "greedy_ties": 0}
    other = build_llama(len(tokenizer))
    torn = compare_greedy(files["f16"], other, tokenizer, probes, 8)
    assert torn["greedy_equal"] == 0
    with pytest.raises(ValueError, match="of 6 greedy texts are not the student's"):
        refuse_difference("f16", found["f16"] | torn)
    with pytest.raises(ValueError, match=r"Q4_K_M: differs from the student by 1\.0000 nats"):
        refuse_difference("Q4_K_M", {"kl": 1.0, "kl_error": 0.1, "top1_agreement": 0.9, "tokens": 500})
    # Among 24 tokens two others are chance, among 2,400 two hundred are not.
    few = {"kl": 0.03, "kl_error": 0.01, "top1_agreement": 22 / 24, "tokens": 24}
    refuse_difference("Q8_0", few)
    for other in ({"tokens": 2400}, {"kl_error": 0.001}):
        with pytest.raises(ValueError, match=r"Q8_0: differs from the student by 0\.0300 nats"):
            refuse_difference("Q8_0", few | other)
    for own in files.values():
        own.close()


def test_llama_cpps_server_poses_a_question_as_the_template_does(student, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}> {{ m.content | trim }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    file = tmp_path / "m.gguf"
    write_gguf(file, convert(build_llama(len(tokenizer), width=64), tokenizer), "f32", {}, {})
    check_template(file, tokenizer, student[2])
    shutil.copy(file, tmp_path / "n.gguf")
    tokenizer.chat_template += "?"
    with pytest.raises(ValueError, match=r"n\.gguf: llama\.cpp renders a prompt as"):
        check_template(tmp_path / "n.gguf", tokenizer, student[2])


def test_a_template_is_rendered_with_the_options_of_the_training(student, tmp_path: Path) -> None:
    tokenizer, file = build_tokenizer(), tmp_path / "m.gguf"
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}> {{ m.content }}{% endfor %}<think>{{ level }}"
    write_gguf(file, convert(build_llama(len(tokenizer), width=64), tokenizer), "f32", {}, {})
    probes = replace(student[2], prompt=get_prompt("plain", template_options={"level": "low"}))
    with pytest.warns(UserWarning, match=r"unless it is given: --chat-template-kwargs '\{\"level\": \"low\"\}'$"):
        check_template(file, tokenizer, probes)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ level }}", "{{ level | upper }}")
    with pytest.raises(ValueError, match=r"m\.gguf: llama\.cpp renders a prompt as .*<think>low.*<think>LOW"):
        check_template(file, tokenizer, probes)


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(verification, "_RENDER", "import threading; threading.Event().wait()")
    monkeypatch.setattr(verification, "PATIENCE", 0)
    with pytest.raises(ValueError, match=r"m\.gguf: llama\.cpp has not rendered its chat template in 0 s"):
        verification.render_by_llama_cpp(tmp_path / "m.gguf", ["a"], {})
