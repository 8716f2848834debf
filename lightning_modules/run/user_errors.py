"""Which exceptions say what a user got wrong: one line and exit code 2; every other is a mistake of Kindred's own."""

import sys

EXIT_USER_ERROR = 2
EXIT_BUG = 1
EXIT_INTERRUPTED = 130
# Named, since importing them takes seconds; what has not been imported has not raised anything either.
_OF_LIBRARIES = {
    "jsonargparse": "ArgumentError",
    "lightning.pytorch.utilities.exceptions": "MisconfigurationException",
    "torch": "OutOfMemoryError",
}


def user_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions that say what a user got wrong, of libraries those that are imported."""
    of_libraries = [
        getattr(sys.modules[module], name) for module, name in _OF_LIBRARIES.items() if module in sys.modules
    ]
    return (ValueError, OSError, *of_libraries)
