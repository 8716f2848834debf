"""Tests of what jobs leave that no other needs."""

from pathlib import Path

import pytest

from studies.jobs.job import Job, drop_spent
from tests.studies.jobs import rounds_plan, test_arm_rounds


def end(run: Path) -> None:
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "DONE").touch()


def test_checkpoints_that_a_finished_round_went_on_from_are_removed(tmp_path: Path) -> None:
    plan = rounds_plan.make_plan(root=str(tmp_path))
    for number in (1, 2, 3):
        (plan.run(number) / "checkpoints").mkdir(parents=True)
    left = {1: [1, 2, 3], 2: [2, 3], 3: [3]}
    for number in (1, 2, 3):
        end(plan.run(number))
        # As of two jobs that end at once.
        drop_spent(plan.jobs())
        drop_spent(plan.jobs())
        assert [own for own in (1, 2, 3) if (plan.run(own) / "checkpoints").exists()] == left[number]


def test_checkpoints_of_an_arms_rounds_are_removed_and_its_own_are_let_alone(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    plan, arm = test_arm_rounds.make_plan(), "q-on-policy-Q-seed0"
    first, last = Path("runs/s/rounds", arm, "round-1"), Path("runs/s", arm)
    end(first)
    end(last)
    drop_spent(plan.jobs())
    assert not (first / "checkpoints").exists() and (last / "checkpoints").exists()


@pytest.mark.parametrize("is_listed", [True, False])
def test_checkpoints_stay_while_one_job_may_need_them_and_those_of_another_plan_do(tmp_path: Path, is_listed) -> None:
    start, heirs = tmp_path / "start", [tmp_path / "a", tmp_path / "b"]
    jobs = [Job(heir.name, "fit", [f"--run.continues={start}"], str(heir / "DONE"), []) for heir in heirs]
    if is_listed:
        jobs.insert(0, Job("start", "fit", [], str(start / "DONE"), []))
    end(start)
    end(heirs[0])
    drop_spent(jobs)
    assert (start / "checkpoints").exists()
    end(heirs[1])
    drop_spent(jobs)
    assert (start / "checkpoints").exists() == (not is_listed)
