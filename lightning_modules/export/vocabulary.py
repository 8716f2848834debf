"""A student's tokenizer as GGUF's metadata: one of the kinds that llama.cpp has, or a refusal."""

import base64
import json
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from datamodules.examples.encoding import find_end_tokens
from datamodules.text.gguf_tokenizer import CONFIG_KEY, TOKENIZER_KEY, pack_tokenizer

# How texts are split before merges apply: a pattern of tokenizer.json, and llama.cpp's name for it.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS = {_LLAMA_3: "llama-bpe", _LLAMA_3.replace("{1,3}", ""): "qwen2"}


def _list_parts(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Returns the steps of a normalizer or a pre-tokenizer, in order."""
    if step is None:
        return []
    return list(step[key]) if step["type"] == "Sequence" else [step]


def name_splitting(parts: list[dict[str, Any]]) -> str | None:
    """Returns llama.cpp's name for a byte-level tokenizer's way of splitting texts; None if it is not known here."""
    *first, last = parts
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not first:
        return "gpt-2" if last["use_regex"] else None
    [split, *more] = first
    digits = split["type"] == "Digits" and split["individual_digits"]
    isolated = split["type"] == "Split" and split["behavior"] == "Isolated" and not split["invert"]
    pattern = split.get("pattern", {}).get("Regex") if isolated else None
    if more:
        return None
    if last["use_regex"]:
        return "smollm" if digits or pattern == r"\p{N}" else None
    return _PATTERNS.get(pattern or "")


def _rank_scores(model: dict[str, Any], tokens: list[str]) -> list[float]:
    """Returns scores under which llama.cpp's sentencepiece merges in the order of the merges' list."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge if isinstance(merge, list) else merge.split(" ")), rank)
    return [-float(ranks.get(token, len(model["merges"]))) for token in tokens]


def _type_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str], size: int) -> list[int]:
    added, unknown = tokenizer.added_tokens_decoder, tokenizer.unk_token_id
    is_bytes = tokenizer.backend_tokenizer.model.__class__.__name__ == "BPE" and "<0x00>" in tokens
    types = []
    for index, token in enumerate(tokens):
        if index >= size:
            kind = gguf.TokenType.UNUSED
        elif index == unknown and index != tokenizer.eos_token_id:
            kind = gguf.TokenType.UNKNOWN
        elif index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        elif is_bytes and len(token) == 6 and token.startswith("<0x"):
            kind = gguf.TokenType.BYTE
        else:
            kind = gguf.TokenType.NORMAL
        types.append(int(kind))
    return types


def puts_start(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Says whether a tokenizer puts its start token before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def add_vocabulary(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Writes a tokenizer: as llama.cpp reads it, and as it was, for who can read that.

    Args:
        writer: Of the file.
        tokenizer: The student's.
        size: Of the embedding, which may have more rows than there are tokens.

    Raises:
        ValueError: llama.cpp has no tokenizer like this one.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model, name = backend["model"], tokenizer.name_or_path
    splitting = _list_parts(backend["pre_tokenizer"], "pretokenizers")
    normalizers = _list_parts(backend["normalizer"], "normalizers")
    known = len(tokenizer)
    tokens = [str(tokenizer.convert_ids_to_tokens(n)) if n < known else f"[PAD{n}]" for n in range(size)]
    spaces = [part for part in splitting if part["type"] == "Metaspace"]
    prefixed = any(part["prepend_scheme"] != "never" for part in spaces) or any(
        part["type"] == "Prepend" for part in normalizers
    )
    if model["type"] == "Unigram" and spaces and all(part["type"] == "Precompiled" for part in normalizers):
        writer.add_tokenizer_model("t5")
        writer.add_token_scores([*(score for _, score in model["vocab"]), *[0.0] * size][:size])
        writer.add_add_space_prefix(prefixed)
        writer.add_remove_extra_whitespaces(False)
        for part in normalizers:
            writer.add_precompiled_charsmap(base64.b64decode(part["precompiled_charsmap"]))
    elif model["type"] == "BPE" and splitting and (kind := name_splitting(splitting)) is not None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
        writer.add_token_merges(merges)
    elif model["type"] == "BPE" and (spaces or any(part["type"] == "Replace" for part in normalizers)):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_rank_scores(model, tokens))
        writer.add_add_space_prefix(prefixed)
    else:
        steps = ", ".join(part["type"] for part in [*normalizers, *splitting]) or "nothing"
        raise ValueError(
            f"{name}: llama.cpp is not known to have a tokenizer like it ({model['type']} after {steps}); if its own "
            "converter knows it, name a checkout with --llama_cpp"
        )
    writer.add_token_list(tokens)
    writer.add_token_types(_type_tokens(tokenizer, tokens, known))
    end, *others = find_end_tokens(tokenizer)
    writer.add_eos_token_id(end)
    if others:
        writer.add_eot_token_id(others[0])
    for add, number in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(puts_start(tokenizer))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())
    content, settings = pack_tokenizer(tokenizer)
    writer.add_string(TOKENIZER_KEY, content)
    writer.add_string(CONFIG_KEY, settings)
