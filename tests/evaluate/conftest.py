"""Benchmark data in the original formats, where PUNA_EVALDATA names them."""

import os
from pathlib import Path

import pytest

from puna.evaluate.data import Data


@pytest.fixture(scope="session")
def real() -> Data:
    if not (path := os.environ.get("PUNA_EVALDATA")):
        pytest.skip("PUNA_EVALDATA names no benchmark data")
    return Data(Path(path))
