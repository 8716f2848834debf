"""Rounds of on-policy distillation as a list of jobs: the same stages again and again, each after what it needs."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datamodules.examples.encoding import PromptEncoding
from datamodules.files.atomic import write_json
from datamodules.files.parsing import read_json_object
from datamodules.provenance import claim_folder
from datamodules.tasks.questions import count_questions
from lightning_modules.model.generation import derive_seed
from lightning_modules.run.folder import flatten
from studies.design.rounds import OnPolicy
from studies.jobs.job import WHOLE, Job, format_settings
from studies.jobs.rounds_checks import check_start, check_teacher, take_settings
from studies.jobs.rounds_table import describe_round
from studies.jobs.states import find_state
from studies.jobs.submission import read_queue, read_submissions
from studies.text_table import format_records

SETTINGS = "rounds.json"


class RoundsPlan:
    """Turns rounds into jobs.

    Args:
        settings: The rounds.
        sections: The experiment's other sections, by stage.
        config: What names the experiment's file on a command line.
        commands: By stage, what its command line begins with, where that is not the file alone.

    Raises:
        ValueError: The sections do not go with the rounds.
    """

    def __init__(
        self,
        settings: OnPolicy,
        sections: Mapping[str, Any],
        config: list[str],
        commands: Mapping[str, list[str]] | None = None,
    ):
        self.settings, self.sections, self.config = settings, sections, config
        self.commands = commands or {}
        self.folder = settings.folder
        if "fit" not in sections:
            raise ValueError("on_policy: the file has no section fit, which says how the student is trained")
        self.fit = flatten(sections["fit"])
        for name, kinds in {"model.student": str, "data.questions": str | list}.items():
            if not isinstance(self.fit.get(name), kinds):
                raise ValueError(f"on_policy: fit.{name} must say what is trained, and on which questions; add it")
        self.steps = self._count_steps()
        self.longest_prompt = self._find_longest_prompt()
        check_teacher(settings, sections)
        if changed := self._take("fit", "model.start."):
            raise ValueError(
                f"fit.{next(iter(changed))} changes the student that on_policy asks to write; train a fit with it, and "
                "set on_policy.start to its folder"
            )
        limit = self.fit.get("data.limit")
        if limit is not None and settings.mix < 1 and limit < settings.questions:
            raise ValueError(
                f"on_policy.questions={settings.questions} in a round, but fit.data.limit={limit} in all; lower it"
            )
        if settings.start is not None:
            check_start(settings.start, self.fit)

    def _count_steps(self) -> int:
        """Returns the optimizer steps of a round."""
        total, rounds = self.fit.get("trainer.max_steps"), self.settings.rounds
        if type(total) is not int or total < 1:
            raise ValueError("on_policy: fit.trainer.max_steps must say how many optimizer steps all rounds have")
        if total % rounds:
            raise ValueError(
                f"on_policy.rounds={rounds} does not divide fit.trainer.max_steps={total}: each round has as many steps"
            )
        if self.fit.get("trainer.max_epochs", -1) != -1:
            raise ValueError("fit.trainer.max_epochs would be ignored: on_policy trains fit.trainer.max_steps; omit it")
        return int(total // rounds)

    def _find_longest_prompt(self) -> int:
        """Returns how long a prompt may be, so that a training has room for it and what the student writes."""
        longest = self.fit.get("data.encoding.max_length", PromptEncoding().max_length)
        new = self.settings.max_new_tokens
        if type(longest) is not int:
            raise ValueError(f"fit.data.encoding.max_length must be a number of tokens, not {longest!r}")
        if longest <= new and self.settings.mix < 1:
            raise ValueError(
                f"on_policy.max_new_tokens={new} leaves nothing of fit.data.encoding.max_length={longest} to a prompt"
            )
        return int(longest - new)

    def name(self, number: int) -> str:
        """Returns what a round is called, from 1."""
        return f"round-{number}"

    def run(self, number: int) -> Path:
        """Returns the folder of a round's training."""
        return self.folder / self.name(number)

    def name_job(self, stage: str, number: int) -> str:
        """Returns what a round's job is called."""
        return f"{stage}-{self.name(number)}"

    def student(self, number: int) -> str:
        """Returns the model that a round leaves, of round 0 what the first begins from."""
        if number:
            return str(self.run(number) / "student")
        start = self.settings.start
        return str(self.fit["model.student"] if start is None else Path(start) / "student")

    def _samples(self, number: int) -> Path:
        return self.folder / "samples" / f"{self.name(number)}.parquet"

    def _logits(self, number: int, suffix: str) -> Path:
        return self.folder / "samples" / f"{self.name(number)}-logits{suffix}"

    def _teachers(self) -> dict[str, str | None]:
        """Returns, by a suffix of names, who reads what the student wrote; None is whom the section names."""
        if self.settings.teachers is None:
            return {"": None}
        return {f"-{place}": teacher for place, teacher in enumerate(self.settings.teachers, 1)}

    def jobs(self) -> list[Job]:
        """Returns all jobs, each after what it needs."""
        found = self.teach()
        needs = [job.name for job in found]
        for number in range(1, self.settings.rounds + 1):
            found += self.round(number, needs)
            needs = [self.name_job("fit", number)]
        return found

    def teach(self) -> list[Job]:
        """Returns the jobs that make the teacher's text that is mixed in or shown, where the file says how."""
        jobs: list[Job] = []
        annotate, cache = self.sections.get("annotate"), self.sections.get("cache_logits")
        texts = [*((self.fit.get("data.rationales") or []) if self.settings.mix else ())]
        if annotate is not None and annotate.get("output") in [*texts, self.settings.shown_rationales]:
            jobs.append(Job("annotate", "annotate", self.config, annotate["output"], []))
        if self.settings.mix and cache is not None and cache.get("output") in (self.fit.get("data.logits") or []):
            needs = [job.name for job in jobs]
            jobs.append(Job("cache_logits", "cache_logits", self.config, f"{cache['output']}/manifest.json", needs))
        return jobs

    def round(self, number: int, needs: list[str]) -> list[Job]:
        """Returns a round's jobs.

        Args:
            number: From 1.
            needs: The jobs that come before the round.
        """
        jobs = [] if self.settings.mix == 1 else [self._annotate(number, needs)]
        if jobs:
            jobs += [self._cache(number, *teacher) for teacher in self._teachers().items()]
        jobs.append(self._train(number, [*needs, *(job.name for job in jobs)]))
        every = self.settings.evaluate_every or self.settings.rounds
        if "evaluate" in self.sections and (number % every == 0 or number == self.settings.rounds):
            jobs.append(self._evaluate(number))
        return jobs

    def _annotate(self, number: int, needs: list[str]) -> Job:
        """Returns the job in which the student answers the round's questions, posed as its training poses them."""
        rounds, output = self.settings, str(self._samples(number))
        settings = {
            # Where and how much at a time, as the teacher's.
            **self._take("annotate", "trainer."), **self._take("annotate", "data.batches."),
            **self._take("fit", "data.encoding."), "data.encoding.max_length": self.longest_prompt,
            "data.encoding.cache_dir": None, "data.questions": self.fit["data.questions"],
            "data.limit": self.fit.get("data.limit"), "data.prompt": self.fit.get("data.prompt", "instruction"),
            "data.draw": {
                "number": rounds.questions, "part": number - 1, "seed": rounds.seed,
                "limit_seed": self.fit.get("data.limit_seed"),
            },
            **self._load_student(number), "model.writer": self.name(number),
            "model.backend": rounds.backend, "model.keep_ids": True, "model.num_samples": rounds.samples,
            "model.temperature": rounds.temperature, "model.top_p": rounds.top_p,
            "model.max_new_tokens": rounds.max_new_tokens,
            "model.seed": derive_seed(rounds.seed, "round", number), "output": output,
        }  # fmt: skip
        given = {name: value for name, value in settings.items() if value is not None}
        return Job(self.name_job("annotate", number), "annotate", format_settings(given), output, needs)

    def _load_student(self, number: int) -> dict[str, Any]:
        """Returns how a stage loads, as its teacher, the student that a round begins with."""
        is_first = number == 1 and self.settings.start is None
        return {
            "model.teacher": self.student(number - 1),
            "model.dtype": self.fit.get("model.dtype") or "float32",
            "model.attention": self.fit.get("model.attention"),
            "model.revision": self.fit.get("model.revision") if is_first else None,
            "model.keep_layers": self.fit.get("model.keep_layers") if is_first else None,
        }

    @property
    def teacher_prompt(self) -> str | None:
        """The name of the prompt after which teachers read, if it shows them the gold answer or a rationale."""
        posed = self.fit if self.settings.teacher is not None else flatten(self.sections.get("cache_logits") or {})
        return (
            self.settings.teacher_prompt and f"{posed.get('data.prompt', 'instruction')}_{self.settings.teacher_prompt}"
        )

    def _take(self, stage: str, prefix: str) -> dict[str, Any]:
        return take_settings(self.sections, stage, prefix)

    def _cache(self, number: int, suffix: str, teacher: str | None) -> Job:
        """Returns the job in which a teacher reads what the student wrote."""
        output, samples = str(self._logits(number, suffix)), str(self._samples(number))
        if controls := self._take("cache_logits", "data.controls."):
            raise ValueError(
                f"cache_logits.{next(iter(controls))} changes texts, and nothing may change what a student wrote"
            )
        settings: dict[str, Any] = {
            "data.questions": self.fit["data.questions"], "data.rationales": [samples], "data.limit": None,
            **{name: None for name in self._take("cache_logits", "data.filters.") if not name.endswith("match_seed")},
            "data.filters.correct_only": False, "data.filters.keep_truncated": True, "output": output,
        }  # fmt: skip
        if teacher is not None:
            settings["model.teacher"] = teacher
        if self.settings.teacher is not None:
            settings |= self._load_student(number)
        if self.teacher_prompt is not None:
            settings |= {"data.prompt": self.teacher_prompt, "data.shown_rationales": self.settings.shown_rationales}
        name = f"{self.name_job('cache_logits', number)}{suffix}"
        args = [*self.commands.get("cache_logits", self.config), *format_settings(settings)]
        return Job(name, "cache_logits", args, f"{output}/manifest.json", [self.name_job("annotate", number)])

    def _train(self, number: int, needs: list[str]) -> Job:
        """Returns the job of a round's optimizer steps."""
        rounds, done, run = self.settings, (number - 1) * self.steps, self.run(number)
        settings: dict[str, Any] = {
            "model.student": self.student(0), "model.schedule_steps": self.steps * rounds.rounds,
            "trainer.max_steps": done + self.steps, "trainer.max_epochs": -1, "data.own.first_step": done,
            "run.root": str(run.parent.parent), "run.group": run.parent.name, "run.id": run.name,
            "run.keep_checkpoints": number < rounds.rounds or self.fit.get("run.keep_checkpoints", False),
        }  # fmt: skip
        if rounds.start is not None:
            settings |= WHOLE
        if number > 1:
            settings["run.continues"] = str(self.run(number - 1))
        if rounds.mix < 1:
            kept = range(max(1, number - rounds.keep_rounds + 1), number + 1)
            settings |= {
                "data.own.rationales": [str(self._samples(own)) for own in kept],
                "data.own.logits": [str(self._logits(own, suffix)) for own in kept for suffix in self._teachers()],
                "data.own.logit_weights": rounds.weights, "data.own.teacher_prompt": self.teacher_prompt,
                "data.own.shown_rationales": rounds.shown_rationales,
                "data.own.mix": rounds.mix, "data.own.max_lost": rounds.max_lost,
                "data.own.min_distinct": rounds.min_distinct, "model.own_cross_entropy": rounds.cross_entropy,
                **{f"model.own_loss.{name}": value for name, value in _list_loss(rounds).items()},
            }  # fmt: skip
        if rounds.mix == 0:
            settings |= {"data.rationales": None, "data.logits": None, "data.supervision": "rationale"}
            settings |= {"data.validation.fraction": 0.0, "model.loss.kl_weight": 0.0}
        args = [*self.commands.get("fit", self.config), *format_settings(settings)]
        return Job(self.name_job("fit", number), "fit", args, str(run / "DONE"), needs)

    def _evaluate(self, number: int) -> Job:
        """Returns the job in which a round's student answers the test questions."""
        output = str(self._predictions(number))
        settings = {
            "model.student": self.student(number), **WHOLE, "model.arm": self.name(number),
            "output": output, "wandb.group": self.settings.name,
        }  # fmt: skip
        args = [*self.config, *format_settings(settings)]
        return Job(self.name_job("evaluate", number), "evaluate", args, output, [self.name_job("fit", number)])

    def _predictions(self, number: int) -> Path:
        return self.folder / "predictions" / f"{self.name(number)}.parquet"

    @property
    def group(self) -> Path:
        """The folder of all jobs that run or are submitted with these."""
        return self.folder

    def describe(self) -> dict[str, Any]:
        """Returns what all rounds have in common, as JSON has it."""
        return dict(json.loads(json.dumps({**asdict(self.settings), "steps": self.steps}, default=vars)))

    def check_begun(self) -> None:
        """Refuses rounds that have begun by other settings.

        Raises:
            ValueError: They have; the message has both values.
        """
        path = self.folder / SETTINGS
        begun, now = flatten(read_json_object(path)) if path.is_file() else {}, flatten(self.describe())
        keys = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
        if begun and keys and self._has_begun():
            shown = ", ".join(f"on_policy.{key} was {begun.get(key)!r} and is {now.get(key)!r}" for key in keys)
            raise ValueError(
                f"{self.folder}: these rounds were begun with other settings: {shown}; choose another name"
            )

    def claim(self) -> None:
        """Makes the rounds' folder, or refuses one of other rounds; what no round has begun by may yet be corrected.

        Raises:
            ValueError: See `check_begun`; or the folder is another program's.
        """
        self.check_begun()
        claim_folder(self.group)
        write_json(self.folder / SETTINGS, self.describe())

    def _has_begun(self) -> bool:
        """Returns whether a round has left anything, or a job, by whatever settings, runs or is in SLURM's queue."""
        runs = [self.run(number) for number in range(1, self.settings.rounds + 1)]
        places = [self.folder / "samples", self.folder / "predictions", *runs]
        if any(not path.name.endswith(".lock") for place in places for path in place.glob("*")):
            return True
        submitted, jobs = read_submissions(self.group), self.jobs()
        queue = read_queue() if submitted else {}
        if any(job.name in submitted and submitted[job.name]["job"] in queue for job in jobs):
            return True
        return any(find_state(self.group, job)[0] == "running" for job in jobs)

    def check_questions(self) -> None:
        """Refuses rounds of more questions than there are.

        Raises:
            ValueError: See there; or the questions cannot be read.
        """
        asked, source = self.settings.questions, self.fit["data.questions"]
        number = count_questions(source, self.fit.get("data.limit"))
        if self.settings.mix < 1 and asked > number:
            raise ValueError(f"on_policy.questions={asked} in a round, but {source} has {number}; lower it")

    def format_rounds(self) -> str:
        """Returns a table of the rounds that have begun, with what their trainings logged."""
        numbers = range(1, self.settings.rounds + 1)
        rows = [describe_round(self.folder / self.name(number), self._predictions(number)) for number in numbers]
        return format_records([{"round": str(number), **row} for number, row in zip(numbers, rows, strict=True)])


def _list_loss(rounds: OnPolicy) -> dict[str, Any]:
    settings = {name: value for name, value in vars(rounds.loss).items() if not name.startswith("_")}
    return {name: value for name, value in json.loads(json.dumps(settings, default=vars)).items() if value is not None}
