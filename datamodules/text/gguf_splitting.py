"""How a GGUF file's byte-level tokenizer splits a text before its merges apply, as llama.cpp does it.

Transformers knows some of the names under `tokenizer.ggml.pre` and takes any other for GPT-2's, without a word; the ids
are then not those that the model was trained on.
"""

from pathlib import Path

from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS, get_gguf_tokenizer

# Each digit by itself, then as GPT-2.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT2 = {"gpt-2", "mpt", "olmo", "phi-2", "roberta-bpe", "jina-v2-es", "jina-v2-de", "jina-v2-code"}


def split_as_llama_cpp(tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Makes the tokenizer that transformers read from a GGUF file split texts as the file says.

    Raises:
        ValueError: The file names no way of splitting, or one that is not known here.
    """
    _, facts, _ = get_gguf_tokenizer(str(path))
    if facts["tokenizer_type"] != "gpt2":
        return
    name = facts.get("pre_tokenizer_type")
    if name in _DIGITS_APART:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name not in _AS_GPT2 and name not in GGUF_PRE_TOKENIZER_SPLITS:
        known = ", ".join(sorted({*_DIGITS_APART, *_AS_GPT2, *GGUF_PRE_TOKENIZER_SPLITS}))
        raise ValueError(
            f"{path}: its texts are split by {name!r} (tokenizer.ggml.pre), which is none of {known}; use the model's "
            "own folder or hub id, whose tokenizer.json says how"
        )
