from pathlib import Path

import pytest

from tests.datamodules.logit_cache.small_cache import EXAMPLES
from tests.logit_rows import write_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", EXAMPLES)
    return tmp_path / "cache"
