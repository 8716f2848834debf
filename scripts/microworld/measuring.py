"""What a microworld model can do: look up single steps, and answer held-out questions."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from datamodules.batches.packing import pad_rows
from datamodules.tasks.microworld import (
    ANSWER,
    KINDS,
    LETTERS,
    Phrasing,
    draw_document,
    format_prompt,
    generate_questions,
)
from lightning_modules.model.generation import generate_completions
from scripts.microworld.families import SPACE

Row = tuple[list[int], list[int]]  # the token ids of a prompt and of its completion


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


@torch.inference_mode()
def lookups(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    phrasing: Phrasing,
    num: int = 100,
    chains: int = 4,
) -> list[float]:
    """For each of the three kinds of step: the share of right values among the first three steps of documents."""
    rng = random.Random("microworld lookups")
    rows = encode(tokenizer, [draw_document(rng, phrasing, chains) for _ in range(num)])
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


def accuracy(completions: Sequence[str], questions: Sequence[dict[str, Any]]) -> float:
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
