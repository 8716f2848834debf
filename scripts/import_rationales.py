"""Imports a published collection's rationales from a local clone into a rationale store.

    python -m scripts.import_rationales eit clones/Distilling-CoT-Reasoning --questions task:openbookqa:train \
        --files "data/obqa_*.json" --output data/obqa/eit.parquet

Collections: eit, tinyllm, palm, chatqa, zeroeval, mentor_kd, gsm8k_solutions, jsonl, and records: messages,
ShareGPT, Alpaca, R1 traces.
With `--translations` they become those of the questions' translations, as English pivots.
Models' texts are under their providers' terms as well as under the collection's licence, which the store records.
"""

import argparse
import subprocess
from collections import Counter
from pathlib import Path

from datamodules.files.atomic import check_place
from datamodules.files.command_line import CommandLine
from datamodules.provenance import describe_creation
from datamodules.rationales.pivots import give_translations
from datamodules.rationales.published import COLLECTIONS, import_rationales
from datamodules.rationales.store import write_rationales
from datamodules.tasks.questions import load_questions
from scripts.common.entry import run_main


def find_commit(clone: Path) -> str | None:
    """Returns the commit that a clone is at; None if it is no git repository."""
    if not (clone / ".git").exists():
        return None
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collection", choices=sorted(COLLECTIONS))
    parser.add_argument("clone", type=Path, help="local clone of the collection's repository; for jsonl, a folder")
    parser.add_argument("--questions", required=True, help="a task's source or a file, see annotate")
    parser.add_argument("--translations", help="translations of the questions, which get the rationales as theirs")
    parser.add_argument("--files", help="glob below the clone, for some of the collection's files")
    parser.add_argument("--output", type=Path, required=True, help="the store (parquet)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Imports, and prints what was cleaned and left out, and each teacher's share of right answers."""
    parsed = parse(args)
    check_place(parsed.output, ".parquet")
    questions = load_questions(parsed.questions)
    rationales, conditions, counts = import_rationales(parsed.collection, parsed.clone, questions, parsed.files)
    if not rationales:
        raise ValueError(f"{parsed.clone}: no rationale of the questions of {parsed.questions}: {dict(counts)}")
    if parsed.translations:
        rationales, left_out = give_translations(rationales, questions, load_questions(parsed.translations))
        counts.update(left_out)
    metadata = {
        "collection": parsed.collection,
        "commit": find_commit(parsed.clone),
        "licence": COLLECTIONS[parsed.collection].licence,
        "gold_conditioned": conditions,
        "counts": dict(counts),
        "creation": describe_creation(
            {"data": {"questions": parsed.questions, "files": parsed.files, "translations": parsed.translations}}
        ),
    }
    write_rationales(parsed.output, rationales, metadata)
    print(f"{parsed.output}: {len(rationales)} rationales; {', '.join(f'{n} {what}' for what, n in counts.items())}")
    total, right, read = Counter[str](), Counter[str](), Counter[str]()
    for rationale in rationales:
        total[rationale.teacher] += 1
        read[rationale.teacher] += rationale.answer is not None
        right[rationale.teacher] += rationale.correct is True
    known = {True: "saw the gold answer", False: "did not see the gold answer", None: "unknown whether it saw gold"}
    for teacher, number in sorted(total.items()):
        shares = f"{read[teacher] / number:.1%} with an answer, {right[teacher] / number:.1%} right"
        print(f"  {teacher}: {number}, {shares}, {known[conditions.get(teacher)]}")


if __name__ == "__main__":
    run_main(main, __file__)
