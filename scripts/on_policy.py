"""On-policy distillation: the student writes, the teacher reads what it wrote, and the student learns, in rounds.

    python -m scripts.on_policy run --config configs/experiments/microworld_on_policy.yaml
    python -m scripts.on_policy status --config ...    # which jobs are done, and what each round has logged
    python -m scripts.on_policy jobs --config ...      # every job as a line of JSON: name, stage, args, done, needs
    python -m scripts.on_policy submit --config ...    # submits what is missing to SLURM

A round is four stages: annotate, by the student as it is; cache_logits; fit, for so many optimizer steps; and, now and
then, evaluate. Everything is kept in `runs/<name>/`; interrupted, `run` continues with what is missing.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("on_policy", __file__)

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from datamodules.rationales.shown import read_shown
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import load_questions
from scripts.common.entry import run_main
from scripts.common.experiment_file import check_args, read_experiment, read_models, select_sections, split_args
from scripts.common.help import answer
from scripts.common.stages import MAINS, STAGES
from studies.design.rounds import OnPolicy
from studies.jobs.execution import run_jobs
from studies.jobs.rounds import RoundsPlan
from studies.jobs.states import format_status
from studies.jobs.submission import submit_jobs


def read_rounds(config: list[str], args: list[str]) -> tuple[OnPolicy, dict[str, Any]]:
    """Checks the rounds' section and command line; returns them, and the file's sections.

    Args:
        config: What names the experiment's file, as `split_args` finds it.
        args: The command line.
    """
    check_args(args, "on_policy")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(OnPolicy)
    parsed = parser.parse_args(select_sections(args, "on_policy"))
    parsed.pop("config")
    path = next(arg for arg in config if arg.startswith("--config=")).removeprefix("--config=")
    return OnPolicy(**parser.instantiate(parsed).as_dict()), read_experiment(path, read_models(config))


def parse(args: list[str]) -> RoundsPlan:
    """Checks the rounds' section, its command line, and the sections that it goes with."""
    config, _ = split_args(args)
    return RoundsPlan(*read_rounds(config, args), config)


def check_sections(plan: RoundsPlan) -> None:
    """Refuses a mistake in a stage's section before any stage runs; the rounds differ in names only."""
    plan.check_begun()
    for job in [*plan.teach(), *plan.round(1, [])]:
        STAGES[job.stage].parse(job.args)
    plan.check_questions()
    shown, questions = plan.settings.shown_rationales, plan.fit["data.questions"]
    # What is yet to be annotated, the first round checks.
    if shown is not None and Path(shown).exists():
        prompt = replace(get_prompt(str(plan.teacher_prompt), privileged=True), shown=read_shown(shown, questions))
        prompt.check_shown(load_questions(questions, plan.fit.get("data.limit")))


def run(args: list[str]) -> None:
    """Runs what is missing of the rounds."""
    plan = parse(args)
    check_sections(plan)
    plan.claim()
    run_jobs(plan.jobs(), plan.folder, 1, MAINS)
    print(f"{plan.format_rounds()}\n\nEverything is in {plan.folder}/")


def status(args: list[str]) -> None:
    """Prints where each job stands, and what each round has logged."""
    plan = parse(args)
    print(f"{format_status(plan.jobs(), plan.folder)}\n\n{plan.format_rounds()}")


def jobs(args: list[str]) -> None:
    """Prints the job list, one JSON object a line, and makes the folder that the jobs write to."""
    plan = parse(args)
    plan.claim()
    for job in plan.jobs():
        print(json.dumps(vars(job)))


def submit(args: list[str]) -> None:
    """Submits what is missing of the rounds to SLURM, each job after what it needs."""
    plan = parse(args)
    check_sections(plan)
    plan.claim()
    print(submit_jobs(plan.jobs(), plan.folder))


COMMANDS: dict[str, Callable[[list[str]], None]] = {own.__name__: own for own in (run, status, jobs, submit)}


def main(args: list[str] | None = None) -> None:
    """Runs the subcommand that the first argument names."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        answer("on_policy", [name])
    elif name not in COMMANDS:
        raise ValueError(f"on_policy.py has no command {name!r}; there are: {', '.join(COMMANDS)}")
    else:
        COMMANDS[name](rest)


if __name__ == "__main__":
    run_main(main, __file__)
