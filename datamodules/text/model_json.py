r"""JSON as language models write it: LaTeX with single backslashes, unescaped quotes, prose around it.

Read as JSON, `"$\frac{1}{2}$"` loses its backslash and gains a form feed, and `"\(x\)"` is malformed. Here a reply is
first told apart by how it writes backslashes: doubled throughout, as JSON wants it; single throughout, so that each
stands for itself, but for what can only be an escape; or mixed. A text that is returned has every character that the
model meant; one that cannot be read without a guess is refused, with a reason that can be counted.
"""

import json
import re
from collections.abc import Callable
from typing import Any

_START = re.compile(r"\{\s*[\"'\u201c]?(?:reasoning|answer)[\"'\u201d]?\s*:", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"[\s_.]*")
_ESCAPE = re.compile(r"\\(\\\\\\|u[0-9a-fA-F]{4}(?:\\u[0-9a-fA-F]{4})*|.)", re.DOTALL)
_LETTERS = re.compile(r"[A-Za-z]+")
_SIMPLE = {'"': '"', "/": "/", "n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "'": "'", "\n": "", "`": "`"}
# Commands that begin like a line feed or a tab.
_COMMANDS = set(
    "neq ne neg not notin nabla nmid ncong nleq ngeq nparallel nsubseteq nsupseteq nRightarrow nrightarrow nonumber"
    " nmid ngtr nless nprec nsucc nsim nsupset nsubset nexists nvdash nwarrow"
    " newline nearrow natural nolimits notag tag text textbf textit textrm textsf texttt textstyle"
    " textcolor textsc textup textsl textmd"
    " textnormal tfrac tbinom times to top tan tanh tau theta therefore thinspace tilde"
    " triangle triangleq trianglelefteq triangleleft"
    " triangleright trianglerighteq triangledown thickapprox thicksim tiny twoheadrightarrow"
    " nleftarrow nLeftarrow nleftrightarrow nLeftrightarrow nleqslant ngeqslant ntriangleleft ntriangleright".split()
)
# A line may begin with a u or an i, but not within a formula.
_FORMULA_COMMANDS = {"nu", "ni"}
# What `\ne` is not equal to; "e = 2" and "e^x" begin a line.
_UNEQUAL = re.compile(r"\s*(?:[\d\\({-]|[A-Za-z]\b)")
# After a doubled backslash, what makes the two one: `\\frac`, `\\(`. Else they break a line.
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z()\[\]{}%$,;!:|_#&])")
_CLOSED = re.compile(r"\}\s*(?:```)?\s*$")
_MISSING_QUOTE = re.compile(r",?\s*\n\s*[\"'](?:answer)[\"']\s*:", re.IGNORECASE)


class ReplyError(ValueError):
    """A reply that is left out; the message says why, the same for all of one kind."""


def read_reply(reply: str) -> tuple[str, str]:
    """Returns the reasoning and the answer of a reply that was asked for as JSON with these two fields.

    Raises:
        ReplyError: There is no such object, or not all of it, or several with different answers.
    """
    if not reply.strip():
        raise ReplyError("empty")
    starts = [match.start() for match in _START.finditer(reply)]
    if not starts:
        raise ReplyError("no JSON object")
    found: list[tuple[str, str]] = []
    reason, end = None, 0
    for start, following in zip(starts, [*starts[1:], len(reply)], strict=True):
        if start < end:
            # Within a text of the object before.
            continue
        try:
            value, end = json.JSONDecoder(strict=False).raw_decode(reply, start)
        except (ValueError, RecursionError):
            value, end = None, following
        text = reply[start:end]
        try:
            is_meant = isinstance(value, dict) and not _list_singles(text)
            fields = {key.casefold(): item for key, item in value.items()} if is_meant else {}
            reasoning, answer = (
                _check(fields.get("reasoning"), fields.get("answer")) if is_meant else _read_object(text)
            )
        except ReplyError as error:
            reason = reason or error
            continue
        if not (_PLACEHOLDER.fullmatch(reasoning) or _PLACEHOLDER.fullmatch(answer)):
            found.append((reasoning, answer))
    if not found:
        raise reason or ReplyError("not filled in")
    if len({answer.strip() for _, answer in found}) > 1:
        raise ReplyError("several different answers")
    return found[0]


def _read_object(text: str) -> tuple[str, str]:
    if len(re.findall(r"(?<!\\)[\"']reasoning[\"']\s*:", text, re.IGNORECASE)) > 1:
        raise ReplyError("reasoning in several fields")
    decode = _choose_decoder(text)
    reasoning, end = _read_field(text, 0, "reasoning", decode)
    try:
        answer, _ = _read_field(text, end, "answer", decode)
    except ReplyError:
        # It may come first.
        if (first := _find_key(text, 0, "answer")) is None or first > end:
            raise
        answer, _ = _read_field(text, 0, "answer", decode)
    return _check(reasoning, answer)


def _check(reasoning: Any, answer: Any) -> tuple[str, str]:
    """Returns both as texts.

    Raises:
        ReplyError: They are none.
    """
    if reasoning is None:
        raise ReplyError("no reasoning")
    if isinstance(reasoning, list) and all(isinstance(part, str) for part in reasoning):
        reasoning = "\n".join(reasoning)
    if not isinstance(reasoning, str):
        raise ReplyError("reasoning is no text")
    if answer is None:
        raise ReplyError("no answer")
    if isinstance(answer, list):
        answer = ", ".join(map(str, answer))
    if isinstance(answer, bool | dict):
        raise ReplyError("answer is no single value")
    return reasoning, str(answer)


def _find_key(text: str, start: int, name: str) -> int | None:
    """Returns where the value of a field begins; not of one that is named within a text."""
    pattern = rf"(?:(?<!\\)[\"'\u201c]{name}[\"'\u201d]|[{{,]\s*{name})\s*:\s*"
    key = re.compile(pattern, re.IGNORECASE).search(text, start)
    return key.end() if key else None


def _read_field(text: str, start: int, name: str, decode: Callable[[str], str]) -> tuple[Any, int]:
    """Returns a field's value, a text decoded, a number as it is written; and where it ends."""
    value_start = _find_key(text, start, name)
    if value_start is None:
        raise ReplyError(f"no {name}" if _CLOSED.search(text) else "cut off")
    start, quote = value_start, text[value_start : value_start + 1]
    if quote in ('"', "'", "`") and quote:
        end = _find_end(text, start + 1, quote)
        return decode(text[start + 1 : end]), end
    if quote in ("[", "{"):
        try:
            return json.JSONDecoder(strict=False).raw_decode(text, start)
        except (ValueError, RecursionError):
            raise ReplyError(f"{name} is no text") from None
    # Not quoted: as it is, up to the object's end or the next field.
    rest = re.match(r"(?:[^,}\n]|,(?!\s*[\"'\n]))*", text[start:])
    assert rest is not None
    value = rest.group().strip()
    if not value:
        raise ReplyError(f"no {name}")
    return None if value == "null" else decode(value), start + rest.end()


def _find_end(text: str, start: int, quote: str) -> int:
    """Returns where a quoted text ends: at the first quote that the object's end or another field follows."""
    follows = re.compile(
        r"\s*(?:,\s*[\"'\u201c][\w ]+[\"'\u201d]\s*:|,?\s*\}\s*(?:$|```|[^\w\s$\\{}.,;=+*/^_)-]|\n|\s[A-Za-z]))"
    )
    # The closing quote may have been forgotten.
    place, missing = start, _MISSING_QUOTE.search(text, start)
    while (place := text.find(quote, place)) >= 0:
        before = re.search(r"\\*$", text[start:place])
        assert before is not None
        if len(before.group()) % 2 == 0 and follows.match(text, place + 1):
            return place if missing is None else min(place, missing.start())
        place += 1
    if missing is not None:
        return missing.start()
    raise ReplyError("a text without its end" if _CLOSED.search(text) else "cut off")


def _is_command(text: str, letter: str, end: int) -> bool:
    """Whether an escape's letter, and the letters that follow it at `end`, name a LaTeX command."""
    letters = _LETTERS.match(text, end)
    if letters is None:
        return False
    if letter + letters.group() == "ne" and not _UNEQUAL.match(text, letters.end()):
        return False
    if letter + letters.group() in _FORMULA_COMMANDS:
        return _is_in_formula(text, end - 2)
    # No model writes the control characters, and a carriage return only before a line feed.
    return letter in "bfr" or (letter in "nt" and letter + letters.group() in _COMMANDS)


def _is_in_formula(text: str, place: int) -> bool:
    r"""Whether a place is within one line's `$...$` or `\(...\)`; not in a display, which may have several lines."""
    before = re.split(r"\n|\\n(?![A-Za-z])|\$\$", text[:place])[-1]
    opened = len(re.findall(r"(?<!\\)\$", before)) % 2 == 1 and "$" in text[place:].split("\n")[0]
    return opened or before.rfind("\\(") > before.rfind("\\)")


def _list_singles(text: str) -> list[re.Match[str]]:
    """Returns the backslashes that stand for themselves, since JSON has no such escape or LaTeX such a command."""
    return [
        match
        for match in _ESCAPE.finditer(text)
        if (match[1] not in _SIMPLE and match[1] != "\\" and len(match[1]) == 1)
        or (match[1] in ("b", "f", "n", "r", "t") and _is_command(text, match[1], match.end()))
    ]


def _choose_decoder(text: str) -> Callable[[str], str]:
    """Returns what turns a quoted text of this object into what it stands for."""
    singles = _list_singles(text)
    doubles = [match for match in _ESCAPE.finditer(text) if match[1] == "\\" and _DOUBLED.match(text, match.start())]

    def decode(raw: str) -> str:
        def replace(match: re.Match[str]) -> str:
            escaped = match[1]
            if escaped == 3 * "\\":
                return 2 * "\\"
            if len(escaped) > 1:
                # Halves of a surrogate pair belong together; one alone cannot be written.
                decoded = json.loads(f'"{match[0]}"')
                return match[0] if re.search("[\ud800-\udfff]", decoded) else decoded
            if escaped == "\\":
                if not singles:
                    return "\\"
                return "\\" if doubles and _DOUBLED.match(raw, match.start()) else match[0]
            if escaped not in _SIMPLE or (singles and _is_command(raw, escaped, match.end())):
                return match[0]
            return _SIMPLE[escaped]

        return _ESCAPE.sub(replace, raw)

    return decode
