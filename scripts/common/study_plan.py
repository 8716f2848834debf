"""A study's plan from its config file and command line, and all that is checked before any of its jobs runs."""

from jsonargparse import ArgumentParser

from lightning_modules.student.student import TRUE_PRECISIONS
from scripts.common.experiment_file import check_args, find_section, select_sections, split_args
from scripts.common.stages import STAGES, parse_job
from scripts.on_policy import read_rounds
from studies.design.controls import ON_POLICY
from studies.design.grid import Study, expand
from studies.design.parts import check_alignment, check_study
from studies.design.quantization import check_precision, check_quantization
from studies.jobs.arm_rounds import ArmRounds, check_writers
from studies.jobs.job import Job
from studies.jobs.plan import StudyPlan


def parse(args: list[str]) -> StudyPlan:
    """Checks the study's section and its command line."""
    config, overrides = split_args(args)
    check_args(args, "study")
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Study)
    settings = select_sections(args, "study")
    parsed = parser.parse_args(settings)
    if parsed.alignment is None and (stated := find_stated(config, "data", "alignment", "kind")) is not None:
        parsed = parser.parse_args([*settings, f"--alignment={stated}"])
    parsed.pop("config")
    study = Study(**parser.instantiate(parsed).as_dict())
    if ON_POLICY in study.supervisions and find_section(config, "on_policy") is None:
        raise ValueError(f"study.supervisions has {ON_POLICY}, but no section on_policy says what a round is; add it")
    rounds = read_rounds(config, [*config, f"--name={study.name}"]) if ON_POLICY in study.supervisions else ()
    plan = StudyPlan(study, config, overrides, *rounds)
    if "agreement" in study.outcomes:
        asked = STAGES["evaluate"].parse(plan.evaluate(expand(study)[0]).args)
        plan.reference_prompt = asked.datamodule.prompt.name
    return plan


def find_stated(config: list[str], *names: str) -> object:
    """Returns what an experiment's section `fit` says of a setting; None if nothing."""
    value: object = find_section(config, "fit")
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def check_sections(study: Study, jobs: list[Job]) -> None:
    """Refuses a mistake in a stage's section before any stage runs; jobs with the same options differ in names only."""
    different = {(job.stage, *(arg.split("=")[0] for arg in job.args)): job for job in jobs if job.stage in STAGES}
    for job in different.values():
        cli = parse_job(job)
        if job.stage == "fit":
            check_precision(study, TRUE_PRECISIONS.get(cli.trainer.precision, cli.model.student_dtype or "float32"))


def check_plan(plan: StudyPlan, jobs: list[Job]) -> None:
    """Refuses what would fail in one of the plan's jobs, or could not be compared, before any job runs.

    Raises:
        ValueError: See there.
    """
    check_study(plan.study)
    check_alignment(plan.study)
    check_quantization(plan.study)
    check_writers(plan.study)
    if plan.study.types and plan.settings is not None and not plan.settings.mix:
        raise ValueError(
            "on_policy.mix=0 leaves a student no teacher's text, on which its files of study.quantization are "
            "calibrated; raise it, or leave one of them out"
        )
    rounds = list_rounds(plan)
    for own in rounds:
        own.check_begun()
    check_sections(plan.study, jobs)
    # Of a task and size all arms learn from as many questions.
    for own in {(own.arm.task, own.arm.size): own for own in rounds}.values():
        own.check_questions()


def list_rounds(plan: StudyPlan) -> list[ArmRounds]:
    """Returns the rounds of all arms that have some."""
    return [plan.rounds(arm) for arm in expand(plan.study) if arm.supervision == ON_POLICY]


def claim_rounds(plan: StudyPlan) -> None:
    """Keeps by which settings the arms' rounds begin, or refuses others than they began by."""
    for own in list_rounds(plan):
        own.claim()
