"""What a model writes between think marks, apart from the rationale and the answer that follow."""

import re
from dataclasses import dataclass

# Qwen3, DeepSeek-R1, Phi-4 and OLMo; older prompts; Magistral; Seed-OSS; Kimi.
_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
# gpt-oss writes channels instead: the analysis is its thinking, the final one its reply.
_HARMONY_OPEN, _HARMONY_CLOSE = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_OPEN = re.compile("|".join(re.escape(mark) for mark in (*(pair[0] for pair in _MARKS), _HARMONY_OPEN)))
_CLOSE = re.compile("|".join(re.escape(mark) for mark in (*(pair[1] for pair in _MARKS), _HARMONY_CLOSE)))


@dataclass(frozen=True)
class ThinkingSplit:
    """A completion, taken apart.

    Attributes:
        thinking: What stands between the marks, without them; empty where there are none.
        reply: What follows: the rationale and the answer. Empty if the thinking was never closed.
        start: Where the reply starts in the completion.
        is_closed: Whether the thinking ended; a model that ran out of tokens never did.
    """

    thinking: str
    reply: str
    start: int
    is_closed: bool


def split_thinking(completion: str) -> ThinkingSplit:
    """Takes a completion's thinking apart from its reply, which follows the last closing mark.

    Some templates write the opening mark themselves, as the prompt's last tokens; then only the closing one shows.
    """
    *_, closing = [None, *_CLOSE.finditer(completion)]
    start = closing.end() if closing else 0
    if opening := _OPEN.search(completion, start):
        thinking, start, is_closed = (
            f"{completion[: opening.start()]}{completion[opening.end() :]}",
            len(completion),
            False,
        )
    else:
        thinking, is_closed = completion[: closing.start()] if closing else "", True
    thinking = _OPEN.sub("", _CLOSE.sub("", thinking)).strip()
    return ThinkingSplit(thinking, completion[start:], start, is_closed)
