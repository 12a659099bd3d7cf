"""The soak, as a test. PUNA_SOAK_MINUTES says how long: 10 when it does not."""

import os

import pytest

from tests.serve.soak import soak, tiny_model


@pytest.mark.slow
def test_nothing_stays_behind_after_many_clients(tmp_path):
    soak(60 * float(os.environ.get("PUNA_SOAK_MINUTES", "10")), tiny_model(tmp_path))
