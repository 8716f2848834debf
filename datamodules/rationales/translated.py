"""Translated rationales: whether one still says what it said."""

from datamodules.answers.extractors import find_stated_answer
from datamodules.tasks.questions import Question

# Between a letter and its option's text.
_BETWEEN = " )]）】:："


def keeps_answer(text: str, question: Question, answer: str | None) -> bool:
    """Says whether a translation states no other answer than the one that it should.

    Neither another letter or number, nor, after the right letter, another option's text, as where a translator has put
    the options in another order.

    Args:
        text: The translation.
        question: In its language.
        answer: Of what was translated; None if that has none.
    """
    found = find_stated_answer(text, question)
    if found is None:
        return True
    if found.answer != answer:
        return False
    rest = text[found.end :].lstrip(_BETWEEN).casefold()
    named = [choice for choice in question.choices or () if rest.startswith(choice.casefold())]
    return not named or max(named, key=len) == question.choice(answer)
