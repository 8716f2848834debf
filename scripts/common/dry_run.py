"""What a study takes, said before it runs: `python -m scripts.study run --config FILE --dry-run`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamodules.files.command_line import CommandLine
from scripts.common.stages import STAGES, parse_job
from studies.design.controls import ON_POLICY
from studies.design.cost import BANDWIDTH, find_device
from studies.design.grid import expand
from studies.design.quantization import check_quantization
from studies.jobs.estimate import (
    Assumptions,
    Work,
    estimate_annotation,
    estimate_cache,
    estimate_evaluation,
    estimate_file,
    estimate_training,
    format_work,
)
from studies.jobs.job import Job
from studies.jobs.plan import StudyPlan


def parse_dry_run(args: list[str]) -> tuple[Callable[[StudyPlan], str], list[str]]:
    """Returns what says the cost of a study as a command line asks for it, and the arguments that name the study."""
    parser = CommandLine(prog="python -m scripts.study run --dry-run", allow_abbrev=False)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--device", default="H100", help=f"one of {', '.join(BANDWIDTH)}; default %(default)s")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of its peak; default %(default)s")
    parser.add_argument("--prompt_tokens", type=int, default=120, help="where it cannot be read; default %(default)s")
    parser.add_argument("--rationale_tokens", type=int, default=150, help="of one not yet written; default %(default)s")
    own, rest = parser.parse_known_args(args)
    if own.prompt_tokens < 1 or own.rationale_tokens < 1:
        raise ValueError("--prompt_tokens and --rationale_tokens must be at least 1")
    assumed = Assumptions(find_device(own.device, own.utilisation), own.prompt_tokens, own.rationale_tokens)

    def ask(plan: StudyPlan) -> str:
        said = (
            f"On one {own.device} at {own.utilisation:.0%} of its peak: 6·N·D FLOPs to train, 2·N·D to read, and, to "
            "write, at least what reading the weights once a step takes.\nPrompts that are not on this machine have "
            f"{own.prompt_tokens} tokens, rationales that are not yet written {own.rationale_tokens}, all of them "
            "right.\nAn arm's tokens are those it is trained on, its hours count its answers, too; `meanwhile` are the "
            "checkpoints of a run that trains. Files run by llama.cpp, on processors: their answers take no GPU."
        )
        return f"{format_work(estimate_study(plan, assumed))}\n\n{said}"

    return ask, rest


def estimate_study(plan: StudyPlan, assumed: Assumptions) -> list[tuple[str, Work]]:
    """Returns what a teacher's jobs take, each, and what each arm takes: its training and its answers.

    The few questions that tell a trait are left out.
    """
    check_quantization(plan.study)
    jobs = {job.name: (job, parse_job(job)) for job in plan.jobs() if job.stage in STAGES}
    taught = {"annotate": estimate_annotation, "cache_logits": estimate_cache}
    models = {teacher: spec.model for teacher, spec in plan.study.teachers.items()}
    # A teacher that is yet to be tuned has the size that it has.
    before = {str(plan.tuned(teacher, trait)): models[teacher] for teacher in models for trait in plan.study.traits}
    own_text = estimate_own_text(plan, jobs, assumed)
    for job, cli in jobs.values():
        if job.stage in taught:
            cli.model.teacher = before.get(cli.model.teacher, cli.model.teacher)
    tuned = [(name, estimate_training(cli, assumed)) for name, (_, cli) in jobs.items() if name.startswith("tune-")]
    rounds = {name for names, _ in own_text.values() for name in names}
    work = tuned + [
        (name, taught[job.stage](cli, assumed))
        for name, (job, cli) in jobs.items()
        if job.stage in taught and name not in rounds
    ]
    for arm in expand(plan.study):
        spec = plan.study.students[arm.student]
        files: list[tuple[str, Work]] = []
        _, asked = jobs[f"evaluate-{arm.id}"]
        own = estimate_evaluation(asked, spec.model, spec.keep_layers, assumed)
        if arm.supervision != "untuned":
            _, trained = jobs[f"fit-{arm.id}"]
            if plan.start(arm) is not None:
                # What it goes on from has the size of what that began from.
                trained.model.student, trained.model.keep_layers = spec.model, spec.keep_layers
                trained.datamodule.source.tokenizer_name = spec.model
            fit = estimate_training(trained, assumed)
            files = [(f"{arm.id}-{kind}", estimate_file(own, spec, kind)) for kind in plan.study.types]
            _, wrote = own_text.get(arm.id, ((), Work()))
            own = replace(fit, kept=fit.kept + wrote.kept, hours=fit.hours + own.hours + wrote.hours)
        work += [(arm.id, own), *files]
    return work


def estimate_own_text(
    plan: StudyPlan, jobs: Mapping[str, tuple[Job, Any]], assumed: Assumptions
) -> dict[str, tuple[list[str], Work]]:
    """Returns, by on-policy arm, the jobs in which its student writes and its teacher reads, and what they take.

    Its last training's plan is that of all rounds.
    """
    found = {}
    for arm in expand(plan.study):
        if arm.supervision != ON_POLICY:
            continue
        spec, rounds = plan.study.students[arm.student], plan.rounds(arm).settings
        names, work = list[str](), Work()
        for job in plan.train(arm):
            cli = jobs[job.name][1]
            if job.stage == "annotate":
                # What it is yet to become has the size that it has.
                cli.model.teacher, cli.model.keep_layers = spec.model, spec.keep_layers
                work += estimate_annotation(cli, assumed)
            elif job.stage == "cache_logits":
                source = cli.datamodule.source
                if not Path(source.rationales[0]).exists():
                    source.limit = rounds.questions * rounds.samples
                work += estimate_cache(cli, assumed)
            if job.stage != "fit":
                names.append(job.name)
        found[arm.id] = names, work
    return found
