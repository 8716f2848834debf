"""Which exceptions say what a user got wrong: one line and exit code 2; every other is a mistake of Kindred's own."""

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

USER_ERRORS = (ValueError, OSError, ArgumentError, MisconfigurationException)
EXIT_USER_ERROR = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
