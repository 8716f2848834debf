"""What a newcomer asks after the first student: commands, and what they have to print."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ASKED = {"choices": ["iron", "wood"], "answer": "A"}
_WRITTEN = "The spoon is of iron. The answer is A."
# ShareGPT, Alpaca, a trace as of R1, and messages.
FORMATS: tuple[dict[str, Any], ...] = (
    {
        **_ASKED,
        "conversations": [
            {"from": "human", "value": "What is a spoon of iron made of?"},
            {"from": "gpt", "value": _WRITTEN},
        ],
    },
    {**_ASKED, "instruction": "What is a cup of iron made of?", "output": _WRITTEN},
    {"problem": "What is 2 + 3?", "answer": "5", "generations": ["<think>2 and 3 are 5.</think> The answer is 5."]},
    {
        **_ASKED,
        "question": "What is a rope of iron made of?",
        "messages": [{"role": "assistant", "reasoning_content": "Ropes.", "content": _WRITTEN}],
    },
)
_PAIR = (
    "--config configs/experiments/pair.yaml --teacher=configs/models/microworld/a-teacher "
    "--student=configs/models/microworld/a-student --students.student.family=a --teachers.teacher.family=a "
    "'--tasks={mine: {train: mine.jsonl, test: [mine.jsonl]}}'"
)


@dataclass(frozen=True)
class Step:
    """A question of a newcomer's.

    Attributes:
        name: Of the measurement.
        command: Answers it.
        prints: What the answer has in it, all of it.
        code: With which it ends.
        seconds: What it may take; None where nothing was promised.
    """

    name: str
    command: str
    prints: tuple[str, ...]
    code: int = 0
    seconds: float | None = None


STEPS = (
    Step("formats_in", "python -m scripts.inspect_data formats.jsonl", ("4 by formats (4)", "4 right", "0 unmatched")),
    Step(
        "formats_out",
        "python -m scripts.export_rationales formats.jsonl --questions formats.jsonl --output out.jsonl; cat out.jsonl",
        ("4 of 4 rationales", '"reasoning_content": "Ropes."'),
    ),
    Step("pair", f"python -m scripts.study run {_PAIR} --dry-run", ("examples", "tokens", "disk", "GPU hours")),
    Step(
        "offline",
        "HF_HUB_OFFLINE=1 HF_HOME=$PWD/none python -m scripts.fit --config configs/experiments/obqa_smollm2.yaml",
        ("is not in the hub's cache", "its folder, or a GGUF file", "hf download"),
        code=2,
        seconds=5,
    ),
    Step("help", "python -m scripts.fit --help", ("--model.student", "--help=all"), seconds=1.5),
    Step("help_all", "python -m scripts.fit --help=all", ("--model.loss.divergence",), seconds=1.5),
    Step("typo", "python -m scripts.fit --modle.student=x", ("did you mean --model.student",), code=2, seconds=1.5),
    Step(
        "evaluate",
        "python -m scripts.evaluate --config configs/experiments/own.yaml --model.student=runs/mine/first/student "
        "--output=again.parquet",
        ("accuracy", "chance", "extraction rate", "cite"),
    ),
)


def write_formats(path: Path) -> None:
    """Writes a record of each of the field's forms."""
    path.write_text("".join(f"{json.dumps(record)}\n" for record in FORMATS))
