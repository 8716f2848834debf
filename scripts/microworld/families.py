"""What a family of the microworld is made of: its tokenizer, its architecture, its phrasing, its initialisation."""

import re
import tempfile
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from datamodules.tasks.microworld import Phrasing, pretraining_pairs

TokenizerKind = Literal["unigram", "bpe"]
Architecture = Literal["llama", "neox"]

MAX_LENGTH = 512
SPACE = "▁"
# For each tokenizer: the phrasing that most of its text has, and the upper bound of its vocabulary.
TOKENIZER_TEXTS: dict[TokenizerKind, tuple[Phrasing, int]] = {"unigram": ("a", 300), "bpe": ("b", 330)}
# Widths of the feed-forward layer: Llama's has three matrices, GPT-NeoX's two.
FEEDFORWARD: dict[Architecture, int] = {"llama": 3, "neox": 4}


@dataclass(frozen=True)
class Parts:
    """The parts of a family.

    Attributes:
        tokenizer: Trained on the microworld's text.
        architecture: Llama-like or GPT-NeoX-like.
        phrasing: Of the text that its models are pre-trained on.
        seed: Of the models' initialisation. The text, and its order, do not depend on it.
    """

    tokenizer: TokenizerKind
    architecture: Architecture
    phrasing: Phrasing
    seed: int = 0

    @property
    def name(self) -> str:
        """The family's name, which says its parts."""
        lineage = f"-init{self.seed}" if self.seed else ""
        return f"{self.tokenizer}-{self.architecture}-{self.phrasing}{lineage}"


@dataclass(frozen=True)
class Size:
    """Width and depth of one model."""

    layers: int
    width: int
    heads: int


def train_tokenizer(kind: TokenizerKind, pairs: int = 3000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a sentencepiece model and converts it to a fast tokenizer.

    It depends on nothing but its kind, so that families that share it share nothing else by it. A third of its text has
    the other phrasing, whose words it therefore keeps whole, too.
    """
    own, vocab = TOKENIZER_TEXTS[kind]
    other: Phrasing = "b" if own == "a" else "a"
    streams = (pretraining_pairs(own, "teacher", seed), pretraining_pairs(other, "teacher", seed))
    texts = [*islice(streams[0], pairs), *islice(streams[1], pairs // 2)]
    lines = [line for pair in texts for line in "".join(pair).removesuffix("\n").split("\n")]
    if kind == "unigram":
        # The unigram trainer considers only pieces found in two different words: show each word beside other marks.
        words = [word for line in lines for word in re.findall(r"[A-Za-z]+", line)]
        lines += [f"{word} {word}. {word}, {word}:" for word in words]
    with tempfile.TemporaryDirectory() as folder:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=f"{folder}/tokenizer",
            model_type=kind,
            vocab_size=vocab,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=1.0,
            required_chars="".join(chr(code) for code in range(33, 127)),
            user_defined_symbols=["\n"],
            split_digits=True,
            pad_id=0,
            unk_id=1,
            eos_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            unk_piece="<unk>",
            eos_piece="</s>",
            hard_vocab_limit=False,
            num_threads=1,
            minloglevel=2,
        )
        pieces = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/tokenizer.model")
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    model: models.Model
    if kind == "unigram":
        model = models.Unigram(vocabulary, unk_id=1, byte_fallback=False)
    else:
        ids = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        merges = [
            (piece[:cut], piece[cut:])
            for piece in list(ids)[3:]
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ]
        model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="first", split=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_model(
    architecture: Architecture, size: Size, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    """Builds an untrained model, whose weights are drawn by `seed`."""
    torch.manual_seed(seed)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "intermediate_size": FEEDFORWARD[architecture] * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }
    if architecture == "llama":
        rope = {"rope_type": "default", "rope_theta": 500_000.0}  # slow rotations leave room to compare words
        config = LlamaConfig(**common, num_key_value_heads=size.heads, initializer_range=0.05, rope_parameters=rope)
    else:
        config = GPTNeoXConfig(**common, rotary_pct=0.5, use_parallel_residual=False, initializer_range=0.05)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


@torch.no_grad()
def grow(model: PreTrainedModel, start: PreTrainedModel) -> None:
    """Copies a shallower model into a deeper one; the new layers write nothing at first."""
    missing = set(model.load_state_dict(start.state_dict(), strict=False).missing_keys)
    for name, parameter in model.named_parameters():
        writes = ("o_proj.", "down_proj.", "attention.dense.", "dense_4h_to_h.")
        if name in missing and any(write in name for write in writes):
            parameter.zero_()
