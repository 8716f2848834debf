"""The parts of a study's families: what its grid can tell of them, and whether its models' files agree."""

from collections.abc import Sequence
from functools import cache

from datamodules.model_parts import DescribedModel, check_parts, read_facts
from datamodules.model_sources import require_folder, resolve_model
from studies.design.controls import ON_POLICY, ControlSpec
from studies.design.grid import Arm, Study, expand, find_alignment
from studies.inference.interaction import explain_unidentified
from studies.inference.parts import PartDecomposition, decompose_parts


def explain_missing_gamma(study: Study) -> str | None:
    """Says why a grid cannot tell the family interaction from the main effects; None if it can."""
    students, teachers = ([spec.family for spec in specs.values()] for specs in (study.students, study.teachers))
    return explain_unidentified(students, teachers)


def decompose_study(
    study: Study, students: Sequence[str] | None = None, teachers: Sequence[str] | None = None
) -> PartDecomposition:
    """Returns what a grid of a study's models says of their parts.

    Args:
        study: The study.
        students: Names of the grid's; by default all.
        teachers: Likewise.
    """
    return decompose_parts(
        {name: vars(study.students[name].parts) for name in students or study.students},
        {name: vars(study.teachers[name].parts) for name in teachers or study.teachers},
    )


def list_unidentified(study: Study) -> list[str]:
    """Returns a line for each part, or parts together, that the whole grid does not tell from others, if from any."""
    found = decompose_study(study)
    if not found.effects:
        return []
    together = [
        f"{', '.join(effect.parts)}: a pair that shares one of them shares all, so that they have one effect together"
        for effect in found.effects
        if len(effect.parts) > 1
    ]
    return [*(f"{', '.join(refusal.parts)}: {refusal.reason}" for refusal in found.refusals), *together]


def _describe_models(study: Study) -> dict[str, DescribedModel]:
    return {
        f"study.{role}.{name}": DescribedModel(spec.model, spec.parts)
        for role, specs in (("students", study.students), ("teachers", study.teachers))
        for name, spec in specs.items()
        if spec.model is not None
    }


def require_models(study: Study) -> None:
    """Raises a ValueError if one of the study's models is to be a folder here, and is not there."""
    for where, described in _describe_models(study).items():
        require_folder(resolve_model(described.model, None)[0], f"{where}.model")


def check_study(study: Study) -> None:
    """Compares the study's description of its models with their files, where these lie on this machine.

    Raises:
        ValueError: They disagree.
    """
    check_parts(_describe_models(study))


def check_alignment(study: Study) -> None:
    """Refuses an alignment between models that lie on this machine and have one tokenizer, which nothing names.

    Those whose tokenizers are named are compared by `check_study`.

    Raises:
        ValueError: It would be ignored.
    """
    read = cache(read_facts)
    for student, teacher in dict.fromkeys((arm.student, str(arm.teacher)) for arm in _list_aligned(study)):
        own, other = study.students[student], study.teachers[teacher]
        if own.parts.tokenizer and other.parts.tokenizer:
            continue
        first, second = read(own.model), read(str(other.model))
        if first is not None and second is not None and first.fingerprint == second.fingerprint:
            raise ValueError(
                f"study.alignment would be ignored: student {student} and teacher {teacher} have one tokenizer; give "
                "both the same parts.tokenizer"
            )


def _list_aligned(study: Study) -> list[Arm]:
    """Returns the arms that learn from logits by an alignment that refuses the student's own tokenizer."""
    plain = ControlSpec()
    return [
        arm
        for arm in expand(study)
        if arm.teacher is not None
        and arm.supervision in ("rationale+logits", ON_POLICY)
        and find_alignment(study, study.controls.get(arm.control or "", plain), arm.student, arm.teacher)
        in ("strict", "bytes")
    ]
