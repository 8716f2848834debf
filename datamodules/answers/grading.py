r"""Whether an answer is right: options and numbers by what they are, expressions by their value.

Two expressions are equal if their normal forms are, or if math-verify (Apache-2.0; Kydlíček et al.) finds them to have
one value: `\sqrt{8}` and `2\sqrt{2}`, `x+1` and `1+x`, `\{1,2\}` and `\{2,1\}`. It runs in a process of its own, see
`expression_worker`. What is too long to be an answer, or takes too long to compare, is not equal.
"""

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from functools import cache, lru_cache
from pathlib import Path

from datamodules.tasks.questions import Question
from datamodules.text.expressions import normalize_expression

MAX_LENGTH = 400
_WORDS = re.compile(r"[A-Za-z]{4,}|[^\x00-\x7f]+")


class _Worker:
    """The process, started when it is first needed and again when a comparison has ended it."""

    def __init__(self) -> None:
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.close)

    def close(self) -> None:
        """Ends the process, if this one started it."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ask(self, gold: str, answer: str) -> bool:
        """Returns the verdict on a pair; False if its budget of processor time ran out."""
        with self._lock:
            for _ in range(2):
                if self._process is None:
                    # -P: a module beside the file must not shadow another one.
                    command = [
                        sys.executable,
                        "-P",
                        "-W",
                        "ignore",
                        str(Path(__file__).with_name("expression_worker.py")),
                    ]
                    self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert self._process.stdin is not None and self._process.stdout is not None
                try:
                    self._process.stdin.write(json.dumps([gold, answer]) + "\n")
                    self._process.stdin.flush()
                    reply = self._process.stdout.readline()
                except BrokenPipeError:
                    reply = ""
                if reply:
                    return bool(json.loads(reply))
                process, self._process = self._process, None
                process.communicate()
                if process.returncode == -signal.SIGPROF:
                    return False
                # A signal meant for the whole group may have ended it: once more.
        raise RuntimeError(f"the process that compares expressions ended with code {process.returncode}")


@cache
def _find_worker(process_id: int) -> _Worker:
    """Returns this process's own worker: a forked process must not talk to its parent's."""
    return _Worker()


@lru_cache(maxsize=65536)
def _have_one_value(gold: str, answer: str) -> bool:
    if len(gold) > MAX_LENGTH or len(answer) > MAX_LENGTH:
        return False
    # Letters in another order are one product, but another word: "east" and "seat".
    if _WORDS.fullmatch(gold) or _WORDS.fullmatch(answer):
        return gold.casefold() == answer.casefold()
    return _find_worker(os.getpid()).ask(gold, answer)


def equal_expressions(one: str, other: str) -> bool:
    """Whether two LaTeX expressions are one answer; in either order alike."""
    first, second = sorted((normalize_expression(one), normalize_expression(other)))
    if first == second or not first or _have_one_value(first, second):
        return first == second or first != ""
    # What the normal form takes away may matter: `10\%` is 0.1.
    first, second = sorted(text.strip().strip("$") for text in (one, other))
    return "$" not in first + second and _have_one_value(first, second)


def is_correct(answer: str | None, question: Question) -> bool | None:
    """Returns whether an answer, as extracted, is the gold one; None where that is unknown."""
    if question.gold is None:
        return None
    if answer is None or not question.expression:
        return answer == question.gold
    return equal_expressions(question.gold, answer)
