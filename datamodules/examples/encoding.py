"""Texts to token ids: what is text is encoded as text, and control tokens come from the chat template alone."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2 import Environment, meta
from jsonargparse.typing import PositiveInt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from datamodules.tasks.prompts import PromptLanguage, TemplateOptions
from datamodules.text.plain_text import describe_error
from datamodules.text.thinking import MARKS

# What every template is given; the rest that one reads are its options.
_GIVEN = {"messages", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token", "tools", "documents"}
_FUNCTIONS = {"raise_exception", "strftime_now", "range", "namespace", "dict", "lipsum", "cycler", "joiner"}
_CONTENT = "KINDRED"
_MARKS = {mark for pair in MARKS for mark in pair}


@dataclass(frozen=True)
class PromptEncoding:
    """How prompts are tokenized.

    Args:
        max_length: Longest prompt, or example, in tokens.
        skip_too_long: Leave out what is longer, counted in a warning, rather than refuse it.
        template_options: What the chat template is told beside the message, such as {enable_thinking: false}; an
            endpoint is sent them.
        prompt_language: Whether a question is posed in its own language, or with English instructions; worked examples
            and answer sentences are in its own.
        revision: Commit of a hub tokenizer.
    """

    max_length: PositiveInt = 1024
    skip_too_long: bool = False
    template_options: TemplateOptions | None = None
    prompt_language: PromptLanguage = "question"
    revision: str | None = None


class Encoded(NamedTuple):
    """A text's token ids, and where in the text each begins and ends; (0, 0) for a token that is not of the text."""

    ids: list[int]
    offsets: list[tuple[int, int]]


class Piece(NamedTuple):
    """A part of a prompt, and whether the chat template wrote it: only there a control token's name is one."""

    text: str
    is_template: bool


def list_controls(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Returns control tokens' names by id: those marked as such, and others that the chat template writes."""
    added = tokenizer.added_tokens_decoder
    others = [number for number, token in added.items() if not token.special and _may_control(str(token))]
    turns = [("user", _CONTENT), ("assistant", _CONTENT)]
    written = _apply(tokenizer, turns, {}) if others and tokenizer.chat_template else ""
    return {
        number: str(token)
        for number, token in added.items()
        if token.special or (number in others and str(token) in written)
    }


def _may_control(name: str) -> bool:
    """Whether an added token may be more than text: neither white space nor a mark around what a model thinks."""
    return bool(name.strip()) and name not in _MARKS


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], add_special_tokens: bool = False
) -> list[Encoded]:
    """Returns each text's tokens; a control token's name in it, such as `</s>`, is text like the rest.

    Args:
        tokenizer: The model's.
        texts: Any texts.
        add_special_tokens: Also those that the tokenizer puts around a text.
    """
    if not texts:
        return []
    batch = tokenizer(
        [*texts], add_special_tokens=add_special_tokens, split_special_tokens=True, return_offsets_mapping=True
    )
    encoded = [Encoded(*pair) for pair in zip(batch.input_ids, batch.offset_mapping, strict=True)]
    controls = list_controls(tokenizer)
    wrong = [n for n, text in enumerate(texts) if _has_control(text, encoded[n], controls)]
    if wrong:
        # A unigram model's own vocabulary holds their names, too.
        backend = _forget_names(tokenizer, controls)
        for number in wrong:
            found = backend.encode(texts[number], add_special_tokens=add_special_tokens)
            encoded[number] = Encoded(found.ids, found.offsets)
    return encoded


def _has_control(text: str, encoded: Encoded, controls: Mapping[int, str]) -> bool:
    """Says whether a token stands for a control token's name in the text; an unknown character's token does not."""
    return not controls.keys().isdisjoint(encoded.ids) and any(
        token in controls and text[start:end].strip() == controls[token]
        for token, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
    )


def _forget_names(tokenizer: PreTrainedTokenizerBase, controls: Collection[int]) -> Tokenizer:
    """Returns the same tokenizer with control tokens that no text is: their ids stay, under names that no text has."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state |= {"truncation": None, "padding": None}
    model = state["model"]
    if isinstance(model["vocab"], dict):
        kept = {model.get("unk_token")}
        names = {name: number for name, number in model["vocab"].items() if number in controls and name not in kept}
        model["vocab"] = {(f"\0{n}" if name in names else name): n for name, n in model["vocab"].items()}
        forgotten = set(names.values())
    else:
        forgotten = {number for number in controls if number < len(model["vocab"])}
        for number in forgotten:
            model["vocab"][number][0] = f"\0{number}"
    added = [token for token in state["added_tokens"] if token["id"] not in forgotten]
    state["added_tokens"] = [token | {"special": token["special"] or token["id"] in controls} for token in added]
    backend = Tokenizer.from_str(json.dumps(state))
    backend.encode_special_tokens = True
    return backend


def encode_pieces(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[Piece]]) -> list[list[int]]:
    """Returns each prompt's ids: of the template's control tokens as such, of all else as text."""
    texts = ["".join(piece.text for piece in pieces) for pieces in prompts]
    names = re.compile("|".join(map(re.escape, sorted(list_controls(tokenizer).values(), key=len, reverse=True))))
    encoded = tokenizer([*texts], add_special_tokens=False).input_ids if texts else []
    for index, pieces in enumerate(prompts):
        if any(not piece.is_template and names.search(piece.text) for piece in pieces):
            encoded[index] = _encode_apart(tokenizer, pieces, names)
    return encoded


def _encode_apart(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], names: re.Pattern[str]) -> list[int]:
    """Encodes what stands between the template's control tokens as text."""
    ids, text = list[int](), ""
    for piece in pieces:
        place = 0
        for match in names.finditer(piece.text) if piece.is_template else ():
            ids += encode_texts(tokenizer, [text + piece.text[place : match.start()]])[0].ids
            ids.append(tokenizer.convert_tokens_to_ids(match.group()))
            text, place = "", match.end()
        text += piece.text[place:]
    return ids + encode_texts(tokenizer, [text])[0].ids


def render_chat(tokenizer: PreTrainedTokenizerBase, message: str, options: Mapping[str, Any]) -> list[Piece]:
    """Returns the prompt that poses a user's message, as the chat template writes it.

    Raises:
        ValueError: The template fails, or changes the message.
    """
    text = _apply(tokenizer, [("user", message)], options, add_generation_prompt=True)
    start = text.rfind(message.strip())
    if start < 0:
        raise ValueError(f"{tokenizer.name_or_path}: its chat template changes the user's message; it cannot be used")
    end = start + len(message.strip())
    return [Piece(text[:start], True), Piece(text[start:end], False), Piece(text[end:], True)]


def _apply(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], options: Mapping[str, Any], **kwargs: Any
) -> str:
    chat = [{"role": role, "content": content} for role, content in turns]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, **options, **kwargs))
    except Exception as error:  # a template is a program, which may fail in any way
        name = tokenizer.name_or_path
        raise ValueError(f"{name}: its chat template cannot be rendered: {describe_error(error)}") from None


def check_template_options(tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]) -> None:
    """Raises a ValueError if the chat template would ignore one of the options."""
    if not options:
        return
    if not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: has no chat template, which would read data.encoding.template_options"
        )
    names = meta.find_undeclared_variables(Environment().parse(tokenizer.get_chat_template()))
    known = sorted(names - _GIVEN - _FUNCTIONS)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{tokenizer.name_or_path}: its chat template reads no {unknown[0]!r} of data.encoding.template_options; "
            f"it reads {', '.join(known) or 'none'}"
        )


def find_end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the tokens that end a completion, first the one that a student learns to write.

    In a chat that is the control token which the template writes after an assistant's message, or before the next
    user's; the tokenizer's end token, where there is no template or it writes none.
    """
    ends = [tokenizer.eos_token_id]
    if tokenizer.chat_template:
        controls = {number for number, token in tokenizer.added_tokens_decoder.items() if _may_control(str(token))}
        turns = [("user", _CONTENT), ("assistant", _CONTENT)]
        for chat in (turns, [*turns, ("user", _CONTENT)]):
            text = _apply(tokenizer, chat, {})
            ids = tokenizer(text.split(_CONTENT, 2)[-1], add_special_tokens=False).input_ids
            if found := [token for token in ids if token in controls]:
                ends.insert(0, found[0])
                break
    return list(dict.fromkeys(ends))


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Returns a completion's text without control tokens, but for the marks around what a model thinks."""
    marks = " ".join(mark for pair in MARKS for mark in pair)
    dropped = {number for number, name in list_controls(tokenizer).items() if name not in marks}
    return str(tokenizer.decode([token for token in ids if token not in dropped], skip_special_tokens=False))


def spell_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str | None:
    """Returns the text that a program that only calls the tokenizer reads as these tokens; None if there is none.

    Control tokens stand in it by name, but for one that such a call puts before every text.
    """
    text = str(tokenizer.decode([*ids], skip_special_tokens=False, clean_up_tokenization_spaces=False))
    texts = [text, text.removeprefix(tokenizer.bos_token or "")]
    return next((own for own in texts if tokenizer(own)["input_ids"] == [*ids]), None)
