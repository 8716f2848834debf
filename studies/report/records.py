"""What a report is made from: the files that a study left in its folder."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.files.atomic import hash_text, part_language
from datamodules.files.parsing import read_json_object
from datamodules.files.seals import check_run_file, read_sealed
from datamodules.files.tables import read_table
from datamodules.rationales.store import Rationale, read_flat_rationales
from datamodules.tasks.questions import Question, load_questions
from lightning_modules.run.folder import read_metrics

_RESULT_KEYS = {
    "study", "num_questions", "extractor", "warnings", "methods", "cells", "contrasts", "supervisions", "effects",
    "gamma", "gamma_differences", "parts", "parts_refused", "needed_sizes", "outcomes", "pooled", "quantization",
    "traits",
}  # fmt: skip
_PREDICTION_COLUMNS = ["arm", "seed", "question_id", "gold", "completion", "answer_neutral", "correct_neutral"]
NUM_SAMPLES = 3


@dataclass(frozen=True)
class Run:
    """A trained student.

    Attributes:
        id: Names its folder.
        axes: What it is compared by; see `lightning_modules.tracking.wandb_logging.Axes`.
        metrics: Lines of `metrics.jsonl`.
        accuracy: On the questions of its predictions; None without predictions.
        num_questions: Of these.
    """

    id: str
    axes: dict[str, Any]
    metrics: list[dict[str, Any]]
    accuracy: float | None
    num_questions: int


@dataclass(frozen=True)
class StudyRecords:
    """What a study left behind.

    Attributes:
        folder: Its place.
        results: `results.json`, which `study.py analyze` writes.
        runs: The study's own.
        sweep: Runs of other folders, which differ in their loss weights.
        answers: What the first seed of each arm answered, arm by arm.
        written: What each teacher that annotated for this study wrote, its first samples.
        predictions: Of a few questions, by question id.
        questions: All questions, as far as their source lies on this machine.
        rationales: Of a few training questions, by question id.
        diagnostics: `diagnostics.json`, None where nothing was diagnosed.
    """

    folder: Path
    results: dict[str, Any]
    runs: list[Run]
    sweep: list[Run]
    answers: list[list[dict[str, Any]]]
    written: list[Rationale]
    predictions: dict[str, list[dict[str, Any]]]
    questions: dict[str, Question]
    rationales: dict[str, list[Rationale]]
    diagnostics: dict[str, Any] | None


def read_study(folder: Path, sweeps: Sequence[Path]) -> StudyRecords:
    """Reads a finished study.

    Args:
        folder: `runs/<study>`.
        sweeps: Folders of further runs, `runs/<group>`.

    Raises:
        ValueError: A folder is not there, or the study has no results of the present kind.
    """
    results = _read_results(folder)
    for sweep in sweeps:
        _check_folder(sweep)
    names = _name_models(results["study"])
    answers, written = read_answers(folder), _read_rationales(folder)
    sources = {source for task in results["study"]["tasks"].values() for source in task["test"]}
    asked = {row["question_id"] for rows in answers for row in rows}
    trained = {task["train"] for task in results["study"]["tasks"].values()}
    return StudyRecords(
        folder,
        results,
        read_runs(folder, names),
        [run for sweep in sweeps for run in read_runs(sweep, names)],
        answers,
        written,
        _sample_predictions(answers),
        _load_local_questions(sources, asked) | _load_local_questions(trained, {item.question_id for item in written}),
        _sample_rationales(written),
        _read_diagnostics(folder / "diagnostics.json"),
    )


def _read_diagnostics(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    diagnostics = read_sealed(path)
    if any("parts" not in prediction for prediction in diagnostics.get("predictions", [])):
        raise ValueError(f"{path}: its predictions have no parts; write it again with `study.py diagnose`")
    return diagnostics


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        parent = folder.parent
        there = sorted(path.name for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
        raise ValueError(f"{folder}: there is no such folder; {parent} has {', '.join(there) or 'none'}")


def _read_results(folder: Path) -> dict[str, Any]:
    _check_folder(folder)
    path = folder / "results.json"
    if not path.is_file():
        begun = [meta.parent for meta in folder.glob("*/meta.json")]
        done = sum((run / "DONE").is_file() for run in begun)
        raise ValueError(
            f"{path}: missing, with {done} of {len(begun)} begun runs done; `study.py run` finishes a study, "
            "`study.py analyze` alone writes this file"
        )
    results = read_sealed(path)
    if missing := sorted(_RESULT_KEYS - set(results)):
        raise ValueError(f"{path}: has no {', '.join(missing)}; write it again with `study.py analyze`")
    if any("accuracy_by_seed" not in cell for cell in results["cells"]):
        raise ValueError(f"{path}: its cells have no accuracy_by_seed; write it again with `study.py analyze`")
    if any("fragile" not in row for row in results["gamma"]):
        raise ValueError(f"{path}: its gamma has no fragile; write it again with `study.py analyze`")
    return results


def _name_models(study: dict[str, Any]) -> dict[str, str]:
    """Returns the study's name of each model and of each published teacher."""
    names: dict[str, str] = {}
    for name, spec in [*study["students"].items(), *study["teachers"].items()]:
        model = spec["model"] or spec["name"]
        names |= {model: name, Path(model).name: name}
    return names


def read_runs(folder: Path, names: dict[str, str]) -> list[Run]:
    """Returns the runs that ended, with the accuracy of the predictions that carry their name.

    Args:
        folder: Of the runs.
        names: What the study calls a model.
    """
    runs = []
    for done in sorted(folder.glob("*/DONE")):
        path = done.parent
        if not (path / "axes.json").is_file():
            continue
        predictions = folder / "predictions" / f"{path.name}.parquet"
        correct = (
            read_table(predictions, ["correct_neutral"])["correct_neutral"].to_pylist() if predictions.is_file() else []
        )
        graded = [value for value in correct if value is not None]
        check_run_file(path, "axes.json")
        axes = read_json_object(path / "axes.json")
        axes |= {role: names.get(axes[role], axes[role]) for role in ("student", "teacher")}
        runs.append(
            Run(path.name, axes, read_metrics(path), sum(graded) / len(graded) if graded else None, len(graded))
        )
    return runs


def _choose(ids: set[str]) -> list[str]:
    """Returns a few ids, the same ones whenever they are among these."""
    return sorted(ids, key=hash_text)[:NUM_SAMPLES]


def read_answers(folder: Path) -> list[list[dict[str, Any]]]:
    """Returns what the first seed of each arm answered, arm by arm."""
    records = []
    for path in sorted((folder / "predictions").glob("*.parquet")):
        rows = read_table(path, _PREDICTION_COLUMNS).to_pylist()
        records.append([{**row, "run": path.stem} for row in rows if row["seed"] == 0])
    return [rows for rows in records if rows]


def _sample_predictions(records: list[list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Returns the answers to a few questions, which all arms were asked."""
    asked = [{row["question_id"] for row in rows} for rows in records]
    chosen = _choose(set.intersection(*asked)) if asked else []
    return {name: [row for rows in records for row in rows if row["question_id"] == name] for name in chosen}


def _read_rationales(folder: Path) -> list[Rationale]:
    """Returns the first sample of each teacher that annotated for this study, question by question."""
    written = [read_flat_rationales(str(path)) for path in sorted((folder / "teachers").glob("*/*.parquet"))]
    return [item for rationales in written for item in rationales if item.sample == 0]


def _sample_rationales(written: list[Rationale]) -> dict[str, list[Rationale]]:
    """Returns what each teacher wrote about a few questions of the study's first task."""
    by_question = defaultdict(list)
    for rationale in written:
        by_question[rationale.question_id].append(rationale)
    most = max(map(len, by_question.values()), default=0)
    chosen = _choose({name for name, items in by_question.items() if len(items) == most})
    return {name: by_question[name] for name in chosen}


def _load_local_questions(sources: set[str], ids: set[str]) -> dict[str, Question]:
    """Returns the wanted questions of the sources that need no network."""
    local = [
        source
        for source in sorted(sources)
        if source.startswith("microworld:") or Path(part_language(source)[0]).is_file()
    ]
    return {item.id: item for source in local for item in load_questions(source) if item.id in ids}
