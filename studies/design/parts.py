"""The parts of a study's families: what its grid can tell of them, and whether its models' files agree."""

from collections.abc import Sequence

from datamodules.model_parts import DescribedModel, check_parts
from datamodules.model_sources import require_folder, resolve_model
from studies.design.grid import Study
from studies.inference.parts import PartDecomposition, decompose_parts


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
