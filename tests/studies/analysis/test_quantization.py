"""What rounding costs, by hand: files against their students, seed by seed, and what that does to γ."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.files.atomic import write_json
from studies.analysis.comparison import analyze, format_results
from studies.analysis.predictions import files_path
from studies.design.controls import ControlSpec
from studies.design.grid import Study, expand
from studies.report.quantization import show_quantization
from tests.studies.analysis.small_study import find, make_study, write_arm

QUESTIONS, KINDS = 40, ["none", "Q8_0", "Q4_0"]


def fill(study: Study) -> None:
    """Students answer 30 questions; Q8_0 loses none, Q4_0 four, and eight more out of family."""
    for arm in expand(study):
        right = np.arange(QUESTIONS) < 30 - arm.seed
        write_arm(study, arm, right.tolist())
        if arm.supervision == "untuned":
            continue
        write_arm(study, arm, right.tolist(), kind="Q8_0")
        lost = 4 if arm.teacher == arm.student.upper() else 12
        if arm.control:
            lost = 0
        # One question that the student had wrong is right by luck.
        rounded = (right & (np.arange(QUESTIONS) >= lost)) | (np.arange(QUESTIONS) == QUESTIONS - 1)
        write_arm(study, arm, rounded.tolist(), kind="Q4_0")
        files = {kind: {"type": kind, "bytes": size, "tokens_per_s": 9} for kind, size in (("Q8_0", 8), ("Q4_0", 4))}
        write_json(files_path(study, arm) / "card.json", {"files": files})
        student = Path(study.root) / study.name / arm.id / "student"
        student.mkdir(parents=True)
        (student / "model.safetensors").write_bytes(b"x" * 32)


def test_files_are_compared_with_their_own_students(tmp_path: Path) -> None:
    study = make_study(tmp_path, quantization=KINDS, controls={"aware": ControlSpec(shuffled=True)})
    fill(study)
    results = analyze(study)
    eight, four = results["quantization"]
    assert (eight["kind"], four["kind"]) == ("Q8_0", "Q4_0")
    same = find(eight["cells"], student="a", condition="rationale-A")
    assert (same["estimate"], same["models"]["p"], same["p_holm"]) == (0, 1, 1)
    assert (same["bytes"], same["bytes_before"], same["tokens_per_s"]) == (8, 32, 9)
    own = find(four["cells"], student="a", condition="rationale-A")
    assert own["accuracy_before"] == pytest.approx(29.5 / 40) and own["accuracy"] == pytest.approx(26.5 / 40)
    # Each seed loses the same: the interval is narrower than that of two trainings, whose seeds differ.
    assert own["estimate"] == pytest.approx(-3 / 40) and own["low"] < -3 / 40 < own["high"]
    assert (own["models"]["left_only"], own["models"]["right_only"]) == (1, 4)
    assert own["models"]["p"] == pytest.approx(2 * (1 + 5) / 32)
    # Students and Q8_0 have no interaction; Q4_0 costs eight questions more out of family.
    [gamma, *_] = [row for row in results["gamma"] if row["control"] is None]
    assert gamma["estimate"] == pytest.approx(0)
    assert find(eight["gamma_changes"], control=None, method=gamma["method"])["estimate"] == pytest.approx(0)
    for name in ("gamma", "gamma_changes"):
        assert find(four[name], control=None, method=gamma["method"])["estimate"] == pytest.approx(8 / 40)
    aware = find(four["contrasts"], kind="control", student="a", left="rationale-A-aware")
    assert aware["estimate"] == pytest.approx(4 / 40)
    table = format_results(results)
    assert "Q4_0 by llama.cpp, against the students" in table and "from the students' own γ" in table
    assert "a: rationale-A-aware against rationale-A, both as Q4_0: +10.0 points" in table
    blocks = show_quantization(results)
    assert [type(block).__name__ for block in blocks] == ["Text", "Figure", "Figure", "Table", "Table", "Table"]
    line = blocks[1].panels[0].series[0]
    assert line.xs == [4e-6, 8e-6, 32e-6] and line.ys[1] == line.ys[2] == pytest.approx(73.75)


def test_a_file_that_answered_nothing_is_named(tmp_path: Path) -> None:
    study = make_study(tmp_path, quantization=KINDS, seeds=1)
    for arm in expand(study):
        write_arm(study, arm, [True, False, True])
        if arm.id != "a-rationale-A-seed0":
            write_arm(study, arm, [True, False, False], kind="Q8_0")
    results = analyze(study)
    [eight] = results["quantization"]
    assert len(eight["cells"]) == 3 and eight["cells"][0]["bytes"] is None
    said = "\n".join(results["warnings"])
    assert "1 of 4 arms have no predictions of Q8_0 and are left out: a-rationale-A-seed0" in said
    assert "4 of 4 arms have no predictions of Q4_0" in said
