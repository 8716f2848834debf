"""Mutation testing: changes a module in many small ways, and says which changes its own tests don't notice.

    python -m tests.mutate datamodules/batches/packing.py --number=40 --seed=0

The mutants are mutmut's; each is a whole module, not a switch inside of it, so that what is decided at import is
changed, too. The tests run in a copy of the working tree, each mutant in a fork of one process, which has imported
torch and its like once. The tests that reach the change come first, the quick ones before the slow; the first that
fails ends the run.
"""

import argparse
import ast
import contextlib
import difflib
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import coverage
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


def draw_mutants(path: str, source: str, number: int | None, seed: int) -> list[str]:
    """Returns different sources, each with one change: so many at most, drawn at random, or all."""
    module, mutations, _, _ = create_mutations(path, source)
    messages = MessageStrings()
    module.visit(messages)
    kept = [mutation for mutation in mutations if mutation.original_node not in messages.found]
    if number is not None and number < len(kept):
        kept = random.Random(seed).sample(kept, number)
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


class Recorder:
    """A plugin of pytest: writes down how long each test takes, and which of a module's lines it reaches."""

    def __init__(self, module: str, file: Path) -> None:
        self._module, self._file = str(Path(module).resolve()), file
        self._seconds: dict[str, float] = {}
        self._coverage = coverage.Coverage(data_file=None, include=[self._module], config_file=False)

    def pytest_configure(self) -> None:
        """Begins."""
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Times a test."""
        self._coverage.switch_context(item.nodeid)
        start = time.monotonic()
        result = yield
        self._seconds[item.nodeid] = time.monotonic() - start
        return result

    def pytest_sessionfinish(self) -> None:
        """Writes the file, with the libraries that were imported on the way."""
        self._coverage.stop()
        lines = self._coverage.get_data().contexts_by_lineno(self._module)
        specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
        libraries = [name for name, spec in specs.items() if spec and "site-packages" in (spec.origin or "")]
        self._file.write_text(json.dumps({"seconds": self._seconds, "lines": lines, "libraries": libraries}))


class Order:
    """A plugin of pytest: sorts tests by a key of each."""

    def __init__(self, keys: dict[str, tuple[bool, str, float]]) -> None:
        self._keys = keys

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Sorts them; one that was not there before comes first."""
        items.sort(key=lambda item: self._keys.get(item.nodeid, (False, "", 0.0)))


def find_statement(source: str, mutant: str) -> range:
    """Returns the lines of the smallest statement that holds the change."""
    pairs = difflib.SequenceMatcher(None, source.splitlines(), mutant.splitlines(), autojunk=False).get_opcodes()
    changed = [pair[1:3] for pair in pairs if pair[0] != "equal"]
    first, last = changed[0][0] + 1, max(changed[-1][1], changed[0][0] + 1)
    statements = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]
    spans = [range(node.lineno, (node.end_lineno or node.lineno) + 1) for node in statements]
    return min((span for span in spans if first in span and last in span), key=len, default=range(first, last + 1))


def order_tests(reached: dict[str, list[str]], seconds: dict[str, float], statement: range) -> Order:
    """Returns first the tests that reach a line of the statement, each file's together, the quick before the slow.

    Args:
        reached: Tests by the line that they reach; `""` is what is reached by importing, so that all tests are.
        seconds: By test.
        statement: Its lines.
    """
    found = {test for line in statement for test in reached.get(str(line), [])}
    by_all = not found or "" in found
    return Order(
        {test: (not by_all and test not in found, test.partition("::")[0], own) for test, own in seconds.items()}
    )


def run_tests(tests: list[str], limit: float, plugin: Recorder | Order) -> tuple[int | None, float]:
    """Runs them in a fork; returns pytest's exit code, None where it took more than `limit` seconds, and the time."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        sink = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os._exit(pytest.main([*PYTEST, *tests], plugins=[plugin]))
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
    source = Path(module).read_text()
    record = Path("record.json").resolve()
    status, seconds = run_tests(tests, float("inf"), Recorder(module, record))
    if status:
        print(Path("output.txt").read_text())
        raise ValueError(f"the tests of {module} fail without any change (pytest's exit code {status})")
    found = json.loads(record.read_text())
    for library in found["libraries"]:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    print(f"{len(mutants)} mutants of {module}, {seconds:.1f} s each at most, by {' '.join(tests)}", flush=True)
    for mutant in mutants:
        Path(module).write_text(mutant)
        # Bytecode is looked up by a file's second and size, which two mutants may share.
        Path(importlib.util.cache_from_source(module)).unlink(missing_ok=True)
        order = order_tests(found["lines"], found["seconds"], find_statement(source, mutant))
        if run_tests(tests, 10 + 5 * seconds, order)[0] == 0:
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
        sys.path[0], sys.dont_write_bytecode = str(folder), False
        os.environ |= {"PYTHONPATH": str(folder), "TOKENIZERS_PARALLELISM": "false"}
        os.environ["CI"] = "1"  # Hypothesis then draws the same examples each time
        source = Path(options.module).read_text()
        mutants = draw_mutants(options.module, source, options.number, options.seed)
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
