"""What each of a fit's filters would leave of some rationales, which are not tokenized for it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from datamodules.rationales.controls import match_lengths
from datamodules.rationales.store import Rationale
from datamodules.text.words import count_words

Filter = Callable[[Sequence[Rationale]], list[Rationale]]


class FilterCount(NamedTuple):
    """How many rationales a filter leaves.

    Attributes:
        name: As a setting below `data.filters`.
        alone: Where no other is on.
        in_order: Of a default: after those before it. Of another: in a fit in which it is set, beside the defaults.
    """

    name: str
    alone: int
    in_order: int


def _where(fits: Callable[[Rationale], bool]) -> Filter:
    return lambda rationales: [rationale for rationale in rationales if fits(rationale)]


def _written_by(teacher: str) -> Filter:
    return _where(lambda item: item.teacher == teacher)


def _take_first(rationales: Sequence[Rationale]) -> list[Rationale]:
    return [*{(item.question_id, item.teacher): item for item in reversed(rationales)}.values()]


def _share_questions(teachers: Iterable[str], fits: Callable[[Rationale], bool]) -> Filter:
    def keep(rationales: Sequence[Rationale]) -> list[Rationale]:
        sets = [{item.question_id for item in rationales if item.teacher == name and fits(item)} for name in teachers]
        shared = set[str].intersection(*sets)
        return [item for item in rationales if item.question_id in shared]

    return keep


def _match(teachers: Sequence[str]) -> Filter:
    def keep(rationales: Sequence[Rationale]) -> list[Rationale]:
        lengths = [count_words(item.text) for item in rationales]
        names, ids = [item.teacher for item in rationales], [item.question_id for item in rationales]
        kept = match_lengths(lengths, names, ids, teachers, 0)
        return [item for item, is_kept in zip(rationales, kept, strict=True) if is_kept]

    return keep


def count_filters(rationales: Sequence[Rationale]) -> list[FilterCount]:
    """Returns what each filter leaves: first those that are on by default, in a fit's order; then the others.

    Those that compare teachers name all that there are, and are left out where there is only one.
    """
    teachers = sorted(Counter(item.teacher for item in rationales))
    whole, filled = _where(lambda item: not item.is_truncated), _where(lambda item: bool(item.text.strip()))
    right = _where(lambda item: item.correct is True)
    counts, left = list[FilterCount](), list(rationales)
    for name, default in (("keep_truncated=false", whole), ("not empty", filled), ("correct_only=true", right)):
        left = default(left)
        counts.append(FilterCount(f"{name} (default)", len(default(rationales)), len(left)))
    others: dict[str, Filter] = {"samples_per_question=1": _take_first}
    # Before the defaults, as a fit does: a wrong rationale answers, too, but one that was cut off does not.
    first: dict[str, Filter] = {}
    if len(teachers) > 1:
        first = {f"teachers=[{name}]": _written_by(name) for name in teachers}
        first["answered_by=[all]"] = _share_questions(teachers, lambda item: item.answer is not None)
        first["solved_by=[all]"] = _share_questions(teachers, lambda item: item.correct is True)
        others["matched_with=[all]"] = _match(teachers)
    for name, keep in first.items():
        counts.append(FilterCount(name, len(keep(rationales)), len(right(filled(keep(whole(rationales)))))))
    for name, keep in others.items():
        counts.append(FilterCount(name, len(keep(rationales)), len(keep(left))))
    return counts


def format_filters(counts: Sequence[FilterCount], total: int) -> list[str]:
    """Returns the lines of a table."""
    width = max(len(count.name) for count in counts)
    rows = [f"  {count.name:{width}}  {count.alone:>8}  {count.in_order:>8}" for count in counts]
    return [f"filters leave   of {total}: each alone, and in a fit after the defaults above it", *rows]
