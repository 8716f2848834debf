"""Options as texts name them: by letter, by text, by both; and several of them at once, which is no answer."""

import re
from functools import lru_cache

from datamodules.tasks.questions import Question
from datamodules.text.sentences import squash

_OPENING = re.compile(
    r"(?:[\s\"'\u201c\u2018*_`$({\[\\]|(?:boxed|fbox)(?=\{)|text(?:bf)?(?=\{)|(?:the )?(?:option|choice|letter)s?\b:?"
    r"|\b(?:either|both|between|most likely|likely|probably|possibly|perhaps|maybe|definitely|clearly)\b)*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"([A-Za-z])(?=[)\]}.:;,*_\"'\u201d\u2019`$\\<]|\s*$|\s*\n|\s\))")
# Capitals only: a lower-case "a" before a word is the article.
_LOOSE_LETTER = re.compile(r"([A-Z])(?=\s+(?:[-\u2013\u2014:=]|(?:because|since|as|and)\b))")
# From one option to the next that is announced with it.
_JOINT = re.compile(
    r"[\s\"'\u201d\u2019*)\]}$_`]*(?:[,/;&]|(?:[.,;]\s*)?\b(?:or|and/or)\b|\band\b|\bas well as\b)"
    r"(?:\s*\b(?:and/or|and|or)\b)?\s*(?:(?:maybe|perhaps|possibly|also|even|both|the|option|choice|letter|answer)\b\s*)*"
    r"(?:[\s\"'\u201c\u2018*_`$({\[\\]|(?:boxed|fbox)(?=\{)|text(?:bf)?(?=\{))*",
    re.IGNORECASE,
)
_WORD_OR_SIGN = re.compile(r"\b(?:or|and|as)\b|[/&]", re.IGNORECASE)
_JOINT_LETTER = re.compile(r"[A-Za-z](?=[)\]}])|[A-Z](?![\w'\u2019])|[a-z](?=\s*(?:[,.;]|$|\b(?:or|and)\b))")
# Announce several.
_SEVERAL = re.compile(r"\b(?:either|both|between)\b", re.IGNORECASE)
# What follows says something about the second option alone: "Venice, and Amsterdam is in the north".
_OWN_CLAUSE = re.compile(
    r"[\s\"'\u201d\u2019*)\]}$_`.:]*\b(?:is|are|was|were|do|does|did|has|have|had|can|cannot|could|would|will|may|might"
    r"|isn|aren|doesn|don|being)\b",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:the|an|a) (?=.)")

Forms = list[tuple[str, set[str]]]


def _strip_article(squashed: str) -> str:
    return _ARTICLE.sub("", squashed)


@lru_cache(maxsize=1024)
def list_forms(question: Question) -> Forms:
    """Returns what the options may be called, longest first, each with the letters of the options it names.

    An option may be named without its article, unless that is another option's text.
    """
    exact: dict[str, set[str]] = {}
    for letter in question.letters:
        exact.setdefault(squash(question.choice(letter)), set()).add(letter)
    forms = dict(exact)
    for form, letters in exact.items():
        # What is left of "A = B" is a letter, which names another option.
        if not re.fullmatch(r"[a-z]", stripped := _strip_article(form)):
            forms.setdefault(stripped, letters)
    return sorted(((form, letters) for form, letters in forms.items() if form), key=lambda item: -len(item[0]))


@lru_cache(maxsize=1024)
def list_polar_forms(question: Question) -> Forms:
    """Returns yes and no where the options are true and false, and the reverse."""
    texts = {squash(question.choice(letter)): letter for letter in question.letters}
    for (this, that), (yes, no) in [(("true", "false"), ("yes", "no")), (("yes", "no"), ("true", "false"))]:
        if set(texts) == {this, that}:
            return [(yes, {texts[this]}), (no, {texts[that]})]
    return []


def _match_text(squashed: str, forms: Forms) -> str | None:
    """Returns the letter of the longest option that `squashed` begins with; None if two have the same text."""
    for form, letters in forms:
        if f"{squashed} ".startswith(f"{form} "):
            return next(iter(letters)) if len(letters) == 1 else None
    return None


def match_option(text: str, start: int, question: Question) -> tuple[str, str, int] | None:
    """Returns (letter, rule, end) if an option's letter or text is at `start`; the letter is empty if several are."""
    forms = list_forms(question)
    first = _match_one(text, start, question, forms)
    if first is None:
        return None
    letter, rule, end = first
    last = _find_last_joint(text, letter, end, question, forms)
    if last is not None:
        return "", rule, last
    return None if _SEVERAL.search(text, start, end) and not _SEVERAL.search(question.choice(letter)) else first


def _match_one(text: str, start: int, question: Question, forms: Forms) -> tuple[str, str, int] | None:
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
    if name := _match_text(squashed, forms) or _match_text(squashed, list_polar_forms(question)):
        return name, "stated text", start + _find_end(line, question.choice(name))
    if has_letter:
        return letter, "stated letter", start + 1
    if name := _match_text(_strip_article(squashed), forms):
        return name, "stated text", start + _find_end(line, question.choice(name))
    # "D Venice": a capital without any mark, before its own option's text.
    for name in question.letters:
        own_text = squash(question.choice(name))
        if own_text and line.startswith(f"{name} ") and f"{squashed} ".startswith(f"{name.lower()} {own_text} "):
            return name, "stated letter", start + _find_end(line, question.choice(name))
    # "B or C", "A/B": a capital without any mark, before another one.
    joint = _JOINT.match(text, start + 1)
    if joint and line[:1] in question.letters and _match_joint(text, joint.end(), question, forms):
        return line[0], "stated letter", start + 1
    return None


def _find_last_joint(text: str, letter: str, end: int, question: Question, forms: Forms) -> int | None:
    """Returns where the last option ends that is announced together with the one before `end`; None if none is."""
    last, is_list, is_only_commas = None, False, True
    while joint := _JOINT.match(text, end):
        following = _match_joint(text, joint.end(), question, forms)
        if following is None:
            break
        name, end = following
        is_only_commas = is_only_commas and not _WORD_OR_SIGN.search(joint.group())
        is_list = is_list or name != letter
        last = end
    if last is None or not is_list or _OWN_CLAUSE.match(text, last):
        return None
    # After a comma alone, another option may begin what is said next.
    return None if is_only_commas and re.match(r"[\s)\]]*[\w(]", text[last:].split("\n")[0]) else last


def _match_joint(text: str, start: int, question: Question, forms: Forms) -> tuple[str, int] | None:
    """Returns (letter, end) if an option follows a joint."""
    line = text[start:].split("\n")[0]
    squashed = squash(line)
    found = _JOINT_LETTER.match(text, start)
    if found and (letter := found.group().upper()) in question.letters:
        own_text = squash(question.choice(letter))
        if own_text and f"{squashed} ".startswith(f"{letter.lower()} {own_text} "):
            return letter, start + _find_end(line, question.choice(letter))
        return letter, start + 1
    for squashed_line in (squashed, _strip_article(squashed)):
        if name := _match_text(squashed_line, forms) or _match_text(squashed_line, list_polar_forms(question)):
            return name, start + _find_end(line, question.choice(name))
    return None


def _find_end(line: str, choice: str) -> int:
    """Returns where the option's text ends in the line that begins with it, or the first word's end."""
    found = line.casefold().find(choice.casefold())
    if found >= 0:
        return found + len(choice)
    return len(line.split(maxsplit=1)[0])
