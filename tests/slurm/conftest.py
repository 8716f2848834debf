"""A cluster that all tests of this folder share, and folders from which a user submits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.slurm.checkout import Checkout
from tests.slurm.cluster import Cluster, find_missing


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes of four CPUs and two fake GPUs each."""
    if missing := find_missing():
        pytest.skip(missing)
    cluster = Cluster(tmp_path_factory.mktemp("slurm") / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def checkout(tmp_path: Path, cluster: Cluster) -> Checkout:
    """A clone for one test."""
    return Checkout(tmp_path, cluster)


# A launcher that stands before `python` in place of a container's, prints what the task was given, and starts nothing.
LAUNCHER = """\
#!/bin/bash
echo "task $SLURM_PROCID of $SLURM_NTASKS on $SLURMD_NODENAME: CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES $*"
{more}
"""


@pytest.fixture
def launcher(checkout: Checkout) -> Callable[..., None]:
    """Makes the checkout's tasks run a few lines of bash in place of Python, for what is the shell's part alone."""

    def use(more: str = "") -> None:
        path = checkout.folder / "launcher.sh"
        path.write_text(LAUNCHER.format(more=more))
        path.chmod(0o755)
        checkout.site.write_text(checkout.site.read_text() + "CONTAINER=(./launcher.sh)\n")

    return use
