"""Whether Weights & Biases can be reached: tracking never costs a run what it has computed."""

import os
import re
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar, cast, get_args

import wandb

Mode = Literal["online", "offline", "disabled"]
# Whether a run is logged; `required` refuses to begin where it cannot be logged online.
Wanted = bool | Literal["required"]
Begun = TypeVar("Begun")


def read_mode(wanted: Wanted) -> Mode:
    """Returns what WANDB_MODE asks for; by default `offline`, or `online` where that is required.

    Raises:
        ValueError: It has another value, or W&B is required online and it says otherwise.
    """
    if not wanted:
        return "disabled"
    mode = os.environ.get("WANDB_MODE", "online" if wanted == "required" else "offline")
    if mode not in get_args(Mode):
        raise ValueError(f"WANDB_MODE is {mode!r}; there are {', '.join(get_args(Mode))}")
    if wanted == "required" and mode in ("offline", "disabled"):
        raise ValueError(f"W&B is required, but WANDB_MODE is {mode}; unset it, or do not require W&B")
    return cast(Mode, mode)


def check_project(what: str, name: str) -> None:
    """Raises a ValueError if a project's name is one that W&B refuses, which it would do once a run begins."""
    if not re.fullmatch(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}", name) or not name.strip():
        raise ValueError(f"{what}: {name!r} is no project of W&B: use 1 to 128 characters, none of / \\ # ? % :")


def choose_mode(wanted: Wanted) -> Mode:
    """Returns the mode that WANDB_MODE asks for; `offline`, with a warning, where W&B cannot be reached.

    Raises:
        ValueError: See `read_mode`; or W&B is required and cannot be reached.
    """
    mode = read_mode(wanted)
    if mode != "online":
        return mode
    try:
        if wandb.login(prompt=False):
            return mode
        problem = "there is no key; `wandb login` or WANDB_API_KEY sets it"
    except wandb.Error as error:
        problem = " ".join(str(error).split())
    return _go_offline(problem, wanted)


def begin_run(begin: Callable[[Mode], Begun], mode: Mode, wanted: Wanted) -> Begun:
    """Begins a run in a mode, or offline, with a warning, where W&B refuses it.

    Raises:
        ValueError: W&B is required, and refuses it.
    """
    try:
        return begin(mode)
    except wandb.Error as error:
        return begin(_go_offline(" ".join(str(error).split()), wanted))


def _go_offline(problem: str, wanted: Wanted) -> Mode:
    if wanted == "required":
        raise ValueError(f"W&B is required, but cannot be used: {problem}")
    warnings.warn(
        f"W&B cannot be used ({problem}); this run is logged offline, and `report sync` uploads it later", stacklevel=3
    )
    return "offline"
