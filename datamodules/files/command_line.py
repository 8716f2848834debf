"""A command line without a model's settings: its mistakes are one line, like all others."""

import argparse
import re
from difflib import get_close_matches
from typing import NoReturn


def parse_count(text: str) -> int:
    """Returns a number of at least 1, as `type=` of an argument.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not re.fullmatch(r"0*[1-9]\d{0,17}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


class CommandLine(argparse.ArgumentParser):
    """Parses arguments.

    Raises:
        ValueError: They are wrong.
    """

    def error(self, message: str) -> NoReturn:
        """Raises what argparse would print in several lines, and end the process with."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown and (like := get_close_matches(unknown[1], self._list_options(), 1)):
            message = f"{message}; did you mean {like[0]}?"
        raise ValueError(f"{message}; {self.prog} --help lists what there is")

    def _list_options(self) -> list[str]:
        """Returns the options of this command line and of its commands."""
        options = [*self._option_string_actions]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                options += [option for parser in action.choices.values() for option in parser._option_string_actions]
        return options
