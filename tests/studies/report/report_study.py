"""A finished study's folder with made-up numbers: two families that teach and learn, a control, two seeds."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.questions import load_questions
from studies.analysis.comparison import METHODS
from studies.diagnostics.prediction import predict

STUDENTS = {"s-a": "a", "s-b": "b"}
TEACHERS = {"t-a": "a", "t-b": "b"}
QUESTIONS = "microworld:test:8:0"
ARMS = [
    ("untuned", None, None), ("label", None, None), *[("rationale", teacher, None) for teacher in TEACHERS],
    ("rationale", "t-b", "shuffled"), ("rationale+logits", "t-a", None),
]  # fmt: skip


def make_cells(rng: random.Random) -> list[dict]:
    cells = []
    for student, family in STUDENTS.items():
        for supervision, teacher, control in ARMS:
            if supervision == "rationale+logits" and TEACHERS[teacher] != family:
                continue
            trained = supervision != "untuned"
            accuracy = rng.uniform(0.2, 0.9)
            parts = (supervision, teacher, control)
            cells.append({
                "student": student, "student_family": family, "teacher": teacher,
                "teacher_family": TEACHERS.get(teacher), "supervision": supervision, "control": control,
                "condition": "-".join(part for part in parts if part), "task": "microworld",
                "trained_on": "microworld" if trained else None, "size": None,
                "num_seeds": 2 if trained else 1, "num_questions": 8, "num_examples": 512 if trained else 0,
                "accuracy": accuracy, "low": accuracy - 0.04, "high": accuracy + 0.05, "extraction_rate": 0.85,
                "gain": accuracy - 0.2 if trained else None, "gain_low": accuracy - 0.25 if trained else None,
                "gain_high": accuracy - 0.15 if trained else None, "accuracy_by_extractor": {"neutral": accuracy},
                "accuracy_by_seed": [accuracy - 0.02, accuracy + 0.02] if trained else [accuracy],
                "coverage": {"none": 0.05, "strict": 0.8, "exact": 0.15} if supervision == "rationale+logits" else {},
            })  # fmt: skip
    return cells


def make_results() -> dict:
    rng = random.Random(0)
    where = {
        "supervision": "rationale",
        "control": None,
        "trained_on": "microworld",
        "task": "microworld",
        "size": None,
    }
    gamma = {
        **where, "estimate": 0.149, "low": 0.117, "high": 0.179, "p": 0.0004, "families": ["a", "b"],
        "num_students": 2, "num_teachers": 2, "num_seeds": 2, "num_questions": 8,
    }  # fmt: skip
    part = {**gamma, "note": "", "seed_variance": "own"}
    difference = {
        **gamma, "left": "rationale+logits", "left_gamma": 0.18, "right_gamma": 0.15, "estimate": 0.03, "low": 0.01,
        "high": 0.05, "method": "difference in differences", "note": "one teacher of each family",
    }  # fmt: skip
    return {
        "study": {
            "name": "made-up",
            "tasks": {"microworld": {"train": "microworld:train:8:0", "test": [QUESTIONS]}},
            "students": {
                name: {"model": f"models/{name}", "family": own, "parts": {}} for name, own in STUDENTS.items()
            },
            "teachers": {
                name: {"model": f"models/{name}", "family": own, "name": None, "parts": {}}
                for name, own in TEACHERS.items()
            },
            "supervisions": ["label", "rationale", "rationale+logits"],
            "seeds": 2, "sizes": [],
        },
        "num_questions": {"microworld": 8},
        "extractor": "neutral",
        "warnings": ["arms of <unequal> budgets"],
        "methods": METHODS,
        "cells": make_cells(rng),
        "contrasts": [
            {"name": f"t-a against t-b, {student}", "kind": "teacher", "student": student, "task": "microworld",
             "trained_on": "microworld", "models": {"p": 0.03},
             "left": "rationale-t-a", "right": "rationale-t-b", "estimate": 0.2, "low": 0.1, "high": 0.3,
             "p": 0.01, "p_holm": 0.02, "num_questions": 8, "num_seeds": 2, "method": "exact McNemar"}
            for student in STUDENTS
        ],
        "supervisions": [
            {"supervision": kind, "against": against, "trained_on": "microworld", "task": "microworld", "size": None,
             "estimate": 0.334, "low": 0.3, "high": 0.36, "p": 0.01, "num_cells": 4, "num_seeds": 2,
             "seed_variance": "own"}
            for kind, against in (("label", "untuned"), ("rationale", "untuned"), ("rationale", "label"))
        ],
        "effects": [
            {**where, "kind": kind, "name": name, "estimate": 0.05, "low": 0.01, "high": 0.09,
             "method": "seeds and questions"}
            for kind, names in (("teacher", TEACHERS), ("student", STUDENTS)) for name in names
        ],
        "gamma": [
            {**gamma, "method": "difference in differences", "note": None, "fragile": None},
            {**gamma, "method": "mixed model", "low": -0.01, "note": "2 teachers: wide by nature", "fragile": None},
        ],
        "gamma_differences": [
            {**difference, "right": "rationale", "holds_text": False},
            {**difference, "right": "rationale+logits-own", "holds_text": True, "low": -0.05},
        ],
        "parts": [
            {**part, "parts": ["tokenizer", "lineage"], "p_holm": 0.004, "method": "difference in differences"},
            {**part, "parts": ["style"], "low": -0.02, "p_holm": 0.3, "method": "difference in differences"},
            {**part, "parts": ["tokenizer", "lineage"], "low": -0.01, "p_holm": 0.1, "method": "mixed model"},
        ],
        "needed_sizes": [], "outcomes": [], "pooled": {}, "quantization": [], "traits": [],
        "parts_refused": [{**where, "parts": ["architecture"], "reason": "all students are of the architecture <x>"}],
    }  # fmt: skip


def write_run(folder: Path, axes: dict, correct: list[bool], rng: random.Random, ids: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "axes.json").write_text(json.dumps(axes))
    (folder / "DONE").write_text("{}")
    lines = [
        {"step": step, "train/ce_rationale": 3 / (step + 1) + rng.random() / 20,
         "train/ce_answer": 2 / (step + 1) + rng.random() / 20, "train/agreement_rationale": rng.random()}
        for step in range(0, 60, 5)
    ]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        {"arm": "x", "seed": axes["seed"], "question_id": name, "gold": "A",
         "completion": "Iron. <b>The answer is A.</b>", 
         "answer_neutral": "A" if right else None, "correct_neutral": right}
        for name, right in zip(ids, correct, strict=True)
    ]  # fmt: skip
    path = folder.parent / "predictions" / f"{folder.name}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def make_axes(
    student: str, supervision: str, teacher: str | None, seed: int, weight: float, temperature: float = 1.0
) -> dict:
    return {
        "teacher": teacher, "teacher_family": TEACHERS.get(teacher), "student": student,
        "student_family": STUDENTS[student], "supervision": supervision, "kl_weight": weight,
        "temperature": temperature, "divergence": "forward_kl", "seed": seed, "task": "microworld",
    }  # fmt: skip


def write_study(root: Path) -> tuple[Path, Path]:
    """Writes `made-up`, and `weights`, a sweep; returns their folders."""
    rng = random.Random(1)
    folder, sweep = root / "made-up", root / "weights"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(make_results()))
    asked = load_questions(QUESTIONS)
    ids = [question.id for question in asked]
    for student in STUDENTS:
        for supervision, teacher, control in ARMS[1:]:
            for seed in range(2):
                name = "-".join(part for part in (student, supervision, teacher, control, f"seed{seed}") if part)
                axes = make_axes(student, supervision, teacher, seed, 0.5 if "logits" in supervision else 0.0)
                write_run(folder / name, axes, [rng.random() < 0.7 for _ in ids], rng, ids)
    for weight in (0.25, 0.5, 1.0):
        for temperature in (1.0, 2.0):
            axes = make_axes("s-a", "rationale+logits", "t-a", 0, weight, temperature)
            write_run(sweep / f"w{weight}-t{temperature}", axes, [rng.random() < 0.7 for _ in ids], rng, ids)
    # A run of fewer steps than it logs after.
    (sweep / "w1.0-t2.0" / "metrics.jsonl").unlink()
    for teacher, family in TEACHERS.items():
        rationales = [
            Rationale(question.id, "microworld", "train", teacher, family, 0, "Since it is so.", question.gold,
                      True, "stop", "plain")
            for question in load_questions("microworld:train:8:0")
        ]  # fmt: skip
        write_rationales(folder / "teachers" / teacher / "microworld.parquet", rationales, {})
    names = ("nll", "rsr", "length", "bytes", "rank", "car", "ifd")
    rows = [
        {"teacher": teacher, "teacher_family": TEACHERS[teacher], "student": student, "task": "microworld",
         "gold_conditioned": None, "num_rationales": 8, **{name: rng.random() for name in names},
         "intervals": {name: [0, 1] for name in names}}
        for teacher in TEACHERS for student in STUDENTS
    ]  # fmt: skip
    metrics = {name: {"description": f"what {name} is", "source": "-", "better": "lower"} for name in names}
    predictions = list(predict(rows, names, make_results(), seed=0))
    (folder / "diagnostics.json").write_text(json.dumps({"rows": rows, "metrics": metrics, "predictions": predictions}))
    return folder, sweep
