"""A tiny student, and rationales of two teachers that it reads."""

from dataclasses import replace
from typing import Any

import pytest

from datamodules.tasks.prompts import get_prompt
from studies.design.grid import StudentSpec
from studies.diagnostics.reader import StudentReader
from studies.diagnostics.texts import Reading
from tests.tiny import make_questions, make_rationale, save_model

LOCAL_STEPS = 1


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model's folder."""
    return save_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def reader(student: str, tmp_path_factory: pytest.TempPathFactory) -> StudentReader:
    """Reads with the prompt `plain`, in batches of a few rationales."""
    spec = StudentSpec(student, "tiny")
    return StudentReader(spec, get_prompt("plain"), tmp_path_factory.mktemp("records"), "s-t", "float32", 60)


@pytest.fixture(scope="session")
def readings(reader: StudentReader) -> list[Reading]:
    """Of four questions, two samples of each of two teachers."""
    texts = reader.prepare(make_pairs())
    reader.open_caches({}, texts)
    return reader.read(texts, LOCAL_STEPS)


def make_pairs() -> list[tuple[Any, Any]]:
    """Returns (question, rationale) pairs of one to four steps."""
    pairs = []
    for question in make_questions(4):
        for teacher in ("t", "u"):
            for sample in range(2):
                rationale = make_rationale(question, teacher, sample, right=teacher == "t" or sample == 0)
                steps = "It is one of them. " * (sample + (teacher == "u"))
                pairs.append((question, replace(rationale, text=steps + rationale.text)))
    return pairs
