"""Answer extraction: which option, number or expression a completion ends up with.

An extractor is a pipeline of rules for each kind of answer; the first rule that finds one wins. `neutral` reads every
teacher's style alike: a stated letter, in parentheses or after a colon, a stated option text, a verdict
(`D is correct`), a final number. `paper` is the rule that Ranaldi & Freitas released (code/utils.py), kept as a
second, named extractor because it rejects some teachers' styles: the difference between the two is itself a finding.
`english` takes every text for English, as `neutral` did up to version 3, by the rules of today; it reads only where it
is asked to, for comparison with numbers of that time. None of them returns an option that the question does not have.
A change that reads any completion differently counts the extractor's version up; artefacts record it.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Literal

from datamodules.answers.free_answers import find_last_formula, find_last_number
from datamodules.answers.localization import LocalText, localize
from datamodules.answers.options import list_forms, list_polar_forms
from datamodules.answers.replies import find_reply
from datamodules.answers.statements import find_last_statement, list_statements
from datamodules.tasks.questions import AnswerKind, Question
from datamodules.text.folding import Folded
from datamodules.text.sentences import NEGATION, SENTENCE_END, Extraction, squash

Rule = Callable[[str, Question], Extraction | None]
_LINE_LETTER = re.compile(r"[\s*\"'(-]*([A-Z])(?:[)\].:]|[\s*\"']*$)")
# A reply that is a letter, in whatever marks: "b", "(b)", "Option B".
_WHOLE_LETTER = re.compile(
    r"[\s*_\"'`(\[{$]*(?:(?:option|choice)\s+)?[*_\"'`(\[{$]*([a-z])[\s*_\"'`)\]}$.:]*", re.IGNORECASE
)
_PAPER = re.compile(
    r"(?:answer (?:is|from the given options would be)|correct answer to the question .+? is) ([A-Da-d]\) .+?)\."
)


@dataclass(frozen=True)
class Extractor:
    """A named, versioned pipeline; called with a completion and its question, it returns the answer or None.

    Attributes:
        name: What configs and columns name.
        version: Counted up with every change that reads some completion differently.
        rules: For each kind of answer, what is tried in turn.
        local_rules: The same for texts in other languages, once `localization` has put them into English; None reads
            them as they are.
    """

    name: str
    version: int
    rules: dict[AnswerKind, tuple[Rule, ...]]
    local_rules: dict[AnswerKind, tuple[Rule, ...]] | None = None

    @property
    def id(self) -> str:
        """Name and version, as artefacts record it."""
        return f"{self.name}-{self.version}"

    def __call__(self, text: str, question: Question) -> Extraction | None:
        """Returns the answer that a completion's reply ends up with, or None."""
        local = localize(text, question) if self.local_rules else None
        if local is None or self.local_rules is None:
            return _read(text, question, self.rules)
        found = _read(local.folded.text, local.question, self.local_rules if local.tags else self.rules)
        return local.restore(found) if found else None


def _read(text: str, question: Question, rules: dict[AnswerKind, tuple[Rule, ...]]) -> Extraction | None:
    text = text.rstrip()
    start, end = find_reply(text, question)
    reply = text[start:end].rstrip()
    for rule in rules[question.kind]:
        if found := rule(reply, question):
            if found.answer:
                return found._replace(start=found.start + start, end=found.end + start)
            # Several answers were announced: what the sentence and all before it say does not count.
            sentence_end = SENTENCE_END.search(reply, found.end)
            skipped = sentence_end.end() if sentence_end else len(reply)
            start, reply = start + skipped, reply[skipped:]
    return None


def _find_named_option(text: str, question: Question) -> Extraction | None:
    """Walks back from the end to the first sentence that names an option and does not deny it; None if several."""
    text = _drop_final_list(text)
    forms, polar = list_forms(question), list_polar_forms(question)
    breaks = [(0, 0), *(match.span() for match in SENTENCE_END.finditer(text)), (len(text), len(text))]
    for (_, start), (end, _) in reversed(list(itertools.pairwise(breaks))):
        rest, named = f" {squash(text[start:end])} ", []
        replies = [letters for form, letters in polar if rest.startswith(f" {form} ")]
        # "Yes or no" is none, as is "yes and no".
        named += replies if not replies or not re.match(r" \w+ (?:or|and) \w+ $", rest) else []
        is_reply = bool(named)
        for form, letters in forms:
            # Cut out, so that "tin" is not found within "tin can".
            if f" {form} " in rest:
                rest = rest.replace(f" {form} ", " | ")
                named.append(letters)
        if not named or (len(named) == 1 and not is_reply and NEGATION.search(rest)):
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
    """Returns the option that the last line, or the whole reply, consists of."""
    if (whole := _WHOLE_LETTER.fullmatch(text)) and whole.group(1).upper() in question.letters:
        return Extraction(whole.group(1).upper(), "line letter", *whole.span(1))
    text = _drop_final_list(text)
    start = text.rfind("\n") + 1
    letter = _LINE_LETTER.match(text, start)
    if letter is None or letter.group(1) not in question.letters:
        return None
    rest = squash(text[letter.end() :])
    if rest and rest != squash(question.choice(letter.group(1))):
        return None
    return Extraction(letter.group(1), "line letter", start, len(text))


def _find_whole_option(text: str, question: Question) -> Extraction | None:
    """Returns the option whose text is the last line, or all of its last sentence."""
    start = text.rstrip().rfind("\n") + 1
    for begin in sorted({start, *(match.end() for match in SENTENCE_END.finditer(text, start))}):
        said = squash(text[begin:])
        if named := next((letters for form, letters in list_forms(question) if form == said), None):
            return Extraction(next(iter(named)), "named option", begin, len(text)) if len(named) == 1 else None
    return None


def _match_paper(text: str, question: Question) -> Extraction | None:
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


_OPTION_RULES = (find_last_statement, _find_line_letter, _find_named_option)
_RULES: dict[AnswerKind, tuple[Rule, ...]] = {
    "choice": _OPTION_RULES,
    "boolean": _OPTION_RULES,
    "number": (find_last_statement, find_last_number),
    "expression": (find_last_statement, find_last_formula),
}
# In other languages it is not known which words keep a sentence from naming its answer: it has to consist of it.
_LOCAL_OPTION_RULES = (find_last_statement, _find_line_letter, _find_whole_option)
extract_neutral = Extractor(
    name="neutral", version=6, rules=_RULES, local_rules={**_RULES, "choice": _LOCAL_OPTION_RULES}
)
extract_paper = Extractor(
    name="paper",
    version=2,
    rules={"choice": (_match_paper,), "boolean": (_match_paper,), "number": (), "expression": ()},
)
extract_english = replace(extract_neutral, name="english", version=2, local_rules=None)
EXTRACTORS = {extractor.name: extractor for extractor in (extract_neutral, extract_paper)}
# What reads beside these where it is asked to.
MoreExtractors = Literal["english"]
MORE_EXTRACTORS = {extract_english.name: extract_english}


def _localize(text: str, question: Question) -> LocalText:
    return localize(text, question) or LocalText(Folded(text, [*range(len(text) + 1)]), question)


def find_statements(text: str, question: Question) -> list[Extraction]:
    """Returns all statements of an answer in a completion's reply; places are those in the completion."""
    local = _localize(text, question)
    own = local.folded.text
    start, end = find_reply(own, local.question)
    found = list_statements(own[start:end], local.question)
    return [
        local.restore(statement._replace(start=statement.start + start, end=statement.end + start))
        for statement in found
    ]


def find_stated_answer(text: str, question: Question) -> Extraction | None:
    """Returns the answer that a completion's reply states last; None if it states none, or several at once."""
    local = _localize(text, question)
    found = _find_stated(local)
    return local.restore(found) if found else None


def _find_stated(local: LocalText) -> Extraction | None:
    text = local.folded.text
    start, end = find_reply(text, local.question)
    last = find_last_statement(text[start:end].rstrip(), local.question)
    return last._replace(start=last.start + start, end=last.end + start) if last and last.answer else None


def find_breaks(text: str, question: Question) -> list[int]:
    """Returns where a completion's sentences begin, and its end; together they are all of it."""
    local = _localize(text, question)
    ends = (local.restore_place(match.end()) for match in SENTENCE_END.finditer(local.folded.text))
    return sorted({0, len(text), *ends})


def split_answer_sentence(text: str, question: Question) -> tuple[str, str] | None:
    """Splits off a last sentence that states the answer.

    Returns:
        (rationale, answer sentence), or None if the text does not end with a stated answer.
    """
    text = text.rstrip()
    local = _localize(text, question)
    own = local.folded.text.rstrip()
    begin, end = find_reply(own, local.question)
    last = _find_stated(local)
    # More reasoning, or more inventions, after the answer mean that the text does not end with it.
    if last is None or end < len(own) or SENTENCE_END.search(own, last.end):
        return None
    ends = [match.end() for match in SENTENCE_END.finditer(own, begin, last.start + 1)]
    start = local.restore_place(ends[-1] if ends else begin)
    return text[:start].strip(), text[start:].strip()
