"""Export: GGUF files under llama.cpp against the student under transformers, and calibration against none.

    python -m scripts.benchmark export
    python -m scripts.benchmark export --model runs/GROUP/ID/student --rationales FILE.jsonl.gz --prompt instruction

`gguf_*` and `q8_kl` say how near the files are to the float32 student. The `q4km_kl_*` are the Q4_K_M file's KL
divergence from the student, in nats a token, over the same file without an importance matrix: with one from training
rationales (`calibrated`), and with one from as many tokens of other English text, Python's own documentation
(`generic`); on held-out rationales, and, `_elsewhere`, on held-out text of that other kind. Each seed draws other texts
to calibrate on. `llama_vs_transformers` is tokens a second of greedy completions, one at a time, on the f16 file.
A GGUF file as `--model` is unpacked first, so that its weights lie on the grid that they were rounded to.
"""

import random
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch

from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import PROMPT, Example, load_tokenizer
from datamodules.tasks.prompts import get_prompt
from lightning_modules.export.architecture import convert
from lightning_modules.export.importance import measure_importance
from lightning_modules.export.probes import Probes, collect
from lightning_modules.export.quantization import write_gguf
from lightning_modules.export.verification import check_tokens, compare_distributions, compare_greedy
from lightning_modules.model.llama_cpp import LlamaCpp
from lightning_modules.model.pretrained import load_causal_lm
from scripts.benchmarks.inputs import find_model, make_parser, write_texts
from scripts.benchmarks.measure import Measurement, compare, generate_alone, race

LONGEST = 512


def cut_generic(tokenizer: Any, length: int) -> list[Example]:
    """Returns Python's documentation in examples of so many tokens, all but the first of which count."""
    ids = tokenizer("\n\n".join(topics[name] for name in sorted(topics))).input_ids
    starts = range(0, len(ids) - length, length)
    segments = np.array([PROMPT] + [1] * (length - 1), np.int8)
    return [Example(f"g{n}", f"g{n}", np.array(ids[n : n + length], np.int32), segments, "", "") for n in starts]


class Student:
    """A student, and what its files are compared on."""

    def __init__(self, model: str, probes: Probes, generic: list[Example], folder: Path):
        self.model, self.tokenizer = load_causal_lm(model).eval(), load_tokenizer(model)
        self.source, self.probes, self.folder = convert(self.model, self.tokenizer), probes, folder
        self.elsewhere = replace(probes, measured=generic[: len(probes.measured)])

    def open(self, kind: str, importance: Mapping[str, np.ndarray]) -> LlamaCpp:
        """Writes a file and opens it."""
        path = self.folder / f"{kind}.gguf"
        write_gguf(path, self.source, kind, importance, {})
        return LlamaCpp(str(path), longest=2 * LONGEST)

    def weigh(self, examples: list[Example]) -> dict[str, np.ndarray]:
        """Returns the importance of inputs on these texts."""
        return measure_importance(self.model, [own.token_ids.tolist() for own in examples], self.source.rename)

    def compare(self, model: LlamaCpp, probes: Probes) -> float:
        """Returns a file's KL divergence from the student."""
        found = compare_distributions(
            {"": model}, lambda ids: self.model(torch.tensor([ids])).logits[0].float(), probes
        )
        return found[""]["kl"]


def compare_calibrations(
    student: Student, pool: list[Example], generic: list[Example], seeds: int, number: int
) -> Iterator[Measurement]:
    """Yields the Q4_K_M file's divergence with each importance matrix, over that without."""

    def measure(importance: Mapping[str, np.ndarray]) -> tuple[float, float]:
        model = student.open("Q4_K_M", importance)
        found = student.compare(model, student.probes), student.compare(model, student.elsewhere)
        model.close()
        return found

    plain = measure({})
    for seed in range(seeds):
        draw = random.Random(seed)
        own = draw.sample(pool, min(number, len(pool)))
        tokens = sum(len(example.token_ids) for example in own)
        other = draw.sample(generic, max(1, min(tokens // len(generic[0].token_ids), len(generic))))
        for name, examples in (("calibrated", own), ("generic", other)):
            found = measure(student.weigh(examples))
            for place, kl, baseline in zip(("", "_elsewhere"), found, plain, strict=True):
                yield Measurement.against(f"q4km_kl_{name}_vs_plain{place}_seed{seed}", kl, baseline, "nats/token")


def run(args: list[str]) -> Iterator[Measurement]:
    """Runs it; see the module's docstring."""
    parser = make_parser("export", __doc__)
    parser.add_argument("--model", help="the student; null is SmolLM2 where it is installed")
    parser.add_argument("--rationales", help="a file of questions and training rationales; null is the microworld's")
    parser.add_argument("--prompt", default="plain")
    parser.add_argument("--number", type=int, default=64, help="rationales to calibrate on")
    parser.add_argument("--prompts", type=int, default=50, help="greedy texts to compare")
    parser.add_argument("--measured", type=int, default=24, help="rationales to compare distributions on")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3, help="draws of what is calibrated on")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parsed = parser.parse_args(args)
    if parsed.smoke:
        parsed.number, parsed.prompts, parsed.max_new_tokens, parsed.seeds, parsed.repeats = 4, 3, 4, 1, 1
        parsed.measured = 2
    name = find_model(parsed.model, parsed.smoke)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rationales = parsed.rationales or write_texts(folder / "train.jsonl", 8 if parsed.smoke else 200)
        tokenizer = load_tokenizer(name)
        drawn = parsed.number * (1 + parsed.seeds)
        probes = collect(tokenizer, rationales, [rationales], get_prompt(parsed.prompt), drawn, LONGEST)
        pool = probes.calibration
        probes = replace(probes, prompts=probes.prompts[: parsed.prompts], measured=probes.measured[: parsed.measured])
        generic = cut_generic(tokenizer, 32 if parsed.smoke else 192)
        student = Student(name, probes, generic, folder)
        weights = student.weigh(pool[: parsed.number])
        f16 = student.open("f16", {})
        equal = check_tokens(f16, "f16", tokenizer, probes)
        yield Measurement("gguf_tokens_equal", equal / len(probes.texts), "share")
        greedy = compare_greedy(f16, student.model, tokenizer, probes, parsed.max_new_tokens)
        yield Measurement("gguf_f16_greedy_equal", greedy["greedy_equal"] / greedy["prompts"], "share")
        yield Measurement(
            "gguf_f16_greedy_equal_or_tied",
            (greedy["greedy_equal"] + greedy["greedy_ties"]) / greedy["prompts"],
            "share",
        )
        whole = (folder / "f16.gguf").stat().st_size
        for kind, line in (("Q8_0", "q8_kl"), ("Q4_K_M", "q4km_kl")):
            model = student.open(kind, weights)
            yield Measurement(line, student.compare(model, probes), "nats/token")
            model.close()
            yield Measurement.against(f"bytes_{kind}_vs_f16", (folder / f"{kind}.gguf").stat().st_size, whole, "bytes")
        yield from compare_calibrations(student, pool, generic[len(probes.measured) :], parsed.seeds, parsed.number)
        prompt, ends = probes.prompts[0][1], find_end_tokens(tokenizer)
        yield from compare_speed(f16, student.model, prompt, ends, parsed.max_new_tokens, parsed.repeats)
        f16.close()


def compare_speed(
    model: LlamaCpp, other: Any, prompt: list[int], ends: list[int], most: int, repeats: int
) -> Iterator[Measurement]:
    """Yields tokens a second of one greedy completion, by llama.cpp and by transformers' own `generate`."""
    tokens = len(model.generate(prompt, ends, most)[0])

    def run_llama() -> None:
        model.forget()
        model.generate(prompt, ends, most)

    ours, its, _, _ = race(run_llama, lambda: generate_alone(other, prompt, max(1, tokens)), repeats, max(1, tokens))
    yield from compare("llama_vs_transformers_tokens_per_s", ours, its, "tokens/s")
