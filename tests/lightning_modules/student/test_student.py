"""Tests of the student's training: a hand-made oracle, invariances, resumption, export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import AutoModelForCausalLM

from datamodules.distillation import DistillationDataModule
from datamodules.examples.tokenization import ANSWER, PROMPT
from datamodules.rationales.store import Rationale
from lightning_modules.run.checkpoints import RotatingCheckpointIO
from lightning_modules.student.student import DistillationModule
from losses.distillation import DistillationLoss
from losses.schedules import Schedule
from tests.lightning_modules.conftest import World
from tests.tiny import build, fit, make_questions, make_rationale, write_store

MIXTURE = DistillationLoss(kl_weight=0.5, temperature=2.0, rationale_weight=0.3, answer_weight=2.0)


def make_data(world: World, **options) -> DistillationDataModule:
    options = {
        "supervision": "rationale+logits",
        "logits": [world.full_logits],
        "rationales": [world.rationales],
        **options,
    }
    return build(DistillationDataModule, world.student, world.questions, prompt="plain", **options)


def make_module(world: World, loss: DistillationLoss = MIXTURE, **options) -> DistillationModule:
    return DistillationModule(
        world.student, loss, **{"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0, **options}
    )


class Gradients(L.Callback):
    """Keeps the gradient that the optimizer's last step took."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object) -> None:
        gradients = {name: parameter.grad for name, parameter in pl_module.model.named_parameters()}
        self.last = {name: gradient.clone() for name, gradient in gradients.items()}


def train(world: World, data: dict | None = None, loss: DistillationLoss = MIXTURE, **options) -> DistillationModule:
    module = make_module(world, loss)
    fit(module, make_data(world, **(data or {})), **options)
    return module


def weights(module: DistillationModule) -> dict[str, torch.Tensor]:
    return module.model.state_dict()


@pytest.mark.parametrize("fused_head", [True, False])
def test_gradient_and_steps_are_those_of_a_hand_made_loop(world: World, fused_head: bool) -> None:
    """One example at a time, no padding, dense distributions, plain AdamW."""
    gradients = Gradients()
    module = make_module(world, fused_head=fused_head)
    fit(module, make_data(world), max_epochs=3, precision="64-true", callbacks=[gradients])

    data = make_data(world)
    data.setup("fit")
    student = AutoModelForCausalLM.from_pretrained(world.student, dtype=torch.float64)
    teacher = AutoModelForCausalLM.from_pretrained(world.teacher, dtype=torch.float32)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(3):
        total = weight = torch.tensor(0.0, dtype=torch.float64)
        for example in data.examples:
            ids = torch.tensor(example.token_ids).long()
            logits = student(ids[None]).logits[0]
            with torch.no_grad():
                taught = teacher(ids[None]).logits[0].double()
            for place in range(len(ids) - 1):
                if example.segments[place + 1] == PROMPT:
                    continue
                w = 2.0 if example.segments[place + 1] == ANSWER else 0.3
                cross_entropy = -logits[place].log_softmax(-1)[ids[place + 1]]
                # The student's head has five ids more than the teacher's, on which the teacher has no mass.
                log_p, log_q = (taught[place] / 2).log_softmax(-1), (logits[place] / 2).log_softmax(-1)
                divergence = (log_p.exp() * (log_p - log_q[: len(log_p)])).sum()
                total = total + w * (0.5 * cross_entropy + 0.5 * 4 * divergence)
                weight = weight + w
        optimizer.zero_grad()
        (total / weight).backward()
        optimizer.step()
    own = dict(module.model.named_parameters())
    for name, parameter in student.named_parameters():
        # The cache is float16.
        torch.testing.assert_close(gradients.last[name], parameter.grad, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(own[name], parameter, rtol=0, atol=1e-3)


def test_weights_do_not_depend_on_how_a_batch_is_split(world: World) -> None:
    whole = train(world, max_epochs=3, precision="64-true")
    parts = train(world, {"tokens_per_batch": 1}, max_epochs=3, precision="64-true")
    assert weights(whole).keys() == weights(parts).keys()
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, rtol=0, atol=1e-9)


def test_a_split_changes_float32_gradients_by_rounding_only(world: World) -> None:
    whole, parts = Gradients(), Gradients()
    train(world, callbacks=[whole])
    train(world, {"tokens_per_batch": 1}, callbacks=[parts])
    for name, gradient in whole.last.items():
        torch.testing.assert_close(parts.last[name], gradient, rtol=1e-4, atol=1e-6)


def test_what_is_logged_of_a_step_does_not_depend_on_how_its_batch_is_split(world: World) -> None:
    whole = fit(make_module(world), make_data(world)).callback_metrics
    parts = fit(make_module(world), make_data(world, tokens_per_batch=1)).callback_metrics
    assert len(whole) == 2 + 1 + 2 * 8
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(
        {name: value.item() for name, value in whole.items()}, rel=1e-4, abs=1e-6
    )


def test_the_unit_of_the_weights_plays_no_part(world: World) -> None:
    """Not even where all tokens together weigh less than 1."""
    found = []
    for unit in (1.0, 1e-5):
        loss = DistillationLoss(kl_weight=0.5, rationale_weight=0.3 * unit, answer_weight=2.0 * unit)
        found.append(fit(make_module(world, loss), make_data(world, fraction=0.25)).callback_metrics)
    assert {"train/loss", "val/loss", "val/ce_answer"} <= found[0].keys()
    assert {name: value.item() for name, value in found[1].items()} == pytest.approx(
        {name: value.item() for name, value in found[0].items()}, rel=1e-3, abs=1e-6
    )


def test_clipping_acts_on_the_normalised_gradient(world: World) -> None:
    gradients = Gradients()
    train(world, {"tokens_per_batch": 1}, gradient_clip_val=0.01, callbacks=[gradients])
    norm = torch.nn.utils.get_total_norm(list(gradients.last.values()))
    assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_same_seed_same_bits(world: World) -> None:
    first, second = (train(world, {"tokens_per_step": 200}, max_epochs=2) for _ in range(2))
    assert all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(second).items())
    other = train(world, {"tokens_per_step": 200, "order_seed": 1}, max_epochs=2)
    assert not all(torch.equal(weights(first)[name], tensor) for name, tensor in weights(other).items())


def test_resumed_at_an_epochs_end_is_bit_equal_to_uninterrupted(world: World, tmp_path: Path) -> None:
    class Killed(L.Callback):
        def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if trainer.current_epoch == 2:
                raise RuntimeError("killed")

    def options(folder: str) -> dict:
        checkpoint = ModelCheckpoint(dirpath=tmp_path / folder, filename="last", enable_version_counter=False)
        return {
            "max_epochs": 4,
            "enable_checkpointing": True,
            "plugins": [RotatingCheckpointIO()],
            "default_root_dir": str(tmp_path),
            "callbacks": [checkpoint],
        }

    def begin() -> tuple[DistillationModule, DistillationDataModule]:
        data = make_data(world, tokens_per_step=200, fraction=0.25)
        return make_module(world, schedule="cosine", warmup_ratio=0.2), data

    whole, data = begin()
    fit(whole, data, **options("whole"))
    module, data = begin()
    settings = options("resumed")
    with pytest.raises(RuntimeError, match="killed"):
        fit(module, data, **{**settings, "callbacks": [*settings["callbacks"], Killed()]})
    module, data = begin()
    trainer = fit(module, data, ckpt_path=str(tmp_path / "resumed" / "last.ckpt"), **options("resumed"))
    assert trainer.current_epoch == 4
    assert all(torch.equal(weights(whole)[name], tensor) for name, tensor in weights(module).items())


def test_a_batch_that_weighs_nothing_leaves_the_weights_alone(world: World, tmp_path: Path) -> None:
    """Rationales without an answer have no answer tokens, and only those are weighed here."""
    bare = [
        Rationale(**{**vars(make_rationale(question, "teacher")), "text": "No idea.", "answer": None, "correct": False})
        for question in make_questions(2)
    ]
    store = write_store(tmp_path / "bare.parquet", bare, world.teacher)
    module = make_module(world, DistillationLoss(rationale_weight=0.0))
    data = make_data(world, supervision="rationale", logits=None, rationales=[store], correct_only=False)
    trainer = fit(module, data)
    before = AutoModelForCausalLM.from_pretrained(world.student).state_dict()
    assert trainer.global_step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(module).items())
    assert "train/loss" not in trainer.callback_metrics


def test_a_student_that_is_the_teacher_begins_without_divergence(world: World) -> None:
    """End to end: any shift between rows and logits, or between rationales, shows as a divergence."""
    data = make_data(world, tokens_per_step=200, logits=[world.logits])
    loss = DistillationLoss(kl_weight=1.0, temperature=2.0)
    trainer = fit(DistillationModule(world.teacher, loss, learning_rate=0.0), data)
    assert trainer.global_step > 1
    for segment in ("rationale", "answer"):
        assert abs(trainer.callback_metrics[f"train/divergence_{segment}"].item()) < 1e-5
    other = fit(make_module(world, loss, learning_rate=0.0), data).callback_metrics
    assert other["train/divergence_rationale"] > 0.01


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_fused_head_logs_and_learns_what_logits_do(world: World, precision: str) -> None:
    found = []
    for fused_head in (True, False):
        module = make_module(world, fused_head=fused_head)
        trainer = fit(module, make_data(world, fraction=0.25), precision=precision)
        assert (module._head_settings is not None) == fused_head
        found.append({name: value.item() for name, value in trainer.callback_metrics.items()})
    assert found[0].keys() == found[1].keys()
    assert {"train/student_entropy_rationale", "train/agreement_answer", "val/teacher_tail_answer"} <= found[0].keys()
    tolerance = {"rel": 1e-4, "abs": 1e-5} if precision == "32-true" else {"rel": 0.05, "abs": 0.03}
    assert found[0] == pytest.approx(found[1], **tolerance)


def test_a_schedule_runs_over_the_whole_training(world: World) -> None:
    """Four steps with lambda = 0, 1/4, 1/2, 3/4; at lambda = 0 no teacher row is read."""

    class Watch(L.Callback):
        def __init__(self) -> None:
            self.has_divergence: list[bool] = []

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: DistillationModule, *args: object) -> None:
            self.has_divergence.append("train/divergence_answer" in trainer.callback_metrics)

    loss = DistillationLoss(kl_weight=Schedule(shape="linear", start=0.0, end=1.0))
    module, watch = make_module(world, loss), Watch()
    fit(module, make_data(world), max_epochs=4, callbacks=[watch])
    assert watch.has_divergence == [False, True, True, True]


def test_a_loss_that_is_no_number_is_refused_with_step_and_examples(world: World) -> None:
    module = make_module(world)
    data = make_data(world, tokens_per_step=1)

    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: DistillationModule, *args: object) -> None:
            next(pl_module.parameters()).data.fill_(torch.nan)

    with pytest.raises(ValueError, match=r"the loss is nan at step 1, in the batch of examples q\d/teacher/0; lower"):
        fit(module, data, callbacks=[Spoil()])


def test_the_first_batchs_teacher_rows_are_looked_at(world: World) -> None:
    """A head that is smaller than the teacher's vocabulary: the cache has ids that the student lacks."""
    module = make_module(world)
    data = make_data(world)
    data.setup("fit")
    module.configure_model()
    module.model.config.vocab_size = 5
    with pytest.raises(ValueError, match="outside the student's vocabulary of 5"):
        fit(module, data)


def test_data_that_does_not_fit_the_loss_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="kl_weight is 0; the logits would be ignored"):
        fit(make_module(world, DistillationLoss()), make_data(world))
    with pytest.raises(ValueError, match=r"kl_weight is 0\.5, but supervision rationale has no logits; set it to 0"):
        fit(make_module(world), make_data(world, supervision="rationale", logits=None))
    with pytest.raises(ValueError, match=r"temperature 3\.0 is not in .*full, which has \[1\.0, 2\.0\]"):
        fit(make_module(world, DistillationLoss(kl_weight=1, temperature=3.0)), make_data(world))
    with pytest.raises(ValueError, match="answer_weight is 0"):
        data = make_data(world, supervision="label", logits=None, rationales=None)
        fit(make_module(world, DistillationLoss(answer_weight=0)), data)
    with pytest.raises(ValueError, match=r"data\.encoding\.max_length is 2000, more than the context of 1024"):
        fit(make_module(world), make_data(world, max_length=2000))
    with pytest.raises(ValueError, match="nothing is supervised"):
        make_module(world, DistillationLoss(rationale_weight=0, answer_weight=0))


def test_an_exported_student_loads_where_kindred_is_not(world: World, tmp_path: Path) -> None:
    module = train(world, max_epochs=1)
    module.export(tmp_path / "student")
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        expected = module.model.eval()(ids).logits
    torch.save(expected, tmp_path / "expected.pt")
    script = """
import importlib.util, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
assert importlib.util.find_spec("lightning_modules") is None and importlib.util.find_spec("datamodules") is None
folder, expected = sys.argv[1:]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
assert model.config.use_cache and tokenizer.eos_token == "</s>"
assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
with torch.no_grad():
    logits = model(torch.arange(10, 40)[None]).logits
torch.testing.assert_close(logits, torch.load(expected, weights_only=True), rtol=0, atol=1e-6)
ids = tokenizer("The answer is A) red.").input_ids
assert tokenizer.decode(ids) == "The answer is A) red."
"""
    # An editable install puts Kindred on every interpreter's path; `-S` leaves that out.
    site = [path for path in sys.path if path.endswith("-packages")]
    code = f"import sys; sys.path += {json.dumps(site)}\n{script}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(tmp_path / "student"), str(tmp_path / "expected.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
