"""From a question and a rationale to token ids and segments; and the tokenizer's fingerprint."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.answers.extractors import split_answer_sentence
from datamodules.answers.replies import cut_run_on
from datamodules.examples.encoding import encode_pieces, encode_texts, find_end_tokens, render_chat
from datamodules.files.atomic import hash_json, hash_text
from datamodules.files.seals import check_folder
from datamodules.model_cards import find_card
from datamodules.model_sources import loading, locate_pretrained
from datamodules.rationales.controls import AnswerPosition, remove_answer
from datamodules.rationales.store import Rationale
from datamodules.tasks.prompts import Prompt
from datamodules.tasks.questions import Question
from datamodules.text.gguf_splitting import split_as_llama_cpp
from datamodules.text.gguf_tokenizer import read_packed
from datamodules.text.thinking import join_thinking

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
        completion_hash: Hash of the completion's text alone, which one of another tokenizer must agree with.
    """

    id: str
    question_id: str
    token_ids: np.ndarray
    segments: np.ndarray
    text_hash: str
    completion_hash: str

    @property
    def teacher(self) -> str:
        """Who wrote the rationale; empty for a gold label."""
        return self.id.removeprefix(f"{self.question_id}/").rpartition("/")[0]

    @property
    def num_prompt_tokens(self) -> int:
        """Number of tokens before the completion."""
        # It ends with the last of them; every read of a cache asks, and bytes are searched faster than arrays.
        return self.segments.tobytes().rfind(PROMPT) + 1


def load_tokenizer(model: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a hub id, a local folder or a GGUF file.

    Raises:
        ValueError: There is none, or it cannot map tokens to characters or end a text.
    """
    name, options = locate_pretrained(model, revision)
    check_folder(Path(name), weights=False)
    gguf = Path(name, options["gguf_file"]) if "gguf_file" in options else None
    with loading(model, "tokenizer"):
        packed = read_packed(gguf) if gguf else None
        tokenizer = AutoTokenizer.from_pretrained(name, **options) if packed is None else packed
    if gguf and packed is None:
        split_as_llama_cpp(tokenizer, gguf)
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise ValueError(f"{model}: Kindred needs a fast tokenizer (tokenizer.json) with an end token")
    if (card := find_card(model)) is not None and card.chat_template != bool(tokenizer.chat_template):
        raise ValueError(f"{model}: configs/models says chat_template: {card.chat_template}; its tokenizer differs")
    return tokenizer


def find_unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the token of all characters that have none of their own; None if it has another meaning, too."""
    unknown: int | None = tokenizer.unk_token_id
    return None if unknown in (tokenizer.bos_token_id, *find_end_tokens(tokenizer)) else unknown


def warn_of_unknown(tokenizer: PreTrainedTokenizerBase, what: str, names: Sequence[str], total: int) -> None:
    """Warns of texts with characters that a tokenizer has no token for, if there are any.

    Args:
        tokenizer: The tokenizer.
        what: What the texts are, in the plural.
        names: Of those that the token of `find_unknown` is in.
        total: Number of all.
    """
    if names:
        warnings.warn(
            f"{len(names)} of {total} {what}, the first {names[0]!r}, have characters that the tokenizer has no token "
            f"for: each is {tokenizer.unk_token} to the model; leave them out, or take a model that knows them",
            stacklevel=2,
        )


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


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hashes all that turns texts into ids: beyond what the fingerprint covers, templates and special tokens."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    # A call's own settings, which a tokenizer keeps from the last call.
    del backend["truncation"], backend["padding"]
    return hash_json([backend, tokenizer.chat_template, tokenizer.special_tokens_map])


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, questions: Sequence[Question], rationale: str = ""
) -> list[tuple[str, list[int]]]:
    """Returns each prompt's text and ids: through the chat template if the tokenizer has one, else raw text.

    A control token's name in a question is text; the template's own are control tokens.

    Args:
        tokenizer: The model's.
        prompt: How the questions are posed.
        questions: The questions.
        rationale: What is to be rewritten, if the prompt asks for that.
    """
    is_chat = bool(tokenizer.chat_template)
    messages = [prompt.render(question, is_chat, rationale) for question in questions]
    if is_chat:
        prompts = [render_chat(tokenizer, message, prompt.template_options) for message in messages]
        texts = ["".join(piece.text for piece in pieces) for pieces in prompts]
        return list(zip(texts, encode_pieces(tokenizer, prompts), strict=True))
    encoded = encode_texts(tokenizer, messages, add_special_tokens=True)
    return [
        (text, ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)
        for text, (ids, _) in zip(messages, encoded, strict=True)
    ]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, question: Question, rationale: str = ""
) -> tuple[str, list[int]]:
    """Returns one prompt's text and ids."""
    [encoded] = encode_prompts(tokenizer, prompt, [question], rationale)
    return encoded


def _join_parts(first: str, second: str) -> str:
    """Returns the text of a completion."""
    return f"{first} {second}".strip()


def encode_completions(
    tokenizer: PreTrainedTokenizerBase, parts: Sequence[tuple[str, str]], answer_first: bool = False
) -> list[tuple[list[int], list[int]]]:
    """Returns ids and segments of completions: rationale, answer sentence, end token (see `find_end_tokens`).

    The end token belongs to what stands before it. A control token's name in a text is text.

    Args:
        tokenizer: The student's.
        parts: Of each completion, the rationale and the answer sentence.
        answer_first: The answer sentence stands before the rationale.
    """
    segments_in_order = (ANSWER, RATIONALE) if answer_first else (RATIONALE, ANSWER)
    ordered = [(answer, rationale) if answer_first else (rationale, answer) for rationale, answer in parts]
    texts = [_join_parts(first, second) for first, second in ordered]
    end, *_ = find_end_tokens(tokenizer)
    completions = []
    for text, (_, second), (ids, offsets) in zip(texts, ordered, encode_texts(tokenizer, texts), strict=True):
        second_start = len(text) - len(second)
        segments = [segments_in_order[end > second_start] for _, end in offsets]
        completions.append(([*ids, end], [*segments, segments_in_order[second != ""]]))
    return completions


def encode_completion(tokenizer: PreTrainedTokenizerBase, rationale: str, answer: str) -> tuple[list[int], list[int]]:
    """Returns ids and segments of one completion."""
    [encoded] = encode_completions(tokenizer, [(rationale, answer)])
    return encoded


def split_completion(
    question: Question, rationale: Rationale, prompt: Prompt, normalize: bool = False
) -> tuple[str, str]:
    """Returns (rationale, answer sentence) of a completion.

    A teacher's own last sentence is kept if it states the answer; otherwise the prompt's answer sentence is
    added with the answer that the teacher reached. A rationale without any answer stays without, and so does one that
    was cut off before it stated its answer. If `normalize`, the prompt's answer sentence replaces all sentences in
    which the teacher states it. What a teacher invented after its answer, such as a next question, is left out.
    """
    text = cut_run_on(rationale.text.strip(), question)
    own = split_answer_sentence(text, question)
    if own and not normalize:
        return own
    is_torn = rationale.is_truncated and own is None and text == rationale.text.strip()
    answer = prompt.answer_sentence(question, rationale.answer) if rationale.answer and not is_torn else ""
    return remove_answer(text, question, rationale.answer) if normalize else text, answer


def build_examples(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    pairs: Sequence[tuple[Question, Rationale | None]],
    answer_position: AnswerPosition | None = None,
    keep_thinking: bool = False,
) -> list[Example]:
    """Tokenizes (question, rationale) pairs, or, without a rationale, (question, gold answer), in one go.

    An example without anything to supervise, for want of a gold answer or of any text, has no tokens; one whose text
    was cut off before its answer has no end token, which nobody wrote there. What a student drew itself is the tokens
    that it drew, all of them RATIONALE, or, for another tokenizer, its text; nothing is added to it.

    Args:
        tokenizer: The student's.
        prompt: What stands before each completion.
        pairs: Each question and its rationale.
        answer_position: Where the answer sentence, then the prompt's, stands; None leaves each text as it is.
        keep_thinking: What the teacher thought comes first, between marks, as a part of the rationale.
    """
    questions = {question.id: question for question, _ in pairs}
    prompts = dict(zip(questions, encode_prompts(tokenizer, prompt, list(questions.values())), strict=True))
    parts, torn = [], []
    is_drawn = any(rationale is not None and rationale.token_ids is not None for _, rationale in pairs)
    fingerprint = fingerprint_tokenizer(tokenizer) if is_drawn else None
    for question, rationale in pairs:
        if rationale is not None and rationale.token_ids is not None:
            torn.append(rationale.is_truncated)
            parts.append((rationale.text, ""))
        elif rationale is not None:
            has_text, normalize = bool(rationale.text.strip()), answer_position is not None
            text, answer = split_completion(question, rationale, prompt, normalize) if has_text else ("", "")
            torn.append(rationale.is_truncated and not answer and text == rationale.text.strip())
            parts.append((join_thinking(rationale.thinking, text) if keep_thinking and has_text else text, answer))
        else:
            torn.append(False)
            parts.append(("", prompt.answer_sentence(question, question.gold) if question.gold is not None else ""))
    examples = []
    for (question, rationale), (text, answer), is_torn, (completion_ids, segments) in zip(
        pairs, parts, torn, encode_completions(tokenizer, parts, answer_position == "first"), strict=True
    ):
        prompt_text, prompt_ids = prompts[question.id]
        is_own = rationale is not None and rationale.token_ids is not None
        # A student that ended its answer at once has drawn the end token, whatever another tokenizer calls it.
        is_whole = bool(text or answer) or (is_own and not is_torn)
        stop = (-1 if is_torn else None) if is_whole else 0
        if rationale is not None and rationale.token_ids is not None and rationale.tokenizer == fingerprint:
            completion_ids, stop = rationale.token_ids, None
            segments = [RATIONALE] * len(completion_ids)
        order = (answer, "", text) if answer_position == "first" else (text, answer)
        examples.append(
            Example(
                id=rationale.id if rationale else f"{question.id}/label",
                question_id=question.id,
                token_ids=np.array([*prompt_ids, *completion_ids][:stop], dtype=np.int32),
                segments=np.array([*[PROMPT] * len(prompt_ids), *segments][:stop], dtype=np.int8),
                text_hash=hash_text("\0".join([prompt_text, *order])),
                completion_hash=hash_text(_join_parts(order[0], order[-1])),
            )
        )
    return examples
