"""What a student drew itself: its token ids, which are not encoded anew, and their log-probabilities.

Encoding a text again may give other tokens than those that were drawn, and a teacher's rows belong to these. In a
rationale store they stand beside the text:

    token_ids   list<int32>    what was drawn, the end token included where one was
    log_probs   list<float32>  of each, at temperature 1, when it was drawn
    tokenizer   string         the fingerprint of the tokenizer whose ids they are

Nothing is added to such a text, and one that was cut off has no end token.
"""

import pyarrow as pa

SAMPLE_FIELDS = (
    pa.field("token_ids", pa.list_(pa.int32())),
    pa.field("log_probs", pa.list_(pa.float32())),
    pa.field("tokenizer", pa.string()),
)


def check_sample(token_ids: list[int] | None, log_probs: list[float] | None, tokenizer: str | None) -> None:
    """Raises a ValueError if a rationale's tokens are not what was drawn; None is for any other rationale."""
    if token_ids is None:
        return
    if not isinstance(token_ids, list) or any(type(token) is not int or token < 0 for token in token_ids):
        raise ValueError("`token_ids` must be whole numbers of 0 or more")
    if not isinstance(log_probs, list) or not token_ids or len(log_probs) != len(token_ids):
        raise ValueError("`log_probs` must be as many as `token_ids`, and one at least")
    if not all(isinstance(value, float) and value <= 0 for value in log_probs):
        raise ValueError("`log_probs` must be numbers of at most 0")
    if not isinstance(tokenizer, str):
        raise ValueError("`tokenizer` must say whose `token_ids` they are")
