"""The bytes of a vocabulary's tokens, of tokenizers of different kinds."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.examples.alignment import align
from datamodules.examples.encoding import encode_texts, find_end_tokens
from datamodules.examples.tokenization import load_tokenizer
from datamodules.logit_cache.token_map import TokenMap
from datamodules.text.token_bytes import END, FALLBACK, SPECIAL, VocabularyBytes, list_byte_characters, read_vocabulary
from tests.datamodules.examples.test_tokenization import save_sentencepiece

TEXTS = [
    "The answer is (B).",
    "",
    " two  spaces before, 201 apples,\ttabs\t\t\tand  more",
    "lines\r\nthat end\r\n\r\n as on Windows",
    "a family 👩‍👩‍👧 and a flag 🇮🇳",
    "लकड़ी जल सकती है",
    "naïve Ωmega, 你好",
    "names of tokens: </s> <s> <0x41> <|im_end|>",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, gguf: str) -> dict[str, PreTrainedTokenizerBase]:
    """SmolLM2's byte-level tokenizer, and a SentencePiece with byte fallback that is trained here."""
    folder = tmp_path_factory.mktemp("tokenizers") / "sentencepiece"
    return {"byte-level": load_tokenizer(gguf), "sentencepiece": load_tokenizer(save_sentencepiece(folder))}


@pytest.fixture(scope="module")
def vocabularies(pair: dict[str, PreTrainedTokenizerBase]) -> dict[str, VocabularyBytes]:
    return {kind: read_vocabulary(tokenizer, find_end_tokens(tokenizer)) for kind, tokenizer in pair.items()}


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return encode_texts(tokenizer, [text])[0].ids


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_make_their_text(pair: dict, vocabularies: dict[str, VocabularyBytes], text: str) -> None:
    assert vocabularies["byte-level"].find_lead(encode(pair["byte-level"], text), text.encode()) == 0
    lead = vocabularies["sentencepiece"].find_lead(encode(pair["sentencepiece"], text), text.encode())
    assert lead == (0 if text[:1] in ("", " ") else 1)


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_any_text_is_made_of_its_tokens_and_aligned(pair: dict, vocabularies: dict, text: str) -> None:
    """U+2581 stands for a space in SentencePiece, and is no text there; SmolLM2 has no token for some bytes."""
    assume(set(text.encode()) <= {token[0] for token in vocabularies["byte-level"].tokens if len(token) == 1})
    ids = {kind: encode(tokenizer, text) for kind, tokenizer in pair.items()}
    for kind, vocabulary in vocabularies.items():
        assert vocabulary.find_lead(ids[kind], text.encode()) is not None
    ends = {kind: [*ids[kind], vocabularies[kind].ends[0]] for kind in ids}
    for student, teacher in (("byte-level", "sentencepiece"), ("sentencepiece", "byte-level")):
        alignment = align(ends[student], ends[teacher], vocabularies[student], vocabularies[teacher])
        assert alignment is not None and alignment.governing[-1] == len(ends[teacher]) - 1
        spelled = {}
        for kind, chunks in ((student, alignment.chunks), (teacher, alignment.teacher_chunks)):
            assert (chunks >= 0).all() and (np.diff(chunks) >= 0).all()
            parts = [b""] * (chunks.max() + 1)
            for token, chunk in zip(ends[kind], chunks, strict=True):
                parts[chunk] += vocabularies[kind].tokens[token]
            spelled[kind] = [parts[0].lstrip(b" "), *parts[1:]]
        assert spelled[student] == spelled[teacher]


def test_special_tokens_have_no_bytes_and_ends_are_flagged(pair: dict, vocabularies: dict) -> None:
    for kind, tokenizer in pair.items():
        vocabulary, ends = vocabularies[kind], find_end_tokens(tokenizer)
        assert len(vocabulary) == len(tokenizer) and vocabulary.ends == sorted(ends)
        for number in tokenizer.all_special_ids:
            assert vocabulary.tokens[number] == b"" and vocabulary.flags[number] & SPECIAL
            assert vocabulary.entries[number] == tokenizer.convert_ids_to_tokens(number).encode()
        assert not (vocabulary.flags[[number for number in range(len(vocabulary)) if number not in ends]] & END).any()


def test_bytes_to_fall_back_to_are_flagged(pair: dict, vocabularies: dict) -> None:
    names = pair["sentencepiece"].get_vocab()
    flagged = np.flatnonzero(vocabularies["sentencepiece"].flags & FALLBACK).tolist()
    assert flagged == sorted(names[f"<0x{value:02X}>"] for value in range(256))
    assert not (vocabularies["byte-level"].flags & FALLBACK).any()


def test_a_text_of_one_character_is_the_token_that_stands_for_its_bytes(pair: dict, vocabularies: dict) -> None:
    """Both kinds have tokens of the same bytes; a target is of no use on one that is never written."""
    for kind, tokenizer in pair.items():
        vocabulary = vocabularies[kind]
        tokens = TokenMap(vocabulary, vocabulary, vocabulary.ends[0])
        for text in ("The answer is 201, i.e. naïve\n\ttabs", "Venice"):
            ids = encode(tokenizer, text)
            assert tokens.equal_tokens[ids].tolist() == ids


def test_added_tokens_are_their_names() -> None:
    tokenizer = save_byte_level(["é", "<think>"], ["<|x|>"])
    vocabulary = read_vocabulary(tokenizer, [tokenizer.eos_token_id])
    by_name = {name: vocabulary.tokens[number] for name, number in tokenizer.get_vocab().items()}
    # A byte-level decoder would read the added token as the one byte 0xE9.
    assert by_name["é"] == "é".encode() and by_name["<think>"] == b"<think>" and by_name["<|x|>"] == b""
    assert by_name["Ġ"] == b" "


def save_byte_level(added: list[str], special: list[str]) -> PreTrainedTokenizerFast:
    names = ["</s>", *(name for name in list_byte_characters() if name not in added)]
    backend = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.add_tokens(added)
    tokenizer.add_special_tokens({"extra_special_tokens": special})
    return tokenizer


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (decoders.WordPiece(), "decodes with WordPiece"),
        (None, "has no decoder"),
        (decoders.Sequence([decoders.Replace("_", " "), decoders.Fuse()]), "decodes with Replace"),
        (decoders.Fuse(), "decodes with Fuse"),
        (decoders.Metaspace(replacement="_"), "decodes with Metaspace"),
        (decoders.Sequence([decoders.Metaspace(), decoders.ByteLevel()]), "decodes with Metaspace, ByteLevel"),
    ],
)
def test_unknown_kinds_are_refused_by_name(decoder: decoders.Decoder | None, message: str) -> None:
    tokenizer = save_byte_level([], [])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["decoder"] = None
    backend = Tokenizer.from_str(json.dumps(state))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", name_or_path="org/model")
    with pytest.raises(ValueError, match=f"^org/model: its tokenizer {message}, .*data.alignment"):
        read_vocabulary(tokenizer, [0])


def test_a_normalizing_tokenizers_text_is_another(pair: dict) -> None:
    state = json.loads(pair["byte-level"].backend_tokenizer.to_str())
    state["normalizer"] = {"type": "Lowercase"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<|im_end|>")
    vocabulary = read_vocabulary(tokenizer, [2])
    assert vocabulary.find_lead(encode(tokenizer, "An Answer"), b"An Answer") is None
    assert vocabulary.find_lead(encode(tokenizer, "an answer"), b"an answer") == 0


def test_arrays_make_the_same_vocabulary_and_damage_is_refused(vocabularies: dict, tmp_path: Path) -> None:
    vocabulary = vocabularies["sentencepiece"]
    arrays = vocabulary.to_arrays()
    again = VocabularyBytes.from_arrays(arrays, "x")
    assert again.tokens == vocabulary.tokens and again.hash == vocabulary.hash
    assert again.controls == vocabulary.controls != {}
    # Names of special tokens are not there in caches of earlier versions, whose tokens are the same.
    assert VocabularyBytes.from_tokens(vocabulary.tokens, vocabulary.flags.tolist()).hash == vocabulary.hash
    flags = arrays["flags"].copy()
    flags[5] ^= 1
    assert VocabularyBytes.from_arrays(arrays | {"flags": flags}, "x").hash != vocabulary.hash
    offsets = arrays["offsets"].copy()
    offsets[3], offsets[4] = offsets[4] + 1, offsets[3]
    for damaged in (
        {"offsets": offsets},
        {"flags": flags[1:]},
        {"bytes": arrays["bytes"][1:]},
        {"offsets": arrays["offsets"].astype(np.int64)},
    ):
        with pytest.raises(ValueError, match=r"^vocabulary.safetensors: .*; capture again$"):
            VocabularyBytes.from_arrays(arrays | damaged, "vocabulary.safetensors")
