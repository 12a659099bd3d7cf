"""schemathesis reads the server's own description, and tries to catch it lying."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from puna.serve.app import Limits
from tests.serve.conftest import live, tiny_engine

# A body that the schema allows may still ask for what no schema can say: more than the context holds, two
# fields that exclude each other. Such a 400 is let pass; what must be accepted, the other tests ask for.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404"]
"""


# Every border of every field is nearly a thousand requests: a minute. `make slow` has time for it.
QUICK = ("--phases", "fuzzing", "--max-examples", "8")
ALL = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "100")


@pytest.mark.parametrize(
    "effort", [pytest.param(QUICK, id="quick"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]
)
def test_the_description_is_true(vocabulary, tmp_path, effort):
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    program = [str(Path(sys.executable).parent / "schemathesis"), "--config-file", str(config), "run"]
    options = [*effort, "--generation-deterministic", "--no-color"]
    with live(tiny_engine(vocabulary), limits=Limits(max_tokens=3)) as one:
        url = f"{one.url}/openapi.json"
        done = subprocess.run([*program, url, *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "Tested: 9" in done.stdout, done.stdout
        one.wait_until_free()
        assert one.metric("puna_generated_tokens_total") > 0


def test_every_answer_and_error_is_described(served):
    described = httpx2.get(f"{served.url}/openapi.json").json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        responses = described["paths"][path]["post"]["responses"]
        assert set(responses) == {"200", "400", "404", "408", "413", "429", "500", "503", "default"}
        assert set(responses["200"]["content"]) == {"application/json", "text/event-stream"}
        assert all("Error" in str(responses[code]["content"]) for code in responses if code != "200")
    assert "422" not in str(described["paths"])
