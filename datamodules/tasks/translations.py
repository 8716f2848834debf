"""Questions in several languages: their tags, and whether those that should be one question's translations are."""

import re
import unicodedata
from typing import TYPE_CHECKING

from datamodules.files.field_types import shorten
from datamodules.text.languages import list_languages

if TYPE_CHECKING:
    from datamodules.tasks.questions import Question

# A language, perhaps its script, perhaps where it is spoken: the parts of BCP 47 that tell texts apart.
_TAG = re.compile(r"([a-z]{2,3})(-[A-Z][a-z]{3})?(-(?:[A-Z]{2}|[0-9]{3}))?")
# Several languages, one that is not known or not coded, and none.
_NO_LANGUAGE = ("mul", "und", "mis", "zxx")
# ISO 639-1; longer codes are not listed.
_CODES = frozenset(
    "aa ab ae af ak am an ar as av ay az ba be bg bh bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en "
    "eo es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv "
    "ka kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne "
    "ng nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st "
    "su sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu".split()
)


def check_tag(tag: str) -> str:
    """Returns the tag of a question's language.

    Whether a file of `configs/languages` knows the language, who reads or asks a question in it says.

    Raises:
        ValueError: It is no BCP 47 tag of one language, as BCP 47 writes it.
    """
    found = _TAG.fullmatch(tag)
    if found is None or tag in _NO_LANGUAGE or (len(found[1]) == 2 and found[1] not in _CODES):
        raise ValueError(
            f"`language` {shorten(tag)} is no BCP 47 tag of one language, such as de or zh-Hant; configs/languages has "
            f"{', '.join(list_languages())}"
        )
    return tag


def _normalize(text: str) -> str:
    """Returns an option as it is in every language if it is a number or a formula: in ASCII digits, without spaces."""
    plain = "".join(str(unicodedata.digit(sign, sign)) for sign in unicodedata.normalize("NFKC", text))
    return "".join(plain.casefold().split())


class Translations:
    """Checks that questions of one `parallel` are one question, in a language each."""

    def __init__(self) -> None:
        self._first: dict[str, Question] = {}
        self._seen: dict[tuple[str, str], Question] = {}

    def add(self, question: "Question") -> None:
        """Adds a question.

        Raises:
            ValueError: Its parallel is there in its language already, or with other options, another gold answer,
                another group or another kind of answer in another language.
        """
        if question.parallel is None:
            return
        where = f"{question.place}: parallel {question.parallel!r}"
        known = self._seen.setdefault((question.parallel, question.language), question)
        if known is not question:
            raise ValueError(f"{where} is there twice in language {question.language!r}, first in {known.place}")
        first = self._first.setdefault(question.parallel, question)
        if wrong := _compare(first, question):
            raise ValueError(f"{where}: {wrong} than in {first.place} ({first.language}), so it is no translation")


def _compare(first: "Question", question: "Question") -> str:
    """Returns what a question has that its translation cannot; nothing if it may be one."""
    if len(first.choices or ()) != len(question.choices or ()):
        return f"{len(question.choices or ()) or 'no'} options, more or fewer"
    if first.group != question.group:
        return f"group {question.group!r}, another one"
    if None in (first.gold, question.gold):
        return ""
    if first.gold != question.gold:
        order = "; its options may be in another order" if question.choices else ""
        return f"gold answer {question.gold!r}, another one{order},"
    if has_other_order(first, question):
        return f"option {question.gold} {question.choice(str(question.gold))!r}, the gold answer, in another place,"
    return ""


def has_other_order(first: "Question", question: "Question") -> bool:
    """Whether the gold option of a translation with as many options and the same gold letter is another one's text.

    What is the same in both languages, as numbers are, tells it.
    """
    if not (first.choices and question.choices and question.gold):
        return False
    place = question.letters.index(question.gold)
    own, other = ([_normalize(text) for text in item.choices or ()] for item in (question, first))
    return own[place] != other[place] and own[place] in other and other[place] in own
