"""Tests of what is read of an endpoint's reply; tests/scripts/test_endpoint.py asks one."""

import pytest

from lightning_modules.teacher.openai_backend import read_reply


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            '{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}',
            ("a", "", "stop", None, None, "unknown"),
        ),
        (
            '{"model": "m", "system_fingerprint": "fp", "usage": {"prompt_tokens": 3, "completion_tokens": 4}, '
            '"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}',
            ("", "", "content_filter", 3, 4, "m fp"),
        ),
        (
            '{"choices": [{"message": {"content": "B", "reasoning_content": "A?"}, "finish_reason": "stop"}]}',
            ("B", "A?", "stop", None, None, "unknown"),
        ),
        (
            '{"choices": [{"message": {"content": null, "reasoning": "A?"}, "finish_reason": "length"}]}',
            ("", "A?", "length", None, None, "unknown"),
        ),
    ],
)
def test_a_reply_is_read(body: str, expected: tuple) -> None:
    assert read_reply(body) == expected


@pytest.mark.parametrize(
    "body", ["", "[]", "null", "{}", '{"choices": [{"message": "a", "finish_reason": "stop"}]}', '{"choices": 3}',
             '{"choices": [{"message": {"content": 5}, "finish_reason": "stop"}]}',
             '{"choices": [{"message": {"content": "a"}, "finish_reason": "tool_calls"}]}',
             '{"usage": 3, "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'],
)  # fmt: skip
def test_what_is_no_reply_is_refused(body: str) -> None:
    with pytest.raises(ValueError, match=r"a (malformed )?reply"):
        read_reply(body)
