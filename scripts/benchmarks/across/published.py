"""SmolLM2 as the teacher of a tiny student that has a tokenizer of its own, on published rationales.

The student is a Llama of two layers without any training, its tokenizer a byte-level BPE of 4,096 tokens that was made
of the questions and rationales which the student learns from. SmolLM2 reads texts that it has not written: those of
gpt-4o, which both arms with and without its distributions learn from.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from datamodules.files.atomic import write_jsonl
from datamodules.model_sources import name_model
from datamodules.rationales.store import load_rationales, write_rationales
from datamodules.tasks.questions import load_questions
from scripts.benchmarks.across.runs import Bench

WRITER = "gpt-4o/L3"
VOCABULARY, LAYERS, WIDTH = 4096, 2, 96


@dataclass(frozen=True)
class PublishedBench(Bench):
    """The comparison's files, and its trainings.

    Attributes:
        gguf: SmolLM2-135M-Instruct.
        source: Published rationales, jsonl.gz.
    """

    gguf: str = ""
    source: str = ""
    new_tokens: int = 1

    @cached_property
    def questions(self) -> list[dict[str, Any]]:
        """The pool."""
        return [vars(question) for question in islice(load_questions(self.source), self.scale.pool)]

    def find_model(self, model: str) -> str:
        """Returns the name of the student, or of the teacher."""
        return self.gguf if model == "smollm2" else str(self.folder / model)

    def name_teacher(self, teacher: str) -> str:
        """Returns what the logit cache calls the teacher."""
        return name_model(self.gguf)

    def prepare(self) -> None:
        """Writes what is not there: texts, their logits, and the student."""
        self.folder.mkdir(parents=True, exist_ok=True)
        everything = load_questions(self.source)
        written = load_rationales([self.source], {question.id: question for question in everything})
        # Not every question has a rationale by the writer.
        explained = {item.question_id for item in written if item.teacher == WRITER}
        rest = [question for question in everything[self.scale.pool :] if question.id in explained]
        parts = {"train": everything[: self.scale.pool], "test": rest[: self.scale.tests]}
        for split, questions in parts.items():
            ids = {question.id for question in questions}
            write_jsonl(self.folder / f"{split}.jsonl", [vars(question) for question in questions])
            own = [item for item in written if item.question_id in ids and item.teacher == WRITER]
            write_rationales(self.folder / f"smollm2-{split}.parquet", own, {})
        if not (self.folder / "smollm2-logits").is_dir():
            self.capture("smollm2", "smollm2")
        if not (self.folder / "tiny").is_dir():
            texts = [f"{question.question}\n{question.choices}" for question in parts["train"]]
            build_student(self.folder / "tiny", [*texts, *(item.text for item in written if item.teacher == WRITER)])


def build_student(folder: Path, texts: list[str]) -> None:
    """Writes an untrained student with a tokenizer of these texts."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<pad>", "</s>"],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
