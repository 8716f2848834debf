"""The model card of an exported student, `README.md`: what the hub needs to know, and what it learned from.

What comes from files stands in YAML or JSON, quoted, so that no text of theirs becomes markup; paths of this machine
are left out.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from datamodules.files.atomic import read_meta
from datamodules.files.parsing import parse_json_object
from datamodules.model_cards import UNKNOWN, ModelCard, find_card, list_models
from datamodules.model_sources import name_model, resolve_model
from datamodules.tasks.benchmarks import Task, find_source

if TYPE_CHECKING:
    # `scripts.push` reads cards without what trains.
    from datamodules.distillation import DistillationDataModule
    from lightning_modules.student.student import DistillationModule
    from losses.distillation import DistillationLoss

NAME = "README.md"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FACTS = re.compile(r"^```json\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_LLAMA = re.compile(r"llama-([\d.]+\d|\d)", re.IGNORECASE)


def find_hub_id(model: str) -> str | None:
    """Returns a model's hub id; None for what lies on this machine."""
    name, _ = resolve_model(model, None)
    return name if _HUB_ID.fullmatch(name) and not Path(name).exists() else None


def find_origin(student: str) -> str:
    """Returns what the first of the trainings began with that a student has been through: a run's folder tells its own.

    Args:
        student: As a training names it: a model, or the folder `student` or a checkpoint of another run.
    """
    seen = set[Path]()
    while True:
        folder = Path(resolve_model(student, None)[0]).resolve()
        meta = read_meta(folder.parent) if folder.is_dir() and folder not in seen else None
        model = None if meta is None else meta["config"].get("model")
        if not isinstance(model, dict) or not isinstance(model.get("student"), str):
            return student
        seen.add(folder)
        student = model["student"]


def find_earlier_teachers(student: str) -> list[str]:
    """Returns whom a student that is to be trained has learned from, by the card in its folder; nobody without one.

    Of a run's checkpoint that is the card of the student that the run has exported, if it has.
    """
    is_checkpoint = student.endswith(".ckpt")
    folder = Path(student).parents[1] / "student" if is_checkpoint else Path(resolve_model(student, None)[0])
    path = folder / NAME
    if not path.is_file() or (found := _FACTS.search(path.read_text(encoding="utf-8", errors="replace"))) is None:
        return []
    try:
        facts = parse_json_object(found[1], path)
    except ValueError:
        # Anybody's page of a model, in which JSON is an example of something else.
        return []
    named = [facts.get("teachers"), facts.get("earlier_teachers")]
    return sorted({name for names in named if isinstance(names, list) for name in names if isinstance(name, str)})


def _find_own_card(model: str) -> ModelCard | None:
    name, _ = resolve_model(model, None)
    return find_card(model) or next((card for card in list_models() if card.hub == name), None)


def choose_license(card: ModelCard | None) -> dict[str, str]:
    """Returns the hub's words for a base model's licence, which its student has, too."""
    licence = card.licence if card else ""
    if card and licence.startswith("Llama") and (version := _LLAMA.search(card.hub)):
        return {"license": f"llama{version[1]}"}
    known = {"Apache-2.0": "apache-2.0", "Gemma Terms of Use": "gemma"}
    return {"license": known[licence]} if licence in known else {"license": "other", "license_name": "of-base-model"}


def describe_data(questions: str) -> tuple[Task | None, dict[str, str]]:
    """Returns the task of a source of questions, if it is one, and the source and its licence."""
    source = find_source(questions)
    if source is not None:
        task = source.task
        return task, {"questions": source.name, "licence": task.licence, "citation": task.citation}
    if questions.startswith("microworld:"):
        return None, {"questions": questions, "licence": "Apache-2.0"}
    return None, {"questions": Path(questions).name, "licence": f"{UNKNOWN}: ask who made this file"}


def render_card(student: str, questions: str, teachers: list[str], training: Mapping[str, Any]) -> str:
    """Returns the card.

    Args:
        student: What was trained; of another run's student, what that began with is named, and its teachers.
        questions: Their source.
        teachers: Whose rationales it learned from, or who read what it wrote itself.
        training: Supervision, loss and the like, JSON-serialisable.
    """
    earlier, student = find_earlier_teachers(student), find_origin(student)
    card, base = _find_own_card(student), find_hub_id(student)
    task, data = describe_data(questions)
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front |= choose_license(card)
    if base is not None:
        front |= {"base_model": base, "base_model_relation": "finetune"}
    if task is not None:
        front["datasets"] = [task.hub]
    front["tags"] = ["kindred", "distillation", "chain-of-thought"]
    facts = {
        "base": base or name_model(student), "base_licence": card.licence if card else UNKNOWN,
        "teachers": teachers, **({"earlier_teachers": earlier} if earlier else {}), "data": data, **training,
    }  # fmt: skip
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
        "# A student of chain-of-thought distillation\n\n"
        "It was trained with Kindred: it reads a question, and writes a rationale and the answer. What it learned "
        "from, and how:\n\n"
        f"```json\n{json.dumps(facts, indent=2, ensure_ascii=True)}\n```\n\n"
        "A student may repeat its teachers' mistakes, and shares the licences of its base model, its teachers and "
        "its data.\n"
    )


def format_results(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns a card's section of results; nothing without any.

    Args:
        metrics: By task and name, an `Estimate`'s fields, as beside predictions.
    """
    rows = []
    for task, own in metrics.items():
        if (accuracy := own.get("accuracy_neutral")) is None:
            continue
        numbers = [float(accuracy[name]) for name in ("value", "low", "high")]
        value, low, high = (f"{number:.1%}" for number in numbers)
        found = float(own["extraction_rate_neutral"]["value"])
        name = re.sub(r"[^\w./:-]", "_", task)
        rows.append(f"| {name} | {value} [{low}, {high}] | {found:.1%} | {int(accuracy['n'])} |\n")
    if not rows:
        return ""
    head = "| task | accuracy, 95 % interval | answers found | questions |\n| --- | --- | --- | --- |\n"
    return f"\n## Results\n\n{head}{''.join(rows)}"


def describe_student(student: "DistillationModule", data: "DistillationDataModule") -> str:
    """Returns a trained student's model card."""
    is_taught = data.supervision != "label"
    training: dict[str, Any] = {
        "supervision": data.supervision,
        **({"start": vars(student.start)} if student.start.changes else {}),
        **({"fake_quant": student.fake_quant} if student.fake_quant else {}),
        "train_examples": len(data.train_examples),
        "optimizer_steps": student.trainer.global_step,
        "learning_rate": student.learning_rate,
        "loss": _describe_loss(student.loss),
        "prompt": data.prompt.id,
    }
    teachers = set(data.train_examples.column("teacher")) if is_taught else set()
    if data.own_examples is not None:
        teachers |= {cache.description.teacher for cache in data.own_examples.caches}
        training["own_examples"] = len(data.own_examples.examples)
        training["own_loss"] = _describe_loss(student.own_loss)
    return render_card(student.student, data.source.questions, sorted(teachers), training)


def _describe_loss(loss: "DistillationLoss") -> Any:
    settings = {name: value for name, value in vars(loss).items() if not name.startswith("_")}
    return json.loads(json.dumps(settings, default=vars))
