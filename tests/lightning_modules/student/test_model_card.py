"""Tests of a student's model card: valid for the hub, and only text whatever the files say."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from lightning_modules.student.model_card import find_origin, format_results, render_card

EVIL = "x\n```\n<script>alert(1)</script>\n---\nlicense: mit\n"


def read(card: str) -> tuple[dict, dict]:
    """Returns the front matter, as the hub reads it, and the facts."""
    front = ModelCard(card).data.to_dict()
    assert front == yaml.safe_load(card.split("---\n")[1])
    block, rest = card.split("```json\n")[1].split("\n```\n")
    assert "<" not in rest
    return front, json.loads(block)


def test_a_card_names_base_licence_data_and_loss() -> None:
    loss = {"loss": {"kl_weight": 0.5}}
    front, facts = read(
        render_card("model:qwen2.5-0.5b-instruct", "task:gsm8k:train", ["Qwen/Qwen2.5-7B-Instruct"], loss)
    )
    assert front["base_model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert front["datasets"] == ["openai/gsm8k"] and "kindred" in front["tags"]
    assert facts["data"]["questions"] == "task:gsm8k:train" and facts["data"]["licence"] == "MIT"
    assert facts["teachers"] == ["Qwen/Qwen2.5-7B-Instruct"] and facts["loss"] == {"kl_weight": 0.5}


@pytest.mark.parametrize(("student", "licence"), [
    ("model:smollm2-135m-instruct", "apache-2.0"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    ("model:gemma-3-270m-it", "gemma"), ("model:llama-3-8b-instruct", "llama3"), ("owner/unknown", "other"),
    ("model:llama-3.2-1b-instruct", "llama3.2"), ("model:llama-2-7b-chat", "llama2"),
    # Some of this family have a licence of their own.
    ("model:qwen2.5-3b-instruct", "other"),
])  # fmt: skip
def test_a_student_has_its_bases_licence(student: str, licence: str) -> None:
    assert read(render_card(student, "q.jsonl", [], {}))[0]["license"] == licence


def test_a_continued_students_base_is_what_the_first_training_began_with(tmp_path: Path) -> None:
    start = "model:smollm2-135m-instruct"
    for name in ("first", "second", "third"):
        student = tmp_path / name / "student"
        student.mkdir(parents=True)
        meta = {"config_hash": "h", "config": {"model": {"student": start}}}
        (tmp_path / name / "meta.json").write_text(json.dumps(meta))
        start = str(student)
    front, facts = read(render_card(start, "q.jsonl", [], {}))
    assert front["base_model"] == facts["base"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front["license"] == "apache-2.0"
    # A folder beside what says of no training, and runs that lead in a circle.
    (tmp_path / "meta.json").write_text(json.dumps({"config_hash": "h", "config": {"group": "g"}}))
    assert find_origin(str(tmp_path / "third")) == str(tmp_path / "third")
    (tmp_path / "first" / "meta.json").write_text(json.dumps(meta | {"config": {"model": {"student": start}}}))
    assert find_origin(start) == start


def test_no_path_of_this_machine_is_published(tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    card = render_card(str(tmp_path / "my-base"), str(tmp_path / "mine.jsonl"), ["t"], {})
    front, facts = read(card)
    assert "base_model" not in front and "datasets" not in front
    assert str(tmp_path) not in card and facts["base"] == "my-base" and facts["data"]["questions"] == "mine.jsonl"


def test_text_of_files_is_only_text() -> None:
    front, facts = read(render_card("owner/name", "q.jsonl", [EVIL], {"prompt": EVIL}))
    assert front["license"] == "other" and facts["teachers"] == [EVIL] and facts["prompt"] == EVIL
    share = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    results = format_results({EVIL: {"accuracy_neutral": share, "extraction_rate_neutral": share}, "t": {}})
    assert "<" not in results and "`" not in results and len(results.splitlines()) == 6
    assert results.splitlines()[-1].endswith("| 50.0% [40.0%, 60.0%] | 50.0% | 10 |")
    assert format_results({"t": {}}) == ""
