"""What rounding costs: each trained student against its own file for llama.cpp, by type, and what that does to gamma.

A file and its student have the same training, so that they are compared seed by seed and question by question: the
difference of their answers takes the place of an answer. With it the family interaction is that of the loss: whether
rounding costs students of a teacher's own family less than others.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from datamodules.files.parsing import read_json_object
from studies.analysis.estimator import ContrastEstimator
from studies.analysis.interactions import Interactions
from studies.analysis.predictions import Answers, files_path
from studies.analysis.sizes import keep_seeds, pool_sizes
from studies.design.grid import Study, expand
from studies.inference.statistics import adjust_holm, compare_models
from studies.numbers import estimated


def pair_answers(answers: Answers, kind: str) -> tuple[Answers, Answers]:
    """Returns what files of a type answered and what their students did, of the seeds that both have."""
    files, plain = {}, {}
    for key, cell in answers.quantized[kind].items():
        own = answers.cells.get(key)
        if own is not None and (seeds := [seed for seed in cell.seeds if seed in own.seeds]):
            files[key], plain[key] = keep_seeds(cell, seeds), keep_seeds(own, seeds)
    return replace(answers, cells=files), replace(answers, cells=plain)


def _subtract(left: Answers, right: Answers) -> Answers:
    cells = {
        key: replace(cell, correct_SQ=cell.correct_SQ - right.cells[key].correct_SQ) for key, cell in left.cells.items()
    }
    return replace(left, cells=cells)


def _read_files(study: Study, kind: str) -> dict[tuple[object, ...], dict[str, float]]:
    """Returns what is known of arms' files of a type, or, of `none`, of their students, mean over seeds.

    By the fields of a cell that say how an arm was trained: bytes, and, of files, tokens a second.
    """
    values = defaultdict[tuple[object, ...], dict[str, list[float]]](lambda: defaultdict(list))
    for arm in expand(study):
        own = values[
            arm.student, arm.supervision, arm.teacher, arm.control, arm.task or next(iter(study.learned)), arm.size
        ]
        card = files_path(study, arm) / "card.json"
        student = Path(study.root) / study.name / arm.id / "student"
        if kind == "none" and (weights := list(student.glob("*.safetensors"))):
            own["bytes"].append(float(sum(path.stat().st_size for path in weights)))
        elif kind != "none" and card.is_file():
            [file] = [file for file in read_json_object(card)["files"].values() if file["type"] == kind]
            for name in ("bytes", "tokens_per_s"):
                own[name].append(float(file[name]))
    return {trained: {name: fmean(own) for name, own in found.items()} for trained, found in values.items()}


def _describe_cells(
    study: Study, kind: str, files: Answers, plain: Answers, rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows, own, lost = [], ContrastEstimator(files), ContrastEstimator(_subtract(files, plain))
    written, trained = _read_files(study, kind), _read_files(study, "none")
    for key, cell in files.cells.items():
        accuracy, low, high = own.accuracy(key)
        trained_as = key.student, key.supervision, key.teacher, key.control, key.trained_on, key.size
        before = plain.cells[key].correct_SQ
        rows.append(
            {
                **key._asdict(),
                "condition": key.condition,
                "student_family": study.students[key.student].family,
                "teacher_family": study.teachers[key.teacher].family if key.teacher else None,
                "num_seeds": len(cell.seeds),
                "num_questions": files.questions[key.task],
                "accuracy": accuracy,
                "accuracy_low": low,
                "accuracy_high": high,
                "accuracy_before": float(before.mean()),
                "extraction_rate": cell.extraction_rate,
                **asdict(lost.contrast({key: 1})),
                "seed_variance": lost.seed_source([key]),
                "method": lost.method([key]),
                "models": {
                    **asdict(compare_models(cell.correct_SQ, before, rng, groups_Q=files.groups[key.task])),
                    "method": "questions",
                },
                "bytes": written.get(trained_as, {}).get("bytes"),
                "bytes_before": trained.get(trained_as, {}).get("bytes"),
                "tokens_per_s": written.get(trained_as, {}).get("tokens_per_s"),
            }
        )
    places = dict.fromkeys((row["trained_on"], row["task"]) for row in rows)
    for place in places:
        tests = [row for row in rows if (row["trained_on"], row["task"]) == place]
        for row, p in zip(tests, adjust_holm([row["p"] for row in tests]), strict=True):
            row["p_holm"] = p
    return rows


def describe_quantization(
    study: Study, answers: Answers, seed: int, contrast: Callable[[Answers], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns a row for each type, and warnings.

    A row holds `kind`, the `cells` with what each loses against its student, the `contrasts` of the files' arms, and
    `gamma`: the family interaction of the files, and `gamma_changes`, by how much it is another than their students'.

    Args:
        study: The grid.
        answers: What its arms and their files answered.
        seed: Of the bootstrap.
        contrast: Compares arms.
    """
    rows, warnings = list[dict[str, Any]](), list[str]()
    for kind in answers.quantized:
        files, plain = pair_answers(answers, kind)
        found = []
        for own in (files, _subtract(files, plain)):
            estimators = [*([ContrastEstimator(pool_sizes(study, own))] if len(study.sizes) > 1 else [])]
            found.append([Interactions(study, each) for each in [*estimators, ContrastEstimator(own)]])
        warnings += [f"{kind}: {line}" for each in found[0] for line in each.warnings]
        rows.append(
            {
                "kind": kind,
                "cells": _describe_cells(study, kind, files, plain, np.random.default_rng(seed)),
                "contrasts": contrast(files),
                "gamma": [row for each in found[0] for row in each.gammas],
                "gamma_changes": [row for each in found[1] for row in each.gammas],
            }
        )
    return rows, warnings


def format_losses(own: dict[str, Any], place: tuple[str, str], format_gamma: Callable[[dict[str, Any]], str]) -> str:
    """Returns what a type's files lost of the arms that learned one task and answered one, and their gamma.

    Args:
        own: A row of `describe_quantization`.
        place: The two tasks.
        format_gamma: Writes a row of a family interaction as a line.
    """

    def select(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if (row["trained_on"], row["task"]) == place]

    cells = select(own["cells"])
    if not cells:
        return ""
    lines = [f"{own['kind']} by llama.cpp, against the students as they were trained:", ""]
    for row in cells:
        size = f"{row['bytes']:,.0f} bytes, " if row["bytes"] else ""
        lines.append(
            f"- {row['student']}, {row['condition']}: {row['accuracy']:.1%}, {estimated(row)}, "
            f"p = {row['p_holm']:.2g} ({size}"
            f"{row['models']['left_only']} questions better, {row['models']['right_only']} worse: "
            f"p = {row['models']['p']:.2g} of these models)"
        )
    lines += map(format_gamma, select(own["gamma"]))
    lines += [
        f"- That is {estimated(row)} from the "
        f"students' own γ, p = {row['p']:.2g} ({'-'.join(filter(None, (row['supervision'], row['control'])))}; "
        f"{row['method']})"
        for row in select(own["gamma_changes"])
    ]
    lines += [
        f"- {row['name']}, both as {own['kind']}: {estimated(row)}, p = {row['p_holm']:.2g}"
        for row in select(own["contrasts"])
        if row["kind"] == "control"
    ]
    return "\n".join(lines)
