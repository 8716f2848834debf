"""A tokenizer inside a GGUF file as it was, beside what llama.cpp reads of it: GGUF's `tokenizer.huggingface.json`."""

import json
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules.files.gguf_metadata import read_texts

TOKENIZER_KEY = "tokenizer.huggingface.json"
CONFIG_KEY = "kindred.tokenizer_config"
_FILES = {TOKENIZER_KEY: "tokenizer.json", CONFIG_KEY: "tokenizer_config.json"}


def pack_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Returns the texts of a tokenizer's `tokenizer.json` and `tokenizer_config.json`, chat template included."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder, save_jinja_files=False)
        content, settings = (json.loads(Path(folder, name).read_text(encoding="utf-8")) for name in _FILES.values())
    return json.dumps(content, ensure_ascii=False), json.dumps(settings, ensure_ascii=False)


def read_packed(path: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer that a GGUF file holds as it was; None where it holds none."""
    texts = read_texts(path)
    if not _FILES.keys() <= texts.keys():
        return None
    with tempfile.TemporaryDirectory() as folder:
        for key, name in _FILES.items():
            Path(folder, name).write_text(texts[key], encoding="utf-8")
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    tokenizer.name_or_path = str(path)
    return tokenizer
