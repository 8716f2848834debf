"""What a model writes between think marks, apart from the rationale and the answer that follow."""

import re
from dataclasses import dataclass

# Qwen3, DeepSeek-R1, Phi-4 and OLMo; older prompts; Magistral; Seed-OSS; Kimi; OpenThoughts; gpt-oss, which
# writes channels instead: the analysis is its thinking, the final one its reply.
MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
)
_OPEN = re.compile("|".join(re.escape(mark) for mark, _ in MARKS))
# Between two channels another turn begins, some of whose control tokens a decoder may have dropped.
_CLOSE = re.compile(
    r"(?:(?:<\|end\|>)?(?:<\|start\|>)?assistant(?=<\|channel\|>))?(?:"
    + "|".join(re.escape(mark) for _, mark in MARKS)
    + ")"
)


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


def find_open_mark(prompt: str) -> str:
    """Returns the mark that a prompt ends with, so that what follows is thinking; empty if it ends otherwise."""
    return next((mark for mark, _ in MARKS if prompt.rstrip().endswith(mark)), "")


def join_thinking(thinking: str, reply: str) -> str:
    """Returns a completion as a student learns to write it: its thinking between marks, then the reply."""
    opening, closing = MARKS[0]
    return f"{opening}\n{thinking}\n{closing}\n\n{reply}" if thinking else reply
