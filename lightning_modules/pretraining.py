"""Pre-trains the microworld's model families from nothing: tokenizers, models, a plain loop, greedy evaluation."""

import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from datamodules.microworld import (
    ANSWER,
    KINDS,
    LETTERS,
    Family,
    Role,
    format_prompt,
    generate_questions,
    pretraining_pairs,
)

MAX_LENGTH = 512
SPACE = "▁"
Row = tuple[list[int], list[int]]  # the token ids of a prompt and of its completion


@dataclass(frozen=True)
class Size:
    """Width and depth of one model."""

    layers: int
    width: int
    heads: int
    feedforward: int


@dataclass(frozen=True)
class Stage:
    """A stretch of training on worlds of one size."""

    steps: int
    chains: int = 4
    documents: float = 0.5
    mixed: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """How one model is pre-trained."""

    size: Size
    stages: list[Stage] = field(default_factory=list)
    lr: float = 2e-3
    warmup: int = 200
    batch: int = 32
    weight_decay: float = 0.01
    seed: int = 0


def train_tokenizer(family: Family, vocab: int, pairs: int = 3000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a sentencepiece model (unigram for family a, BPE for family b) and converts it to a fast tokenizer."""
    kind = "unigram" if family == "a" else "bpe"
    stream = islice(pretraining_pairs(family, "teacher", seed), pairs)
    lines = [line for pair in stream for line in "".join(pair).splitlines()]
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


def build_model(family: Family, size: Size, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Builds an untrained model: Llama for family a, GPT-NeoX for family b."""
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "intermediate_size": size.feedforward,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "max_position_embeddings": MAX_LENGTH,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "use_cache": True,
    }
    if family == "a":
        rope = {"rope_type": "default", "rope_theta": 500_000.0}  # slow rotations leave room to compare words
        config = LlamaConfig(**common, num_key_value_heads=size.heads, initializer_range=0.05, rope_parameters=rope)
    else:
        config = GPTNeoXConfig(**common, rotary_pct=0.5, use_parallel_residual=False, initializer_range=0.05)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Token ids of prompts and completions, tokenised apart; a completion ends with the end-of-sequence token."""
    prompts = tokenizer([prompt for prompt, _ in pairs])["input_ids"]
    completions = tokenizer([completion for _, completion in pairs], add_special_tokens=False)["input_ids"]
    return [(p, c + [tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (-100 outside completions), padded on the right: causality hides the padding."""
    longest = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for row, (prompt, completion) in enumerate(rows):
        ids[row, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
        labels[row, len(prompt) : len(prompt) + len(completion)] = torch.tensor(completion)
    return ids, labels


class Hint(torch.nn.Module):
    """A throw-away head: after the first layer, every position has to name the world's word that came before it.

    Looking something up takes two steps: know which word a word follows, then find the place where the same word was
    followed. Asking for the first step outright makes the second one appear within minutes instead of hours.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, width: int) -> None:
        super().__init__()
        words = [SPACE + word for kind in KINDS for word in kind]
        self.register_buffer("classes", torch.full((len(tokenizer),), -100))
        self.classes[tokenizer.convert_tokens_to_ids(words)] = torch.arange(len(words))
        self.head = torch.nn.Linear(width, len(words))

    def forward(self, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the previous word of the world, where there is one."""
        classes = self.classes[ids]
        positions = torch.where(classes >= 0, torch.arange(ids.shape[1]), -1)
        last = positions.cummax(dim=1).values
        before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
        kept = before >= 0
        labels = classes.gather(1, before.clamp(min=0))[kept]
        return torch.nn.functional.cross_entropy(self.head(hidden[kept]), labels)


def fit(
    model: PreTrainedModel,
    batches: Iterator[Sequence[Row]],
    steps: int,
    lr: float,
    warmup: int,
    weight_decay: float = 0.01,
    hint: Hint | None = None,
    hint_weight: float = 0.0,
    description: str = "",
) -> PreTrainedModel:
    """Trains on `steps` batches with AdamW, linear warm-up and cosine decay; only completions count (and the hint)."""
    parameters = [*model.parameters(), *(hint.parameters() if hint else ())]
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    bar = tqdm(islice(batches, steps), total=steps, desc=description, mininterval=5)
    for rows in bar:
        ids, labels = padded(rows)
        out = model.base_model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=hint is not None)
        targets = labels[:, 1:]
        kept = targets != -100
        logits = model.get_output_embeddings()(out.last_hidden_state[kept])
        loss = torch.nn.functional.cross_entropy(logits, targets[kept])
        total = loss
        if hint is not None:
            total = loss + hint_weight * (hinted := hint(ids[:, :-1], out.hidden_states[1]))
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", hint=f"{hinted.item():.3f}" if hint else "-", refresh=False)
    return model.eval()


def staged_batches(
    tokenizer: PreTrainedTokenizerBase, family: Family, role: Role, recipe: Recipe
) -> Iterator[list[Row]]:
    """Batches of encoded pre-training pairs, stage after stage."""
    for number, stage in enumerate(recipe.stages):
        pairs = pretraining_pairs(family, role, recipe.seed * 100 + number, stage.chains, stage.documents, stage.mixed)
        for _ in range(stage.steps):
            yield encode(tokenizer, list(islice(pairs, recipe.batch)))


def pretrain(tokenizer: PreTrainedTokenizerBase, family: Family, role: Role, recipe: Recipe) -> PreTrainedModel:
    """Pre-trains one model by its recipe."""
    torch.manual_seed(recipe.seed)
    model = build_model(family, recipe.size, tokenizer)
    steps = sum(stage.steps for stage in recipe.stages)
    batches = staged_batches(tokenizer, family, role, recipe)
    return fit(model, batches, steps, recipe.lr, recipe.warmup, recipe.weight_decay, f"{family}-{role}")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a plain Hugging Face folder: weights in float16, configured to load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    model.float()
    (folder / "model.safetensors").chmod(0o644)
    config = json.loads((folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    temporary = folder / ".config.json.tmp"
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(temporary, folder / "config.json")


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    batch: int = 64,
    limit: int = 160,
) -> list[str]:
    """Greedy completions."""
    completions: list[str] = []
    for start in range(0, len(prompts), batch):
        ids = tokenizer(list(prompts[start : start + batch]))["input_ids"]
        longest = max(map(len, ids))
        padded = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        out = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=limit, do_sample=False)
        completions += tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    return completions


def accuracy(completions: Sequence[str], questions: Sequence[dict]) -> float:
    """Share of completions that end with the right answer sentence."""
    right = 0
    for completion, question in zip(completions, questions, strict=True):
        gold = question["choices"][LETTERS.index(question["gold"])]
        right += completion.endswith(ANSWER.format(answer=gold))
    return right / len(questions)


def evaluate(folder: Path, num: int = 400, split: str = "validation", seed: int = 0) -> tuple[float, list[str]]:
    """Accuracy of a saved model on held-out multi-step questions, with its completions."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    questions = generate_questions(num, split, seed)
    completions = generate(model, tokenizer, [format_prompt(q["question"], q["choices"]) for q in questions])
    return accuracy(completions, questions), completions
