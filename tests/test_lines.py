import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import lines

SOURCE = """def double(x):
    if x > 1:
        return 2 * x
    return x + x
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_lines_of_all_workers_are_counted_and_what_nobody_imports_has_none(tmp_path: Path, workers: int) -> None:
    for name in lines.PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()  # or the installed package would come first
        (tmp_path / name / "pair.py").write_text(SOURCE)
    (tmp_path / "tests").mkdir()
    shutil.copy(lines.__file__, tmp_path / "tests")
    # The two are run by two workers, each of which sees another line.
    for number in (1, 2):
        (tmp_path / "tests" / f"test_{number}.py").write_text(
            f"from losses.pair import double\ndef test():\n    assert double({number}) == 2 * {number}\n"
        )
    (tmp_path / "tests" / "conftest.py").write_text("import studies.pair\n")
    # It is no worker, even if this process is one.
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "--missing", "--rootdir=.", "-n", str(workers), "--dist=loadfile", "tests"],
        cwd=tmp_path,
        env={**outer, "PYTEST_PLUGINS": "tests.lines", "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert not ended.returncode, ended.stdout + ended.stderr
    shares = dict(line.split(maxsplit=1) for line in ended.stdout.splitlines() if "%" in line and " of " in line)
    # What is imported by a conftest.py counts, too: its line `def`.
    assert shares == {
        **dict.fromkeys(("datamodules", "lightning_modules", "scripts"), "0.0% of      4"),
        "losses": "100.0% of      4",
        "studies": "25.0% of      4",
        "all": "25.0% of     20",
    }
    assert "losses/pair.py" not in ended.stdout and "studies/pair.py" in ended.stdout
    assert "2 passed" in ended.stdout.splitlines()[-1]
