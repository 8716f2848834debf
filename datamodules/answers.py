"""Answer extraction: which option, or which number, a completion ends up with.

`neutral` reads every teacher's style alike: a stated letter, in parentheses or after a colon, a stated option
text, a verdict (`D is correct`), a final number. `paper` is the rule that Ranaldi & Freitas released
(code/utils.py), kept as a second, named extractor because it rejects some teachers' styles: the difference
between the two is itself a finding. Neither returns an option that the question does not have.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

from datamodules.questions import Question, normalize_number

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
_LINE_LETTER = re.compile(r"[\s*\"'(-]*([A-Z])(?:[)\].:]|[\s*\"']*$)")
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
_NUMBER = re.compile(r"(?<![\w.])-?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])-?\$?\.\d+")
_LIST_MARKER = re.compile(r"[.)] +[A-Za-z]")
# A number may begin a calculation, `16 - 3 = 13`, whose value comes after its last equals sign.
_CALCULATION = re.compile(
    r"(?:(?!\b(?:because|since|as|if|when|where)\b)(?:[^.,;=\n]|[.,](?=\d)))*=\s*(?=[^.,;\n]*\d)", re.IGNORECASE
)
# Of a sentence's words, which have lost their apostrophes.
_NEGATION = re.compile(
    r"\b(?:not|cannot|never|neither|nor|incorrect|wrong|unlikely|eliminated?)\b|n t\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"(?<!\w)-?\d+(?:[.,]\d+)*|\w+")
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")
_PAPER = re.compile(
    r"(?:answer (?:is|from the given options would be)|correct answer to the question .+? is) ([A-Da-d]\) .+?)\."
)


class Extraction(NamedTuple):
    """An extracted answer, the rule that found it, and the characters where its statement begins and ends."""

    answer: str
    rule: str
    start: int
    end: int


def _squash(text: str) -> str:
    """Returns the text's words and numbers in lower case, one space between them."""
    return " ".join(_WORD.findall(text.casefold()))


def _strip_article(squashed: str) -> str:
    return _ARTICLE.sub("", squashed)


def _list_forms(question: Question) -> list[tuple[str, set[str]]]:
    """Returns what the options may be called, longest first, each with the letters of the options it names.

    An option may be named without its article, unless that is another option's text.
    """
    exact: dict[str, set[str]] = {}
    for letter in question.letters:
        exact.setdefault(_squash(question.choice(letter)), set()).add(letter)
    forms = dict(exact)
    for form, letters in exact.items():
        forms.setdefault(_strip_article(form), letters)
    return sorted(((form, letters) for form, letters in forms.items() if form), key=lambda item: -len(item[0]))


def _list_polar_forms(question: Question) -> list[tuple[str, set[str]]]:
    """Returns yes and no where the options are true and false, and the reverse."""
    texts = {_squash(question.choice(letter)): letter for letter in question.letters}
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
    squashed = _squash(line)
    found = _LETTER.match(text, start) or _LOOSE_LETTER.match(text, start)
    letter = found.group(1).upper() if found else ""
    has_letter = letter != "" and letter in question.letters
    own_text = _squash(question.choice(letter)) if has_letter else ""
    # "B) A": a letter with its own option's text is that option even where another option's text is "B".
    if own_text and f"{squashed} ".startswith(f"{letter.lower()} {own_text} "):
        return letter, "stated letter", start + _find_end(line, question.choice(letter))
    forms = _list_forms(question)
    polar = _list_polar_forms(question)
    if name := _match_text(squashed, forms) or _match_text(squashed, polar):
        return name, "stated text", start + _find_end(line, question.choice(name))
    more = _MORE_LETTERS.match(text, start + 1)
    if has_letter and not (more and more.group(1) in question.letters):
        return letter, "stated letter", start + 1
    if name := _match_text(_strip_article(squashed), forms):
        return name, "stated text", start + _find_end(line, question.choice(name))
    # "D Venice": a capital without any mark, before its own option's text.
    for name in question.letters:
        own_text = _squash(question.choice(name))
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
    number = _NUMBER.search(line)
    if number is None:
        return None
    before = line[: number.start()]
    if len(before.strip(" {$*\\").split()) > max_words or _SENTENCE_END.search(before) or _NEGATION.search(before):
        return None
    # "To get the answer:\n1. Subtract ..."
    if text[:start].rstrip(" ").endswith("\n") and not before and _LIST_MARKER.match(line, number.end()):
        return None
    while calculation := _CALCULATION.match(line, number.end()):
        number = _NUMBER.search(line, calculation.end())
        assert number is not None
    return _clean_number(number.group()), "stated number", start + number.end()


def _clean_number(text: str) -> str:
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
            else:
                match = _match_number(text, start, max_words=0 if anchor.group("direct") else 4)
            if match:
                answer, rule, end = match
                yield Extraction(answer, rule, anchor.start(), end)
                break


def _find_verdicts(text: str, question: Question) -> Iterator[Extraction]:
    """Yields the options that are called the answer ("D is correct"), in the text's order."""
    forms = _list_forms(question)
    texts = {form for form, _ in forms}
    for verdict in _VERDICT.finditer(text):
        line = text[: verdict.start()].rpartition("\n")[2]
        start = verdict.start() - len(line)
        subject = _SUBJECT_TEXT.search(line)
        if subject is None or _squash(subject.group(2)) not in texts:
            subject = _SUBJECT_LETTER.search(line)
        letter = next(filter(None, subject.groups())).upper() if subject else ""
        if subject and letter in question.letters:
            yield Extraction(letter, "stated letter", start + subject.start(), verdict.end())
            continue
        squashed = f" {_squash(line)}"
        named = next((letters for form, letters in forms if squashed.endswith(f" {form}")), set())
        if len(named) == 1:
            yield Extraction(next(iter(named)), "stated text", verdict.start(), verdict.end())


def _find_last_statement(text: str, question: Question) -> Extraction | None:
    found = list(_find_statements(text, question))
    if question.choices is not None:
        found += _find_verdicts(text, question)
    return max(found, key=lambda extraction: extraction.end, default=None)


def _find_named_option(text: str, question: Question) -> Extraction | None:
    """Walks back to the first sentence that names an option; None if it names several."""
    forms, polar = _list_forms(question), _list_polar_forms(question)
    breaks = [(0, 0), *(match.span() for match in _SENTENCE_END.finditer(text)), (len(text), len(text))]
    for (_, start), (end, _) in reversed(list(itertools.pairwise(breaks))):
        rest, named = f" {_squash(text[start:end])} ", []
        named += [letters for form, letters in polar if rest.startswith(f" {form} ")]
        is_reply = bool(named)
        for form, letters in forms:
            # Cut out, so that "tin" is not found within "tin can".
            if f" {form} " in rest:
                rest = rest.replace(f" {form} ", " | ")
                named.append(letters)
        if not named or (len(named) == 1 and not is_reply and _NEGATION.search(rest)):
            continue
        letters = set.union(*named)
        return Extraction(letters.pop(), "named option", start, end) if len(letters) == 1 else None
    return None


def _drop_final_list(text: str) -> str:
    """Leaves out lines at the end that run through the options one by one, which choose none."""
    lines = text.split("\n")
    kept = len(lines)
    while kept and _LINE_LETTER.match(lines[kept - 1]):
        kept -= 1
    return text if len(lines) - kept < 2 else "\n".join(lines[:kept]).rstrip()


def _find_line_letter(text: str, question: Question) -> Extraction | None:
    """Returns the option that the last line consists of."""
    start = text.rfind("\n") + 1
    letter = _LINE_LETTER.match(text, start)
    if letter is None or letter.group(1) not in question.letters:
        return None
    rest = _squash(text[letter.end() :])
    if rest and rest != _squash(question.choice(letter.group(1))):
        return None
    return Extraction(letter.group(1), "line letter", start, len(text))


def extract_neutral(text: str, question: Question) -> Extraction | None:
    """Finds the answer that a completion ends up with, whatever the teacher's style.

    The last explicit statement wins. Without one: a last line that is an option's letter; then, walking back
    from the end, the first sentence that names an option and does not deny it, if it names only one; for
    numbers, the last number.
    """
    text = text.rstrip()
    if statement := _find_last_statement(text, question):
        return statement
    if question.choices is None:
        *_, last = [None, *_NUMBER.finditer(text)]
        return Extraction(_clean_number(last.group()), "last number", last.start(), last.end()) if last else None
    text = _drop_final_list(text)
    return _find_line_letter(text, question) or _find_named_option(text, question)


def extract_paper(text: str, question: Question) -> Extraction | None:
    """The paper's released scorer: one regular expression, then a fuzzy match against the options.

    The paper counts a match as correct if its similarity to the gold option is at least 0.6, whatever letter
    or other option it is nearer to. So gold is returned in that case, else the nearest option of at least 0.6.
    """
    match = _PAPER.search(text)
    if match is None or question.choices is None:
        return None
    ratios = {
        letter: SequenceMatcher(None, f"{letter}) {question.choice(letter)}", match.group(1)).ratio()
        for letter in question.letters
    }
    similar = [letter for letter, ratio in ratios.items() if ratio >= 0.6]
    if not similar:
        return None
    nearest = max(similar, key=ratios.__getitem__)
    return Extraction(question.gold if question.gold in similar else nearest, "paper", match.start(), match.end())


EXTRACTORS: dict[str, Callable[[str, Question], Extraction | None]] = {
    "neutral": extract_neutral,
    "paper": extract_paper,
}


def split_answer_sentence(text: str, question: Question) -> tuple[str, str] | None:
    """Splits off a last sentence that states the answer.

    Returns:
        (rationale, answer sentence), or None if the text does not end with a stated answer.
    """
    text = text.rstrip()
    last = _find_last_statement(text, question)
    # More reasoning after the answer means that the text does not end with it.
    if last is None or _SENTENCE_END.search(text, last.end):
        return None
    ends = [match.end() for match in _SENTENCE_END.finditer(text, 0, last.start + 1)]
    start = ends[-1] if ends else 0
    return text[:start].strip(), text[start:].strip()
