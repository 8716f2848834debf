"""What a control changes in its arms' settings, and in the names of their texts."""

from studies.design.controls import ControlSpec


def describe_texts(control: ControlSpec) -> dict[str, object]:
    """Returns the settings of the data by which a control reads other texts, or more of them."""
    settings: dict[str, object] = {}
    if control.correct_only is not None:
        settings["data__filters__correct_only"] = control.correct_only
    if control.answer_position is not None:
        settings["data__controls__answer_position"] = control.answer_position
    if control.shuffled:
        settings["data__controls__shuffled"] = True
    return settings


def name_rewriting(control: ControlSpec) -> str | None:
    """Says in names of files and jobs who has rewritten the texts, if anybody."""
    if control.rewriter is None:
        return None
    return f"{'by' if control.paraphraser else 'translated-by'}-{control.rewriter}"


def describe_weights(control: ControlSpec, seed: int) -> dict[str, object]:
    """Returns the settings by which a control changes a student's weights before training, or rounds them in it."""
    changes = {"reset": control.reset, "permuted_units": control.permuted_units, "seed": seed}
    is_changed = control.reset is not None or control.permuted_units
    settings = dict[str, object]({f"model__start__{name}": value for name, value in changes.items()})
    own: dict[str, object] = {} if control.fake_quant is None else {"model__fake_quant": control.fake_quant}
    return (settings if is_changed else {}) | own
