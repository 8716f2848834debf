"""Tests of cards as they are read again."""

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="pip install 'kindred[gguf]'")

from datamodules.tasks.prompts import get_prompt
from lightning_modules.export.card import describe_prompt, describe_run, find_prompt, read_card
from tests.lightning_modules.export.conftest import Exported


def test_a_file_says_how_its_student_is_asked(exported: Exported) -> None:
    card = read_card(exported.file("Q8_0"))
    assert card["student"] == "a-student" and card["type"] == "Q8_0"
    asked = find_prompt(card, None)
    assert asked is not None and asked.name == "plain"


def test_what_is_said_of_a_prompt_counts_first() -> None:
    card = {"prompt": {"name": "cot", "template_options": {"enable_thinking": False}}}
    [own, same, other] = [find_prompt(card, name) for name in (None, "cot", "direct")]
    assert own is not None and own.template_options == {"enable_thinking": False} and own == same
    assert other is not None and (other.name, other.template_options) == ("direct", {})
    assert find_prompt({}, None) is None


def test_a_run_and_its_files_card_say_all_of_a_prompt() -> None:
    prompt = get_prompt("cot", template_options={"enable_thinking": False}, language="en")
    encoding = {"template_options": {"enable_thinking": False}, "prompt_language": "en"}
    assert find_prompt(describe_run({"prompt": "cot", "encoding": encoding}), None) == prompt
    assert find_prompt({"prompt": describe_prompt(prompt)}, None) == prompt
    assert find_prompt(describe_run({}), None) is None


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\0\0\0")
    for name, message in (("x.gguf", "is no GGUF file"), ("", "is no GGUF file"), ("torn.gguf", "no GGUF metadata")):
        with pytest.raises(ValueError, match=message):
            read_card(tmp_path / name)
