"""Fixtures that several test modules use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published rationales, which lies beside the repository where there is one."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the published rationales are not there: {folder}")
    return folder
