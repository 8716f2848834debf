"""What a text states as its answer ("the answer is D", "D is correct", "#### 72"), whatever the teacher's style."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from datamodules.expressions import normalize_expression, normalize_number, read_braces
from datamodules.questions import Question

_ADJECTIVE = "correct|right|best|better|final|only|likely|suitable|appropriate|logical|plausible|reasonable|accurate"
# What announces an answer. A list's heading, "Answer choices:" or "Option A:", does not.
_ANCHOR = re.compile(
    r"(?P<direct>####(?=\s*[-$\d.,]+\s*$)|\\boxed\s*(?=\{)|\bI(?:'d| would| will)? (?:choose|pick|select|go with) )"
    r"|\banswers?\b(?! (?:choice|option)(?:s| \(?[a-z]\b))"
    rf"|\b(?:{_ADJECTIVE}) (?:option|choice|solution)\b"
    r"|\bthe (?:option|choice|solution)\b(?= (?:is|would|must|should)\b)"
    r"|^[ *_#]*(?:option|choice)(?=[*_]*:)",
    re.IGNORECASE | re.MULTILINE,
)
# (\u2018 to \u201d are curly quotes, \u2013 and \u2014 dashes.)
# Between the anchor and the answer: a colon follows the anchor at once, a verb may come later in the sentence.
_COLON = re.compile(r"[*_\s]*(?:\([^()\n]*\)\s*)?[*_]*[:=]\s*")
_VERB = re.compile(r"(?<!which )\b(?:is|was|(?:would|must|should|will|could|has to) be)\b\s*:?\s*", re.IGNORECASE)
_CLAUSE = re.compile(r"(?:[^.\n]|\.(?=\d)){0,80}")
_OPENING = re.compile(
    r"(?:[\s\"'\u201c\u2018*_`$({\[\\]|boxed(?=\{)|text(?:bf)?(?=\{)|(?:the )?(?:option|choice|letter)\b:?)*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"([A-Za-z])(?=[)\]}.:;,*_\"'\u201d\u2019`$\\]|\s*$|\s*\n|\s\))")
# Capitals only: a lower-case "a" before a word is the article.
_LOOSE_LETTER = re.compile(r"([A-Z])(?=\s+(?:[-\u2013\u2014:=]|(?:because|since|as|and)\b))")
_MORE_LETTERS = re.compile(r"[\"'*)\]]*(?:,? (?:and|or|&) |, ?|/)(?:option |choice )?[\"'*(\[]*([A-Z])\b(?!')")
# "Option D is correct", "(D) Venice is the most likely answer"; not "is not the answer", "is the worst option".
_VERDICT = re.compile(
    r"[*_\"'\u201d\u2019`]*\s+(?:is|(?:would|must|should) be)\s+"
    r"(?:(?!(?:a|an|not|no|wrong|worst|least|less|never|hardly|partly|partially)\b|un|in(?!deed))\w+\s+){0,4}?"
    rf"(?:correct\b|(?<=the )right\b|(?<=the )answer\b|(?:{_ADJECTIVE}) (?:answer|option|choice)\b)",
    re.IGNORECASE,
)
_SUBJECT_LETTER = re.compile(
    r"(?:(?:\b(?i:option|choice|answer|letter)\s+[\"'*(\[]*|[(\[])([A-Za-z])|(?<![\w'])([A-Z]))"
    r"[)\].*\"']*$"
)
_SUBJECT_TEXT = re.compile(r"(?<!\w)([A-Z])[)\].:][\s*\"']*([^\n]+)$")
NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])-?\$?\.\d+")
# An expression: a whole formula, or what follows until the sentence or the line ends.
FORMULA = re.compile(r"(?<!\\)\$(?:[^$\\]|\\.)+\$|\\\(.+?\\\)|\\\[.+?\\\]", re.DOTALL)
_PHRASE = re.compile(r"(?:[^\n.]|\.(?=\d))+")
_LIST_MARKER = re.compile(r"[.)] +[A-Za-z]")
# A number may begin a calculation, `16 - 3 = 13`, whose value comes after its last equals sign.
_CALCULATION = re.compile(
    r"(?:(?!\b(?:because|since|as|if|when|where)\b)(?:[^.,;=\n]|[.,](?=\d)))*=\s*(?=[^.,;\n]*\d)", re.IGNORECASE
)
# Of a sentence's words, which have lost their apostrophes.
NEGATION = re.compile(r"\b(?:not|cannot|never|neither|nor|incorrect|wrong|unlikely|eliminated?)\b|n t\b", re.IGNORECASE)
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+")
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")


class Extraction(NamedTuple):
    """An extracted answer, the rule that found it, and the characters where its statement begins and ends."""

    answer: str
    rule: str
    start: int
    end: int


def squash(text: str) -> str:
    """Returns the text's words and numbers in lower case, one space between them."""
    return " ".join(_WORD.findall(text.casefold()))


def _strip_article(squashed: str) -> str:
    return _ARTICLE.sub("", squashed)


def list_forms(question: Question) -> list[tuple[str, set[str]]]:
    """Returns what the options may be called, longest first, each with the letters of the options it names.

    An option may be named without its article, unless that is another option's text.
    """
    exact: dict[str, set[str]] = {}
    for letter in question.letters:
        exact.setdefault(squash(question.choice(letter)), set()).add(letter)
    forms = dict(exact)
    for form, letters in exact.items():
        forms.setdefault(_strip_article(form), letters)
    return sorted(((form, letters) for form, letters in forms.items() if form), key=lambda item: -len(item[0]))


def list_polar_forms(question: Question) -> list[tuple[str, set[str]]]:
    """Returns yes and no where the options are true and false, and the reverse."""
    texts = {squash(question.choice(letter)): letter for letter in question.letters}
    for (this, that), (yes, no) in [(("true", "false"), ("yes", "no")), (("yes", "no"), ("true", "false"))]:
        if set(texts) == {this, that}:
            return [(yes, {texts[this]}), (no, {texts[that]})]
    return []


def _match_text(squashed: str, forms: list[tuple[str, set[str]]]) -> str | None:
    """Returns the letter of the longest option that `squashed` begins with; None if two have the same text."""
    for form, letters in forms:
        if f"{squashed} ".startswith(f"{form} "):
            return next(iter(letters)) if len(letters) == 1 else None
    return None


def _match_option(text: str, start: int, question: Question) -> tuple[str, str, int] | None:
    """Returns (letter, rule, end) if an option's letter or text is at `start`."""
    opening = _OPENING.match(text, start)
    assert opening is not None
    start = opening.end()
    line = text[start:].split("\n")[0]
    squashed = squash(line)
    found = _LETTER.match(text, start) or _LOOSE_LETTER.match(text, start)
    letter = found.group(1).upper() if found else ""
    has_letter = letter != "" and letter in question.letters
    own_text = squash(question.choice(letter)) if has_letter else ""
    # "B) A": a letter with its own option's text is that option even where another option's text is "B".
    if own_text and f"{squashed} ".startswith(f"{letter.lower()} {own_text} "):
        return letter, "stated letter", start + _find_end(line, question.choice(letter))
    forms = list_forms(question)
    polar = list_polar_forms(question)
    if name := _match_text(squashed, forms) or _match_text(squashed, polar):
        return name, "stated text", start + _find_end(line, question.choice(name))
    more = _MORE_LETTERS.match(text, start + 1)
    if has_letter and not (more and more.group(1) in question.letters):
        return letter, "stated letter", start + 1
    if name := _match_text(_strip_article(squashed), forms):
        return name, "stated text", start + _find_end(line, question.choice(name))
    # "D Venice": a capital without any mark, before its own option's text.
    for name in question.letters:
        own_text = squash(question.choice(name))
        if own_text and line.startswith(f"{name} ") and f"{squashed} ".startswith(f"{name.lower()} {own_text} "):
            return name, "stated letter", start + _find_end(line, question.choice(name))
    return None


def _find_end(line: str, choice: str) -> int:
    """Returns where the option's text ends in the line that begins with it, or the first word's end."""
    found = line.casefold().find(choice.casefold())
    if found >= 0:
        return found + len(choice)
    return len(line.split(maxsplit=1)[0])


def _match_number(text: str, start: int, max_words: int) -> tuple[str, str, int] | None:
    """Returns (number, rule, end) if at most so many words come before the first number of the line at `start`."""
    start = len(text) - len(text[start:].lstrip())
    line = text[start:].split("\n")[0]
    number = NUMBER.search(line)
    if number is None:
        return None
    before = line[: number.start()]
    if len(before.strip(" {$*\\").split()) > max_words or SENTENCE_END.search(before) or NEGATION.search(before):
        return None
    # "To get the answer:\n1. Subtract ..."
    if text[:start].rstrip(" ").endswith("\n") and not before and _LIST_MARKER.match(line, number.end()):
        return None
    while calculation := _CALCULATION.match(line, number.end()):
        number = NUMBER.search(line, calculation.end())
        assert number is not None
    return clean_number(number.group()), "stated number", start + number.end()


def _match_expression(text: str, start: int) -> tuple[str, str, int] | None:
    """Returns (expression, rule, end) if a formula, or the rest of a sentence, is at `start`."""
    start = len(text) - len(text[start:].lstrip(" \n*"))
    if text.startswith("{", start):
        braces = read_braces(text, start)
        if braces is None:
            return None
        content, end = braces
    else:
        formula = FORMULA.match(text, start) or _PHRASE.match(text, start)
        if formula is None:
            return None
        # Of "6840 + 120 = 6960" the last side is the answer.
        content, end = formula.group().rpartition("=")[2], formula.end()
    answer = normalize_expression(content)
    return (answer, "stated expression", end) if answer and not NEGATION.search(content) else None


def clean_number(text: str) -> str:
    """Returns a matched number, normalised."""
    return normalize_number(text.replace("$", ""))


def _find_statements(text: str, question: Question) -> Iterator[Extraction]:
    """Yields what is announced as the answer ("the answer is D"), in the text's order."""
    for anchor in _ANCHOR.finditer(text):
        if anchor.group("direct"):
            starts = [anchor.end()]
        elif colon := _COLON.match(text, anchor.end()):
            starts = [colon.end()]
        else:
            clause = _CLAUSE.match(text, anchor.end())
            assert clause is not None
            # The clause's last word may be the verb, so that the answer lies on the next line.
            starts = [verb.end() for verb in _VERB.finditer(text, anchor.end(), clause.end())]
        for start in starts:
            if question.choices is not None:
                match = _match_option(text, start, question)
            elif question.expression:
                match = _match_expression(text, start)
            else:
                match = _match_number(text, start, max_words=0 if anchor.group("direct") else 4)
            if match:
                answer, rule, end = match
                yield Extraction(answer, rule, anchor.start(), end)
                break


def _find_verdicts(text: str, question: Question) -> Iterator[Extraction]:
    """Yields the options that are called the answer ("D is correct"), in the text's order."""
    forms = list_forms(question)
    texts = {form for form, _ in forms}
    for verdict in _VERDICT.finditer(text):
        line = text[: verdict.start()].rpartition("\n")[2]
        start = verdict.start() - len(line)
        subject = _SUBJECT_TEXT.search(line)
        if subject is None or squash(subject.group(2)) not in texts:
            subject = _SUBJECT_LETTER.search(line)
        letter = next(filter(None, subject.groups())).upper() if subject else ""
        if subject and letter in question.letters:
            yield Extraction(letter, "stated letter", start + subject.start(), verdict.end())
            continue
        squashed = f" {squash(line)}"
        named = next((letters for form, letters in forms if squashed.endswith(f" {form}")), set())
        if len(named) == 1:
            yield Extraction(next(iter(named)), "stated text", verdict.start(), verdict.end())


def list_statements(text: str, question: Question) -> list[Extraction]:
    """Returns all statements of an answer: what is announced as it, then what is called it."""
    found = list(_find_statements(text, question))
    if question.choices is not None:
        found += _find_verdicts(text, question)
    return found


def find_last_statement(text: str, question: Question) -> Extraction | None:
    """Returns the last statement of an answer, which is the one that counts."""
    return max(list_statements(text, question), key=lambda extraction: extraction.end, default=None)
