"""Tests of imported rows: mass stays mass, what is unknown stays unknown, and a killed import goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.examples.tokenization import Example
from datamodules.logit_cache.captured import CapturedText
from datamodules.logit_cache.distillkit import Compression
from datamodules.logit_cache.format import CacheDescription
from datamodules.logit_cache.imported import ImportCounts, describe_sparsity, import_captures
from datamodules.logit_cache.reader import LogitCache
from datamodules.logit_cache.writer import LogitCacheWriter
from tests.distillkit import EXACT, make_row
from tests.logit_rows import TOKENIZER, VOCABULARY, make_example

CONFIG: dict[str, Any] = {"d": VOCABULARY + 30, "k": 3, "exact_k": 3, **EXACT}
COMPRESSION = Compression(d=VOCABULARY + 30, k=3, exact_k=3, residual_bins=(), delta_encoding=False)
EXAMPLES = [make_example(number) for number in range(1, 5)]
# Its own token, which is the example's last, is among them.
OTHERS = [[(VOCABULARY - 1, -0.4), (VOCABULARY - 2, -2.0), (VOCABULARY - 3, -3.0)]]


def capture(example: Example, best: list[list[tuple[int, float]]]) -> CapturedText:
    """Captures an example, with another token in the end's place."""
    row = make_row([*example.token_ids.tolist()[:-1], 7], best * (len(example.token_ids) - 1), CONFIG)
    planes = [np.array(row[name], np.uint8) for name in ("compressed_logprobs", "bytepacked_indices")]
    return CapturedText(f"{example.id}:row", np.array(row["input_ids"], np.int32), *planes)


def run(
    folder: Path, texts: Iterator[CapturedText] | list[CapturedText], examples: list[Example] = EXAMPLES
) -> ImportCounts:
    sparsity = describe_sparsity(COMPRESSION)
    made = CacheDescription("owner/teacher", "abc", "whole", "cot-1", VOCABULARY, (1.0,), "float32", sparsity)
    writer = LogitCacheWriter(folder, made, rows_per_shard=1)
    return import_captures(writer, texts, COMPRESSION, examples, TOKENIZER, {})


def read(folder: Path, example: Example) -> dict[str, np.ndarray]:
    return LogitCache(folder).read(example)


def test_the_rest_is_the_tail_and_an_unknown_token_stays_unknown(tmp_path: Path) -> None:
    example = EXAMPLES[0]
    counts = run(tmp_path / "c", [capture(example, OTHERS)], [example])
    rows = read(tmp_path / "c", example)
    probs = np.exp([-0.4, -2.0, -3.0])
    assert rows["support"][0].tolist() == [number for number, _ in OTHERS[0]]
    assert np.exp(rows["log_probs"][0]) == pytest.approx(probs, rel=1e-3)
    assert np.exp(rows["log_tails"][0, 0]) == pytest.approx(1 - probs.sum(), rel=2e-3)
    assert np.isneginf(rows["label_log_prob"]).all() and counts.outside == counts.tokens == len(rows["token_ids"])
    label = int(example.token_ids[-1])
    run(tmp_path / "known", [capture(example, [[(label, -0.1), (0, -3.0), (1, -4.0)]])], [example])
    assert read(tmp_path / "known", example)["label_log_prob"][-1] == pytest.approx(-0.1, rel=1e-3)


def test_what_adds_up_to_more_than_1_is_scaled_down_and_counted(tmp_path: Path) -> None:
    wide = [[(VOCABULARY - 1, np.log(0.6)), (VOCABULARY - 2, np.log(0.4)), (VOCABULARY - 3, np.log(0.2))]]
    counts = run(tmp_path / "c", [capture(EXAMPLES[0], wide)], EXAMPLES[:1])
    assert counts.scaled == counts.tokens and counts.largest_sum == pytest.approx(1.2)
    rows = read(tmp_path / "c", EXAMPLES[0])
    assert np.exp(rows["log_probs"][0]) == pytest.approx(np.array([0.6, 0.4, 0.2]) / 1.2, rel=1e-3)
    assert (np.exp(rows["log_tails"]) < 1e-6).all()


def test_ids_beyond_the_vocabulary_are_in_the_tail(tmp_path: Path) -> None:
    padded = [[(VOCABULARY - 1, -0.4), (VOCABULARY + 5, -1.5), (VOCABULARY - 2, -3.0)]]
    counts = run(tmp_path / "c", [capture(EXAMPLES[0], padded)], EXAMPLES[:1])
    assert counts.beyond == pytest.approx(np.exp(-1.5))
    rows = read(tmp_path / "c", EXAMPLES[0])
    assert rows["support"][0].tolist() == [VOCABULARY - 1, VOCABULARY - 2]
    assert np.exp(rows["log_tails"][0, 0]) == pytest.approx(1 - np.exp(-0.4) - np.exp(-3.0), rel=2e-3)
    all_padded = [[(VOCABULARY + number, -1.0 - number) for number in range(3)]]
    with pytest.raises(ValueError, match="gives all its probability to ids beyond"):
        run(tmp_path / "d", [capture(EXAMPLES[0], all_padded)], EXAMPLES[:1])


def test_one_text_holds_several_examples_and_a_second_text_adds_nothing(tmp_path: Path) -> None:
    whole = EXAMPLES[3]
    cut = Example("q9/owner/teacher/0", "q9", whole.token_ids[:-2], whole.segments[:-2], "12", "34")
    counts = run(tmp_path / "c", [capture(whole, OTHERS), capture(whole, OTHERS)], [whole, cut])
    assert counts.examples == counts.used == counts.texts == 2
    assert len(read(tmp_path / "c", whole)["token_ids"]) == len(read(tmp_path / "c", cut)["token_ids"]) + 2


def test_a_killed_import_goes_on_after_its_last_shard(tmp_path: Path) -> None:
    texts = [capture(example, OTHERS) for example in EXAMPLES]

    def stop() -> Iterator[CapturedText]:
        yield from texts[:2]
        raise KeyboardInterrupt

    run(tmp_path / "whole", texts)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "c", stop())
    counts = run(tmp_path / "c", texts)
    assert counts.examples == 4 and counts.tokens < sum(len(example.token_ids) - 2 for example in EXAMPLES)
    files = [{path.name: path.read_bytes() for path in folder.glob("*.*")} for folder in sorted(tmp_path.iterdir())]
    assert files[0] == files[1]
    assert run(tmp_path / "c", texts).tokens == 0


def test_nothing_of_use_is_an_error_that_says_where_texts_part(tmp_path: Path) -> None:
    example = EXAMPLES[3]
    text = capture(example, OTHERS)
    text.token_ids[3] = (text.token_ids[3] + 1) % VOCABULARY
    with pytest.raises(ValueError, match="after 3 tokens this one goes on"):
        run(tmp_path / "c", [text], [example])
    with pytest.raises(ValueError, match="the capture holds no text"):
        run(tmp_path / "c", [], [example])
    assert not (tmp_path / "c").exists()
