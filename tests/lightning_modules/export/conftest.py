"""A student of the microworld and its training rationales, exported once."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from datamodules.rationales.store import Rationale, write_rationales
from datamodules.tasks.questions import Question, load_questions

MODELS = Path(__file__).parents[3] / "configs" / "models" / "microworld"
QUESTIONS = "microworld:train:24:0"


def write(question: Question, split: str = "train") -> Rationale:
    """Writes a rationale without a teacher."""
    assert question.gold is not None
    text = f"{question.question.split('?')[0]}. The answer is {question.choice(question.gold)}."
    own = (question.id, question.task, split, "a-teacher", "a", 0, text, question.gold, True, "stop", "plain")
    return Rationale(*own)  # type: ignore[arg-type]


def save_rationales(path: Path, source: str = QUESTIONS) -> str:
    """Writes a store of the microworld's training rationales."""
    questions = load_questions(source)
    write_rationales(path, [write(question, question.split) for question in questions], {"teacher": "a-teacher"})
    return str(path)


@dataclass(frozen=True)
class Exported:
    """What an export made."""

    folder: Path
    rationales: str
    said: str

    def file(self, kind: str) -> Path:
        """Returns the file of a type."""
        return self.folder / f"a-student-{kind}.gguf"


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The a-student's files, by the command that a user runs."""
    pytest.importorskip("xllamacpp", reason="pip install 'kindred[gguf-export]'")
    from contextlib import redirect_stdout
    from io import StringIO

    from scripts.export import main

    folder = tmp_path_factory.mktemp("export")
    rationales, said = save_rationales(folder / "r.parquet"), StringIO()
    options = ["--prompt=plain", f"--questions={QUESTIONS}", "--max_new_tokens=24", f"--output={folder / 'out'}"]
    with redirect_stdout(said):
        main(["gguf", f"--model.student={MODELS / 'a-student'}", f"--calibration={rationales}", *options])
    return Exported(folder / "out", rationales, said.getvalue())
