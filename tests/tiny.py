"""Tiny real models, tokenizers, questions and rationales, made in the test; what needs Lightning is imported late."""

import inspect
import json
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from datamodules.distillation import DistillationDataModule, RationaleDataModule
from datamodules.logit_cache.writer import LogitCacheWriter
from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.questions import Question
from lightning_modules.model.pretrained import identify_weights
from lightning_modules.run.writers import CacheWriter
from lightning_modules.student.student import DistillationModule
from lightning_modules.teacher.teacher import LogitScorer

Module = TypeVar("Module", bound=L.LightningDataModule)
COLOURS = ("red", "blue", "green", "black", "white")
TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


def build_tokenizer(corpus: tuple[str, ...] = COLOURS) -> PreTrainedTokenizerFast:
    """Builds a byte-level BPE tokenizer; another corpus gives other merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"The answer is A) {word}. Choices: Question" for word in corpus], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def build_llama(
    vocabulary: int, seed: int = 0, layers: int = 2, width: int = 16, context: int = 1024, **config: Any
) -> nn.Module:
    """Builds an untrained Llama whose distributions are far from uniform."""
    torch.manual_seed(seed)
    settings = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **config,
    )
    return LlamaForCausalLM(settings).eval()


def save_model(folder: Path, padding: int = 0, corpus: tuple[str, ...] = COLOURS, **options: Any) -> str:
    """Saves a tiny Llama and its tokenizer; `padding` is how much larger the model's head is than the tokenizer."""
    tokenizer = build_tokenizer(corpus)
    build_llama(len(tokenizer) + padding, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_questions(number: int) -> list[Question]:
    """Makes short multiple-choice questions of mixed lengths."""
    questions = []
    for index in range(number):
        choices = tuple(COLOURS[(index + step) % 5] for step in range(3 + index % 2))
        text = "Which one" + " of these" * (index % 3) + f" is {index}?"
        questions.append(Question(f"q{index}", "colours", "train", text, choices, "ABC"[index % 3]))
    return questions


def write_questions(path: Path, questions: list[Question]) -> str:
    """Writes a jsonl of questions."""
    path.write_text("".join(json.dumps(vars(question)) + "\n" for question in questions), encoding="utf-8")
    return str(path)


def make_rationale(question: Question, teacher: str, sample: int = 0, right: bool = True) -> Rationale:
    """Makes one rationale, of a length that depends on the question and the sample."""
    letter = question.gold if right else next(letter for letter in question.letters if letter != question.gold)
    number = int(question.id[1:])
    text = "It is so" + " and so" * ((number * 3 + sample) % 4) + "."
    text += f" The answer is {letter}) {question.choice(letter)}."
    return Rationale(
        question_id=question.id,
        task=question.task,
        split=question.split,
        teacher=teacher,
        family="tiny",
        sample=sample,
        text=text,
        answer=letter,
        correct=right,
        finish_reason="stop",
        prompt_id="instruction-test",
    )


def write_store(path: Path, rationales: list[Rationale], teacher_folder: str) -> str:
    """Writes a rationale store that says it is of the model in `teacher_folder`."""
    metadata = {"teacher": Path(teacher_folder).name, "revision": identify_weights(teacher_folder, None)}
    write_rationales(path, rationales, metadata)
    return str(path)


def build(kind: type[Module], *args: Any, **settings: Any) -> Module:
    """Makes a data module of settings by name, each put into the component that owns it."""
    parameters = [item for base in kind.__mro__[1::-1] for item in inspect.signature(base).parameters.items()]
    defaults = {name: value.default for name, value in parameters if is_dataclass(value.default)}
    # Of two components that have one of a name, the first.
    owners = {setting.name: name for name, default in reversed(defaults.items()) for setting in fields(default)}
    components: dict[str, dict[str, Any]] = {}
    # What the module itself has under a component's name is its own.
    for setting in sorted((settings.keys() & owners.keys()) - dict(parameters).keys()):
        components.setdefault(owners[setting], {})[setting] = settings.pop(setting)
    for name, values in components.items():
        settings[name] = replace(defaults[name], **values)
    return kind(*args, **settings)


def capture(
    folder: Path,
    teacher: str,
    questions: str,
    rationales: list[str],
    temperatures: tuple | None = (1.0, 2.0),
    **options: Any,
) -> str:
    """Captures a logit cache with the real scorer under a real trainer."""
    top_k = options.pop("top_k", 8)
    tokens_per_batch = options.pop("tokens_per_batch", 400)
    rows_per_shard = options.pop("rows_per_shard", 100)
    data = build(
        RationaleDataModule,
        teacher,
        questions,
        rationales,
        correct_only=False,
        prompt="plain",
        tokens_per_batch=tokens_per_batch,
        max_length=options.pop("max_length", 1024),
    )
    scorer = LogitScorer(teacher, top_k=top_k, temperatures=temperatures and list(temperatures), **options)
    data.setup("predict")
    scorer.check(data)
    description = scorer.describe(data.fingerprint, data.prompt.id, len(data.tokenizer))
    writer = LogitCacheWriter(folder, description, rows_per_shard=rows_per_shard)
    data.done = writer.find_done()
    trainer = L.Trainer(**TRAINER, callbacks=[CacheWriter(writer, {})])
    trainer.predict(scorer, data, return_predictions=False)
    return str(folder)


def fit(
    module: DistillationModule, data: DistillationDataModule, ckpt_path: str | None = None, **options: Any
) -> L.Trainer:
    """Fits under a real trainer, after the checks that the script makes."""
    data.setup("fit")
    module.check(data)
    trainer = L.Trainer(**{**TRAINER, "max_epochs": 1, "num_sanity_val_steps": 0, **options})
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer
