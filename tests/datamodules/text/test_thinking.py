import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.text.thinking import find_open_mark, join_thinking, split_thinking


@pytest.mark.parametrize(
    ("completion", "thinking", "reply", "is_closed"),
    [
        ("The answer is B.", "", "The answer is B.", True),
        ("<think>Maybe the answer is A.</think> Venice.", "Maybe the answer is A.", " Venice.", True),
        ("Maybe A.\n</think>\n\nThe answer is D.", "Maybe A.", "\n\nThe answer is D.", True),
        ("<think>\nMaybe the answer is A. But", "Maybe the answer is A. But", "", False),
        ("<think>\n\n</think>\n\nIt is C.", "", "\n\nIt is C.", True),
        ("<think>a</think> so <think>b</think> The answer is C.", "a so b", " The answer is C.", True),
        ("<think>a</think> B. <think>or", "a B. or", "", False),
        ("[THINK]hm[/THINK]B", "hm", "B", True),
        (
            "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B.",
            "A?",
            "B.",
            True,
        ),
    ],
)
def test_a_completion_is_taken_apart_at_its_think_marks(completion, thinking, reply, is_closed):
    split = split_thinking(completion)
    assert (split.thinking, split.reply, split.is_closed) == (thinking, reply, is_closed)


@given(st.lists(st.sampled_from(["<think>", "</think>", "The answer is A.", " ", "[THINK]"])).map("".join))
def test_the_reply_is_what_the_completion_ends_with_and_holds_no_mark(completion):
    split = split_thinking(completion)
    assert completion[split.start :] == split.reply
    assert "think>" not in split.reply and "[THINK]" not in split.reply
    assert split.is_closed or split.reply == ""


@given(thinking=st.text("ab \n.").map(str.strip), reply=st.text("cd \n.").map(str.strip))
def test_what_is_joined_is_taken_apart_again(thinking, reply):
    split = split_thinking(join_thinking(thinking, reply))
    assert (split.thinking, split.reply.strip(), split.is_closed) == (thinking, reply, True)


def test_a_prompt_may_open_the_thinking():
    assert find_open_mark("<|Assistant|><think>\n") == "<think>"
    assert find_open_mark("<|im_start|>assistant\n<think>\n\n</think>\n\n") == find_open_mark("Answer:\n") == ""
