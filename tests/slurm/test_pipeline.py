"""A study and a sweep on a real SLURM, each from one command: every stage on two nodes, and arms that fail."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.slurm.checkout import ROOT, Checkout, find_ids
from tests.slurm.cluster import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def write_study(folder: Path) -> None:
    """Writes the embedded default's study with one teacher, one student and few questions."""
    content = yaml.safe_load((ROOT / "configs" / "experiments" / "microworld.yaml").read_text())
    content["study"] |= {
        "tasks": {"microworld": {"train": "microworld:train:12:0", "test": ["microworld:test:8:0"]}},
        "students": {"a": {"model": "configs/models/microworld/a-student", "family": "a"}},
        "teachers": {"a": {"model": "configs/models/microworld/a-teacher", "family": "a"}},
        "supervisions": ["rationale+logits"],
        "seeds": 1,
    }
    # So few that each process of each stage has a batch.
    content["annotate"]["data"]["batches"] = content["cache_logits"]["data"]["batches"] = {"tokens_per_batch": 1024}
    content["fit"]["trainer"] = {"max_epochs": 1, "log_every_n_steps": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory) -> tuple[Checkout, str]:
    """A checkout in which the study went from one command to its table, and what the command printed."""
    checkout = Checkout(tmp_path_factory.mktemp("pipeline"), cluster)
    write_study(checkout.folder)
    for stage, options in {
        "ANNOTATE": "--nodes=2",
        "CACHE_LOGITS": "--nodes=2",
        "FIT": "--nodes=2",
        # Two fake GPUs on one node: as many processes, which find that they are none and take the CPU.
        "EVALUATE": "--gres=gpu:2 --cpus-per-gpu=1",
    }.items():
        with checkout.site.open("a") as site:
            site.write(f'export KINDRED_{stage}_OPTIONS="{options}"\n')
    printed = cluster.run("slurm/pipeline.sh", "study.yaml", cwd=checkout.folder)
    again = cluster.run("slurm/pipeline.sh", "study.yaml", cwd=checkout.folder)
    assert "0 of 6 jobs are neither done nor in the queue" in again
    [last] = find_ids(printed)["study"]
    cluster.wait(last)
    return checkout, printed


def test_one_command_runs_a_study(finished):
    checkout, printed = finished
    assert {stage: len(arrays) for stage, arrays in find_ids(printed).items()} == {
        "annotate": 1, "cache_logits": 1, "fit": 1, "evaluate": 2, "study": 1,
    }  # fmt: skip
    assert "watch: " in printed and "cancel: scancel " in printed
    for arrays in find_ids(printed).values():
        for array in arrays:
            checkout.finish(f"{array}_0")
    runs = checkout.folder / "runs" / "microworld"
    assert json.loads((runs / "results.json").read_text())
    for arm in ("a-untuned-seed0", "a-rationale+logits-a-seed0"):
        answers = pq.read_table(runs / "predictions" / f"{arm}.parquet")["question_id"].to_pylist()
        assert len(answers) == len(set(answers)) == 8
    assert len(pq.read_table(runs / "teachers" / "a" / "microworld.parquet")) == 12


def test_each_stage_used_both_processes(finished):
    checkout, printed = finished
    ids = find_ids(printed)
    for stage in ("annotate", "cache_logits", "fit"):
        assert "(n[1-2], 1 tasks each)" in checkout.log(f"{ids[stage][0]}_0")
    assert ", 2 tasks each)" in checkout.log(f"{ids['evaluate'][0]}_0")
    cache = checkout.folder / "runs" / "microworld" / "teachers" / "a" / "microworld-logits"
    assert len([*cache.glob("shard-*.safetensors")]) == 2


def test_a_finished_study_is_not_submitted_again(finished):
    checkout, _ = finished
    printed = checkout.cluster.run("slurm/pipeline.sh", "study.yaml", cwd=checkout.folder)
    assert "0 of 6 jobs" in printed and not find_ids(printed)


def test_status_shows_the_study(finished):
    checkout, _ = finished
    table = checkout.shell("python -m scripts.status runs/microworld")
    assert "runs/microworld: 6 done" in table
    [fit] = [line.split("|") for line in table.splitlines() if "| fit-a-" in line]
    assert fit[2].strip() == "done" and fit[4].strip().startswith("train/loss ")


def write_sweep(checkout: Checkout) -> list[str]:
    """Writes a sweep of four arms over the study's teacher, of which one lacks its rationales; returns its path."""
    teacher = "runs/microworld/teachers/a/microworld"
    experiment = yaml.safe_load((checkout.folder / "study.yaml").read_text())
    experiment["fit"]["data"] |= {
        "questions": "microworld:train:12:0",
        "rationales": [f"{teacher}.parquet"],
        "logits": [f"{teacher}-logits"],
    }
    experiment["evaluate"]["data"]["questions"] = "microworld:test:8:0"
    stages = {stage: experiment[stage] for stage in ("fit", "evaluate")}
    (checkout.folder / "experiment.yaml").write_text(yaml.safe_dump(stages))
    grid = {
        "config": "experiment.yaml",
        "group": "sweep",
        "product": {"model.loss.kl_weight": [0.25, 0.75]},
        "list": [
            {
                "data.rationales": ["later.parquet"],
                "data.supervision": "rationale",
                "data.logits": None,
                "model.loss.kl_weight": 0.0,
            },
            {"model.loss.temperature": 2.0},
        ],
        "at_most": 2,
    }
    (checkout.folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    return ["slurm/sweep.sh", "grid.yaml"]


def test_a_failed_arm_of_a_sweep_is_submitted_alone(finished):
    checkout, _ = finished
    command = write_sweep(checkout)
    # One process is enough here.
    checkout.site.write_text(re.sub(r"export KINDRED_\w+_OPTIONS=.*\n", "", checkout.site.read_text()))
    dry = checkout.cluster.run(*command, "--dry-run", cwd=checkout.folder)
    arms = [line.split(" | ")[0].strip("| ") for line in dry.splitlines()[2:]]
    failing = arms[2]
    assert len(arms) == 4 and not (checkout.folder / "runs" / "sweep").exists()
    first = find_ids(checkout.cluster.run(*command, cwd=checkout.folder))
    assert checkout.cluster.wait(f"{first['sweep'][0]}_0") == "FAILED"
    assert "needs evaluate-" + failing in checkout.log(f"{first['sweep'][0]}_0")
    fits, answers = ([f"{first[stage][0]}_{arm}" for arm in range(4)] for stage in ("fit", "evaluate"))
    assert [checkout.cluster.find_state(job) == "COMPLETED" for job in fits] == [True, True, False, True]
    assert [checkout.cluster.find_state(job) == "COMPLETED" for job in answers] == [True, True, False, True]
    assert f"error: evaluate-{failing} needs fit-{failing}, which is not finished" in checkout.log(answers[2])
    status = checkout.shell("python -m scripts.status runs/sweep")
    [row] = [line for line in status.splitlines() if f"| fit-{failing} " in line]
    assert "| failed " in row and "later.parquet" in row

    (checkout.folder / "later.parquet").symlink_to("runs/microworld/teachers/a/microworld.parquet")
    printed = checkout.cluster.run(*command, cwd=checkout.folder)
    assert "3 of 9 jobs are neither done nor in the queue" in printed
    second = find_ids(printed)
    log = checkout.finish(f"{second['sweep'][0]}_0")
    table = (checkout.folder / "runs" / "sweep" / "table.md").read_text()
    assert table in log and table.count("% [") == 4
    wait_for(lambda: not checkout.cluster.run("squeue", "-h"), "an empty queue")
