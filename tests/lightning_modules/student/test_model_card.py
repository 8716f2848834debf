"""Tests of a student's model card: valid for the hub, and only text whatever the files say."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from datamodules.own_text import OwnText
from lightning_modules.student.model_card import (
    describe_student,
    find_earlier_teachers,
    find_hub_id,
    find_origin,
    format_results,
    render_card,
)
from lightning_modules.student.start import StudentStart
from losses.distillation import DistillationLoss
from losses.schedules import Schedule
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import make_data, make_module
from tests.lightning_modules.student.test_student_own_text import WHOLE, write_own_text
from tests.tiny import capture, fit, save_model

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
    assert facts["data"]["citation"].startswith("Cobbe et al. 2021")
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


def test_a_continued_students_card_names_the_teachers_before(tmp_path: Path) -> None:
    start = "model:smollm2-135m-instruct"
    for name, teachers in (("first", ["t1", EVIL]), ("second", ["t2"]), ("third", ["t3"])):
        student = tmp_path / name / "student"
        student.mkdir(parents=True)
        (student / "README.md").write_text(render_card(start, "q.jsonl", teachers, {}))
        start = str(student)
    facts = read((tmp_path / "third" / "student" / "README.md").read_text())[1]
    assert facts["teachers"] == ["t3"] and facts["earlier_teachers"] == ["t1", "t2", EVIL]
    assert "earlier_teachers" not in read((tmp_path / "first" / "student" / "README.md").read_text())[1]


def test_a_checkpoints_teachers_are_its_runs(tmp_path: Path) -> None:
    checkpoint = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert find_earlier_teachers(checkpoint) == []
    (tmp_path / "run" / "student").mkdir(parents=True)
    page = render_card("model:smollm2-135m-instruct", "q.jsonl", ["t"], {})
    (tmp_path / "run" / "student" / "README.md").write_text(page)
    assert find_earlier_teachers(checkpoint) == ["t"]


@pytest.mark.parametrize("page", ["A model.", "```json\n[1]\n```\n", '```json\n{"teachers": [{}, 1]}\n```\n', "\udcff"])
def test_a_page_of_another_kind_names_no_teachers(tmp_path: Path, page: str) -> None:
    (tmp_path / "README.md").write_text(page, errors="surrogateescape")
    assert find_earlier_teachers(str(tmp_path)) == []


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
    results = format_results({"t": {}, EVIL: {"accuracy_neutral": share, "extraction_rate_neutral": share}})
    assert "<" not in results and "`" not in results and len(results.splitlines()) == 6
    assert results.splitlines()[-1].endswith("| 50.0% [40.0%, 60.0%] | 50.0% | 10 |")
    assert format_results({"t": {}}) == ""


def test_a_hub_id_is_no_folder_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_hub_id("owner/name") == "owner/name"
    Path("owner/name").mkdir(parents=True)
    assert find_hub_id("owner/name") is None and find_hub_id("runs/no/such/student") is None


def test_a_trained_students_card_says_how_it_was_trained(world: World, tmp_path: Path) -> None:
    texts, friend = write_own_text(world, tmp_path / "own.parquet"), save_model(tmp_path / "friend", seed=5)
    logits = capture(tmp_path / "logits", friend, world.questions, [texts], **WHOLE)
    loss = DistillationLoss(kl_weight=Schedule(shape="linear", start=0.0, end=0.5), answer_weight=2.0)
    own_loss = DistillationLoss(kl_weight=1.0, divergence="jsd", beta=0.25)
    module = make_module(world, loss, own_loss=own_loss, start=StudentStart(reset="head", seed=3), fake_quant="Q4_0")
    data = make_data(world, own=OwnText([texts], [logits]))
    fit(module, data, max_steps=2)
    facts = read(describe_student(module, data))[1]
    assert facts["base"] == Path(world.student).name and facts["teachers"] == ["friend", "teacher"]
    assert (facts["supervision"], facts["prompt"]) == ("rationale+logits", data.prompt.id)
    assert (facts["train_examples"], facts["own_examples"], facts["optimizer_steps"]) == (8, 8, 2)
    assert facts["learning_rate"] == 1e-2 and facts["fake_quant"] == "Q4_0"
    assert facts["start"] == {"reset": "head", "permuted_units": False, "seed": 3}
    assert facts["loss"]["kl_weight"]["end"] == 0.5 and facts["loss"]["answer_weight"] == 2
    assert (facts["own_loss"]["divergence"], facts["own_loss"]["beta"]) == ("jsd", 0.25)


def test_what_a_training_did_not_have_is_not_on_its_card(world: World) -> None:
    module = make_module(world, DistillationLoss())
    data = make_data(world, supervision="label", logits=None, rationales=None)
    fit(module, data, max_steps=1)
    facts = read(describe_student(module, data))[1]
    assert facts["teachers"] == [] and facts["supervision"] == "label"
    assert not {"start", "fake_quant", "own_examples", "own_loss"} & facts.keys()
