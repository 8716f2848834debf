"""Mutation testing: changes a module in many small ways, and says which changes its own tests don't notice.

    python -m tests.mutate datamodules/batches/packing.py --number=40 --seed=0

The mutants are mutmut's; each is a whole module, not a switch inside of it, so that what is decided at import is
changed, too. The tests run in a copy of the working tree, each mutant in a fork of one process, which has imported
torch and its like once.
"""

import argparse
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import libcst
import libcst.matchers
import pytest
from mutmut.mutation.file_mutation import create_mutations

ROOT = Path(__file__).parents[1]
PYTEST = ["-x", "-q", "-p", "no:cacheprovider"]
MESSAGES = libcst.matchers.Raise() | libcst.matchers.Call(
    func=libcst.matchers.Attribute(value=libcst.matchers.Name("warnings"))
)


class MessageStrings(libcst.CSTVisitor):
    """Collects the text of errors and warnings: a test states the part of a message that matters, not each word."""

    def __init__(self) -> None:
        self.found: set[libcst.CSTNode] = set()

    def on_visit(self, node: libcst.CSTNode) -> bool:
        if libcst.matchers.matches(node, MESSAGES):
            self.found.update(libcst.matchers.findall(node, libcst.matchers.SimpleString()))
        return True


def list_mutants(path: str, source: str) -> list[str]:
    """Returns different sources, each with one change."""
    module, mutations, _, _ = create_mutations(path, source)
    messages = MessageStrings()
    module.visit(messages)
    kept = [mutation for mutation in mutations if mutation.original_node not in messages.found]
    mutants = [module.deep_replace(kind.original_node, kind.mutated_node).code for kind in kept]
    return [mutant for mutant in dict.fromkeys(mutants) if mutant != source]


def find_tests(module: str) -> list[str]:
    """Returns the module's own tests: `tests/a/test_b.py` of `a/b.py`, and `tests/a/test_b_*.py`.

    Raises:
        ValueError: There are none.
    """
    path = Path("tests", module)
    own = path.with_name(f"test_{path.name}")
    found = [own, *own.parent.glob(f"{own.stem}_*.py")]
    if not (tests := sorted(str(test) for test in found if test.is_file())):
        raise ValueError(f"{module} has no tests of its own ({own}); name some with --tests")
    return tests


def copy_tree(folder: Path) -> None:
    """Copies what git tracks, or would."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def import_libraries(folder: Path, tests: list[str]) -> None:
    """Imports what the tests import, and forgets of it what lies in the folder."""
    pytest.main([*PYTEST, "--collect-only", "-qq", *tests])
    own = {path.name for path in folder.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]


def run_tests(tests: list[str], limit: float) -> tuple[int | None, float]:
    """Runs them in a fork; returns pytest's exit code, None where it took more than `limit` seconds, and the time."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        sink = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os._exit(pytest.main([*PYTEST, *tests]))
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() - start < limit:
        time.sleep(0.02)
    try:
        os.killpg(child, signal.SIGKILL)  # and what it left running
    except ProcessLookupError:
        pass
    if ended[0] == 0:
        os.waitpid(child, 0)
        return None, time.monotonic() - start
    return os.waitstatus_to_exitcode(ended[1]), time.monotonic() - start


def find_survivors(module: str, mutants: list[str], tests: list[str]) -> Iterator[str]:
    """Yields the mutants with which the tests pass; runs in a copy of the tree, whose module it overwrites."""
    status, seconds = run_tests(tests, float("inf"))
    if status:
        print(Path("output.txt").read_text())
        raise ValueError(f"the tests of {module} fail without any change (pytest's exit code {status})")
    print(f"{len(mutants)} mutants of {module}, {seconds:.1f} s each at most, by {' '.join(tests)}", flush=True)
    for mutant in mutants:
        Path(module).write_text(mutant)
        if run_tests(tests, 10 + 5 * seconds)[0] == 0:
            yield mutant


def main() -> None:
    """Prints the survivors as diffs, and how many of the mutants were killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="a Python file of this repository")
    parser.add_argument("--tests", nargs="+", help="test files; default: the module's own")
    parser.add_argument("--number", type=int, help="so many mutants, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        copy_tree(folder := Path(name).resolve())
        os.chdir(folder)
        # Bytecode is looked up by a file's second and size, which two mutants may share.
        sys.dont_write_bytecode = True
        sys.path[0] = str(folder)
        os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "TOKENIZERS_PARALLELISM": "false"}
        os.environ["CI"] = "1"  # Hypothesis then draws the same examples each time
        source = Path(options.module).read_text()
        mutants = list_mutants(options.module, source)
        if options.number is not None and options.number < len(mutants):
            mutants = random.Random(options.seed).sample(mutants, options.number)
        tests = options.tests or find_tests(options.module)
        import_libraries(folder, tests)
        survived = 0
        for mutant in find_survivors(options.module, mutants, tests):
            survived += 1
            lines = difflib.unified_diff(source.splitlines(), mutant.splitlines(), lineterm="", n=2)
            print(f"\nsurvivor {survived}:", *list(lines)[2:], sep="\n", flush=True)
        share = 1 - survived / len(mutants)
        print(
            f"\n{options.module}: {len(mutants) - survived} of {len(mutants)} killed ({share:.0%}), seed {options.seed}"
        )


if __name__ == "__main__":
    main()
