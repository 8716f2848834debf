"""Evaluation of a student: greedy chain-of-thought answers and the log-likelihood of each option."""

from typing import Any

import lightning as L
import pyarrow as pa
from jsonargparse.typing import NonNegativeInt, PositiveInt

from datamodules.answers import EXTRACTORS
from datamodules.generation import PosedQuestion, QuestionDataModule
from lightning_modules.generation import generate_completions, score_completions
from lightning_modules.pretrained import Dtype, check_model, default_dtype, load_causal_lm

PREDICTION_SCHEMA = pa.schema(
    [pa.field("arm", pa.string()), pa.field("seed", pa.int32())]
    + [pa.field(name, pa.string()) for name in ("task", "split", "question_id", "gold", "completion", "finish_reason")]
    + [pa.field(f"answer_{name}", pa.string()) for name in EXTRACTORS]
    + [pa.field(f"correct_{name}", pa.bool_()) for name in EXTRACTORS]
    + [pa.field("answer_likelihood", pa.string()), pa.field("correct_likelihood", pa.bool_())]
    + [pa.field("option_log_likelihoods", pa.list_(pa.float64()))]
    + [pa.field("num_prompt_tokens", pa.int32()), pa.field("num_completion_tokens", pa.int32())]
)


class Evaluator(L.LightningModule):
    """Answers questions with a student under `Trainer.predict`; one Prediction record for each question."""

    def __init__(
        self,
        student: str,
        revision: str | None = None,
        dtype: Dtype | None = None,
        keep_layers: list[int] | None = None,
        max_new_tokens: PositiveInt = 256,
        score_options: bool = True,
        arm: str = "untuned",
        seed: NonNegativeInt = 0,
    ):
        """Stores the settings; the student is loaded when the trainer starts.

        Args:
            student: Hub id, local folder (an exported student), or GGUF file.
            revision: Commit of a hub model.
            dtype: Of the weights in memory; null is the model card's, or float32 where there is none.
            keep_layers: Keep only these decoder layers.
            max_new_tokens: Truncates a completion.
            score_options: Also compute each option's log-likelihood as the answer sentence.
            arm: Recorded with each prediction.
            seed: The arm's training seed, recorded with each prediction.
        """
        super().__init__()
        self.student, self.student_revision = student, revision
        self.student_dtype: Dtype = dtype or default_dtype(student)
        self.keep_layers = keep_layers
        self.max_new_tokens, self.score_options = max_new_tokens, score_options
        self.arm, self.seed = arm, seed
        self.model: Any = None

    def configure_model(self) -> None:
        """Loads the student, once."""
        if self.model is None:
            self.model = load_causal_lm(self.student, self.student_revision, self.student_dtype, self.keep_layers)
            self.model.eval().requires_grad_(False)

    def check(self, data: QuestionDataModule) -> None:
        """Raises a ValueError if the student cannot be loaded, or a generation may leave its context."""
        length = data.max_length + self.max_new_tokens
        what = "data.max_length + model.max_new_tokens"
        check_model(self.student, self.student_revision, self.keep_layers, length, what)

    def setup(self, stage: str) -> None:
        """Tells the data what a batch needs room for."""
        self.trainer.datamodule.max_new_tokens = self.max_new_tokens

    def predict_step(self, batch: dict, batch_idx: int) -> list[dict]:
        """Returns one record for each question."""
        data: QuestionDataModule = self.trainer.datamodule
        posed = [data.posed[identifier] for identifier in batch["question_ids"]]
        prompts = [item.prompt_ids for item in posed]
        completions = generate_completions(self.model, prompts, data.tokenizer.eos_token_id, self.max_new_tokens)
        scores = self._score_options(posed, data.tokenizer.eos_token_id) if self.score_options else [[]] * len(posed)
        records = []
        for item, (ids, finish_reason), likelihoods in zip(posed, completions, scores, strict=True):
            question = item.question
            text = data.tokenizer.decode(ids, skip_special_tokens=True).strip()
            record = {
                "arm": self.arm,
                "seed": self.seed,
                "task": question.task,
                "split": question.split,
                "question_id": question.id,
                "gold": question.gold,
                "completion": text,
                "finish_reason": finish_reason,
                "option_log_likelihoods": likelihoods,
                "num_prompt_tokens": len(item.prompt_ids),
                "num_completion_tokens": len(ids),
            }
            answers = {name: extract(text, question) for name, extract in EXTRACTORS.items()}
            chosen = {name: answer.answer if answer else None for name, answer in answers.items()}
            best = max(range(len(likelihoods)), key=likelihoods.__getitem__) if likelihoods else None
            chosen["likelihood"] = None if best is None else question.letters[best]
            for name, answer in chosen.items():
                graded = question.gold is not None and (name != "likelihood" or best is not None)
                record[f"answer_{name}"] = answer
                record[f"correct_{name}"] = answer == question.gold if graded else None
            records.append(record)
        return records

    def _score_options(self, posed: list[PosedQuestion], pad_id: int) -> list[list[float]]:
        """Returns log p(answer sentence | prompt) of each question's options, one option number at a time."""
        scores: list[list[float]] = [[] for _ in posed]
        for option in range(max(len(item.option_ids) for item in posed)):
            having = [number for number, item in enumerate(posed) if option < len(item.option_ids)]
            values = score_completions(
                self.model,
                [posed[number].prompt_ids for number in having],
                [posed[number].option_ids[option] for number in having],
                pad_id,
            )
            for number, value in zip(having, values, strict=True):
                scores[number].append(value)
        return scores
