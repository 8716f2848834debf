"""Finds questions by their text: as it is written, or else by its words, with or without the options."""

from collections.abc import Iterable, Sequence

from datamodules.tasks.questions import Question
from datamodules.tasks.records import squeeze
from datamodules.text.sentences import squash


def _key(text: str) -> str:
    return squash(text).removeprefix("q ")


class QuestionIndex:
    """Finds questions by their text; by its words, if it is nobody's text: whatever the punctuation and the options."""

    def __init__(self, questions: Iterable[Question]):
        self._texts: dict[str, list[Question]] = {}
        self._words: dict[str, list[Question]] = {}
        for question in questions:
            self._texts.setdefault(squeeze(question.question).casefold(), []).append(question)
            options = zip(question.letters, question.choices or (), strict=True)
            listed = " ".join(f"{letter} {text}" for letter, text in options)
            for key in {_key(question.question), _key(f"{question.question} answer choices {listed}")} - {""}:
                self._words.setdefault(key, []).append(question)

    def find(self, text: str, choices: Sequence[str] | None = None) -> list[Question]:
        """Returns the questions that the text may be: none, one, or several.

        Args:
            text: Of a question.
            choices: Its options, which tell questions of one text apart; None where they are not known.
        """
        found = self._texts.get(squeeze(text).casefold()) or self._words.get(_key(text), [])
        found = [question for question in found if has_choices(question, choices)] or found
        found = [question for question in found if squeeze(question.question) == squeeze(text)] or found
        return found


def has_choices(question: Question, choices: Sequence[str] | None) -> bool:
    """Says whether a question has just these options, in this order."""
    return [squeeze(choice) for choice in question.choices or ()] == [squeeze(str(choice)) for choice in choices or ()]
