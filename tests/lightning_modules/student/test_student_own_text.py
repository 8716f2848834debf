"""A student learns from what it wrote itself and from a teacher's text at once: each with its own loss and teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from datamodules.examples.tokenization import fingerprint_tokenizer, load_tokenizer
from datamodules.own_text import OwnText
from lightning_modules.student.own_text import OWN_LOSS
from losses.distillation import DistillationLoss
from tests.lightning_modules.conftest import World
from tests.lightning_modules.student.test_student import make_data, make_module
from tests.tiny import capture, fit, make_questions, make_rationale, save_model, write_store

HIDDEN: dict[str, Any] = {"kind": "hidden", "top_k": None, "values": "float32", "temperatures": None}
WHOLE: dict[str, Any] = {"top_k": 300, "values": "float16"}


def write_own_text(world: World, path: Path) -> str:
    """Writes what a student is said to have drawn: the words of a teacher, in its own tokens."""
    tokenizer = load_tokenizer(world.student)
    written = []
    for question in make_questions(8):
        rationale = make_rationale(question, "round-1", sample=1)
        ids = [*tokenizer(rationale.text).input_ids, tokenizer.eos_token_id]
        drawn = {"token_ids": ids, "log_probs": [-1.0] * len(ids), "tokenizer": fingerprint_tokenizer(tokenizer)}
        written.append(replace(rationale, **drawn))
    return write_store(path, written, world.student)


@pytest.fixture(scope="module")
def own_text(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a student wrote, and a friend's caches of it."""
    folder = tmp_path_factory.mktemp("own")
    texts, friend = write_own_text(world, folder / "own.parquet"), save_model(folder / "friend", seed=5)
    caches = {
        name: capture(folder / name, friend, world.questions, [texts], **options)
        for name, options in (("hidden", HIDDEN), ("whole", WHOLE))
    }
    return {"texts": texts, **caches}


def measure(
    world: World,
    own_text: dict[str, str],
    kind: str,
    loss: DistillationLoss,
    own_loss: DistillationLoss,
    fused_head: bool = True,
    **data: Any,
) -> dict[str, float]:
    """Returns what one step logs of a student that does not move."""
    own = OwnText([own_text["texts"]], [own_text[kind]], mix=0.5)
    module = make_module(world, loss, own_loss=own_loss, fused_head=fused_head, learning_rate=0.0)
    trainer = fit(module, make_data(world, own=own, **data), max_steps=1)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_each_text_has_the_head_of_its_own_teacher(world: World, own_text: dict[str, str], tmp_path: Path) -> None:
    """Two teachers' hidden states in one step teach what their whole distributions do."""
    loss = DistillationLoss(kl_weight=1.0)
    taught = capture(tmp_path / "hidden", world.teacher, world.questions, [world.rationales], **HIDDEN)
    hidden = measure(world, own_text, "hidden", loss, loss, logits=[taught])
    whole = measure(world, own_text, "whole", loss, loss)
    for name in ("own_divergence", "divergence_rationale", "divergence_answer", "gradient_norm"):
        assert hidden[f"train/{name}"] == pytest.approx(whole[f"train/{name}"], rel=1e-4), name


def test_each_text_has_its_own_loss(world: World, own_text: dict[str, str]) -> None:
    forward, softened = DistillationLoss(kl_weight=1.0), DistillationLoss(kl_weight=0.5, temperature=2.0)
    first = measure(world, own_text, "whole", forward, OWN_LOSS)
    second = measure(world, own_text, "whole", softened, OWN_LOSS)
    assert first["train/own_loss"] == pytest.approx(first["train/own_divergence"])
    for name in ("own_divergence", "own_loss"):
        assert first[f"train/{name}"] == pytest.approx(second[f"train/{name}"])
    assert first["train/divergence_rationale"] != pytest.approx(second["train/divergence_rationale"], rel=0.05)
    other = measure(world, own_text, "whole", forward, forward)
    assert first["train/divergence_rationale"] == pytest.approx(other["train/divergence_rationale"])
    assert first["train/own_divergence"] != pytest.approx(other["train/own_divergence"], rel=0.05)


@pytest.mark.parametrize("kind", ["hidden", "whole"])
def test_kept_logits_of_both_texts_log_what_the_fused_head_does(
    world: World, own_text: dict[str, str], kind: str
) -> None:
    losses = DistillationLoss(kl_weight=0.5), OWN_LOSS
    fused, kept = (measure(world, own_text, kind, *losses, fused_head=fused) for fused in (True, False))
    assert {"train/own_staleness", "train/own_teacher_mass_on_top_16"} <= fused.keys()
    assert kept == pytest.approx(fused, rel=1e-4, abs=1e-5)
