"""What is refused of rounds before anything runs: a teacher, or a start, that does not go with them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from datamodules.files.atomic import read_meta
from datamodules.rationales.shown import check_shown
from lightning_modules.model.pretrained import identify_weights
from lightning_modules.run.folder import flatten
from lightning_modules.student.cached_targets import KINDS
from losses.distillation import check_kind
from studies.design.rounds import OnPolicy

# What the rounds are called, begin from and end with; the rest is of what the student writes.
_OF_ANY_MIX = ("name", "root", "rounds", "questions", "mix", "start", "evaluate_every")


def take_settings(sections: Mapping[str, Any], stage: str, prefix: str) -> dict[str, Any]:
    """Returns the settings of a section whose dotted names begin so."""
    return {key: own for key, own in flatten(sections.get(stage) or {}).items() if key.startswith(prefix)}


def list_changed(settings: OnPolicy) -> list[str]:
    """Returns the names of the settings that are not at their default."""
    return [setting.name for setting in fields(settings) if getattr(settings, setting.name) != setting.default]


def check_teacher(settings: OnPolicy, sections: Mapping[str, Any]) -> None:
    """Refuses a teacher that cannot give what the loss for the student's text needs.

    Args:
        settings: The rounds.
        sections: The experiment's other sections, by stage, with `fit` among them.

    Raises:
        ValueError: See there; or its settings would be ignored.
    """
    names = "on_policy.teacher_prompt", "on_policy.shown_rationales"
    check_shown(names[0], settings.teacher_prompt, names[1], settings.shown_rationales)
    if settings.mix == 1:
        if idle := [name for name in list_changed(settings) if name not in _OF_ANY_MIX]:
            raise ValueError(
                f"on_policy.{idle[0]} would be ignored with on_policy.mix=1: nobody writes or reads anything; leave it "
                "out"
            )
        return
    teacher = sections.get("cache_logits")
    if teacher is None:
        raise ValueError(
            "on_policy: the file has no section cache_logits: a teacher without log-probabilities cannot correct "
            "what the student writes; name one that cache_logits can load"
        )
    own, fit = flatten(teacher), flatten(sections["fit"])
    for name in ("revision", "keep_layers") if settings.teachers is not None else ():
        if own.get(f"model.{name}") is not None:
            raise ValueError(f"cache_logits.model.{name} is one teacher's, but on_policy.teachers names several")
    if settings.teacher_prompt is not None:
        _check_privilege(settings, sections)
    if fit.get("data.alignment.kind", "refuse") != "refuse":
        return
    kind = own.get("model.kind", "top_k")
    for progress in (0.0, 1.0):
        check_kind(settings.loss.at(progress).mixture, KINDS[kind])
    if kind != "labels":
        return
    if settings.teachers is not None:
        raise ValueError("cache_logits.model.kind labels has no distributions that on_policy.teachers could mix")
    if (settings.temperature, settings.top_p) != (1, 1):
        raise ValueError(
            f"on_policy.temperature={settings.temperature:g} and top_p={settings.top_p:g} draw from another "
            "distribution than the student's, with which cache_logits.model.kind labels has a bias; set both to 1"
        )
    if settings.mix and own.get("output") in (fit.get("data.logits") or []):
        raise ValueError(
            "cache_logits.model.kind labels has no distributions for fit.data.logits; set fit.data.supervision to "
            "rationale, or another kind"
        )


def _check_privilege(settings: OnPolicy, sections: Mapping[str, Any]) -> None:
    """Refuses a teacher that would see more than its privilege in another form than the student."""
    for key in ("data.encoding.template_options", "data.encoding.prompt_language"):
        reads, writes = take_settings(sections, "cache_logits", key), take_settings(sections, "fit", key)
        if reads != writes:
            name = next(iter({**reads, **writes}))
            raise ValueError(
                f"cache_logits.{name} is {reads.get(name)!r}, but fit.{name} is {writes.get(name)!r}; make them "
                "alike for on_policy.teacher_prompt"
            )
    kind = flatten(sections["cache_logits"]).get("model.kind")
    if settings.teacher is not None and kind == "hidden" and settings.keep_rounds > 1:
        raise ValueError(
            "on_policy.keep_rounds: with on_policy.teacher=self hidden states of each round are of another model; "
            "set it to 1, or another cache_logits.model.kind"
        )


def check_start(start: str, fit: Mapping[str, Any]) -> None:
    """Refuses a cold start that is no finished training of the same student.

    Raises:
        ValueError: It is another's, or not finished.
    """
    folder = Path(start)
    meta = read_meta(folder)
    if meta is None or not (folder / "DONE").is_file():
        raise ValueError(f"on_policy.start: {start} is no finished fit")
    own, student = meta["config"]["model"], fit["model.student"]
    is_same = own["student"] == student and own.get("revision") == fit.get("model.revision")
    if not is_same and Path(student).is_dir():
        is_same = meta["config"]["files"].get(own["student"]) == identify_weights(student, None)
    if not is_same or own.get("keep_layers") != fit.get("model.keep_layers"):
        raise ValueError(
            f"on_policy.start: {start} trained another student: {own['student']}, but fit.model.student is {student}"
        )
