"""Writes rationale stores as lines of `messages`, for other programs and for Kindred itself.

    python -m scripts.export_rationales data/obqa/smollm2.parquet --questions task:openbookqa:train --output out.jsonl

Each line has the question's fields, the rationale's teacher, sample and answer, and the exchange of user and assistant;
what the teacher thought is the assistant's `reasoning_content`. `fit` reads the file as questions and as rationales.

With `--texts_for MODEL` a line is a rationale's `id` and the `text` that this model's tokenizer reads as Kindred's
tokens of prompt and rationale, for a program that captures distributions (see `import_logits`).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from datamodules.files.atomic import check_place, write_jsonl
from datamodules.files.command_line import CommandLine
from datamodules.rationales.messages import to_messages
from datamodules.rationales.store import Rationale, load_rationales
from datamodules.tasks.prompts import Prompt, get_prompt
from datamodules.tasks.questions import Question, load_questions
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rationales", nargs="+", help="rationale stores, or other files of rationales")
    parser.add_argument("--questions", required=True, help="task:NAME:SPLIT[:LANGUAGE][@FOLDER], or a file")
    parser.add_argument("--prompt", default="instruction", help="how the user poses a question")
    parser.add_argument("--texts_for", metavar="MODEL", help="hub id or local folder of a teacher that will read them")
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
    prompt = get_prompt(parsed.prompt)
    records = [*(write_texts(parsed.texts_for, prompt, pairs) if parsed.texts_for else to_messages(pairs, prompt))]
    write_jsonl(parsed.output, records)
    print(f"{parsed.output}: {len(records)} of {len(rationales)} rationales")


def write_texts(model: str, prompt: Prompt, pairs: list[tuple[Question, Rationale]]) -> Iterator[dict[str, str]]:
    """Yields the texts that a model's tokenizer reads as the pairs' tokens; without those that no text is read as."""
    # They import torch and transformers, which neither help nor messages need wait for.
    from datamodules.examples.encoding import spell_tokens
    from datamodules.examples.tokenization import build_examples, load_tokenizer

    tokenizer = load_tokenizer(model)
    for example in build_examples(tokenizer, prompt, pairs):
        if (text := spell_tokens(tokenizer, example.token_ids.tolist())) is not None:
            yield {"id": example.id, "text": text}


if __name__ == "__main__":
    run_main(main, __file__)
