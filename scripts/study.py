"""Stage 5: runs all stages as a study, and compares its arms.

    python -m scripts.study run --config configs/experiments/microworld.yaml --seeds 2
    python -m scripts.study run --config ... --dry-run     # what it takes: tokens, steps, disk, GPU hours
    python -m scripts.study status --config ...    # which jobs are done, running, pending, stopped or failed
    python -m scripts.study jobs --config ...      # every job as a line of JSON: name, stage, args, done, needs
    python -m scripts.study power --config ... --effect 0.03   # what it can see, before it runs
    python -m scripts.study submit --config ...    # submits what is missing to SLURM; see slurm/pipeline.sh
    python -m scripts.study analyze --config ...   # the table of arms x students, γ, and the report as a page
    python -m scripts.study diagnose --config ...  # how well teachers and students fit, before any training

Everything is kept in `runs/<name>/`; interrupted, `run` continues with what is missing. A job is the command
`python -m scripts.{stage} {args}`, which leaves the file `done` behind.
"""

from scripts.common.front import answer_early

if __name__ == "__main__":
    answer_early("study", __file__)

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from datamodules.files.atomic import write_sealed, write_text
from datamodules.provenance import claim_folder
from scripts.common.dry_run import parse_dry_run
from scripts.common.entry import run_main
from scripts.common.experiment_file import find_section, split_args
from scripts.common.help import answer
from scripts.common.stages import JOBS, STAGES
from scripts.common.study_plan import check_plan, claim_rounds, parse
from studies.analysis.cell_means import format_means, read_grid
from studies.analysis.comparison import analyze as analyze_study
from studies.analysis.comparison import format_results
from studies.design.parts import check_study, explain_missing_gamma, list_unidentified, require_models
from studies.design.power import parse_power
from studies.diagnostics.diagnosis import describe_study
from studies.diagnostics.diagnosis import diagnose as run_diagnosis
from studies.diagnostics.diagnosis import parse as parse_diagnosis
from studies.jobs.execution import run_jobs
from studies.jobs.states import format_status
from studies.jobs.submission import submit_jobs
from studies.report import write_html


def run(args: list[str]) -> None:
    """Runs what is missing of a study, then analyzes it; with `--dry-run` says what it takes."""
    if "--dry-run" in args:
        ask, rest = parse_dry_run(args)
        return print(ask(parse(rest)))
    plan = parse(args)
    if reason := explain_missing_gamma(plan.study):
        warnings.warn(f"this study cannot identify the family interaction: {reason}", stacklevel=2)
    if lines := list_unidentified(plan.study):
        warnings.warn(f"this study does not tell all parts of the family apart: {'; '.join(lines)}", stacklevel=2)
    require_models(plan.study)
    check_plan(plan, jobs := plan.jobs()[:-1])
    claim_rounds(plan)
    run_jobs(jobs, plan.folder, plan.study.workers, JOBS)
    analyze(args)


def status(args: list[str]) -> None:
    """Prints where each job stands."""
    print(format_status((plan := parse(args)).jobs(), plan.folder))


def jobs(args: list[str]) -> None:
    """Prints the job list, one JSON object a line, and makes the folder that the jobs write to the study's own."""
    plan = parse(args)
    claim_folder(plan.folder)
    claim_rounds(plan)
    for job in plan.jobs():
        print(json.dumps(vars(job)))


def submit(args: list[str]) -> None:
    """Submits what is missing of a study to SLURM."""
    plan = parse(args)
    check_plan(plan, jobs := plan.jobs())
    claim_rounds(plan)
    print(submit_jobs(jobs, plan.folder))


def analyze(args: list[str]) -> None:
    """Compares the arms of a finished study; or reads a csv file of cell means, as papers print them."""
    if len(args) == 1 and args[0].endswith(".csv"):
        print(format_means(read_grid(Path(args[0]))))
        return
    plan = parse(args)
    check_study(plan.study)
    results = analyze_study(plan.study)
    table = format_results(results)
    write_text(plan.folder / "table.md", table + "\n")
    write_sealed(plan.folder / "results.json", results)
    print(f"{table}\n\nEverything is in {plan.folder}/; read {write_html(plan.folder)}")


def diagnose(args: list[str]) -> None:
    """Diagnoses a study's teachers and students, or those of a file that lists its own."""
    config, settings = split_args(args)
    if find_section(config, "study") is not None:
        plan = parse(config)
        commands = {job.stage: job.args for job in plan.jobs()}
        learned, posed = (STAGES[name].parse(commands[name]).datamodule.prompt.name for name in ("fit", "evaluate"))
        asked = STAGES["annotate"].parse(commands["annotate"]).model if "annotate" in commands else None
        described = describe_study(plan, learned, posed, asked is not None and asked.backend.takes_text)
        diagnosis = parse_diagnosis([f"--config={json.dumps(described)}", *settings])
    else:
        diagnosis = parse_diagnosis(args)
    print(f"{run_diagnosis(diagnosis)}\n\nEverything is in {diagnosis.folder}/")


def power(args: list[str]) -> None:
    """Prints with how many seeds and questions a study's grid would find an effect."""
    ask, rest = parse_power(args)
    print(ask(parse(rest).study))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    command.__name__: command for command in (run, status, jobs, submit, power, analyze, diagnose)
}


def main(args: list[str] | None = None) -> None:
    """Runs the subcommand that the first argument names."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        answer("study", [name])
    elif name not in COMMANDS:
        raise ValueError(f"study.py has no command {name!r}; there are: {', '.join(COMMANDS)}")
    else:
        COMMANDS[name](rest)


if __name__ == "__main__":
    run_main(main, __file__)
