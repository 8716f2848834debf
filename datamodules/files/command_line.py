"""A command line without a model's settings: its mistakes are one line, like all others."""

import argparse
from typing import NoReturn


class CommandLine(argparse.ArgumentParser):
    """Parses arguments.

    Raises:
        ValueError: They are wrong.
    """

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print in several lines, and end the process with."""
        raise ValueError(f"{message}; {self.prog} --help lists what there is")
