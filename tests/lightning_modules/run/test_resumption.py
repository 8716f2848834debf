"""A run resumed from any optimizer step is, to the bit, the run that was never interrupted; dropout is on."""

import json
import multiprocessing
import os
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tests.lightning_modules.run.resumable import train
from tests.tiny import make_questions, make_rationale, save_model, write_questions, write_store

ROOT = Path(__file__).parents[3]
# Of 24 questions' rationales, within the budget.
STEPS = 6
BUDGET = 300


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("job")
    student = save_model(folder / "student", seed=2)
    items = make_questions(24)
    return {
        "student": student,
        "questions": write_questions(folder / "colours_train.jsonl", items),
        "rationales": write_store(
            folder / "r.parquet",
            [make_rationale(item, "teacher", sample) for item in items for sample in (0, 1)],
            student,
        ),
        "data": {
            "tokens_per_step": BUDGET,
            "tokens_per_batch": 150,
            "samples_per_epoch": 1,
            "cache_dir": str(folder / "tokenized"),
        },
    }


def change(job: dict, trainer: dict | None = None, **data: object) -> dict:
    return {**job, "data": {**job["data"], **data}, "trainer": trainer or {}}


@pytest.fixture(scope="module")
def whole(job: dict, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    """The uninterrupted run, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    result = train(change(job, fraction=0.2), folder, every=1)
    assert result["per_epoch"] == STEPS and len(result["seen"]) == 3 * STEPS
    # Epochs draw other samples, in other batches.
    assert sorted(map(sorted, result["seen"][:STEPS])) != sorted(map(sorted, result["seen"][STEPS : 2 * STEPS]))
    return result, folder


def assert_same(part: dict, whole: dict, num_done: int) -> None:
    assert part["seen"] == whole["seen"][num_done:]
    assert part["weights"].keys() == whole["weights"].keys()
    assert all(torch.equal(part["weights"][name], tensor) for name, tensor in whole["weights"].items())


CHECKPOINTS = {
    "step1": 1,
    f"step{STEPS // 2}": STEPS // 2,
    f"step{STEPS - 1}": STEPS - 1,
    f"step{STEPS}": STEPS,
    f"end{STEPS}": STEPS,
    f"step{STEPS + 1}": STEPS + 1,
    f"end{2 * STEPS}": 2 * STEPS,
}


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_resumed_run_is_the_uninterrupted_one(
    job: dict, whole: tuple[dict, Path], tmp_path: Path, name: str, num_workers: int
) -> None:
    expected, folder = whole
    part = train(change(job, fraction=0.2, num_workers=num_workers), tmp_path, resume=folder / f"{name}.ckpt")
    assert_same(part, expected, CHECKPOINTS[name])
    # An epoch that ended before the checkpoint was validated before it.
    assert part["validations"] == expected["validations"][CHECKPOINTS[name] // STEPS :]


@pytest.mark.parametrize(
    ("trainer", "preempt"),
    [
        ({}, (0, 0)),
        ({}, (1, 1)),
        ({}, (2, 0)),
        ({"val_check_interval": 2}, (1, 0)),
        ({"val_check_interval": 2}, (2, 1)),
        ({"val_check_interval": 2}, (4, 0)),
    ],
)
def test_a_signal_in_a_validation_loses_no_step(
    job: dict, tmp_path: Path, trainer: dict, preempt: tuple[int, int]
) -> None:
    longer = change(job, trainer, fraction=0.4, tokens_per_step=150)
    expected = train(longer, tmp_path)
    stopped = train(longer, tmp_path, preempt=preempt)
    # It left within the validation.
    assert stopped["seen"] == expected["seen"][: len(stopped["seen"])]
    assert stopped["validations"] == expected["validations"][: preempt[0]]
    part = train(longer, tmp_path, resume=tmp_path / "preempted.ckpt")
    assert_same(part, expected, len(stopped["seen"]))
    assert part["validations"] == expected["validations"][preempt[0] :]


@pytest.mark.parametrize(
    ("trainer", "name", "num_done"),
    [
        ({"max_epochs": -1, "max_steps": 2 * STEPS + 2}, f"step{STEPS - 1}", STEPS - 1),
        ({"max_epochs": -1, "max_steps": 2 * STEPS + 2}, f"end{STEPS}", STEPS),
        ({"limit_train_batches": 4}, "end4", 4),
        ({"limit_train_batches": 4}, "step5", 5),
    ],
)
def test_so_it_is_under_other_limits(job: dict, tmp_path: Path, trainer: dict, name: str, num_done: int) -> None:
    limited = change(job, trainer, fraction=0.2)
    expected = train(limited, tmp_path / "whole", every=1)
    assert_same(train(limited, tmp_path, resume=tmp_path / "whole" / f"{name}.ckpt"), expected, num_done)


@pytest.fixture(scope="module")
def two_processes(job: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saw, uninterrupted and resumed."""
    output = tmp_path_factory.mktemp("two")
    trainer = {"strategy": "ddp", "devices": 2}
    told = {**change(job, trainer, num_workers=2), "output": str(output), "checkpoints": [*TWO_CHECKPOINTS]}
    (output / "job.json").write_text(json.dumps(told))
    command = [sys.executable, "-m", "tests.lightning_modules.run.resumable", str(output / "job.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(command, cwd=output, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


# Without a question held out, an epoch is longer.
MORE = 8
TWO_CHECKPOINTS = {"step1": 1, f"step{MORE - 1}": MORE - 1, f"step{MORE}": MORE, f"end{MORE}": MORE, "step9": 9}


def load(output: Path, name: str) -> list[dict]:
    return [torch.load(output / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", TWO_CHECKPOINTS)
def test_two_processes_resume_alike(two_processes: Path, name: str) -> None:
    expected = load(two_processes, "whole")
    assert expected[0]["per_epoch"] == MORE
    for part, own in zip(load(two_processes, name), expected, strict=True):
        assert_same(part, own, TWO_CHECKPOINTS[name])


def test_so_does_one_that_learns_for_few_bits(job: dict, whole: tuple[dict, Path], tmp_path: Path) -> None:
    own = {**change(job, fraction=0.2), "model": {"fake_quant": "Q4_0"}}
    expected = train(own, tmp_path / "whole", every=1)
    name = f"step{STEPS + 1}"
    assert_same(train(own, tmp_path, resume=tmp_path / "whole" / f"{name}.ckpt"), expected, CHECKPOINTS[name])
    assert any(not torch.equal(weight, whole[0]["weights"][key]) for key, weight in expected["weights"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step1", f"step{MORE + 1}", f"end{MORE}"])
def test_one_process_takes_the_steps_that_two_have_left(
    job: dict, two_processes: Path, tmp_path: Path, name: str
) -> None:
    part = train(job, tmp_path, resume=two_processes / "whole" / f"{name}.ckpt")
    shares = [share["seen"][TWO_CHECKPOINTS[name] :] for share in load(two_processes, "whole")]
    assert [sorted(step) for step in part["seen"]] == [sorted(a + b) for a, b in zip(*shares, strict=True)]


def test_an_epoch_is_not_ended_with_other_steps_than_it_began(
    job: dict, whole: tuple[dict, Path], tmp_path: Path
) -> None:
    _, folder = whole
    others = ({"order_seed": 1}, {"samples_per_epoch": None}, {"correct_only": True, "limit": 20})
    for other in (*others, {"tokens_per_step": 200}):
        with pytest.raises(ValueError, match="after 3 steps that are not those that the data and its settings now"):
            train(change(job, **{"fraction": 0.2, **other}), tmp_path, resume=folder / "step3.ckpt")


def test_inside_an_epoch_the_memory_may_change(job: dict, whole: tuple[dict, Path], tmp_path: Path) -> None:
    expected, folder = whole
    larger = change(job, fraction=0.2, tokens_per_batch=1000)
    part = train(larger, tmp_path, resume=folder / "step3.ckpt")
    assert [sorted(step) for step in part["seen"]] == [sorted(step) for step in expected["seen"][3:]]


def test_at_an_epochs_end_the_budget_may_change(job: dict, whole: tuple[dict, Path], tmp_path: Path) -> None:
    _, folder = whole
    larger = change(job, fraction=0.2, tokens_per_step=600)
    part, own = train(larger, tmp_path, resume=folder / f"end{STEPS}.ckpt"), train(larger, tmp_path)
    assert part["seen"] == own["seen"][own["per_epoch"] :]


def test_the_same_steps_overfit_where_that_is_asked_for(job: dict, tmp_path: Path) -> None:
    seen = train(change(job, {"overfit_batches": 2}), tmp_path)["seen"]
    assert len(seen) == 6 and seen[:2] == seen[2:4] == seen[4:] and seen[0] != seen[1]


def list_left(before: list[BaseProcess]) -> list[BaseProcess]:
    """Returns this process's children, once those have ended that were told to, which a loaded machine delays."""
    for child in set(multiprocessing.active_children()) - set(before):
        child.join(300)
    return multiprocessing.active_children()


def test_a_signal_in_a_validation_ends_the_workers_of_the_training_too(job: dict, tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    held_out = change(job, fraction=0.4, tokens_per_step=150, num_workers=1)
    train(held_out, tmp_path, preempt=(1, 0))
    assert list_left(before) == before


def test_an_interrupt_ends_the_workers_at_once(job: dict, tmp_path: Path) -> None:
    before = multiprocessing.active_children()
    # After the first validation, whose workers live on, too.
    result = train(change(job, num_workers=2, fraction=0.2), tmp_path, stop=STEPS + 1)
    assert len(result["seen"]) == STEPS + 1
    assert list_left(before) == before
