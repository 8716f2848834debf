import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodules.distillation import DistillationDataModule
from datamodules.own_text import OwnText, check_draws, check_samples, count_distinct
from datamodules.rationales.store import write_rationales
from tests.tiny import make_questions, make_rationale, save_model, write_questions

FINE = {"length": 9.0, "truncated": 0.2, "empty": 0.1, "distinct_4": 0.9}


def test_settings_that_would_be_ignored_are_refused() -> None:
    for settings, message in (
        ({"rationales": ["r"]}, "belong together"),
        ({"rationales": ["r"], "logits": ["l"], "logit_weights": {"t": 1.0}}, "mixes two teachers at least"),
        ({"mix": 0.5}, "would be ignored without data.own.rationales"),
        ({"teacher_prompt": "plain_with_gold"}, "data.own.teacher_prompt would be ignored without"),
        (
            {"rationales": ["r"], "logits": ["l"], "teacher_prompt": "plain_with_rationale"},
            "data.own.teacher_prompt 'plain_with_rationale' shows rationales: name their file by data.own.shown_rat",
        ),
        (
            {"rationales": ["r"], "logits": ["l"], "teacher_prompt": "plain_with_gold", "shown_rationales": "s"},
            "data.own.shown_rationales would be ignored: data.own.teacher_prompt 'plain_with_gold' shows no rationale",
        ),
        ({"rationales": ["r"], "logits": ["l"], "mix": 1.0}, "leaves nothing to what the student wrote"),
    ):
        with pytest.raises(ValueError, match=message):
            OwnText(**settings)
    assert OwnText().taught_share == 1 and OwnText(["r"], ["l"]).taught_share == 0.25
    with pytest.raises(ValueError, match=r"data.own.mix=0 takes nothing of a teacher's text; leave data.rationales"):
        DistillationDataModule("t", "q", rationales=["r"], own=OwnText(["r"], ["l"], mix=0.0))


def test_repetition_shows_in_the_runs_of_tokens_that_are_different() -> None:
    assert count_distinct(np.arange(20)) == 1 and count_distinct(np.array([1, 1, 1])) == 1
    assert count_distinct(np.array([7] * 23)) == 1 / 20
    assert count_distinct(np.array([1, 2] * 10)) == 2 / 17


def test_draws_of_another_distribution_than_the_students_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    rationales = [make_rationale(question, "round-1") for question in make_questions(1)]
    write_rationales(path, rationales, {"decoding": {"temperature": 1.0, "top_p": 1.0}})
    check_draws(str(path))
    write_rationales(path, rationales, {"decoding": {"temperature": 0.7, "top_p": 1.0}})
    with pytest.raises(ValueError, match=r"r.parquet: drawn at temperature 0.7 and top_p 1.0, but a cache of kind lab"):
        check_draws(str(path))


def test_samples_that_teach_nothing_stop_the_rounds() -> None:
    own = OwnText(["round-3.parquet"], ["l"])
    check_samples(own, FINE)
    with pytest.raises(
        ValueError, match=r"^round-3.parquet: 40% of .* truncated and 20% empty, more than data.own.max"
    ):
        check_samples(own, FINE | {"truncated": 0.4, "empty": 0.2})
    with pytest.raises(ValueError, match=r"^round-3.parquet: only 20% of the runs of 4 tokens .* repeats itself"):
        check_samples(own, FINE | {"distinct_4": 0.2})
    check_samples(replace(own, max_lost=1.0, min_distinct=0.0), FINE | {"truncated": 0.9, "distinct_4": 0.0})


def test_text_without_the_tokens_that_were_drawn_or_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    student = save_model(tmp_path / "student", seed=1)
    questions = make_questions(2)
    source = write_questions(tmp_path / "colours_train.jsonl", questions)
    path = str(tmp_path / "r.parquet")
    data = {"own": OwnText([path], ["nowhere"], mix=0.0), "prompt": "plain"}
    write_rationales(Path(path), [make_rationale(question, "round-1") for question in questions], {})
    with pytest.raises(ValueError, match=re.escape(f"{path}: has no tokens as they were drawn")):
        DistillationDataModule(student, source, **data).setup("fit")
    drawn = {"token_ids": [5, 6], "log_probs": [-1.0, -1.0], "tokenizer": "another"}
    write_rationales(Path(path), [replace(make_rationale(question, "round-1"), **drawn) for question in questions], {})
    with pytest.raises(ValueError, match=re.escape(f"{path}: tokens of tokenizer another, but the student's is")):
        DistillationDataModule(student, source, **data).setup("fit")
