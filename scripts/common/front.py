"""What a script does before it imports what takes seconds: it listens, helps, and refuses wrong settings."""

import sys
from pathlib import Path

from lightning_modules.run.stop_signal import StopListener
from scripts.common.entry import run_main
from scripts.common.experiment_file import check_args
from scripts.common.help import answer_command, read_docstring
from scripts.common.hub_check import check_hub
from scripts.common.settings import suggest

# Commands with arguments of their own, and those that take their stage's settings.
OWN_COMMANDS: dict[str, tuple[str, ...]] = {
    "annotate": ("summary", "tasks"),
    "cache_logits": ("inspect",),
    "evaluate": ("metrics",),
    "fit": (),
    "study": ("power", "diagnose"),
    "on_policy": (),
}
# Scripts whose first argument is always a command, and those commands that take their section's settings.
GROUP_COMMANDS: dict[str, tuple[str, ...]] = {
    "study": ("run", "status", "jobs", "submit", "analyze"),
    "on_policy": ("run", "status", "jobs", "submit"),
}


def check_command(stage: str, script: str, args: list[str]) -> None:
    """Prints help and ends the process where a command line asks for it; else checks what can be checked at once.

    Raises:
        ValueError: It names no command, option or setting, leaves a required setting out, or names what only a hub
            has that does not answer.
    """
    answer_command(stage, args)
    name = args[0] if args and not args[0].startswith("-") else None
    if name in OWN_COMMANDS[stage] and {"-h", "--help"} & set(args):
        print(read_docstring(Path(script)))
        sys.exit(0)
    # A study's dry run has options of its own, too.
    has_own = name in OWN_COMMANDS[stage] or (
        stage == "study" and "--dry-run" in args and not {"-h", "--help"} & set(args)
    )
    if has_own or (stage in GROUP_COMMANDS and args[1:] and not args[1].startswith("-")):
        return
    if stage in GROUP_COMMANDS and name is None:
        args = args or ["--help"]
    elif name is not None:
        known = [*OWN_COMMANDS[stage], *GROUP_COMMANDS.get(stage, ())]
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "its settings are options"
            raise ValueError(f"{stage} has no command {name!r}{suggest(name, known)}; {there}")
        args = args[1:]
    check_args(args, stage)
    if stage not in GROUP_COMMANDS or name == "run":
        check_hub(stage, args)


def answer_early(stage: str, script: str) -> None:
    """Listens for signals, since the imports that follow take seconds, and answers what need not wait for them.

    Args:
        stage: Whose settings the command line has.
        script: The file that runs.
    """
    StopListener().listen()
    run_main(lambda: check_command(stage, script, sys.argv[1:]), script)
