"""Gives rationales of English questions to their translations, as English pivots: a store like a teacher's own.

    python -m scripts.pivot teacher/en.parquet --questions task:msvamp:test:en --translations task:msvamp:test:de \
        --output teacher/de-pivot.parquet

Questions are joined by `original`, or by `parallel`. The store names TEACHER as TEACHER-pivot. A study whose
`languages` have pivots runs it by itself.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from datamodules.files.atomic import check_place, require_file
from datamodules.files.command_line import CommandLine
from datamodules.provenance import describe_creation, is_complete
from datamodules.rationales.pivots import give_translations, name_pivot
from datamodules.rationales.store import load_rationales, read_gold_conditions, write_rationales
from datamodules.tasks.benchmarks import identify_source
from datamodules.tasks.questions import load_questions
from datamodules.tasks.translations import Translations
from scripts.common.entry import run_main


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """Returns the parsed command line."""
    parser = CommandLine(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rationales", help="a rationale store, or published rationales, of the questions")
    parser.add_argument("--teacher", help="whose; by default all")
    parser.add_argument("--questions", required=True, help="what the rationales are about: a file or a task's source")
    parser.add_argument("--translations", required=True, help="the same questions in another language")
    parser.add_argument("--output", type=Path, required=True, help="the store (parquet)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    """Writes the store, and prints what was left out.

    Raises:
        ValueError: A translation has other options than its original, is of none of the questions, or is one of them;
            the rationales are not of this teacher.
    """
    given = parse(args)
    check_place(given.output, ".parquet")
    require_file(Path(given.rationales), "rationales")
    sources = (given.rationales, given.questions, given.translations)
    named = {name: getattr(given, name) for name in ("rationales", "teacher", "questions", "translations")}
    config = {"pivot": named, "files": {source: identify_source(source) for source in sources}}
    if is_complete(given.output, config):
        print(f"{given.output}: complete already")
        return
    questions, translations = load_questions(given.questions), load_questions(given.translations)
    rationales = load_rationales([given.rationales], {question.id: question for question in questions})
    teachers = sorted({rationale.teacher for rationale in rationales})
    if given.teacher is not None and given.teacher not in teachers:
        raise ValueError(f"{given.rationales}: no rationale of {given.teacher!r}; there are {', '.join(teachers)}")
    own = [rationale for rationale in rationales if given.teacher in (None, rationale.teacher)]
    given_away, counts = give_translations(own, questions, translations)
    check = Translations()
    for question in (*questions, *translations):
        check.add(question)
    if not given_away:
        raise ValueError(f"{given.translations}: gets no rationale: {dict(counts)}")
    known = read_gold_conditions([given.rationales])
    metadata = {
        "gold_conditioned": {name_pivot(teacher): known[teacher] for teacher in teachers if teacher in known},
        "counts": dict(counts),
        "num_records": len(given_away),
        "creation": describe_creation(config),
    }
    pivots = [replace(rationale, teacher=name_pivot(rationale.teacher)) for rationale in given_away]
    write_rationales(given.output, pivots, metadata)
    print(f"{given.output}: {len(pivots)} rationales; {', '.join(f'{n} {what}' for what, n in counts.items())}")


if __name__ == "__main__":
    run_main(main, __file__)
