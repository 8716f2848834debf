"""Whether a study's students can become files for llama.cpp, known before anything runs."""

from pathlib import Path

from datamodules.files.atomic import part_language
from datamodules.model_sources import resolve_model
from datamodules.tasks.questions import load_questions
from lightning_modules.model.llama_cpp import PACKAGE, is_installed
from studies.design.grid import Study


def check_precision(study: Study, dtype: str) -> None:
    """Raises a ValueError if trained students' weights are of a dtype that no file is written from."""
    if study.types and dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"study.quantization: the section fit makes the students' weights {dtype}; files are written from float32 "
            "or bfloat16 (trainer.precision, model.dtype)"
        )


def check_quantization(study: Study) -> None:
    """Refuses a study whose students' files could not be written, calibrated or run.

    Models and questions that do not lie on this machine are not looked at.

    Raises:
        ValueError: llama.cpp is not installed, a student's architecture or tokenizer is not written here, or a task's
            training questions are of a split that students are judged by.
    """
    if not study.types:
        return
    if not is_installed():
        raise ValueError(
            f"study.quantization needs {PACKAGE}; install it with: pip install 'kindred[gguf-export]', or leave it out"
        )
    # They need what the extra installs.
    from lightning_modules.export.gguf_export import check_convertible
    from lightning_modules.export.probes import refuse_evaluation

    for name, spec in study.students.items():
        if not Path(resolve_model(spec.model, None)[0]).exists():
            continue
        try:
            check_convertible(spec.model)
        except ValueError as error:
            raise ValueError(f"study.students.{name}: study.quantization cannot be had of it: {error}") from None
    for train in dict.fromkeys(task.spec.train for task in study.learned.values()):
        if train.startswith("microworld:") or Path(part_language(train)[0]).is_file():
            refuse_evaluation(load_questions(train), train)
