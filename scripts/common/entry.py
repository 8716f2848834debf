"""How a script runs and ends: what libraries need not say, and errors in one line.

Every script's exit code is one of: 0, done; 2, the input or a setting is wrong, said in one line; 75, stopped as asked
with everything saved, and the same command continues; 130, interrupted, and the same command continues; 1, a mistake of
Kindred's own, shown with its traceback. Only 75 is worth running again as it is.
"""

import logging
import os
import platform
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.text.plain_text import abridge, clean_line, describe_error
from lightning_modules.run.stop_signal import EXIT_STOPPED
from lightning_modules.run.user_errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_USER_ERROR, user_errors

# Characters; with KINDRED_DEBUG=1 all of them stand above.
LONGEST_ERROR = 700


def quiet_datasets() -> None:
    """Silences what `datasets` says beside the errors that it raises."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)


def quiet_libraries() -> None:
    """Silences what Lightning and transformers say on every run; warnings of our own still show."""
    # What runs no model needs none of them, and they take seconds.
    import huggingface_hub
    import transformers

    from lightning_modules.run.progress import is_watched

    # Loader workers are forked after this process has tokenized; they do not tokenize, but would be warned not to.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not is_watched():
        # They redraw their bars with carriage returns, also in a log.
        transformers.utils.logging.disable_progress_bar()
        huggingface_hub.utils.disable_progress_bars()
    quiet_datasets()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    # On a processor it advises another package when it is imported, used or not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for message in (
        "LightningCLI's args parameter is intended",
        "You are using a custom batch sampler",
        ".*LeafSpec.* is deprecated",
        ".*does not have many workers",
        "Total length of .* across ranks is zero",
        ".*is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
        "`(is_)?gradient_checkpointing(_enable)?` is deprecated",
        ".*`srun` command is available",
    ):
        warnings.filterwarnings("ignore", message)


def refuse_other_checkout(script: str) -> None:
    """Raises a ValueError if a script of one checkout has imported the library of another."""
    own, imported = Path(script).resolve().parents[1], Path(__file__).resolve().parents[2]
    if own != imported:
        raise ValueError(
            f"{script} belongs to {own}, but the library that it imports to {imported}; run `python -m "
            f"scripts.{Path(script).stem}` in {own}"
        )


def run_main(main: Callable[[], Any], script: str) -> None:
    """Runs a script, and ends with one of the exit codes above.

    With KINDRED_DEBUG=1 what a user got wrong has a traceback, too. A warning is one line.

    Args:
        main: What it does.
        script: Its file.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {clean_line(str(message))}\n"
    try:
        refuse_other_checkout(script)
        main()
    except (KeyboardInterrupt, SystemExit) as stop:
        if type(stop).__name__ == "SIGTERMException":
            # Lightning's own end on SIGTERM, which came before `Preemption` listened; nothing new was learned by then.
            print("stopped by SIGTERM; the same command continues", file=sys.stderr)
            sys.exit(EXIT_STOPPED)
        # Lightning turns an interrupt into an exit.
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except user_errors() as error:
        if os.environ.get("KINDRED_DEBUG"):
            traceback.print_exc()
        message = clean_line(describe_error(error))
        if type(error).__name__ == "OutOfMemoryError":
            # What follows is the allocator's state, and its own settings.
            asked = ". ".join(message.split(". ")[:2])
            message = f"{asked}; lower data.batches.tokens_per_batch, or see docs/guides/your-models.md"
        # Parsers list all that a setting may be.
        print(f"error: {abridge(message, LONGEST_ERROR)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except Exception:
        traceback.print_exc()
        versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "lightning", "transformers"))
        print(
            f"bug: this is a mistake of Kindred's own; please report it with the lines above, the command "
            f"`{clean_line(shlex.join([script, *sys.argv[1:]]))}`, Python {platform.python_version()}, {versions}",
            file=sys.stderr,
        )
        sys.exit(EXIT_BUG)
