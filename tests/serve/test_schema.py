"""schemathesis reads the server's own description, and tries to catch it lying."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from puna.serve import answers
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


def test_the_limits_of_the_server_are_described_and_validated(vocabulary):
    with live(tiny_engine(vocabulary), limits=Limits(max_tokens=3), api_keys=("k",)) as one:
        described = httpx2.get(f"{one.url}/openapi.json").json()
        bodies = described["components"]["schemas"]
        completion, chat = (bodies[name]["properties"] for name in ("CompletionRequest", "ChatRequest"))
        assert completion["max_tokens"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 3}
        assert chat["max_completion_tokens"]["anyOf"][0]["maximum"] == 3
        assert completion["model"]["anyOf"][0]["enum"] == ["tiny"]
        assert bodies["DetokenizeRequest"]["properties"]["tokens"]["items"]["maximum"] == 319
        # A key is asked for, and described, at the same paths.
        for path, methods in described["paths"].items():
            for method, operation in methods.items():
                status = httpx2.request(method, one.url + path.replace("{model}", "tiny")).status_code
                assert (status == 401) == ("security" in operation) == ("401" in operation["responses"])
        keyed = {"headers": {"authorization": "Bearer k"}}
        for tokens, status in ((3, 200), (4, 400)):
            body = {"prompt": "a", "max_tokens": tokens}
            assert one.post("/v1/completions", body, **keyed).status_code == status


def test_an_answer_cannot_hold_what_is_not_described():
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        answers.Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2, cached=0)
