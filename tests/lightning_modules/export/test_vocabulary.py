"""Tests of vocabularies: llama.cpp reads each kind as its tokenizer does, and unknown kinds are refused by name."""

from pathlib import Path

import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers

from datamodules.examples.tokenization import load_tokenizer
from tests.tiny import build_llama, build_tokenizer

pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")

from lightning_modules.export.architecture import convert
from lightning_modules.export.quantization import write_gguf
from lightning_modules.export.vocabulary import _LLAMA_3
from lightning_modules.model.llama_cpp import LlamaCpp
from tests.lightning_modules.export.conftest import MODELS

ByteLevel = pre_tokenizers.ByteLevel
SPLITTINGS = [
    ByteLevel(add_prefix_space=False),
    pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
    *(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for pattern in (_LLAMA_3, _LLAMA_3.replace("{1,3}", ""))
    ),
]
TEXTS = ["The answer is A) red.\n\n 12345 don't  stop", "Größe 42\t答えは44です", "A\n 2  B", "Question: x2+3y=1,000"]


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_texts_are_split_as_the_tokenizer_splits_them(splitting, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = splitting
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_gguf(tmp_path / "m.gguf", convert(build_llama(len(tokenizer), width=64), tokenizer), "f32", {}, {})
    own = LlamaCpp(str(tmp_path / "m.gguf"))
    assert [own.tokenize(text) for text in TEXTS] == tokenizer(TEXTS).input_ids
    assert (own.end_id, own.bos_id, own.chat_template) == (1, None, tokenizer.chat_template)
    assert own.ends(1) and not own.ends(5)
    own.close()
    packed = load_tokenizer(str(tmp_path / "m.gguf"))
    assert packed(TEXTS).input_ids == tokenizer(TEXTS).input_ids and packed.chat_template == tokenizer.chat_template


@pytest.mark.parametrize("name", ["a-student", "b-student"])
def test_the_microworlds_tokenizers_have_a_road(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(MODELS / name))
    write_gguf(tmp_path / "m.gguf", convert(build_llama(len(tokenizer), width=64), tokenizer), "f32", {}, {})
    own = LlamaCpp(str(tmp_path / "m.gguf"))
    texts = ["The wooden fan leads. All things can get pure.\nSo we get from bone: the box", "has\n\nthings, pure"]
    assert [own.tokenize(text) for text in texts] == tokenizer(texts).input_ids
    own.close()


@pytest.mark.parametrize("kind", ["splitting", "normalizer", "model"])
def test_other_kinds_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    backend = tokenizer.backend_tokenizer
    if kind == "splitting":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), ByteLevel(False)])
    elif kind == "normalizer":
        backend.pre_tokenizer, backend.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    else:
        vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "[UNK]", "a"])}
        backend.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    source = convert(build_llama(len(tokenizer), width=64), tokenizer)
    with pytest.raises(
        ValueError, match=r"llama\.cpp is not known to have a tokenizer like it \((BPE|WordPiece) after"
    ):
        write_gguf(tmp_path / "m.gguf", source, "f32", {}, {})
