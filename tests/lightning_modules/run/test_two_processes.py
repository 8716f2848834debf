"""Two processes give what one gives: training, validation, annotation, evaluation, logit capture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.distillation import RationaleDataModule
from datamodules.logit_cache.aligned import AlignmentKind
from datamodules.logit_cache.reader import LogitCache
from lightning_modules.model.token_budget import GRAIN, MOST_TOKENS
from lightning_modules.run.checkpoints import RngState
from tests.lightning_modules.conftest import World
from tests.lightning_modules.run.two_processes import (
    ALIGNMENTS,
    SAVING,
    STEPS,
    make_predictors,
    make_student,
    predict,
)
from tests.tiny import build, fit, make_questions, make_rationale, save_model, write_store

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def paths(world: World) -> dict:
    """The world as the other processes read it."""
    one = write_store(world.folder / "one.parquet", [make_rationale(make_questions(1)[0], "teacher")], world.teacher)
    foreign = save_model(world.folder / "foreign", seed=2, corpus=("iron", "so and so it is"))
    told = {name: str(value) for name, value in vars(world).items()}
    told |= {"one_rationale": one, "foreign_student": foreign}
    module, make_data = make_student(told)
    place: dict = {"dirpath": world.folder, "auto_insert_metric_name": False, "save_top_k": -1}
    save = ModelCheckpoint(**place, filename="one-{step}", every_n_train_steps=2)
    trainer = fit(
        module, make_data(**STEPS), max_epochs=2, callbacks=[RngState(), save], default_root_dir=world.folder, **SAVING
    )
    # Saved inside an epoch.
    assert trainer.num_training_batches == 3
    torch.save(module.model.state_dict(), world.folder / "one.pt")
    return {**told, "checkpoint": str(world.folder / "one-2.ckpt"), "uninterrupted": str(world.folder / "one.pt")}


@pytest.fixture(scope="module")
def output(paths: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "world.json").write_text(json.dumps(paths))
    command = [
        sys.executable,
        str(Path(__file__).with_name("two_processes.py")),
        str(folder / "world.json"),
        str(folder),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def assert_same_weights(first: dict, second: dict, atol: float) -> None:
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=atol)


def test_processes_agree_on_a_budget_and_a_step_sends_one_message(output: Path) -> None:
    found = [json.loads((output / f"budget-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    assert GRAIN < found[0]["tokens"] < MOST_TOKENS
    # The last step's are followed by what ends an epoch.
    assert len(found[0]["sent"]) == 3 and found[0]["sent"][:-1] == [["async all_reduce"]] * 2


@pytest.mark.parametrize("name", ["one_batch_each", "four_batches_each"])
def test_weights_do_not_depend_on_the_number_of_processes(paths: dict, output: Path, name: str) -> None:
    """Eight examples a step, three steps: one batch of eight, two processes of one or of four batches.

    In float64, since AdamW's first steps turn rounding noise of a small gradient into a whole step.
    """
    module, make_data = make_student(paths)
    trainer = fit(module, make_data(), max_epochs=3, precision="64-true")
    assert trainer.global_step == 3
    assert_same_weights(module.model.state_dict(), torch.load(output / f"{name}.pt", weights_only=True), 1e-9)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_neither_do_they_across_tokenizers(paths: dict, output: Path, alignment: AlignmentKind) -> None:
    module, make_data = make_student(paths, alignment)
    data = make_data(**STEPS)
    trainer = fit(module, data, precision="64-true")
    assert trainer.global_step == 3 and 0.5 < data.coverage["strict"] < 1
    assert_same_weights(module.model.state_dict(), torch.load(output / f"{alignment}.pt", weights_only=True), 1e-9)


def test_validation_metrics_are_those_of_one_process(paths: dict, output: Path) -> None:
    metrics = [json.loads((output / f"val-{rank}.json").read_text()) for rank in range(2)]
    names = [name for name in metrics[0] if name.startswith("val/")]
    assert len(names) == 1 + 2 * 8
    assert [metrics[0][name] for name in names] == [metrics[1][name] for name in names]
    module, make_data = make_student(paths)
    module.learning_rate = 0.0
    options = {"fraction": 0.4, "seed": 3}
    expected = fit(module, make_data(**options)).callback_metrics
    for name in names:
        assert metrics[0][name] == pytest.approx(expected[name].item(), rel=1e-5), name


def test_processes_leave_a_validation_at_the_same_batch_without_waiting_for_each_other_before(output: Path) -> None:
    """The second is signalled after the first batch; what waits is the checkpoint, before the third."""
    steps, validated = [["async all_reduce"]] * 2, [["async all_reduce"]] * 2
    for rank in range(2):
        assert json.loads((output / f"stopped-{rank}.json").read_text()) == [*steps, *validated, ["barrier"]]
    assert (output / "stopped.ckpt").exists()


def test_a_training_goes_on_inside_an_epoch_with_another_number_of_processes(paths: dict, output: Path) -> None:
    expected = torch.load(paths["uninterrupted"], weights_only=True)
    assert_same_weights(torch.load(output / "resumed.pt", weights_only=True), expected, 1e-9)
    module, make_data = make_student(paths)
    saving = {**SAVING, "default_root_dir": output}
    fit(module, make_data(**STEPS), str(output / "of-2.ckpt"), max_epochs=2, callbacks=[RngState()], **saving)
    assert_same_weights(module.model.state_dict(), expected, 1e-9)


@pytest.mark.parametrize("limit", [5, 1])
def test_records_are_those_of_one_process(paths: dict, output: Path, tmp_path: Path, limit: int) -> None:
    for predictor in make_predictors(paths, tmp_path, limit):
        predict(*predictor)
    for name in ("annotate", "evaluate"):
        two, one = (json.loads((folder / f"{name}-{limit}.json").read_text()) for folder in (output, tmp_path))
        assert [record["question_id"] for record in one] == [f"q{index}" for index in range(limit)]
        for left, right in zip(two, one, strict=True):
            likelihoods = [record.pop("option_log_likelihoods", []) for record in (left, right)]
            np.testing.assert_allclose(*likelihoods, rtol=1e-5)
            assert left == right
        assert not list(output.glob(".*.part-*"))


@pytest.mark.parametrize("name", ["logits", "one_example", "sharded", "sharded_one_batch"])
def test_a_cache_of_two_processes_holds_what_one_writes(world: World, paths: dict, output: Path, name: str) -> None:
    one, two = LogitCache(Path(world.logits)), LogitCache(output / name)
    rationales = paths["one_rationale" if name == "one_example" else "rationales"]
    data = build(RationaleDataModule, world.teacher, world.questions, [rationales], prompt="plain")
    data.setup("predict")
    assert set(two) == {example.id for example in data.examples}
    two.check("student", data.tokenizer, data.prompt.id, data.examples)
    for example in data.examples:
        left, right = one.read(example), two.read(example)
        for plane in ("token_ids", "support"):
            np.testing.assert_array_equal(left[plane], right[plane])
        # A probability between two codes may be rounded either way.
        np.testing.assert_allclose(np.exp(left["log_probs"]), np.exp(right["log_probs"]), atol=0.01)
