"""Tests of a page's prompts: they are those that evaluate poses, or the page is refused."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.answers.extractors import extract_neutral
from datamodules.examples.tokenization import encode_prompt, load_tokenizer
from datamodules.tasks.prompts import find_privilege, get_prompt, list_prompts
from datamodules.tasks.questions import Question
from tests.tiny import build_llama, build_tokenizer

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from lightning_modules.export.architecture import convert
from lightning_modules.export.quantization import write_gguf
from lightning_modules.export.web_prompt import (
    KINDS,
    describe_answers,
    describe_prompt,
    fill,
    list_probes,
    list_refused,
)
from lightning_modules.model.llama_cpp import LlamaCpp
from tests.lightning_modules.export.conftest import MODELS, Exported

PROMPTS = [name for name, prompt in list_prompts().items() if not prompt.rewrites and not find_privilege(name)]
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("chat", [True, False], ids=["chat", "raw"])
@given(st.text(min_size=1), st.lists(st.text(min_size=1), max_size=5))
def test_parts_make_the_prompt(name: str, chat: bool, text: str, options: list[str]) -> None:
    prompt, choices = get_prompt(name), tuple(options) if len(options) > 1 else None
    for own in (choices, ("yes", "no")):
        question = Question("q", "t", "test", text, own, None)
        parts = {"before": "<", "after": ">", "parts": {question.kind: prompt.list_parts(question.kind, chat)}}
        assert fill(parts, question) == f"<{prompt.render(question, chat)}>"


def save_chat(path: Path, template: str) -> tuple[LlamaCpp, Any]:
    """Writes a tiny model with a chat template, and returns it with its tokenizer."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    write_gguf(path, convert(build_llama(len(tokenizer)), tokenizer), "f32", {}, {})
    return LlamaCpp(str(path)), tokenizer


def test_a_chats_prompts_are_tokens_as_evaluate_has_them(tmp_path: Path) -> None:
    engine, tokenizer = save_chat(tmp_path / "chat.gguf", CHAT)
    prompt = get_prompt("cot")
    parts = describe_prompt(engine, tokenizer, prompt)
    assert (parts["before"], parts["after"]) == ("<|user|>\n", "</s>\n<|assistant|>\n")
    for question in list_probes():
        text, ids = encode_prompt(tokenizer, prompt, question)
        assert fill(parts, question) == text
        assert engine.tokenize(text, add_special=True, parse_special=True) == ids
    assert list_refused(engine, tokenizer) == ["</s>", "<pad>"]
    engine.close()


def test_prompts_that_a_page_would_pose_otherwise_are_refused(tmp_path: Path, exported: Exported) -> None:
    engine, tokenizer = save_chat(tmp_path / "chat.gguf", "{{ messages[0].content | length }}" + CHAT)
    with pytest.raises(ValueError, match=r"chat.gguf: what its chat template writes depends on the question"):
        describe_prompt(engine, tokenizer, get_prompt("cot"))
    engine.close()
    file = LlamaCpp(str(exported.file("Q8_0")))
    with pytest.raises(ValueError, match=r"Q8_0.gguf: llama.cpp reads the prompt .* but evaluate poses \["):
        describe_prompt(file, load_tokenizer(str(MODELS / "b-student")), get_prompt("plain"))
    file.close()


@pytest.mark.parametrize("name", PROMPTS)
def test_the_answer_sentence_is_the_one_that_is_learned(name: str) -> None:
    prompt = get_prompt(name)
    forms = describe_answers(prompt)
    assert forms.keys() == set(KINDS)
    for question in list_probes():
        assert question.gold is not None
        before, after = forms[question.kind]
        sentence = prompt.answer_sentence(question, question.gold)
        assert sentence.startswith(before) and sentence.endswith(after)
        found = extract_neutral(sentence, question)
        assert found is not None and found.answer == question.gold
