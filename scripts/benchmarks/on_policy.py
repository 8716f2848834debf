"""On-policy distillation in rounds against online steps of TRL's trainer, and what staleness costs.

    python -m scripts.benchmark on_policy                    # half an hour and more on two cores
    python -m scripts.benchmark on_policy --part speed
    python -m scripts.benchmark on_policy --part staleness   # continues where it was

Speed: the model is both student and teacher, in float32 on the CPU. A round of one optimizer step, from loading the
student to writing its checkpoint, against a step of TRL's DistillationTrainer (beta 1), both models resident, on the
same prompts, with as many samples, as long at most, and one update of all; they take turns.

    on_policy_vs_trl           tokens/s that the student wrote, generation, reading and update included
    on_policy_vs_trl_memory    peak resident memory; both left out where TRL is not installed
    on_policy                  tokens/s alone

Staleness: student b of the microworld, after a cold start, learns from as many tokens in as many optimizer steps, of
samples drawn in 1, 2, 4, 8 or 16 rounds, the last a round a step; `cells.jsonl` in the folder keeps each training.
Intervals are over training seeds and test questions:

    staleness_accuracy rounds=N, low, high    share of the test questions, against that of the most rounds
    staleness_cost rounds=N, low, high        the difference from the most rounds, question by question
    staleness_kl rounds=N                     KL of the student now from the one that wrote, at the rounds' ends
    staleness_tokens rounds=N                 that were learnt from, prompts included, against those of the most rounds
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.benchmarks.inputs import find_model, make_parser, unpack_model
from scripts.benchmarks.measure import Measurement, compare
from scripts.benchmarks.rounds.online import Setting, train_in_rounds, train_online
from scripts.benchmarks.rounds.staleness import Scale, measure, run_rounds
from scripts.benchmarks.turns import race_apart

ROUNDS: tuple[int, ...] = (1, 2, 4, 8, 16)
SEEDS = 5


def measure_speed(setting: Setting) -> Iterator[Measurement]:
    """Yields the race of rounds and online steps, each without its first."""
    sides: dict[str, tuple[Any, ...]] = {"rounds": (train_in_rounds, setting)}
    if find_spec("trl"):
        sides["trl"] = (train_online, setting)
    else:
        print("skipped on_policy_vs_trl: TRL is not installed", file=sys.stderr)
    found = race_apart(sides)
    costs = {side: own.leave_out(1) for side, (own, _) in found.items()}
    yield Measurement("on_policy", statistics.median(costs["rounds"].rate(costs["rounds"].wall)), "tokens/s")
    if "trl" in costs:
        yield from compare("on_policy_vs_trl", costs["rounds"], costs["trl"], "tokens/s")
        yield Measurement.against("on_policy_vs_trl_memory", found["rounds"][1], found["trl"][1], "bytes")


def run(args: list[str]) -> Iterator[Measurement]:
    """Yields the measurements."""
    parser = make_parser("on_policy", __doc__)
    parser.add_argument("--part", choices=("speed", "staleness", "all"), default="all")
    parser.add_argument("--model", help="the student and teacher: a name, folder or GGUF file; null is SmolLM2")
    parser.add_argument("--steps", type=int, default=4, help="rounds of a step, of which the first is not counted")
    parser.add_argument("--samples", type=int, default=32, help="that are drawn in each")
    parser.add_argument("--new-tokens", type=int, default=64, help="at most, of a sample")
    parser.add_argument("--micro-batch", type=int, default=4, help="samples that are learnt from at a time")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="trainings for each number of rounds")
    parser.add_argument("--folder", type=Path, help="where staleness keeps its trainings; one in data/ by default")
    given = parser.parse_args(args)
    scale, rounds, seeds = Scale(), ROUNDS, given.seeds
    if given.smoke:
        given.steps, given.samples, given.new_tokens, given.micro_batch = 2, 4, 8, 2
        scale, rounds, seeds = Scale(8, 2, 1, 4, 16), (1, 2), 2
    if given.samples % given.micro_batch:
        raise ValueError(f"--samples {given.samples} is not divisible by --micro-batch {given.micro_batch}")
    if given.part != "staleness":
        with tempfile.TemporaryDirectory() as made:
            questions = f"microworld:train:{given.steps * given.samples}:0"
            sizes = (given.steps, given.samples, given.new_tokens, given.micro_batch)
            model = unpack_model(find_model(given.model, given.smoke), Path(made) / "model")
            yield from measure_speed(Setting(model, made, questions, *sizes))
    if given.part != "speed":
        folder = given.folder or Path("data") / f"on_policy{'-smoke' if given.smoke else ''}"
        yield from measure(run_rounds(folder, scale, rounds, seeds))
