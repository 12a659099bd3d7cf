"""What the server refuses, and how: OpenAI's form of error for everything, and no harm done."""

import http.client
import json
import re
import socket
import threading
from urllib.parse import urlsplit

import httpx2
import pytest

from puna.cli import main
from puna.serve.app import Limits
from tests.serve.conftest import live, slowed, tiny_engine

JSON = {"content-type": "application/json"}


def refusal(answer, status: int) -> str:
    """The message of an error, whose form is checked."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] in (
        "invalid_request_error", "authentication_error", "rate_limit_error", "server_error"
    )  # fmt: skip
    assert "\n" not in error["message"]
    return error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "the body must be a JSON object"),
        ("[1]", "the body must be a JSON object"),
        ("{", "the body is not JSON"),
        ('{"prompt": "a", "max_tokens": ' + "9" * 5000 + "}", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("{}", "prompt is missing"),
        ('{"prompt": 5}', "prompt must be a string, a list"),
        ('{"prompt": []}', "prompt must be a string, a list"),
        ('{"prompt": [[]]}', "prompt must be a string, a list"),
        ('{"prompt": [true]}', "prompt must be a string, a list"),
        ('{"prompt": ["a", 5]}', "prompt must be a string, a list"),
        ('{"prompt": [1, 320]}', "prompt.ids.1: .*less than or equal to 319"),
        ('{"prompt": "a\\ud800"}', "half a surrogate pair"),
        ('{"prompt": "a", "b\\ud800": 1}', "not valid Unicode"),
        ('{"prompt": "a", "max_token": 5}', "unknown field max_token"),
        ('{"prompt": "a", "temperature": NaN}', "temperature: .*finite"),
        ('{"prompt": "a", "temperature": 3}', "temperature: .*less than or equal to 2"),
        ('{"prompt": "a", "top_p": -0.1}', "top_p: .*greater than or equal to 0"),
        ('{"prompt": "a", "seed": 9223372036854775808}', "seed: "),
        ('{"prompt": "a", "stop": [""]}', "stop must be a string, or a list"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens is 0.*without echo"),
        ('{"prompt": "a", "max_tokens": 100000}', "max_tokens: .*less than or equal to 511"),
        ('{"prompt": "a", "max_tokens": 511}', "the prompt has . tokens and max_tokens is 511.*holds 512"),
        ('{"prompt": "a", "stream_options": {}}', "stream_options requires a stream"),
        ('{"prompt": ["a", "a", "a", "a", "a"], "n": 16}', "80 answers.*holds at most 68"),
    ],
)
def test_an_invalid_body_is_rejected_by_field(served, body, message):
    answer = httpx2.post(f"{served.url}/v1/completions", content=body, headers=JSON)
    assert re.search(message, refusal(answer, 400))


def test_a_body_of_another_type_is_refused(served):
    """A page elsewhere can send text/plain without asking the browser; it shall not generate."""
    answer = httpx2.post(
        f"{served.url}/v1/completions", content='{"prompt": "a"}', headers={"content-type": "text/plain"}
    )
    assert "content-type: application/json" in refusal(answer, 400)


def test_paths_and_methods_that_are_not_there(served):
    assert "unknown path" in refusal(httpx2.get(f"{served.url}/v2"), 404)
    assert "unknown path" in refusal(served.post("/v1/completions/", {"prompt": "a"}), 404)
    answer = httpx2.get(f"{served.url}/v1/completions")
    assert "use POST" in refusal(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_a_context_may_be_filled_and_not_overfilled(served):
    ids = [5] * 500
    whole = served.complete(prompt=ids, max_tokens=12)
    assert whole["usage"] == {"prompt_tokens": 500, "completion_tokens": 12, "total_tokens": 512}
    assert "the prompt has 500 tokens and max_tokens is 13" in refusal(
        served.post("/v1/completions", {"prompt": ids, "max_tokens": 13}), 400
    )


def test_an_over_long_conversation_is_an_error_and_a_long_one_gets_the_room_there_is(served):
    said = [{"role": "user", "content": "stones " * 600}]
    assert "the context holds 512" in refusal(served.post("/v1/chat/completions", {"messages": said}), 400)
    body = {"messages": [{"role": "user", "content": "seven stones"}], "temperature": 0, "ignore_eos": True}
    usage = served.post("/v1/chat/completions", body).json()["usage"]
    assert usage["total_tokens"] == 512


def test_bodies_are_limited_with_and_without_a_length(vocabulary):
    with live(tiny_engine(vocabulary), limits=Limits(body_bytes=2000)) as small:
        body = json.dumps({"prompt": "a" * 3000}).encode()
        assert "larger than 2,000 bytes" in refusal(
            httpx2.post(f"{small.url}/v1/completions", content=body, headers=JSON), 413
        )
        # In chunks nobody says how much will come.
        pieces = (body[i : i + 100] for i in range(0, len(body), 100))
        assert "larger than 2,000 bytes" in refusal(
            httpx2.post(f"{small.url}/v1/completions", content=pieces, headers=JSON), 413
        )
        # A length that is a lie is not believed.
        address = urlsplit(small.url)
        with socket.create_connection((address.hostname, address.port)) as raw:
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**30}\r\n\r\n"
            raw.sendall(head.encode())
            assert raw.recv(200).startswith(b"HTTP/1.1 4")
        assert small.complete(prompt="a", max_tokens=1)


def test_a_full_queue_says_when_to_come_back(vocabulary):
    engine = slowed(tiny_engine(vocabulary, max_batch=1), 0.02)
    with live(engine, limits=Limits(queue=1)) as busy:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(busy.post("/v1/completions", {"prompt": "a", "max_tokens": 30}))
            )
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert codes == [200, 200, 429, 429, 429]
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert "2 of 2 slots are in use" in refusal(refused, 429)
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        busy.wait_until_free()
        assert busy.complete(prompt="a", max_tokens=1)


def test_a_key_is_asked_for_before_the_body_is_read(vocabulary):
    with live(tiny_engine(vocabulary), api_keys=("secret",)) as locked:
        for path in ("/v1/models", "/metrics", "/tokenizer_info"):
            answer = httpx2.get(locked.url + path)
            refusal(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        refusal(httpx2.post(f"{locked.url}/v1/completions", content="{", headers=JSON), 401)
        for wrong in ("Basic secret", "Bearer", "Bearer sécret", "secret"):
            header = {"authorization": wrong.encode("latin-1")}
            refusal(httpx2.get(f"{locked.url}/v1/models", headers=header), 401)
        for open_path in ("/", "/health", "/openapi.json"):
            assert httpx2.get(locked.url + open_path).status_code == 200
        described = httpx2.get(f"{locked.url}/openapi.json").json()
        assert "401" in described["paths"]["/v1/completions"]["post"]["responses"]


def test_a_page_elsewhere_cannot_name_its_host_into_a_server_without_keys(served, vocabulary):
    assert "only requests for localhost" in refusal(
        httpx2.get(f"{served.url}/v1/models", headers={"host": "rebound.example:8000"}), 403
    )
    for host in ("localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000"):
        assert httpx2.get(f"{served.url}/v1/models", headers={"host": host}).status_code == 200
    with live(tiny_engine(vocabulary), api_keys=("k",)) as locked:
        headers = {"host": "models.example", "authorization": "Bearer k"}
        assert httpx2.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


def test_other_origins_are_let_in_only_where_they_are_named(served, vocabulary):
    asking = {"origin": "https://page.example", "access-control-request-method": "POST"}
    closed = httpx2.options(f"{served.url}/v1/completions", headers=asking)
    assert "access-control-allow-origin" not in closed.headers
    with live(tiny_engine(vocabulary), api_keys=("k",), cors_origins=("https://page.example",)) as shared:
        answer = httpx2.options(f"{shared.url}/v1/completions", headers=asking)
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx2.options(
            f"{shared.url}/v1/models", headers={**asking, "origin": "https://other.example"}
        )
        assert "access-control-allow-origin" not in other.headers
        # An error can be read by the page too.
        refused = httpx2.get(f"{shared.url}/v1/models", headers={"origin": "https://page.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://page.example"


def test_a_body_that_does_not_come_is_not_waited_for(vocabulary, monkeypatch):
    monkeypatch.setattr("puna.serve.middleware.BODY_SECONDS", 0.3)
    with live(tiny_engine(vocabulary)) as patient:
        address = urlsplit(patient.url)
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b'{"prompt"')
        answer = connection.getresponse()
        assert answer.status == 408
        assert "did not arrive within 0.3 seconds" in json.load(answer)["error"]["message"]


def test_tokens_are_counted_and_spelled(served):
    said = served.post("/tokenize", {"prompt": "the llama"}).json()
    bare = served.post("/tokenize", {"prompt": "the llama", "add_special_tokens": False}).json()
    assert said["tokens"] == [served.engine.tokenizer.bos_id, *bare["tokens"]]
    assert (said["count"], said["max_model_len"]) == (len(said["tokens"]), 512)
    assert served.post("/detokenize", {"tokens": bare["tokens"]}).json() == {"prompt": "the llama"}
    assert "less than or equal to 319" in refusal(served.post("/detokenize", {"tokens": [320]}), 400)
    info = httpx2.get(f"{served.url}/tokenizer_info").json()
    assert served.post("/tokenize", {"prompt": info["eos_token"]}).json()["tokens"] == [
        served.engine.tokenizer.eos_id
    ]


def test_metrics_count_what_happened(vocabulary):
    with live(tiny_engine(vocabulary)) as counted:
        counted.complete(prompt=[5, 6, 7], max_tokens=4)
        counted.post("/v1/completions", {"prompt": []})
        httpx2.get(f"{counted.url}/no/such/path")
        assert counted.metric('puna_requests_total{path="/v1/completions",status="200"}') == 1
        assert counted.metric('puna_requests_total{path="/v1/completions",status="400"}') == 1
        assert counted.metric('puna_requests_total{path="other",status="404"}') == 1
        assert counted.metric("puna_prompt_tokens_total") == 3
        assert counted.metric("puna_generated_tokens_total") == 4
        assert counted.metric("puna_time_to_first_token_seconds_count") == 1
        assert counted.metric("puna_time_per_token_seconds_count") == 3
        assert counted.metric("puna_running") == counted.metric("puna_queue_length") == 0
        assert counted.metric("puna_cache_blocks_free") == counted.metric("puna_cache_blocks") == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "refusing to listen on 0.0.0.0 without an API key; give --api-key-file FILE"),
        (["--api-key", "a b"], "an API key must be printable ASCII without spaces"),
        (["--max-batch", "0"], "max-batch is 0; it must be at least 1"),
        (["--port", "99999"], "cannot listen on 127.0.0.1 port 99999"),
    ],
)
def test_invalid_options_are_rejected_before_the_model_is_read(options, message, capsys):
    assert main(["serve", "--model", "nowhere", *options]) == 2
    assert message in capsys.readouterr().err
