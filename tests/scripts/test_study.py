"""A whole study in small: its table and results are what its own files say."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from scripts import study as script
from scripts.common.entry import run_main
from studies.numbers import points
from tests.halting.process import PATIENCE, locked_elsewhere, wait_until
from tests.scripts.pipeline import run_study

ROOT = Path(__file__).parents[2]
ARGS = ["--config=tiny.yaml", "--seeds=1", "--workers=2"]
EXPERIMENT = ROOT / "configs" / "experiments" / "microworld.yaml"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which the embedded default's study ran on a few questions, and its table."""
    folder = tmp_path_factory.mktemp("study")
    content = yaml.safe_load(EXPERIMENT.read_text())
    content["study"]["tasks"] = {"microworld": {"train": "microworld:train:8:0", "test": ["microworld:test:10:0"]}}
    content["study"]["outcomes"] = ["agreement"]
    content["fit"]["trainer"]["max_epochs"] = 1
    run_study(folder, content, *ARGS[1:])
    return folder, (folder / "runs" / "microworld" / "table.md").read_text().rstrip("\n")


@pytest.fixture
def folder(study: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The study's own folder, below the working directory."""
    monkeypatch.chdir(study[0])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return study[0] / "runs" / "microworld"


def read_accuracies(folder: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """Recomputes (accuracy, share of answers found) by (arm, student) from the predictions alone."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for path in (folder / "predictions").glob("*.parquet"):
        records = pq.read_table(path).to_pylist()
        right = np.mean([record["answer_neutral"] == record["gold"] for record in records])
        answered = np.mean([record["answer_neutral"] is not None for record in records])
        [arm], [_] = {record["arm"] for record in records}, {record["seed"] for record in records}
        found.setdefault((arm, path.name.split("-")[0]), []).append((float(right), float(answered)))
    return {
        key: (float(np.mean(values, axis=0)[0]), float(np.mean(values, axis=0)[1])) for key, values in found.items()
    }


def test_every_arm_answered_every_test_question(folder):
    predictions = {path.stem: pq.read_table(path).to_pylist() for path in (folder / "predictions").glob("*.parquet")}
    conditions = ["label", *(f"{name}-{teacher}" for name in ("rationale", "rationale+logits") for teacher in "ab")]
    expected = {f"{student}-untuned-seed0" for student in "ab"}
    expected |= {f"{student}-{name}-seed0" for student in "ab" for name in conditions}
    assert set(predictions) == expected
    assert len({tuple(record["question_id"] for record in records) for records in predictions.values()}) == 1


def read_results(folder: Path) -> tuple[dict, dict[tuple[str, str], dict]]:
    """Returns the results, and their cells by (arm, student)."""
    results = json.loads((folder / "results.json").read_text())
    return results, {(cell["condition"], cell["student"]): cell for cell in results["cells"]}


def test_results_agree_with_the_predictions(folder):
    results, cells = read_results(folder)
    recomputed = read_accuracies(folder)
    assert results["num_questions"] == {"microworld": 10}
    assert set(cells) == set(recomputed)
    for key, cell in cells.items():
        accuracy, extracted = recomputed[key]
        assert cell["accuracy"] == pytest.approx(accuracy) and cell["extraction_rate"] == pytest.approx(extracted)
        assert cell["accuracy_by_extractor"]["neutral"] == pytest.approx(accuracy)
        assert 0 <= cell["low"] <= accuracy <= cell["high"] <= 1 + 1e-9 and cell["low"] < cell["high"]
        gain = None if key[0] == "untuned" else accuracy - recomputed["untuned", key[1]][0]
        assert cell["gain"] == (gain if gain is None else pytest.approx(gain))
    own, other = [recomputed[f"rationale-{f}", f][0] for f in "ab"], [recomputed["rationale-a", "b"][0]]
    other.append(recomputed["rationale-b", "a"][0])
    gamma, with_logits = results["gamma"]
    assert gamma["estimate"] == pytest.approx((sum(own) - sum(other)) / 2)
    assert gamma["low"] <= gamma["estimate"] <= gamma["high"] and gamma["families"] == ["a", "b"]
    [difference] = results["gamma_differences"]
    assert difference["estimate"] == pytest.approx(with_logits["estimate"] - gamma["estimate"])
    # Of the four arms with distributions, two needed an alignment.
    coverage = {key: cell["coverage"] for key, cell in cells.items() if cell["coverage"]}
    assert set(coverage) == {("rationale+logits-b", "a"), ("rationale+logits-a", "b")}
    assert all(sum(shares.values()) == pytest.approx(1) and shares["strict"] > 0.3 for shares in coverage.values())
    assert any("one training seed" in warning for warning in results["warnings"])


def test_agreement_is_told_of_every_taught_arm_across_tokenizers_too(folder):
    results, cells = read_results(folder)
    [agreement] = results["outcomes"]
    taught = {key for key, cell in cells.items() if cell["teacher"]}
    assert {(cell["condition"], cell["student"]) for cell in agreement["cells"]} == taught
    assert len(agreement["gamma"]) == 2 and all(0 < cell["mean"] < 1 for cell in agreement["cells"])
    records = pq.read_table(folder / "predictions/a-rationale-b-seed0.parquet").to_pylist()
    shares = [score["agreement"] / score["num_compared"] for record in records for score in record["references"]]
    [cell] = [own for own in agreement["cells"] if (own["condition"], own["student"]) == ("rationale-b", "a")]
    assert cell["mean"] == pytest.approx(np.mean(shares)) and len(shares) == 10


def test_training_examples_are_the_right_rationales(folder):
    _, cells = read_results(folder)
    for teacher in "ab":
        records = pq.read_table(folder / "teachers" / teacher / "microworld.parquet").to_pylist()
        right = sum(record["correct"] for record in records)
        assert cells[f"rationale-{teacher}", "a"]["num_examples"] == right > 0
    assert cells["label", "a"]["num_examples"] == 8 and cells["untuned", "a"]["num_examples"] == 0


def test_table_shows_the_results(study, folder):
    table = study[1]
    results, cells = read_results(folder)
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines() if re.match(r"\| \w", line)}
    assert set(rows) == {condition for condition, _ in cells} | {"arm"}
    for (arm, student), cell in cells.items():
        shown = rows[arm].strip("| ").split(" | ")[1 + "ab".index(student)]
        assert shown.startswith(f"{cell['accuracy']:.1%} [{cell['low']:.1%}, {cell['high']:.1%}]")
    assert " – " not in rows["rationale+logits-a"] and "the distributions add" in table
    assert f"γ = {points(results['gamma'][0]['estimate'])} points" in table


@pytest.mark.slow
def test_rerun_does_nothing_new(study, folder, capsys):
    anew = ("results.json", "table.md", "report.html")
    kept = {
        path: (path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "logs" and path.name not in anew
    }
    results = (folder / "results.json").read_bytes()
    sizes = {path: path.stat().st_size for path in (folder / "logs").iterdir()}
    script.main(["run", *ARGS])
    assert study[1] in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in kept} == kept
    assert (folder / "results.json").read_bytes() == results
    for log, size in sizes.items():
        added = [line for line in log.read_bytes()[size:].decode().splitlines() if not line.startswith("$ ")]
        assert added and all(re.search(r"(complete|done) already$", line) for line in added), (log, added)


@pytest.mark.slow
def test_failing_job_is_one_line_that_names_its_log(folder, capsys, tmp_path):
    content = yaml.safe_load(Path("tiny.yaml").read_text())
    (tmp_path / "test.jsonl").write_text('{"id": "1", "question": "Which?", "choices": ["x"], "gold": "B"}\n')
    content["study"] |= {"name": "failing", "supervisions": ["label"]}
    content["study"]["tasks"]["microworld"]["test"] = [f"{tmp_path}/test.jsonl"]
    Path("failing.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit) as stopped:
        run_main(lambda: script.main(["run", "--config=failing.yaml", "--workers=2"]), script.__file__)
    assert stopped.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "job/s" not in line and line.strip()]
    [line] = [line for line in said if line.startswith("error: ")]
    assert said[-1] == line and "test.jsonl:1" in line
    log = re.search(r"see (\S+\.log)", line)
    assert log and Path(log[1]).is_file() and "scripts.evaluate" in Path(log[1]).read_text()
    assert not Path("runs/failing/results.json").exists()
    # What did not need it ran all the same.
    assert {path.parent.name for path in Path("runs/failing").glob("*/DONE")} >= {"a-label-seed0", "b-label-seed1"}
    assert "6 jobs failed)" in line


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_stopped_study_leaves_no_worker_behind(folder, sent, code):
    command = [sys.executable, str(ROOT / "scripts" / "study.py"), "run", *ARGS, f"--name=stopped{code}"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # A shell starts what runs in its background with interrupts ignored, and children inherit that.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process:
        logs = folder.parent / f"stopped{code}" / "logs"
        wait_until(process, lambda: any(logs.glob("*.log")))
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        out, said = process.communicate()
        assert process.returncode == code and "Traceback" not in said
        # The group is empty once the last worker has gone.
        with pytest.raises(ProcessLookupError):
            for _ in range(5 * PATIENCE):
                os.killpg(process.pid, 0)
                time.sleep(0.2)
    if sent == signal.SIGINT:
        assert said.splitlines()[-1] == "interrupted; the same command continues"
    if sent == signal.SIGTERM:
        assert re.fullmatch(r"stopped by SIGTERM while \d+ jobs ran; the same command continues", out.splitlines()[-1])


def test_jobs_are_lines_of_json_that_name_what_exists(folder, capsys):
    script.main(["jobs", *ARGS])
    jobs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(list(job) == ["name", "stage", "args", "done", "needs"] for job in jobs)
    seen: set[str] = set()
    for job in jobs:
        assert (ROOT / "scripts" / f"{job['stage']}.py").is_file() and Path(job["done"]).is_file()
        assert seen.issuperset(job["needs"]) and job["name"] not in seen
        seen.add(job["name"])
    assert jobs[-1]["args"] == ["analyze", *ARGS] and len(jobs[-1]["needs"]) == 12


def test_status_tells_done_running_pending_stopped_and_failed(folder, capsys):
    script.main(["status", *ARGS])
    assert capsys.readouterr().out.splitlines()[-1].endswith("31 jobs: 31 done")
    logs = folder.parent / "new" / "logs"
    logs.mkdir(parents=True)
    (logs / "annotate-a-microworld.log").write_text("$ python -m scripts.annotate\nerror: no such model\n")
    (logs / "annotate-b-microworld.log").write_text("$ python -m scripts.annotate\n 10%|\r 20%|")
    with locked_elsewhere(logs / "evaluate-a-untuned-seed0.log"):
        script.main(["status", *ARGS, "--name=new"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=2) for line in lines[:2]] == [
        ["failed", "annotate-a-microworld", "error: no such model"],
        ["stopped", "annotate-b-microworld", "20%|"],
    ]
    assert any(line.split()[:2] == ["running", "evaluate-a-untuned-seed0"] for line in lines)
    assert lines[-1].endswith("31 jobs: 1 running, 28 pending, 1 stopped, 1 failed")
