"""A round of one optimizer step against an online step of TRL's, on the same prompts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.annotation import QuestionDraw
from datamodules.examples.tokenization import encode_prompts, load_tokenizer
from datamodules.files.tables import read_table
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from lightning_modules.model.pretrained import load_causal_lm
from scripts.benchmarks.measure import read_peak_rss
from scripts.benchmarks.rounds.experiment import describe_stages, plan_rounds, run_job
from scripts.benchmarks.turns import Turn
from studies.jobs.job import drop_spent

PROMPT = "plain"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: The student, and its teacher.
        folder: Where everything is kept.
        questions: A source of questions.
        steps: Optimizer steps, of which each is a round.
        samples: That are drawn, read and learnt from in each.
        new_tokens: At most, of a sample.
        micro_batch: So many samples are learnt from at a time.
    """

    model: str
    folder: str
    questions: str
    steps: int
    samples: int
    new_tokens: int
    micro_batch: int

    def read_prompts(self) -> tuple[Any, list[list[str]], int]:
        """Returns the tokenizer, each step's prompts, and how many tokens the longest has."""
        tokenizer, questions = load_tokenizer(self.model), load_questions(self.questions)
        drawn = [QuestionDraw(self.samples, step, 0).choose(questions) for step in range(self.steps)]
        prompts = [encode_prompts(tokenizer, get_prompt(PROMPT), own) for own in drawn]
        return (
            tokenizer,
            [[text for text, _ in own] for own in prompts],
            max(len(ids) for own in prompts for _, ids in own),
        )


def train_in_rounds(turn: Turn, setting: Setting) -> int:
    """Takes a turn for each round, from loading the student to its checkpoint; returns the process's peak bytes."""
    folder, (_, _, prompt) = Path(setting.folder), setting.read_prompts()
    longest = prompt + setting.new_tokens
    stages = describe_stages(folder, (setting.model, setting.model), PROMPT, setting.questions, longest)
    stages["annotate"]["data"]["batches"]["tokens_per_batch"] = setting.samples * longest
    for stage in ("cache_logits", "fit"):
        batches = {"tokens_per_batch": setting.micro_batch * longest}
        stages[stage]["data"] = {**stages[stage]["data"], "batches": batches}
    stages["fit"]["data"]["batches"]["tokens_per_step"] = setting.samples * longest
    stages["fit"]["trainer"] = {**stages["fit"]["trainer"], "max_steps": setting.steps}
    settings = {
        "name": "speed", "rounds": setting.steps, "questions": setting.samples, "max_new_tokens": setting.new_tokens,
        "mix": 0.0, "max_lost": 1.0, "min_distinct": 0.0,
    }  # fmt: skip
    plan = plan_rounds(folder / "speed.yaml", stages, settings)
    for number in range(1, setting.steps + 1):
        turn.start()
        for job in plan.round(number, []):
            run_job(job)
            drop_spent(plan.jobs())
        [samples] = [job.done for job in plan.round(number, []) if job.stage == "annotate"]
        turn.stop(sum(read_table(Path(samples))["num_completion_tokens"].to_pylist()))
    return read_peak_rss()


def train_online(turn: Turn, setting: Setting) -> int:
    """Takes a turn for each step of TRL's stable trainer, generation included; returns the process's peak bytes."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    class Trainer(DistillationTrainer):
        """Counts what the student writes."""

        written = 0

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            self.written += int(found["completion_mask"].sum())
            return found

    class Timer(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            trainer.written = 0
            turn.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            turn.stop(trainer.written)

    tokenizer, prompts, _ = setting.read_prompts()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    config = DistillationConfig(
        output_dir=f"{setting.folder}/trl",
        beta=1.0,
        temperature=1.0,
        max_completion_length=setting.new_tokens,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=setting.samples // setting.micro_batch,
        max_steps=setting.steps,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    student, teacher = (load_causal_lm(setting.model) for _ in range(2))
    dataset = Dataset.from_dict({"prompt": [prompt for own in prompts for prompt in own]})
    trainer = Trainer(student, teacher, config, train_dataset=dataset, processing_class=tokenizer, callbacks=[Timer()])
    trainer.train()
    return read_peak_rss()
