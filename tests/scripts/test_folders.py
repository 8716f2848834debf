"""Where results are kept: no folder is taken over, no name leads elsewhere, no script runs another checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from datamodules.logit_cache.format import read_manifest, render_manifest
from scripts import study, sweep
from tests.scripts.conftest import list_files
from tests.scripts.pipeline import ROOT

NAMES = ["..", ".", "../x", "/tmp/x", "a/b", "a\nb", "", "-x", "a b"]


def make_foreign(folder: Path) -> dict[str, str]:
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "thesis.txt").write_text("mine")
    (folder / "config.yaml").write_text("my: config")
    return list_files(folder)


@pytest.mark.parametrize("mark", [None, "{}", "not JSON", '{"config": {}}', "DONE"])
def test_fit_leaves_a_foreign_folder_alone(bench, mark: str | None) -> None:
    folder = bench.folder / "runs" / "bench" / "run"
    make_foreign(folder)
    if mark is not None:
        (folder / ("DONE" if mark == "DONE" else "meta.json")).write_text(mark)
    assert "but no meta.json of Kindred's; it is not touched: choose another" in bench.refuse("fit")


def test_fit_leaves_a_folder_of_runs_alone(bench) -> None:
    bench.run("fit")
    line = bench.refuse("fit", "--run.root=.", "--run.group=runs", "--run.id=bench")
    assert "runs/bench: holds runs, and is none itself" in line


def test_a_run_that_was_killed_before_it_began_is_begun(bench) -> None:
    folder = bench.folder / "runs" / "bench" / "run"
    folder.mkdir(parents=True)
    (folder / ".lock").write_text("process 1 on another")
    (folder / ".meta.json.tmp-0123abcd").write_text("{")
    bench.run("fit")
    assert (folder / "DONE").is_file() and (folder / "config.yaml").is_file()


def test_a_run_whose_checkpoints_are_damaged_is_left_as_it_is(bench) -> None:
    bench.run("fit", "--run.keep_checkpoints=true")
    folder = bench.folder / "runs" / "bench" / "run"
    (folder / "DONE").unlink()
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    assert "damaged; delete the run's folder" in bench.refuse("fit")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["run.id", "run.group"])
def test_a_runs_name_leads_nowhere_else(bench, setting: str, name: str) -> None:
    assert setting in bench.refuse("fit", f"--{setting}={json.dumps(name)}")


STUDY = {
    "name": "tiny",
    "tasks": {"t": {"train": "t.jsonl", "test": ["t.jsonl"]}},
    "students": {"s": {"model": "models/student", "family": "x"}},
    "teachers": {"a": {"model": "models/teacher", "family": "x"}},
    "supervisions": ["label"],
}


def write_experiment(changes: dict, **sections: dict) -> None:
    content = {"study": {**STUDY, **changes}, "fit": {}, "evaluate": {}, "annotate": {}, **sections}
    Path("tiny.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", ["name", "tasks", "students", "teachers", "controls"])
def test_a_studys_names_lead_nowhere_else(bench, setting: str, name: str) -> None:
    changes: dict = {"name": name}
    if setting != "name":
        spec = next(iter(STUDY.get(setting, {"": None}).values()))
        changes = {setting: {name: spec or {"correct_only": False}}}
    write_experiment(changes)
    line = bench.refuse_main(study.main, ["run", "--config=tiny.yaml"])
    assert f"study.{setting}" in line and "would be the name of a file" in line


@pytest.mark.parametrize("name", NAMES)
def test_a_sweeps_group_leads_nowhere_else(bench, name: str) -> None:
    write_experiment({})
    grid = {"config": "tiny.yaml", "group": name, "product": {"model.learning_rate": [1e-3]}}
    Path("grid.yaml").write_text(yaml.safe_dump(grid))
    assert "sweep.group" in bench.refuse_main(sweep.main, ["grid.yaml", "--local"])


def test_a_study_leaves_a_foreign_folder_alone(bench) -> None:
    make_foreign(bench.folder / "runs" / "tiny")
    common = {"model": {"student": "models/student"}, "data": {"questions": "colours_train.jsonl"}}
    annotate = {"model": {"teacher": "models/teacher", "family": "x"}, "data": common["data"], "output": "out.parquet"}
    fit = {**common, "data": {**common["data"], "supervision": "label"}}
    write_experiment({}, annotate=annotate, fit=fit, evaluate={**common, "output": "out.parquet"})
    assert "runs/tiny: holds config.yaml, but no meta" in bench.refuse_main(study.main, ["run", "--config=tiny.yaml"])


def test_a_capture_leaves_a_foreign_folder_alone(bench) -> None:
    for name in ("thesis.txt", "shard-notes.txt", ".git"):
        folder = bench.folder / "out" / "logits"
        folder.mkdir(parents=True)
        (folder / name).write_text("mine")
        assert f"is no logit cache (it holds {name})" in bench.refuse("cache_logits")
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["../elsewhere/shard-0000-00000.safetensors", "/etc/passwd", "shard.safetensors"])
def test_a_manifest_lists_files_of_its_own_folder_only(bench, name: str) -> None:
    folder = bench.folder / "logits"
    shutil.copytree(folder, bench.folder / "elsewhere")
    manifest = read_manifest(folder)
    manifest["shards"][0]["file"] = name
    (folder / "manifest.json").write_text(render_manifest(manifest))
    assert f"lists '{name}', which is no shard of this folder" in bench.refuse("fit")


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_every_script_tells_where_it_is(script: str) -> None:
    text = (ROOT / "scripts" / f"{script}.py").read_text()
    assert script == "job" or '__name__ == "__main__"' not in text or ", __file__)\n" in text


@pytest.mark.parametrize("script", ["fit", pytest.param("study", marks=pytest.mark.slow)])
def test_a_script_of_one_checkout_does_not_run_the_library_of_another(tmp_path: Path, script: str) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "other" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "other" / "scripts" / f"{script}.py"
    command = [sys.executable, str(file), "--model.student=x"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and f"{tmp_path}/other" in line and str(ROOT) in line
    assert f"run `python -m scripts.{script}` in {tmp_path}/other" in line


def test_a_job_of_one_checkout_does_not_run_a_stage_of_another(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "other" / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "jobs.jsonl").write_text('{"name": "j", "stage": "status", "args": [], "done": "x", "needs": []}\n')
    code = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(tmp_path / "other" / "scripts" / "job.py"), "jobs.jsonl", "0"]
    done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 2 and "would run scripts.status of another checkout" in done.stderr
