"""Tests of packed tokenizers: what a GGUF file without one says; that one comes back is tested with the export."""

from pathlib import Path

import pytest

from datamodules.examples.tokenization import load_tokenizer
from datamodules.text.gguf_tokenizer import CONFIG_KEY, TOKENIZER_KEY, pack_tokenizer, read_packed
from tests.tiny import build_tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'kindred[gguf]'")


def write(path: Path, texts: dict[str, str]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for key, text in texts.items():
        writer.add_string(key, text)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return path


def test_a_packed_tokenizer_comes_back(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }} ü"
    content, settings = pack_tokenizer(tokenizer)
    found = read_packed(write(tmp_path / "a.gguf", {TOKENIZER_KEY: content, CONFIG_KEY: settings}))
    assert found is not None
    assert found("Größe 12\n") == tokenizer("Größe 12\n") and found.chat_template == tokenizer.chat_template
    assert (found.eos_token_id, found.pad_token_id) == (1, 0)
    assert read_packed(write(tmp_path / "b.gguf", {"general.name": "x"})) is None
    damaged = write(tmp_path / "c.gguf", {TOKENIZER_KEY: "{}", CONFIG_KEY: settings})
    with pytest.raises(ValueError, match=r"c\.gguf: no tokenizer can be loaded"):
        load_tokenizer(str(damaged))
