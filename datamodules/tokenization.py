"""From a question and a rationale to token ids and segments; and the tokenizer's fingerprint."""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.answers import split_answer_sentence
from datamodules.files import hash_json, hash_text
from datamodules.pretrained import locate_pretrained
from datamodules.prompts import Prompt
from datamodules.questions import Question
from datamodules.rationales import Rationale

PROMPT, RATIONALE, ANSWER = 0, 1, 2
Supervision = Literal["label", "rationale", "rationale+logits"]


@dataclass(frozen=True)
class Example:
    """One tokenized training example: the prompt, then the completion that is supervised.

    Attributes:
        id: The rationale's id, or `{question_id}/label`.
        question_id: The question's id.
        token_ids: int32 [length]; prompt then completion, the end token included.
        segments: int8 [length]; PROMPT, RATIONALE or ANSWER for each token.
        text_hash: Hash of the prompt's and the completion's text, which a logit cache must agree with.
    """

    id: str
    question_id: str
    token_ids: np.ndarray
    segments: np.ndarray
    text_hash: str

    @property
    def teacher(self) -> str:
        """Who wrote the rationale; empty for a gold label."""
        return self.id.removeprefix(f"{self.question_id}/").rpartition("/")[0]

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens before the completion."""
        return int((self.segments == PROMPT).sum())


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a hub id, a local folder or a GGUF file.

    Raises:
        ValueError: There is none, or it cannot map tokens to characters or end a text.
    """
    name, options = locate_pretrained(model, revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{model}: no tokenizer can be loaded: {str(error).splitlines()[0]}") from None
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise ValueError(f"{model}: Kindred needs a fast tokenizer (tokenizer.json) with an end token")
    return tokenizer


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase, ids: list[int] | None = None) -> str:
    """Hashes what makes ids mean text: vocabulary, merges, added tokens, normalizer and pre-tokenizer.

    Two models of one family agree whatever the padding of their embeddings; a retrained tokenizer does not.

    Args:
        tokenizer: The tokenizer.
        ids: Hash only the tokens of these ids and of the start and end tokens, so that a tokenizer with further
            tokens agrees; whether it also splits a text alike shows in the text's ids.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    rules = [backend["normalizer"], backend["pre_tokenizer"]]
    if ids is not None:
        special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
        return hash_json([tokenizer.convert_ids_to_tokens(ids), ids, special, *rules])
    model = backend["model"]
    added = sorted((token["id"], token["content"]) for token in backend["added_tokens"])
    return hash_json(
        [
            model["type"],
            sorted(model["vocab"].items()) if isinstance(model["vocab"], dict) else model["vocab"],
            model.get("merges"),
            added,
            *rules,
        ]
    )


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: Question) -> tuple[str, list[int]]:
    """Returns the prompt's text and ids: through the chat template if the tokenizer has one, else raw text."""
    if tokenizer.chat_template:
        message = {"role": "user", "content": prompt.render(question, chat=True)}
        text = str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
        return text, tokenizer(text, add_special_tokens=False).input_ids
    text = prompt.render(question, chat=False)
    ids = tokenizer(text).input_ids
    return text, ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def encode_completion(tokenizer: PreTrainedTokenizerBase, rationale: str, answer: str) -> tuple[list[int], list[int]]:
    """Returns ids and segments of a completion: rationale, answer sentence, end token.

    The end token belongs to the answer, or to the rationale where there is no answer sentence.
    """
    text = f"{rationale} {answer}".strip()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    answer_start = len(text) - len(answer)
    segments = [ANSWER if end > answer_start else RATIONALE for _, end in encoded.offset_mapping]
    return [*encoded.input_ids, tokenizer.eos_token_id], [*segments, ANSWER if answer else RATIONALE]


def split_completion(question: Question, rationale: Rationale, prompt: Prompt) -> tuple[str, str]:
    """Returns (rationale, answer sentence) of a completion.

    A teacher's own last sentence is kept if it states the answer; otherwise the prompt's answer sentence is
    added with the answer that the teacher reached. A rationale without any answer stays without.
    """
    text = rationale.text.strip()
    if own := split_answer_sentence(text, question):
        return own
    return text, prompt.answer_sentence(question, rationale.answer) if rationale.answer else ""


def build_example(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: Question, rationale: Rationale | None
) -> Example:
    """Tokenizes one (question, rationale) pair, or, without a rationale, (question, gold answer).

    Raises:
        ValueError: There is no gold answer to supervise, or the completion is empty.
    """
    if rationale is None:
        if question.gold is None:
            raise ValueError(f"question {question.id!r} has no gold answer, which supervision `label` needs")
        identifier, text, answer = f"{question.id}/label", "", prompt.answer_sentence(question, question.gold)
    elif not rationale.text.strip():
        raise ValueError(f"rationale {rationale.id!r} has an empty completion; correct_only leaves such ones out")
    else:
        identifier, (text, answer) = rationale.id, split_completion(question, rationale, prompt)
    prompt_text, prompt_ids = encode_prompt(tokenizer, prompt, question)
    completion_ids, segments = encode_completion(tokenizer, text, answer)
    return Example(
        id=identifier,
        question_id=question.id,
        token_ids=np.array(prompt_ids + completion_ids, dtype=np.int32),
        segments=np.array([PROMPT] * len(prompt_ids) + segments, dtype=np.int8),
        text_hash=hash_text(f"{prompt_text}\0{text}\0{answer}"),
    )


def drop_too_long(examples: list[Example], max_length: int, skip: bool) -> list[Example]:
    """Keeps the examples that fit the context.

    Raises:
        ValueError: Some do not, and `skip` is off; the message counts them and names the first.
    """
    long = [example for example in examples if len(example.token_ids) > max_length]
    if long and not skip:
        names = ", ".join(f"{example.id!r} ({len(example.token_ids)} tokens)" for example in long[:3])
        raise ValueError(
            f"{len(long)} of {len(examples)} examples are longer than the context of {max_length} tokens: {names}"
            f"{', ...' if len(long) > 3 else ''}; set skip_too_long to leave them out"
        )
    return [example for example in examples if len(example.token_ids) <= max_length]
