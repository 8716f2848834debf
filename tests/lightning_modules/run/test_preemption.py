"""Tests of who hears a scheduler's signal when; what a stopped training loses is in the tests of resumption."""

import signal
from collections.abc import Iterator
from typing import Any

import lightning as L
import pytest

from lightning_modules.run.preemption import Preemption
from lightning_modules.run.stop_signal import STOP_SIGNALS, StopListener
from lightning_modules.student.student import DistillationModule
from tests.lightning_modules.conftest import World
from tests.tiny import fit


class Hearing(L.Callback):
    """Notes who hears SIGTERM."""

    def __init__(self) -> None:
        self.who: dict[str, Any] = {}

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.who["sanity check" if trainer.sanity_checking else "validation"] = signal.getsignal(signal.SIGTERM)

    def on_train_batch_start(self, *_: Any) -> None:
        self.who["training"] = signal.getsignal(signal.SIGTERM)


@pytest.fixture
def listener() -> Iterator[StopListener]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    listener = StopListener()
    listener.listen()
    yield listener
    for number, handler in before.items():
        signal.signal(number, handler)


def test_it_hears_the_signal_from_the_sanity_check_on(world: World, listener: StopListener) -> None:
    data = world.teach(fraction=0.4, tokens_per_step=300)
    hearing = Hearing()
    callbacks = [Preemption(listener), hearing]
    fit(DistillationModule(world.student), data, callbacks=callbacks, num_sanity_val_steps=1)
    assert hearing.who == dict.fromkeys(("sanity check", "training", "validation"), listener)
