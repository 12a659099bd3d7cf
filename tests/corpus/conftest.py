"""Real inputs, which are not committed: tests on them are skipped where PUNA_REALDATA names no folder."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def realdata() -> Path:
    folder = Path(os.environ.get("PUNA_REALDATA", ""))
    if not os.environ.get("PUNA_REALDATA") or not folder.is_dir():
        pytest.skip("PUNA_REALDATA names no folder of real inputs")
    return folder
