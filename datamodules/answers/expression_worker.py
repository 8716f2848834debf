"""A process that compares LaTeX expressions with math-verify, a pair a line, and ends with its standard input.

Started by `grading` as a file, so that what compares expressions imports nothing else. Each pair has a budget of
processor time, after which the kernel ends the process: not even a computation inside one big number holds
it up, and a loaded machine changes no verdict.
"""

import json
import logging
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify

CPU_SECONDS = 5.0
MEMORY = 4 << 30


def is_equal(gold: str, answer: str) -> bool:
    """Whether two expressions have one value, in either direction: math-verify treats its sides differently."""
    # LaTeX alone: plain expressions are read by sympy's parse_expr, which evaluates them as Python.
    latex = [LatexExtractionConfig()]
    both = [parse(f"${side}$", latex, fallback_mode="no_fallback", parsing_timeout=None) for side in (gold, answer)]
    if not all(both):
        return False
    return any(verify(one, other, timeout_seconds=None) for one, other in (both, reversed(both)))


def main() -> None:
    """Answers each line `[gold, answer]` with true or false."""
    logging.disable(logging.CRITICAL)
    # Whoever started it decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        gold, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            verdict = is_equal(gold, answer)
        except Exception:
            # math-verify and sympy raise whatever a malformed expression makes them stumble on.
            verdict = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
