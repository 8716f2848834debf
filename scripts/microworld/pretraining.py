"""Pre-trains the microworld's model families from nothing: tokenizers, models, a plain loop, greedy evaluation."""

import json
import math
import os
import random
import re
import tempfile
from collections.abc import Sequence
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

from datamodules.batches.packing import pad_rows
from datamodules.tasks.microworld import (
    ANSWER,
    KINDS,
    LETTERS,
    Family,
    Role,
    draw_document,
    format_prompt,
    generate_questions,
    pretraining_pairs,
)
from lightning_modules.model.generation import generate_completions

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
    """A stretch of training: at most `steps` batches, and less if all lookups are right before that.

    `until` is the share of lookups, of the worst kind, at which the stage ends; nothing is looked at where it is null.
    """

    steps: int
    chains: int = 4
    documents: float = 0.5
    mixed: float = 1.0
    until: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How one model is pre-trained: the learning rate warms up, stays, and falls to zero in the last stage."""

    size: Size
    stages: list[Stage] = field(default_factory=list)
    lr: float = 3e-3
    warmup: int = 200
    batch: int = 32
    weight_decay: float = 0.01
    hint_weight: float = 1.0
    seed: int = 0


def train_tokenizer(family: Family, vocab: int, pairs: int = 3000, seed: int = 0) -> PreTrainedTokenizerFast:
    """Trains a sentencepiece model (unigram for family a, BPE for family b) and converts it to a fast tokenizer.

    A third of the text is the other family's: its words are known to the tokenizer, though not to the models.
    """
    kind = "unigram" if family == "a" else "bpe"
    other: Family = "b" if family == "a" else "a"
    streams = (pretraining_pairs(family, "teacher", seed), pretraining_pairs(other, "teacher", seed))
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
    return [(p, [*c, tokenizer.eos_token_id]) for p, c in zip(prompts, completions, strict=True)]


def padded(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and labels (-100 outside completions), padded on the right: causality hides the padding."""
    ids = pad_rows([prompt + completion for prompt, completion in rows], 0)
    labels = pad_rows([[-100] * len(prompt) + completion for prompt, completion in rows], -100)
    return ids, labels


class Hint(torch.nn.Module):
    """A throw-away head: after the first layer, every position has to name the world's word that came before it.

    Looking something up takes two steps: know which word a word follows, then find the place where the same word was
    followed. Asking for the first step outright makes the second one appear within minutes instead of hours.
    """

    classes: torch.Tensor

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


def train_step(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rows: Sequence[Row],
    hint: Hint | None,
    weight: float,
) -> float:
    """One optimiser step on a batch: cross-entropy of the completions, and the hint. Returns the former."""
    ids, labels = padded(rows)
    out = model.base_model(input_ids=ids[:, :-1], use_cache=False, output_hidden_states=hint is not None)
    targets = labels[:, 1:]
    kept = targets != -100
    logits = model.get_output_embeddings()(out.last_hidden_state[kept])
    loss = torch.nn.functional.cross_entropy(logits, targets[kept])
    total = loss if hint is None else loss + weight * hint(ids[:, :-1], out.hidden_states[1])
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    return loss.item()


@torch.inference_mode()
def lookups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    num: int = 100,
    chains: int = 4,
) -> list[float]:
    """For each of the three kinds of step: the share of right values among the first three steps of documents."""
    rng = random.Random("microworld lookups")
    rows = encode(tokenizer, [draw_document(rng, family, chains) for _ in range(num)])
    kinds = {tokenizer.convert_tokens_to_ids(SPACE + word): k for k, words in enumerate(KINDS) for word in words}
    ids, _ = padded(rows)
    guesses = model(input_ids=ids, use_cache=False).logits.argmax(-1)
    right, seen = [0, 0, 0], [0, 0, 0]
    for row, (prompt, completion) in enumerate(rows):
        places = [len(prompt) + i for i, token in enumerate(completion) if token in kinds]
        for place in places[1:6:2]:  # key, value, key, value, key, value
            kind = kinds[int(ids[row, place])] - 1
            seen[kind] += 1
            right[kind] += int(guesses[row, place - 1] == ids[row, place])
    return [r / max(1, s) for r, s in zip(right, seen, strict=True)]


def pretrain(
    tokenizer: PreTrainedTokenizerBase,
    family: Family,
    role: Role,
    recipe: Recipe,
    start: PreTrainedModel | None = None,
) -> PreTrainedModel:
    """Pre-trains one model by its recipe, from nothing or grown from a shallower model (`start`)."""
    torch.manual_seed(recipe.seed)
    model = build_model(family, recipe.size, tokenizer)
    if start is not None:
        grow(model, start)
    hint = Hint(tokenizer, recipe.size.width)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *hint.parameters()],
        lr=recipe.lr,
        betas=(0.9, 0.98),
        weight_decay=recipe.weight_decay,
    )
    done = 0
    for number, stage in enumerate(recipe.stages):
        last = number == len(recipe.stages) - 1
        pairs = pretraining_pairs(family, role, recipe.seed * 100 + number, stage.chains, stage.documents, stage.mixed)
        bar = tqdm(range(stage.steps), desc=f"{family}-{role}, stage {number + 1}", mininterval=10)
        for at in bar:
            fall = 0.5 * (1 + math.cos(math.pi * at / stage.steps)) if last else 1.0
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * min(1.0, (done + 1) / recipe.warmup) * fall
            model.train()
            loss = train_step(
                model,
                optimizer,
                encode(tokenizer, list(islice(pairs, recipe.batch))),
                hint,
                recipe.hint_weight,
            )
            done += 1
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            if at % 100 == 99:
                model.eval()
                found = lookups(model, tokenizer, family)
                bar.write(f"{family}-{role} step {done} loss {loss:.3f} lookups {[round(share, 2) for share in found]}")
                if stage.until is not None and min(found) >= stage.until:
                    break
    return model.eval()


@torch.no_grad()
def grow(model: PreTrainedModel, start: PreTrainedModel) -> None:
    """Copies a shallower model into a deeper one; the new layers write nothing at first."""
    missing = set(model.load_state_dict(start.state_dict(), strict=False).missing_keys)
    for name, parameter in model.named_parameters():
        writes = ("o_proj.", "down_proj.", "attention.dense.", "dense_4h_to_h.")
        if name in missing and any(write in name for write in writes):
            parameter.zero_()


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
        rows = tokenizer(list(prompts[start : start + batch]))["input_ids"]
        generated = generate_completions(model, rows, [tokenizer.eos_token_id], limit)
        completions += [tokenizer.decode(tokens) for tokens, _ in generated]
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
