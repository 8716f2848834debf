"""Free answers as texts state them: numbers and LaTeX expressions after "the answer is", `####`, or in a box."""

import re
from collections.abc import Iterator

from datamodules.tasks.questions import Question
from datamodules.text.expressions import FORMULA, normalize_expression, read_boxes, read_braces
from datamodules.text.numbers import NUMBER, is_negative, negate, read_calculation, read_last_number, read_words
from datamodules.text.sentences import NEGATION, SENTENCE_END, Extraction

_VERB = r"(?:is|was|are|(?:would|must|should|will|could|has to) be)\b"
# What announces an answer. Word problems have answers of their own: "each long-answer question is worth 5 points".
_ANCHOR = re.compile(
    r"(?P<direct>####(?=\s*[-\u2212$\d.,/ {}\\]+\s*$)|\\(?:boxed|fbox)\s*(?=\{)|<answer>)"
    r"|(?<![-\w<])answers?\b(?=[*_\"'`)\]]*\s*(?:\([^()\n]*\)\s*)?[*_]*[:=]"
    rf"|[*_\"'`]*(?:,\s(?:in|to|rounded)\b[^,.\n]{{0,40}},)?\s+(?:(?:to|of|for|in|that|we|I|you)\b[^.\n]{{0,70}}?\s)?{_VERB})"
    rf"|\bsolutions?\b(?=\s+{_VERB})",
    re.IGNORECASE | re.MULTILINE,
)
_ADJECTIVE = (
    r"(?:correct|right|final|numerical|numeric|exact|simplified|complete|full|short|best|only|overall|desired|same)"
)
_BEFORE = re.compile(
    r"(?:^[\s#>*_-]*|[^\w\s,-]\s*|\b(?:the|my|our|this|your|so|thus|hence|therefore|then|and|get|is)\s+)"
    rf"(?:[*_\"'`]*{_ADJECTIVE}[*_]*\s+){{0,3}}[*_\"'`]*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_COLON = re.compile(r"[*_\"'`)\]\s]*(?:\([^()\n]*\)\s*)?[*_]*[:=]\s*")
_AFTER_VERB = re.compile(rf"[^\n]{{0,120}}?\b{_VERB}\s*:?\s*", re.IGNORECASE)
_PHRASE = re.compile(r"(?:[^\n.<]|\.(?=\d)|<(?!/answer>))+")
_LIST_MARKER = re.compile(r"[.)] +[A-Za-z]")
# A number may begin a calculation, `16 - 3 = 13`, whose value comes after its last equals sign.
_CALCULATION = re.compile(
    r"(?:(?!\b(?:because|since|as|if|when|where)\b)(?:[^.,;=\n]|[.,](?=\d)))*=\s*(?=[^.,;\n]*\d)", re.IGNORECASE
)
# Before the number: what says that it is something else's, and what says that it is one of several.
_OTHERS = re.compile(r"\b(?:worth|each|every|per)\b", re.IGNORECASE)
# Before the number: what says nothing else.
_FILLER = re.compile(
    r"(?:[^\w]|\\[A-Za-z]+|\b(?:approximately|approx|about|around|roughly|exactly|only|just|simply|therefore|thus|still|equal"
    r"|to|a|total|of|indeed|nearly|almost|at|least|most|now|then|so|the|[a-z])\b)*",
    re.IGNORECASE,
)
_PLAIN = r"[$\u20ac£]?[-\u2212]?\d+(?:\.\d+)?"
_BETWEEN = re.compile(r"\b(?:between|either)\b", re.IGNORECASE)
_OR = re.compile(
    r"[*_$}]*(?:\s?(?P<unit>%|[A-Za-z]+))?,?\s+or\s+(?:maybe |perhaps |possibly )?[*_$]*(?:\\boxed\{)?", re.IGNORECASE
)
_UNIT = re.compile(r"\s?(%|[A-Za-z]+)?")
_COMMAND = re.compile(r"\\[A-Za-z]+|[{}()$*\\]")
# Several numbers and nothing else: "3, 4, and 5", "5 \\text{ or } 6".
_AND = r"(?:and|or|&)"
_JOINT = rf"[\s$]*(?:,[\s$]*(?:\b{_AND}[\s$]+)?|(?<=[\s$]){_AND}[\s$]+|\\text\{{\s*,?\s*{_AND}\s*\}}\s*)"
_LIST = re.compile(
    rf"(?:{_JOINT}{_PLAIN})+(?=\s*(?:[.;!?)*\]}}$\\]*\s*$|[.;]\s|[}}$]+[.;]?\s|,?\s*respectively))",
    re.MULTILINE,
)
_FIRST = re.compile(_PLAIN)
_ALTERNATIVE = re.compile(r"\s*(?:,|or|and|to)\s*[$\\]?\d", re.IGNORECASE)


def _match_number(text: str, start: int, max_words: int, question: Question) -> tuple[str, str, int] | None:
    """Returns (number, rule, end) if at most so many words come before the first number of the line at `start`.

    The number is empty where several are announced.
    """
    start = len(text) - len(text[start:].lstrip())
    line = text[start:].split("\n")[0]
    if words := read_words(line, 0, question.question):
        return words[0], "stated number", start + words[1]
    number = NUMBER.search(line)
    if number is None:
        return None
    before = line[: number.start()]
    if len(_COMMAND.sub(" ", before).split()) > max_words or SENTENCE_END.search(before) or NEGATION.search(before):
        return None
    # "To get the answer:\n1. Subtract ..."
    if text[:start].rstrip(" ").endswith("\n") and not before and _LIST_MARKER.match(line, number.end()):
        return None
    if _BETWEEN.search(before) and _ALTERNATIVE.match(line, number.end()):
        return "", "stated number", start + number.end()
    if _OTHERS.search(before):
        return None
    if not _FILLER.fullmatch(before):
        # "Answer: It takes 5 people 48 hours": what the question has is not what it asks for.
        sentence_end = SENTENCE_END.search(line, number.end())
        numbers = NUMBER.finditer(line, number.start(), sentence_end.start() if sentence_end else len(line))
        asked = {found.group() for found in NUMBER.finditer(question.question)}
        number = next((found for found in numbers if found.group() not in asked), number)
    while calculation := _CALCULATION.match(line, number.end()):
        number = NUMBER.search(line, calculation.end())
        assert number is not None
    value, end = read_calculation(line, number, question.question)
    if (listed := _LIST.match(line, end)) and {*_FIRST.findall(listed.group())} != {value}:
        value, end = None, listed.end()
    if value is not None and is_negative(text, start + number.start()):
        value = negate(value)
    if value is not None and (either := _OR.match(line, end)) and (other := NUMBER.match(line, either.end())):
        alternative, other_end = read_calculation(line, other, question.question)
        unit = _UNIT.match(line, other_end)
        # "90 minutes or 1.5 hours" and "0.5 or 50%" are one number in two units.
        if (
            alternative != value
            and unit
            and (either["unit"] == unit.group(1) or (not either["unit"] and "%" != unit[1]))
        ):
            value, end = None, other_end
    return value or "", "stated number", start + end


def _match_expression(text: str, start: int) -> tuple[str, str, int] | None:
    """Returns (expression, rule, end) if a formula, or the rest of a sentence, is at `start`."""
    start = len(text) - len(text[start:].lstrip(" \n*"))
    if text.startswith("{", start):
        braces = read_braces(text, start)
        if braces is None:
            return None
        content, end = braces
    elif text.startswith(("\\boxed", "\\fbox"), start):
        boxes = read_boxes(text, start)
        if boxes is None:
            return None
        content, end, _ = boxes
    else:
        formula = FORMULA.match(text, start) or _PHRASE.match(text, start)
        if formula is None:
            return None
        content, end = formula.group(), formula.end()
        if not re.search(r"\\f?box", content):
            # Of "6840 + 120 = 6960" the last side is the answer.
            content = content.rpartition("=")[2]
    answer = normalize_expression(content)
    return (answer, "stated expression", end) if answer and not NEGATION.search(content) else None


def find_free_statements(text: str, question: Question) -> Iterator[Extraction]:
    """Yields what is announced as a free answer, in the text's order."""
    for anchor in _ANCHOR.finditer(text):
        is_direct = bool(anchor["direct"])
        begin, start = anchor.span()
        if not is_direct:
            is_plural = not question.expression and anchor.group().casefold() != "answer"
            line = text[max(0, begin - 60) : begin]
            if not _BEFORE.search(line):
                continue
            after = _COLON.match(text, start) or _AFTER_VERB.match(text, start)
            if after is None:
                continue
            start = after.end()
            if is_plural:
                # "The number of correct answers is 25" states none; "the answers are 3 and 5" several.
                if (first := _FIRST.match(text, start)) and (listed := _LIST.match(text, first.end())):
                    yield Extraction("", "stated number", begin, listed.end())
                continue
        elif question.expression and anchor.group().startswith("\\"):
            start = begin
        if question.expression:
            match = _match_expression(text, start)
        elif (boxes := read_boxes(text, begin)) and boxes[2] > 1:
            match = "", "stated number", boxes[1]
        else:
            match = _match_number(text, start, 0 if is_direct else 4, question)
        if match:
            answer, rule, end = match
            yield Extraction(answer, rule, begin, end)


def find_last_number(text: str, question: Question) -> Extraction | None:
    """Returns the text's last number."""
    found = read_last_number(text, question.question)
    return Extraction(found[0], "last number", *found[1:]) if found else None


def find_last_formula(text: str, question: Question) -> Extraction | None:
    """Returns the last formula, of an equation what stands right of its last equals sign."""
    *_, last = [None, *FORMULA.finditer(text)]
    if last is None:
        *_, last = [None, *NUMBER.finditer(text)]
        if last is None:
            return None
    answer = normalize_expression(last.group().rpartition("=")[2])
    return Extraction(answer, "last formula", last.start(), last.end()) if answer else None
