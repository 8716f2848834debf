"""Tests of what filters would leave: as many as a data module's own leave."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from datamodules.distillation import DistillationDataModule
from datamodules.rationales.store import Rationale, load_rationales, write_rationales
from studies.inputs.filter_counts import FilterCount, count_filters, format_filters
from tests.tiny import build, build_tokenizer, make_questions, make_rationale, write_questions

QUESTIONS = make_questions(8)
ALONE = {"correct_only": False, "keep_truncated": True}


def write_pair() -> list[Rationale]:
    """Two teachers with two samples of each question, some of them wrong, cut off, or without an answer."""
    rationales = []
    for index, question in enumerate(QUESTIONS):
        for teacher in ("ada", "bob"):
            for sample in range(2):
                own = make_rationale(question, teacher, sample, right=(index + sample) % 3 > 0 or teacher == "bob")
                own = replace(own, text="It is so. " * (index % 4) + own.text)
                if index == 1 + sample:
                    own = replace(own, finish_reason="length", answer=None, correct=False)
                if index == 5 and teacher == "bob":
                    own = replace(own, answer=None, correct=False)
                rationales.append(own)
    return rationales


def write_store(folder: Path, rationales: list[Rationale]) -> tuple[dict[str, FilterCount], Callable[..., int]]:
    """Returns the counts of a store, by filter, and a maker of a fit's own, which takes the fit's filters."""
    source = write_questions(folder / "colours_train.jsonl", QUESTIONS)
    build_tokenizer().save_pretrained(folder / "tokenizer")
    path = str(folder / "r.parquet")
    write_rationales(folder / "r.parquet", rationales, {"teacher": "ada", "revision": "1"})

    def count(**options: object) -> int:
        data = build(
            DistillationDataModule, str(folder / "tokenizer"), source, rationales=[path], prompt="plain", **options
        )
        data.setup("fit")
        return len(data.examples)

    counts = count_filters(load_rationales([path], {own.id: own for own in QUESTIONS}))
    return {own.name: own for own in counts}, count


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_fit_leaves_as_many(tmp_path: Path) -> None:
    counts, count = write_store(tmp_path, write_pair())
    both = ["ada", "bob"]
    assert counts["keep_truncated=false (default)"].alone == count(**{**ALONE, "keep_truncated": False})
    assert counts["correct_only=true (default)"].alone == count(**{**ALONE, "correct_only": True})
    assert counts["correct_only=true (default)"].in_order == count()
    for name, options in {
        "samples_per_question=1": {"samples_per_question": 1},
        "teachers=[ada]": {"teachers": ["ada"]},
        "answered_by=[all]": {"answered_by": both},
        "solved_by=[all]": {"solved_by": both},
        "matched_with=[all]": {"matched_with": both},
    }.items():
        assert (counts[name].alone, counts[name].in_order) == (count(**ALONE, **options), count(**options)), name
    assert len({own.in_order for own in counts.values()}) > 4


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_also_leaves_out_what_a_collection_has_empty(tmp_path: Path) -> None:
    first, second, *others = write_pair()
    empty = [replace(own, text=text, finish_reason="imported") for own, text in ((first, ""), (second, " \n"))]
    counts, count = write_store(tmp_path, [*empty, *others])
    assert counts["not empty (default)"].alone == count(**ALONE) == len(others)
    assert counts["correct_only=true (default)"].in_order == count()


def test_one_teacher_is_compared_with_none() -> None:
    counts = count_filters([own for own in write_pair() if own.teacher == "ada"])
    assert not [own for own in counts if "[" in own.name]
    assert "of 16:" in format_filters(counts, 16)[0]
