"""What a student learned from in its run: the very examples, by the run's own config."""

import inspect
from dataclasses import dataclass, fields
from pathlib import Path

from jsonargparse import ArgumentParser

from datamodules.distillation import ExampleDataModule
from datamodules.examples.store import ExampleView
from datamodules.files.parsing import read_yaml
from datamodules.files.seals import DONE, check_run_file
from datamodules.rationales.controls import TextControls
from datamodules.tasks.prompts import Prompt


@dataclass(frozen=True)
class Learned:
    """What a student learned from.

    Attributes:
        questions: Their source.
        prompt: How it was asked.
        examples: Rationales, or, of supervision `label`, answers alone.
    """

    questions: str
    prompt: Prompt
    examples: ExampleView


def find_config(student: str) -> Path:
    """Returns the config of the run that a student lies in.

    Raises:
        ValueError: It lies in no finished run's folder.
    """
    run = Path(student).absolute().parent
    config = run / "config.yaml"
    if not (config.is_file() and (run / DONE).is_file()):
        raise ValueError(
            f"--calibration: {student} lies in no finished run's folder, whose training it could be calibrated on; "
            "name training rationales"
        )
    check_run_file(run, config.name)
    return config


def read_learned(student: str) -> Learned:
    """Reads what a student learned from, tokenized by its own tokenizer: with the run's filters, limit and controls.

    Args:
        student: The folder `student` of a finished run.

    Raises:
        ValueError: It lies in no run's folder, or what the run read is not there any more.
    """
    config = find_config(student)
    data = read_yaml(config)["data"]
    known = set(inspect.signature(ExampleDataModule).parameters)
    settings = {name: value for name, value in data.items() if name in known}
    changed = {field.name for field in fields(TextControls)}
    settings["controls"] = {name: value for name, value in data["controls"].items() if name in changed}
    # The student's folder has the tokenizer itself, whatever revision it came from.
    settings["encoding"] = {**data["encoding"], "revision": None}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(ExampleDataModule)
    given = parser.parse_object({**settings, "tokenizer": student})
    source = ExampleDataModule(**parser.instantiate(given).as_dict()).source
    examples = source.read_labels() if data["supervision"] == "label" else source.read_rationales()
    return Learned(source.questions, source.prompt, examples)
