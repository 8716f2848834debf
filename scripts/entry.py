"""How a script runs and ends: what libraries need not say, and errors in one line."""

import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from datamodules.plain_text import clean_line
from lightning_modules.stop_signal import EXIT_STOPPED


def quiet_libraries() -> None:
    """Silences what Lightning and transformers say on every run; warnings of our own still show."""
    # Loader workers are forked after this process has tokenized; they do not tokenize, but would be warned not to.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        "LightningCLI's args parameter is intended",
        "You are using a custom batch sampler",
        ".*LeafSpec.* is deprecated",
        ".*does not have many workers",
        "Total length of .* across ranks is zero",
        ".*is smaller than the logging interval",
        "Checkpoint directory .* exists and is not empty",
        ".*`srun` command is available",
    ):
        warnings.filterwarnings("ignore", message)


def refuse_other_checkout(script: str) -> None:
    """Raises a ValueError if a script of one checkout has imported the library of another."""
    own, imported = Path(script).resolve().parents[1], Path(__file__).resolve().parents[1]
    if own != imported:
        raise ValueError(
            f"{script} belongs to {own}, but the library that it imports to {imported}; run `python -m "
            f"scripts.{Path(script).stem}` in {own}"
        )


def run_main(main: Callable[[], Any], script: str) -> None:
    """Runs a script; what a user got wrong is one line on stderr and exit code 2.

    KINDRED_DEBUG=1 shows the traceback instead. A warning is one line, too.

    Args:
        main: What it does.
        script: Its file.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {clean_line(str(message))}\n"
    try:
        refuse_other_checkout(script)
        main()
    except SIGTERMException:
        # Lightning's own end on SIGTERM, which came before `Preemption` listened; nothing new was learned by then.
        print("stopped by SIGTERM; the same command continues", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns an interrupt into an exit.
        if not isinstance(stop, KeyboardInterrupt) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ArgumentError, MisconfigurationException) as error:
        if os.environ.get("KINDRED_DEBUG"):
            raise
        print(f"error: {clean_line(' '.join(str(error).split()))}", file=sys.stderr)
        sys.exit(2)
