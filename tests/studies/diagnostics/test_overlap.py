"""Overlap of most probable tokens along the student's own answers, against sets of bytes found one by one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from datamodules.examples.encoding import find_end_tokens
from datamodules.examples.tokenization import encode_completion, encode_prompts, load_tokenizer
from datamodules.tasks.prompts import get_prompt
from datamodules.tasks.questions import Question
from datamodules.text.token_bytes import read_vocabulary
from lightning_modules.model.pretrained import load_causal_lm
from studies.design.grid import StudentSpec
from studies.diagnostics.overlap import TOP
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.texts import Overlap
from tests.tiny import make_questions, make_rationale, save_model

OWN = {"q0": "red is a colour.", "q1": ""}


def find_sets(model: str, question_id: str) -> dict[int, set[object]]:
    """Returns the bytes of the 16 most probable tokens by how many bytes of the answer were written."""
    tokenizer, net = load_tokenizer(model), load_causal_lm(model, None, "float32", None).eval()
    vocabulary = read_vocabulary(tokenizer, find_end_tokens(tokenizer))
    [question] = [item for item in make_questions(2) if item.id == question_id]
    [(_, prompt)] = encode_prompts(tokenizer, get_prompt("plain"), [question])
    ids, _ = encode_completion(tokenizer, OWN[question_id], "")
    logits_SV = net(torch.tensor([[*prompt, *ids]])).logits[0].detach()
    found = {}
    for place in range(len(ids)):
        tops = logits_SV[len(prompt) - 1 + place].topk(TOP).indices.tolist()
        found[len(vocabulary.join(ids[:place]))] = {
            "end" if number in vocabulary.ends else vocabulary.entries[number] for number in tops
        }
    return found


@pytest.mark.parametrize("other", [{"seed": 3}, {"seed": 3, "corpus": ("stranger", "things")}])
def test_the_overlap_is_that_of_sets_of_bytes(tmp_path: Path, other: dict[str, object]) -> None:
    student, teacher = save_model(tmp_path / "student"), save_model(tmp_path / "teacher", **other)
    reader = StudentReader(StudentSpec(student, "f"), get_prompt("plain"), tmp_path, "s-t", "float32", 64)
    found = reader.visit(make_questions(2), OWN, "plain", 8, teacher)
    for question_id in OWN:
        own, others = find_sets(student, question_id), find_sets(teacher, question_id)
        both = own.keys() & others.keys()
        assert found[question_id] == Overlap(sum(len(own[place] & others[place]) for place in both), len(both))
    assert found["q1"].states == 1 < found["q0"].states
    # A teacher is as one with itself, and what is kept is not computed again.
    own = reader.visit(make_questions(2), OWN, "plain", 8, student)
    assert all(item.shared == TOP * item.states for item in own.values())
    again = StudentReader(StudentSpec(student, "f"), get_prompt("plain"), tmp_path, "s-t", "float32", 64)
    assert again.visit(make_questions(2), OWN, "plain", 8, teacher) == found and "model" not in vars(again)


def test_what_was_read_of_a_question_is_not_an_edited_questions(tmp_path: Path) -> None:
    student, teacher = save_model(tmp_path / "student"), save_model(tmp_path / "teacher", seed=3)
    [question] = make_questions(1)
    edited = replace(question, question="And which of these might it be?")

    def read(folder: Path, asked: Question) -> list[object]:
        reader = StudentReader(StudentSpec(student, "f"), get_prompt("plain"), folder, "s-t", "float32", 64)
        texts = reader.prepare([(asked, make_rationale(asked, "t"))])
        reader.open_caches({}, texts)
        [reading] = reader.read(texts, 1)
        [(square, _)] = reader.differentiate(texts, 4, 0).values()
        overlaps = reader.visit([asked], {"q0": "It is red."}, "plain", 8, teacher)
        return [reading.nll.tolist(), square, reader.answer([asked], "plain", 8), overlaps]

    before, after = read(tmp_path / "a", question), read(tmp_path / "a", edited)
    assert after == read(tmp_path / "b", edited) and before == read(tmp_path / "a", question)
    assert before[0] != after[0] and before[1] != after[1]


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    student = save_model(tmp_path / "student")
    reader = StudentReader(StudentSpec(student, "f"), get_prompt("plain"), tmp_path, "s-t", "float32", 64)
    with pytest.raises(ValueError, match=r"nowhere"):
        reader.visit(make_questions(1), {"q0": "red"}, "plain", 8, str(tmp_path / "nowhere"))
