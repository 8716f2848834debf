"""A sweep on this machine, on real tiny models: each arm once, a table of what came out, mistakes before anything."""

import json
from pathlib import Path

import pytest
import yaml

from scripts import sweep

ROOT = Path(__file__).parents[2]
SHARED = {"questions": "colours_train.jsonl", "prompt": "plain", "encoding": {"max_length": 512}}
EXPERIMENT = {
    "fit": {
        "model": {"student": "models/student", "loss": {"kl_weight": 0.5}},
        "data": {**SHARED, "rationales": ["r.parquet"], "supervision": "rationale+logits", "logits": ["logits"]},
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False},
    },
    "evaluate": {
        "model": {"student": "models/student", "max_new_tokens": 4},
        "data": SHARED,
        "trainer": {"enable_progress_bar": False},
        "output": "p.parquet",
    },
}
GRID = {"config": "experiment.yaml", "group": "weights", "product": {"model.loss.kl_weight": [0.25, 0.75]}}


@pytest.fixture
def write_grid(bench):
    """Writes the experiment and a grid with some changes; returns the sweep's command line."""

    def write(**changes) -> list[str]:
        (bench.folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        (bench.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | changes))
        return ["grid.yaml"]

    return write


@pytest.mark.slow
def test_a_sweep_runs_here_and_again_does_nothing(bench, write_grid):
    args = [*write_grid(), "--local"]
    table = bench.run_main(sweep.main, args)
    runs = bench.folder / "runs" / "weights"
    assert (runs / "table.md").read_text() == table and table.count("(n=8)") == 2
    for line, weight in zip(table.splitlines()[2:], GRID["product"]["model.loss.kl_weight"], strict=True):
        arm = line.split(" | ")[0].strip("| ")
        config = yaml.safe_load((runs / arm / "config.yaml").read_text())
        assert config["model"]["loss"]["kl_weight"] == weight and f"| {weight} " in line
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    assert bench.run_main(sweep.main, args) == table
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")} == before != {}


def test_an_agent_runs_one_arm(bench, write_grid):
    args = write_grid()
    given = yaml.safe_load(bench.run_main(sweep.main, [*args, "--wandb"]))
    # As `wandb agent` does with the command of the sweep.
    first, second = given["parameters"]["arm"]["values"]
    command = [word for word in given["command"][4:] if word != "${args}"] + [f"--arm={second}"]
    bench.run_main(sweep.main, command)
    runs = bench.folder / "runs" / "weights"
    assert json.loads((runs / second / "DONE").read_text()) and not (runs / first).exists()
    assert (runs / "predictions" / f"{second}.parquet").is_file()


@pytest.mark.parametrize(
    "changes, more, line",
    [
        ({"produkt": {"model.x": [1]}}, ["--dry-run"], "produkt"),
        ({"config": "nowhere.yaml"}, ["--dry-run"], "no such file: nowhere.yaml"),
        ({"product": {"model.loss.kl_weigth": [1]}}, ["--dry-run"], "model.loss.kl_weigth"),
        ({"product": {"model.loss.kl_weight": [0.5, 2]}}, ["--local"], "kl_weight"),
        ({}, ["--arm=nobody"], "has no arm nobody"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(bench, write_grid, changes, more, line):
    args = write_grid(**changes)
    assert line in bench.refuse_main(sweep.main, [*args, *more])


def test_a_missing_grid_is_refused(bench):
    assert "nowhere.yaml" in bench.refuse_main(sweep.main, ["nowhere.yaml"])


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_sweep_is_one_that_its_experiment_takes(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    *jobs, table = sweep.read_sweep(str(file)).jobs(str(file))
    fits = [job for job in jobs if job.stage == "fit"]
    assert [job.stage for job in jobs[:2]] == ["annotate", "cache_logits"] and len(table.needs) == len(fits)
    # The last is the baseline, the first has each setting that is varied.
    sweep.check([*jobs[:2], fits[0], fits[-1], *jobs[-1:]])
