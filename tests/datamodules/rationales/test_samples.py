from dataclasses import replace

import pytest

from datamodules.examples.tokenization import RATIONALE, build_examples, fingerprint_tokenizer
from datamodules.files.tables import read_table
from datamodules.rationales.samples import check_sample
from datamodules.rationales.store import load_rationales, write_rationales
from datamodules.tasks.prompts import get_prompt
from tests.tiny import build_tokenizer, make_questions, make_rationale

[QUESTION] = make_questions(1)
TOKENIZER = build_tokenizer()
IDS = [*TOKENIZER("It is").input_ids, *TOKENIZER(" r").input_ids, *TOKENIZER("ed").input_ids, TOKENIZER.eos_token_id]
DRAWN = replace(
    make_rationale(QUESTION, "round-1"),
    text="It is red",
    token_ids=IDS,
    log_probs=[-0.5] * len(IDS),
    tokenizer=fingerprint_tokenizer(TOKENIZER),
)


def test_what_was_drawn_survives_the_store_and_others_have_no_such_columns(tmp_path) -> None:
    write_rationales(tmp_path / "r.parquet", [DRAWN], {})
    assert load_rationales([str(tmp_path / "r.parquet")], {QUESTION.id: QUESTION}) == [DRAWN]
    write_rationales(tmp_path / "other.parquet", [make_rationale(QUESTION, "t")], {})
    assert not {"token_ids", "log_probs", "tokenizer"} & set(read_table(tmp_path / "other.parquet").column_names)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (([], [], "t"), "one at least"),
        (([1], [-1.0, -2.0], "t"), "as many as `token_ids`"),
        (([1], None, "t"), "as many as `token_ids`"),
        (([-1], [-1.0], "t"), "whole numbers of 0 or more"),
        (([True], [-1.0], "t"), "whole numbers of 0 or more"),
        (([1], [0.5], "t"), "numbers of at most 0"),
        (([1], [float("nan")], "t"), "numbers of at most 0"),
        (([1], [-1.0], None), "`tokenizer` must say"),
    ],
)
def test_what_cannot_have_been_drawn_is_refused(sample: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sample(*sample)
    check_sample([1], [0.0], "t")
    check_sample(None, None, None)


def test_an_example_is_the_tokens_that_were_drawn_and_nothing_is_added() -> None:
    prompt = get_prompt("plain")
    assert TOKENIZER("It is red").input_ids != IDS[:-1]
    cut = replace(DRAWN, token_ids=IDS[:-1], log_probs=[-0.5] * (len(IDS) - 1), finish_reason="length")
    empty = replace(DRAWN, text="", answer=None, token_ids=IDS[-1:], log_probs=[-0.5])
    examples = build_examples(TOKENIZER, prompt, [(QUESTION, own) for own in (DRAWN, cut, empty)])
    for example, own in zip(examples, (DRAWN, cut, empty), strict=True):
        assert example.token_ids[example.num_prompt_tokens :].tolist() == own.token_ids
        assert set(example.segments[example.num_prompt_tokens :]) == {RATIONALE}
    # Another tokenizer has no use for the ids: the text as it is, and an end only where one was written.
    other = build_tokenizer(("iron", "glass", "wood"))
    nothing = replace(empty, finish_reason="length", token_ids=IDS[:1])
    samples = [(QUESTION, own) for own in (DRAWN, cut, empty, nothing)]
    whole, torn, ended, lost = build_examples(other, prompt, samples)
    ids = other("It is red").input_ids
    assert whole.token_ids[whole.num_prompt_tokens :].tolist() == [*ids, other.eos_token_id]
    assert torn.token_ids[torn.num_prompt_tokens :].tolist() == ids
    assert whole.completion_hash == examples[0].completion_hash
    # Who ended its answer at once has drawn that; what was cut off before any text has nothing to supervise.
    assert ended.token_ids[ended.num_prompt_tokens :].tolist() == [other.eos_token_id] and not len(lost.token_ids)
    assert set(ended.segments[ended.num_prompt_tokens :]) == {RATIONALE}
