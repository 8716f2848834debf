"""Rationales as lines of `messages`, which other programs train on, and Kindred reads as questions and rationales."""

from collections.abc import Iterable, Iterator
from typing import Any

from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question


def to_messages(pairs: Iterable[tuple[Question, Rationale]], prompt: Prompt) -> Iterator[dict[str, Any]]:
    """Yields one record for each rationale: its question's fields, its own, and the exchange.

    Args:
        pairs: Each question and its rationale.
        prompt: How the user's turn poses the question.
    """
    for question, rationale in pairs:
        reply = {"role": "assistant", "content": rationale.text}
        thinking = {"reasoning_content": rationale.thinking} if rationale.thinking else {}
        own = {name: getattr(rationale, name) for name in ("teacher", "family", "sample", "answer", "finish_reason")}
        yield {
            **question.content,
            **own,
            "messages": [{"role": "user", "content": prompt.render(question, True)}, {**reply, **thinking}],
        }
