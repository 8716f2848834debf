"""Texts in other languages, rewritten so that what they say about their answer is said in English.

`Die Antwort ist nicht B, sondern 70.000` becomes `the answer is not B, sondern 70000`: what announces, denies or joins
answers is put into English words, numbers into English notation, and the rest stays. The rules for English then read
any language, and what they find is mapped back. A text is read in its question's language, in English, and in each
language of which it holds an announcement: a rationale under a German question may be in English.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from datamodules.tasks.questions import Question
from datamodules.text.folding import Folded, fold
from datamodules.text.han_numerals import HAN_NUMERAL, read_han_numeral
from datamodules.text.languages import ENGLISH, Language, get_language, list_languages, resolve_tag
from datamodules.text.locale_numbers import rewrite_multiples, rewrite_numbers
from datamodules.text.numbers import write_value
from datamodules.text.sentences import Extraction

# Letters between which no spaces separate words; Hangul, since what is added to a word has no space before it either.
_DENSE = "\u0e01-\u0e5b\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
_MARKS = "\U00020900-\U00020f00"
_BETWEEN = re.compile(
    rf"(?<=[{_DENSE}{_MARKS}])(?=[{_DENSE}])|(?<=[{_DENSE}{_MARKS}])(?=[A-Za-z\d$\\])|(?<=[A-Za-z\d$])(?=[{_DENSE}])"
)
_BORDER = re.compile(rf"(?<=[{_DENSE}{_MARKS}])(?=[A-Za-z\d$\\])|(?<=[A-Za-z\d$])(?=[{_DENSE}])")
_SIGNS = {
    "。": ". ",
    "｡": ". ",
    "！": "! ",
    "？": "? ",
    "।": ". ",
    "؟": "? ",
    "，": ", ",
    "、": ", ",
    "；": "; ",
    "،": ", ",
    "؛": "; ",
}
_SIGN = re.compile(f"[{''.join(_SIGNS)}]")
_SENTENCE = re.compile(r"(?:[^\n.!?。！？।؟]|[.](?!\s|$))+[\n.!?。！？।؟]*\s*|[\n.!?。！？।؟]+\s*")
# Between two letters, which are both named.
_LETTERS = re.compile(r"(?<=[A-Z])\s*[、，]\s*(?=[A-Z](?![A-Za-z]))")
_LATIN_WORD = re.compile(r"[^\W\d_]+")
# What may stand around a noun or an answer.
_DECORATION = r"[*_\"'`)\]}»”’]*"
_OPENING = r"[\s*_\"'`(\[{«“‘$]*"
# What an answer begins with that is no option's text.
_ANSWER = r"[\s*_\"'`(\[{«“‘]*(?:[-\u2212$€£]{0,2}\s?\d|[A-Za-z](?![A-Za-z])|\\[\[(]|\$|\\(?:boxed|fbox))"
_ANNOUNCED_NUMERAL = re.compile(r"\0 *([^\n]*)")
# Full-width letters, digits and signs.
_ODD = re.compile("[\uff01-\uff5e【】]")
_MEASURES = "个個只隻本元円圆人名岁歳天日小时時页頁张張枚匹台块塊条條根杯支朵颗顆辆輛箱斤次件位度回"


@dataclass(frozen=True)
class LocalText:
    """A text as the English rules read it.

    Attributes:
        folded: The text, and where each character was.
        question: The question, its options rewritten likewise.
        tags: The languages beside English that it was read in.
    """

    folded: Folded
    question: Question
    tags: tuple[str, ...] = ()

    def restore(self, found: Extraction) -> Extraction:
        """Returns an extraction at its place in the text as it is written."""
        places = self.folded.places
        return found._replace(start=places[min(found.start, len(places) - 1)], end=self.restore_place(found.end))

    def restore_place(self, place: int) -> int:
        """Returns where a character was."""
        return self.folded.places[min(place, len(self.folded.places) - 1)]


@dataclass(frozen=True)
class _Rules:
    """A language's patterns.

    Attributes:
        language: Its file.
        announcement: What announces an answer; the group `label` where a colon follows.
        words: What else is put into English.
        negation: What denies.
        reply: Yes, no, true or false as a reply of its own.
        false_question: What asks for the wrong statement.
        verdict: A letter that is called right.
        frequent: The commonest words; without any, the script tells.
        script: One of its letters.
    """

    language: Language
    announcement: re.Pattern[str]
    words: re.Pattern[str]
    negation: re.Pattern[str]
    reply: re.Pattern[str]
    false_question: re.Pattern[str]
    verdict: re.Pattern[str]
    frequent: frozenset[str]
    script: re.Pattern[str]


def _fold_words(words: Sequence[str]) -> list[str]:
    # The longest first, so that none is cut short.
    return sorted({fold(word).text for word in words}, key=lambda word: (-len(word), word))


def _any(words: Sequence[str]) -> str:
    """Returns a pattern of any of these words, wherever they stand; of none, one that never matches."""
    return "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in _fold_words(words)) or "(?!)"


def _any_word(words: Sequence[str], is_dense: bool) -> str:
    """Returns a pattern of any of these words as whole words, as far as spaces tell."""
    parts = []
    for word in _fold_words(words):
        before = r"(?<!\w)" if re.match(r"\w", word) and (not is_dense or len(word) == 1) else ""
        after = "" if is_dense or not re.search(r"\w$", word) else r"(?!\w)"
        parts.append(f"{before}{_any([word])}{after}")
    return f"(?:{'|'.join(parts)})" if parts else "(?!)"


def _any_joint(words: Sequence[str], is_dense: bool) -> str:
    """Returns a pattern of what joins two options; one kana, which is in any word, only between letters."""
    if not is_dense:
        return _any_word(words, False)
    short = [word for word in words if len(word) == 1 and word != "或"]
    between = rf"(?<=[A-Za-z)\]\"'])\s*(?:{_any(short)})\s*(?=[(\[\"']*[A-Za-z](?![A-Za-z]))"
    return f"(?:{_any([word for word in words if word not in short])}|{between})"


@cache
def _compile(tag: str) -> _Rules:
    language = get_language(tag)
    own = language.words
    is_dense = re.search(f"[{_DENSE}]", own.answer[0]) is not None
    negation = _any_word(own.negation, is_dense)
    before = "" if is_dense else r"(?<!\w)(?:[وف](?=ا))?"
    gap, end = (r"\s*", "") if is_dense else (r"\s+", r"(?!\w)")
    clause = rf"(?:(?!{negation})[^.!?:=\n。！？।]){{0,{24 if is_dense else 60}}}?"
    # Where nothing has to join them, what joins them stands right between.
    clause = r"\s?" if own.bare else clause
    verb = rf"(?P<verb>{_DECORATION}(?:{clause}{gap})?(?:{_any(own.be)}){end}[\s,、，]*:?)"
    bare = rf"|(?P<bare>{end}{_DECORATION}\s+(?=\w|{_ANSWER}))" if own.bare else ""
    filler = rf"(?P<filler>(?:[\s*_\"'`]*{_any_word((*own.filler, *own.option), is_dense)}[\s:,]*)+(?={_ANSWER}))?"
    polar = "|".join(f"(?P<{name}>{_any(words)})" for name, words in language.polar.items())
    after_polar = r"(?=[\s.,!。，！)*_\"'।]|$|で|입)"
    announcement = re.compile(
        rf"(?:(?P<bracket>\[\s*(?:{_any(own.answer)})\s*\]\s*:?)"
        rf"|{before}(?:{_any(own.answer)})(?:(?P<label>{end}{_DECORATION}\s*(?:\([^()\n]*\)\s*)?[*_]*"
        rf"(?:[:=]|\s[-–](?=\s)|\s?[—―]+))|{verb}{bare}))"
        rf"{filler}(?:[\s*_\"'`]*(?:{polar}){after_polar})?",
        re.IGNORECASE,
    )
    label = _any([language.prompts["question"].partition("{")[0].strip(" :：")])
    words = re.compile(
        rf"(?P<question>^[\s#*_]*{label}\s*[*_]*:)"
        rf"|(?P<choose>(?<![不未]){_any_word(own.choose, is_dense)}\s*[:,]?\s*(?:{_any_word(own.option, is_dense)}\s*)*"
        rf"(?=\s|{_ANSWER}|\"))"
        rf"|(?P<letter>(?<![A-Za-z\d'])(?-i:[A-Z]))(?P<closed>[)*_\"']*\s*(?:{_any(own.closing)}){end})"
        rf"(?!\s*(?:{_any(own.correct)}))"
        rf"|(?P<correct>(?<=[\w)\]\"'*»”])\s*{_DECORATION}\s*(?:{_any(own.correct)}){end})"
        rf"|(?P<alternative>{_any_joint(own.alternative, is_dense)})"
        rf"|(?P<conjunction>{_any_joint(own.conjunction, is_dense)})"
        rf"|(?P<negation>{negation})",
        re.IGNORECASE | re.MULTILINE,
    )
    return _Rules(
        language=language,
        announcement=announcement,
        words=words,
        negation=re.compile(negation, re.IGNORECASE),
        reply=re.compile(rf"(?:\A|(?<=[.!?\n。！？।])\s*)(?:{polar})(?=\s*(?:[.,!。，！、।\n]|\Z))", re.IGNORECASE),
        false_question=re.compile(_any(own.asks_for_false), re.IGNORECASE),
        verdict=re.compile(
            rf"(?<![A-Za-z])([A-Z])[)*_\"']*\s*(?:(?!{negation})\w){{,3}}\s*(?:{_any(own.correct)}){end}"
        ),
        frequent=frozenset(language.frequent),
        script=re.compile(f"[{language.letters}]", re.IGNORECASE),
    )


def _find_own(folded: Folded, rules: _Rules) -> list[tuple[int, int]]:
    """Returns where in the original the sentences begin and end that are in a language rather than in English."""
    text, places = folded
    english = _list_frequent_english()
    sentences = [match.span() for match in _SENTENCE.finditer(text)]
    scores = []
    for start, end in sentences:
        sentence = text[start:end]
        words = _LATIN_WORD.findall(sentence.casefold())
        if rules.frequent:
            score = sum(word in rules.frequent for word in words) - sum(word in english for word in words)
        else:
            score = 1 if rules.script.search(sentence) else -sum(word in english for word in words)
        scores.append(max(score, 1) if rules.announcement.search(sentence) else score)
    # A sentence that does not tell, such as an equation, is in the language of all.
    default = sum(scores) >= 0
    return [
        (places[start], places[end])
        for (start, end), score in zip(sentences, scores, strict=True)
        if score > 0 or (score == 0 and default)
    ]


@cache
def _list_frequent_english() -> frozenset[str]:
    return frozenset(get_language(ENGLISH).frequent)


def _find_polar(match: re.Match[str]) -> str | None:
    return next((name for name in ("yes", "no", "true", "false") if match[name]), None)


def _announce(folded: Folded, rules: _Rules, question: Question, is_polar: bool) -> Folded:
    """Returns a text whose announcements are in English."""
    is_han = "\u4e00" in rules.language.letters
    # Where no sign ends a sentence, an announcement begins one.
    stop = "" if rules.language.sentence_ends else ". "

    def write(match: re.Match[str]) -> str | None:
        before = match.string[: match.start()]
        if match["bracket"] or match["label"]:
            own = "Answer: " if re.search(r"(?:^|\n)[\s#*_>]*$", before[-40:]) else "the answer: "
        else:
            if (
                match.groupdict().get("bare") is not None
                and question.choices is None
                and not re.match(_ANSWER, match.string[match.end() :])
            ):
                return None
            own = "the answer is "
        own = (stop if before.strip() and not before.endswith("\n") else "") + own
        rest = match.string[match.end() :]
        if (name := _find_polar(match)) is not None:
            return own + (name if is_polar else match[name])
        numeral = HAN_NUMERAL.match(rest.lstrip(" ")) if is_han and question.choices is None else None
        return own + ("\0" if numeral else "")

    announced = folded.replace(rules.announcement, write)
    return announced.replace(_ANNOUNCED_NUMERAL, _write_numeral) if is_han else announced


def _write_numeral(match: re.Match[str]) -> str:
    numeral = HAN_NUMERAL.match(match[1])
    is_whole = numeral is not None and (
        match[1] == numeral.group()
        or re.match(rf"\s*(?:[.,;!)。，；！、]|[{_MEASURES}]|で|$)", match[1][numeral.end() :])
    )
    value = read_han_numeral(numeral.group()) if numeral and is_whole else None
    return match[1] if value is None or numeral is None else write_value(value) + match[1][numeral.end() :]


def _translate(
    folded: Folded, rules: _Rules, question: Question, own: list[tuple[int, int]] | None, is_polar: bool = False
) -> Folded:
    """Returns a text whose other words about answers are in English: what chooses, calls right, joins, denies."""
    has_options = question.choices is not None
    calls_right = has_options and not rules.false_question.search(fold(question.question).text)
    # Of several that are called right, as steps of a reasoning are, none is the answer.
    calls_right = calls_right and len({match[1] for match in rules.verdict.finditer(folded.text)}) < 2

    def write(match: re.Match[str]) -> str | None:
        if match["question"]:
            return "Question:"
        if match["choose"]:
            return " I choose " if has_options else None
        if own is not None and not folded.is_within(match.start(), own):
            return None
        if match["letter"]:
            return f"{match['letter']}) " if has_options else None
        if match["correct"]:
            before = re.split(r"[.!?。！？,，;；、\n]", match.string[max(match.start() - 60, 0) : match.start()])[-1]
            return " is correct " if calls_right and not rules.negation.search(before) else None
        if match["alternative"]:
            return " or "
        if match["conjunction"]:
            return " and "
        # The answer that was announced as no.
        is_answer = is_polar and match.string[: match.start()].endswith(("answer is ", "nswer: "))
        return None if is_answer else " not "

    return folded.replace(rules.words, write)


def _space(folded: Folded, is_formula: bool) -> Folded:
    """Returns a text whose sentence marks have a space after them, and whose words have spaces around them."""
    folded = folded.replace(_LETTERS, lambda match: " and ")
    folded = folded.replace(_SIGN, lambda match: _SIGNS[match.group()])
    return folded.replace(_BORDER if is_formula else _BETWEEN, lambda match: " ")


def _name_polar(choice: str, language: Language) -> str | None:
    """Returns which of yes, no, true and false an option is in a language."""
    own = choice.strip().rstrip(".。").casefold()
    return next((name for name, words in language.polar.items() if own in [word.casefold() for word in words]), None)


@lru_cache(maxsize=1024)
def _localize_question(question: Question, tags: tuple[str, ...]) -> tuple[Question, bool]:
    """Returns a question whose options are rewritten as texts are, and whether they are yes and no, true and false."""
    asked, choices = fold(question.question), list(question.choices or ())
    named = [
        next(filter(None, (_name_polar(choice, get_language(tag)) for tag in (*tags, ENGLISH))), None)
        for choice in choices
    ]
    is_polar = len(choices) == 2 and set(named) in ({"yes", "no"}, {"true", "false"})
    for tag in tags:
        asked = rewrite_numbers(asked, get_language(tag), None, question.expression)
    if is_polar:
        choices = [str(name).capitalize() for name in named]
    else:
        choices = [_localize_choice(choice, question, tags) for choice in choices]
    text = _space(asked, question.expression).text
    return replace(question, question=text, choices=tuple(choices) if choices else None), is_polar


def _localize_choice(choice: str, question: Question, tags: tuple[str, ...]) -> str:
    folded = fold(choice)
    for tag in tags:
        folded = _rewrite_values(folded, get_language(tag), question, None)
        folded = _translate(folded, _compile(tag), question, None)
    return _space(folded, False).text.strip()


def _rewrite_values(
    folded: Folded, language: Language, question: Question, own: list[tuple[int, int]] | None
) -> Folded:
    folded = rewrite_numbers(folded, language, own, question.expression)
    return folded if question.expression else rewrite_multiples(folded, language, question.question)


def localize(text: str, question: Question) -> LocalText | None:
    """Returns a text as the rules for English read it; None where it is as it should be.

    Raises:
        ValueError: The question is in a language that has no file.
    """
    tags = _find_languages(text, question)
    if tags is None:
        return None
    folded = fold(text)
    local_question, is_polar = _localize_question(question, tags)
    for tag in tags:
        rules = _compile(tag)
        own = _find_own(folded, rules)
        folded = _rewrite_values(folded, rules.language, question, own)
        folded = _announce(folded, rules, question, is_polar)
        folded = _translate(folded, rules, question, own, is_polar)
        if is_polar:
            folded = folded.replace(rules.reply, lambda match: f" {_find_polar(match)}")
    return LocalText(_space(folded, question.expression), local_question, tags)


def _find_languages(text: str, question: Question) -> tuple[str, ...] | None:
    """Returns the languages beside English that a text is read in; None where it is in English and has no odd signs.

    Under a question in English, only another script tells: a word of Latin letters is English, or a name.
    """
    own = resolve_tag(question.language)
    if own == ENGLISH and text.isascii():
        return None
    tags = [] if own == ENGLISH else [own]
    if _compile_gate(own == ENGLISH).search(text):
        folded = fold(text).text
        for tag in list_languages():
            if (
                tag not in (own, ENGLISH)
                and (own != ENGLISH or not _is_latin(tag))
                and any(
                    match["bracket"] or match["label"] or match["verb"]
                    for match in _compile(tag).announcement.finditer(folded)
                )
            ):
                tags.append(tag)
    return tuple(tags) if tags or _ODD.search(text) else None


def _is_latin(tag: str) -> bool:
    return get_language(tag).letters.startswith("a-z")


@cache
def _compile_gate(no_latin: bool) -> re.Pattern[str]:
    """Returns what finds, quickly, any language's noun for an answer."""
    tags = [tag for tag in list_languages() if tag != ENGLISH and not (no_latin and _is_latin(tag))]
    nouns = {noun for tag in tags for noun in get_language(tag).words.answer}
    # Those that others begin with are enough.
    short = {noun for noun in nouns if not any(noun != other and noun.startswith(other) for other in nouns)}
    return re.compile("|".join(map(re.escape, sorted({*short, *(noun.capitalize() for noun in short)}))))
