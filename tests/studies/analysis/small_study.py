"""A small study whose arms' answers a test writes itself."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.files.atomic import write_json
from datamodules.model_cards import Parts
from datamodules.rationales.store import write_table
from studies.analysis.predictions import predictions_path
from studies.design.grid import Arm, StudentSpec, Study, TaskSpec, TeacherSpec, expand

BUDGET = {"train_examples": 17, "global_step": 9, "supervised_tokens_per_epoch": 100}


def make_study(root: Path, families: str = "ab", **changes) -> Study:
    fields = {
        "name": "s",
        "tasks": {"obqa": TaskSpec("train.jsonl", ["test.jsonl"])},
        "students": {family: StudentSpec("m", family) for family in families},
        "teachers": {family.upper(): TeacherSpec(family, model="m") for family in families},
        "supervisions": ["rationale"],
        "seeds": 2,
        "root": str(root),
    }
    return Study(**{**fields, **changes})


def make_factorial(root: Path, **changes) -> Study:
    """Four families, of two tokenizers and two styles; architecture goes with tokenizer, and lineage is one."""
    parts = {
        f"{tokenizer}{style}": Parts(tokenizer, {"u": "llama", "b": "neox"}[tokenizer], "one", style)
        for tokenizer in "ub"
        for style in "xy"
    }
    return make_study(
        root,
        **{
            "students": {name: StudentSpec("m", name, parts=own) for name, own in parts.items()},
            "teachers": {name.upper(): TeacherSpec(name, "m", parts=own) for name, own in parts.items()},
            **changes,
        },
    )


def write_arm(
    study: Study,
    arm: Arm,
    correct: list,
    ids: list[str] | None = None,
    task: str = "t",
    lost: int = 0,
    groups: list | None = None,
    kind: str | None = None,
    extractors: Sequence[str] = ("neutral-5",),
    **budget,
) -> None:
    """Writes an arm's predictions, or those of its file of a type; the first `lost` have no answer."""
    ids = ids or [f"q{number}" for number in range(len(correct))]
    given = [{"group": group} for group in groups] if groups else [{}] * len(correct)
    records = [
        {
            "task": task,
            "split": "test",
            "question_id": identifier,
            "correct_neutral": right,
            "answer_neutral": "A" if n >= lost else None,
            **given[n],
        }
        for n, (identifier, right) in enumerate(zip(ids, correct, strict=True))
    ]
    write_table(predictions_path(study, arm, kind), records, {"creation": {"extractors": [*extractors]}})
    if arm.supervision != "untuned":
        write_json(Path(study.root) / study.name / arm.id / "DONE", BUDGET | budget)


def fill(study: Study, num_questions: int = 40) -> None:
    """Every arm has its own share of right answers."""
    for index, arm in enumerate(expand(study)):
        rng = np.random.default_rng(index)
        write_arm(study, arm, (rng.random(num_questions) < 0.3 + 0.02 * index).tolist())


def find(rows: list[dict], **fields) -> dict:
    [row] = [row for row in rows if all(row[name] == value for name, value in fields.items())]
    return row
