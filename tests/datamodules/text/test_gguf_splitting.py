"""Tests of the splitting that a GGUF file names, against what llama.cpp itself made of the texts."""

import gzip
import json
import random
import re
from itertools import accumulate, islice
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.examples.tokenization import load_tokenizer
from datamodules.text.gguf_splitting import split_as_llama_cpp

gguf_package = pytest.importorskip("gguf", reason="the package gguf is not installed (make install adds it)")

# As llama.cpp b11549 tokenized them with SmolLM2's file.
BY_LLAMA_CPP = {
    "a\n 22 x": ["a", "ĊĠ", "2", "2", "Ġx"],
    "x\t\t12\n\n 3": ["x", "ĉĉ", "1", "2", "ĊĊĠ", "3"],
    "1,234.50": ["1", ",", "2", "3", "4", ".", "5", "0"],
    "  lead": ["Ġ", "Ġlead"],
    "crlf\r\nx 1\r\n": ["cr", "lf", "č", "Ċ", "x", "Ġ", "1", "čĊ"],
    "you've 'S 12a3": ["you", "'ve", "Ġ'", "S", "Ġ", "1", "2", "a", "3"],
    "€5,000 \n\n\n 7": ["âĤ¬", "5", ",", "0", "0", "0", "ĠĊĊ", "ĊĠ", "7"],
    "ह ३": ["à¤", "¹", "Ġ", "à¥", "©"],
}


@pytest.fixture(scope="module")
def tokenizer(gguf: str) -> PreTrainedTokenizerBase:
    """SmolLM2's, from its GGUF file."""
    return load_tokenizer(gguf)


def test_texts_are_split_as_llama_cpp_splits_them(tokenizer: PreTrainedTokenizerBase) -> None:
    found = {text: tokenizer.tokenize(text) for text in BY_LLAMA_CPP}
    assert found == BY_LLAMA_CPP


def test_real_texts_have_each_digit_apart_and_the_rest_as_gpt2(
    gguf: str, tokenizer: PreTrainedTokenizerBase, shared_data: Path
) -> None:
    plain = AutoTokenizer.from_pretrained(str(Path(gguf).parent), gguf_file=Path(gguf).name).backend_tokenizer
    texts = []
    for name in ("gsm8k_train", "svamp_all", "obqa_train"):
        with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            texts += [json.dumps(json.loads(line), indent=1)[:400] for line in islice(lines, 400)]
    pieces = [[piece for piece in re.split(r"(\d)", text) if piece] for text in texts]
    ends = list(accumulate(map(len, pieces)))
    encoded = plain.encode_batch([piece for each in pieces for piece in each])
    expected = [
        [token for part in encoded[end - len(each) : end] for token in part.ids]
        for each, end in zip(pieces, ends, strict=True)
    ]
    assert [each.ids for each in tokenizer.backend_tokenizer.encode_batch(texts)] == expected
    assert len(texts) == 1200 and [each.ids for each in plain.encode_batch(texts)] != expected


def draw_texts(shared_data: Path, number: int) -> list[str]:
    """Returns texts of digits, lines, other scripts, emoji and long white space, drawn by a seed, and real ones."""
    draw = random.Random(0)
    alphabets = [
        *("0123456789", "0123456789.,:%/+-=", "\n\t \r", "abcdefgh XYZ'", '()[]{}<>|_*#"\\', "\u00a0\u2003\u3000 "),
        *("äöüßéñçœ", "абвгд ЁЖ", "αβγδ", "אבגד", "ابتث ١٢٣", "हिन्दी ३", "你好世界，。", "ひらカタ漢字", "한국어"),
        "🙂👍🏽👩\u200d🔬🇩🇪",
    ]
    texts = []
    while len(texts) < number - 300:
        pieces = []
        for _ in range(draw.randrange(1, 9)):
            alphabet = draw.choice(alphabets)
            pieces.append("".join(draw.choice(alphabet) for _ in range(draw.randrange(1, 9))))
            pieces.append(draw.choice(["", " ", "\n", " " * draw.randrange(2, 40), "'s", "<|im_start|>"]))
        texts.append("".join(pieces))
    for path in sorted([*shared_data.glob("*_train.jsonl.gz"), *shared_data.glob("languages/*.jsonl.gz")]):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            texts += [json.dumps(json.loads(line), indent=1, ensure_ascii=False)[:300] for line in islice(lines, 30)]
    return texts


@pytest.mark.smollm2
def test_a_thousand_texts_have_llama_cpps_own_ids(
    gguf: str, tokenizer: PreTrainedTokenizerBase, shared_data: Path
) -> None:
    pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")
    from lightning_modules.model.llama_cpp import LlamaCpp

    texts = draw_texts(shared_data, 1000)
    own = LlamaCpp(gguf, longest=512)
    try:
        other = [
            text for text in texts
            if own.tokenize(text, parse_special=True) != tokenizer(text, add_special_tokens=False).input_ids
        ]  # fmt: skip
    finally:
        own.close()
    assert len(texts) >= 1000 and other == []


@pytest.mark.parametrize("name", ["mystery", None])
def test_a_file_that_names_no_known_splitting_is_refused(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, name: str | None
) -> None:
    path = tmp_path / "x.gguf"
    writer = gguf_package.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    if name is not None:
        writer.add_tokenizer_pre(name)
    writer.add_token_list(["a", "b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ValueError, match=rf"x\.gguf: its texts are split by {name!r} .* use the model's own folder"):
        split_as_llama_cpp(tokenizer, path)
