"""The rationales that a prompt shows a teacher beside the question, as privileged context."""

from pathlib import Path

from datamodules.files.atomic import require_file
from datamodules.rationales.store import load_rationales
from datamodules.tasks.prompts import WITH_RATIONALE
from datamodules.tasks.questions import load_questions


def read_shown(path: str, questions: str) -> dict[str, str]:
    """Returns by question's id a rationale of each question: the first right one or, where none is, the first.

    Those that were cut off, or have no text, are none.

    Args:
        path: A rationale store or a published collection.
        questions: A source of all questions that it may be about.

    Raises:
        ValueError: There is no such file, or it is malformed.
    """
    require_file(Path(path), "data.shown_rationales")
    rationales = load_rationales([path], {question.id: question for question in load_questions(questions)})
    found: dict[str, str] = {}
    for own in sorted(rationales, key=lambda rationale: rationale.correct is False):
        if own.text.strip() and not own.is_truncated:
            found.setdefault(own.question_id, own.text.strip())
    return found


def check_shown(prompt_setting: str, prompt: str | None, setting: str, path: str | None) -> None:
    """Raises a ValueError if a prompt shows rationales and no file is named, or it shows none and one is.

    Args:
        prompt_setting: What names the prompt.
        prompt: Its name.
        setting: What names the file.
        path: The file.
    """
    shows = prompt is not None and prompt.endswith(WITH_RATIONALE.removeprefix("_"))
    if shows and path is None:
        raise ValueError(f"{prompt_setting} {prompt!r} shows rationales: name their file by {setting}")
    if path is not None and not shows:
        raise ValueError(f"{setting} would be ignored: {prompt_setting} {prompt!r} shows no rationale")
