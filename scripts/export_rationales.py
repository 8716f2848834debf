"""Writes rationale stores as lines of `messages`, for other programs and for Kindred itself.

    python -m scripts.export_rationales data/obqa/smollm2.parquet --questions task:openbookqa:train --output out.jsonl

Each line has the question's fields, the rationale's teacher, sample and answer, and the exchange of user and assistant;
what the teacher thought is the assistant's `reasoning_content`. `fit` reads the file as questions and as rationales.
"""

import argparse
from pathlib import Path

from datamodules.files.atomic import check_place, write_jsonl
from datamodules.files.command_line import CommandLine
from datamodules.rationales.messages import to_messages
from datamodules.rationales.store import load_rationales
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rationales", nargs="+", help="rationale stores, or other files of rationales")
    parser.add_argument("--questions", required=True, help="task:NAME:SPLIT[:LANGUAGE][@FOLDER], or a file")
    parser.add_argument("--prompt", default="instruction", help="how the user poses a question")
    parser.add_argument("--correct_only", action="store_true", help="only rationales that reached the gold answer")
    parser.add_argument("--output", type=Path, required=True, help="the file (jsonl)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Exports, and says how many."""
    parsed = parse(args)
    check_place(parsed.output, ".jsonl")
    questions = {question.id: question for question in load_questions(parsed.questions)}
    rationales = load_rationales(parsed.rationales, questions)
    kept = [rationale for rationale in rationales if rationale.correct or not parsed.correct_only]
    pairs = [(questions[rationale.question_id], rationale) for rationale in kept]
    write_jsonl(parsed.output, to_messages(pairs, get_prompt(parsed.prompt)))
    print(f"{parsed.output}: {len(kept)} of {len(rationales)} rationales")


if __name__ == "__main__":
    run_main(main, __file__)
