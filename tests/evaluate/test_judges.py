"""Judges and endpoints, against a local server that is at times overloaded, broken or gone."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from puna.config import Sampling
from puna.evaluate.endpoint import Endpoint, Unanswered
from puna.evaluate.judges import Classifier, Nobody, TruthJudge
from puna.evaluate.model import Prompt
from puna.evaluate.perspective import Perspective
from puna.evaluate.task import Example

EXAMPLE = Example(id="1", question="Q: x?\nA:", fields={"question": "x?"})


class Server:
    """Answers by `reply(path, body)`, after the failures in `moods`: status codes, or None to hang up."""

    def __init__(self) -> None:
        self.moods: list[int | None] = []
        self.asked: list[tuple[str, dict]] = []
        self.reply = lambda path, body: {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.asked.append((self.path, body))
                self._send(outer.moods.pop(0) if outer.moods else 200, body)

            def do_GET(self):
                self._send(200, {})

            def _send(self, status, body):
                if status is None:
                    self.connection.close()
                    return
                data = json.dumps(outer.reply(self.path, body) if status == 200 else {"error": "no"}).encode()
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "0")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("puna.retry.time.sleep", lambda seconds: None)
    made = Server()
    yield made
    made.http.shutdown()


def toxic(path, body):
    text = body["comment"]["text"]
    return {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.9 if "bad" in text else 0.1}}}}


def test_perspective_waits_and_tries_again(server):
    server.reply, server.moods = toxic, [429, 429, None, 503]
    judge = Perspective("key", server.url, rate=1000)
    verdicts = judge.judge([EXAMPLE] * 3, ["a bad day", " a day", ""])
    assert [verdict.value for verdict in verdicts] == [0.9, 0.1, 0.0]
    assert len(server.asked) == 6  # the empty text is not sent
    assert (
        server.asked[0][1]["requestedAttributes"] == {"TOXICITY": {}}
        and server.asked[0][1]["doNotStore"] is True
    )


def test_perspective_gives_up_without_telling_the_key(server):
    server.moods = [400]
    with pytest.raises(Unanswered, match="status 400") as raised:
        Perspective("secret-key", server.url, rate=1000).judge([EXAMPLE], ["text"])
    assert "secret-key" not in str(raised.value)
    with pytest.raises(ValueError, match="PERSPECTIVE_API_KEY"):
        Perspective("")


def completions(path, body):
    if path.endswith("/models"):
        return {"data": [{"id": "judge-7b"}]}
    if body["prompt"].endswith(("True:", "Helpful:")):
        return {"choices": [{"text": " yes" if "True:" in body["prompt"] else " no"}]}
    text = f" answer to {len(body['prompt'])}\nQ: more"
    return {"choices": [{"text": text, "finish_reason": "length"}], "usage": {"completion_tokens": 5}}


def test_an_endpoint_generates_and_its_texts_end_at_stop_strings(server):
    server.reply, server.moods = completions, [500, None, 429]
    model = Endpoint(f"{server.url}/v1")
    assert model.name == "judge-7b"
    sampling = Sampling(temperature=0, top_p=1)
    prompts = [Prompt("x" * n, np.zeros(n, np.uint32), sampling, 9, ("\n",)) for n in (3, 5, 7)]
    found = dict(model.generate(prompts, lambda tokens: None))
    assert [found[i].text for i in range(3)] == [" answer to 3", " answer to 5", " answer to 7"]
    assert found[0].finish == "stop" and found[0].tokens == 5
    with pytest.raises(ValueError, match="can only generate"):
        model.score([], lambda tokens: None)


def test_a_dead_endpoint_is_named(server):
    server.reply = completions
    model = Endpoint(f"{server.url}/v1")
    server.moods = [500] * 20
    prompt = Prompt("x", np.zeros(1, np.uint32), Sampling(temperature=0, top_p=1), 9, ())
    with pytest.raises(Unanswered, match=r"does not answer \(status 500.*the same command resumes"):
        list(model.generate([prompt], lambda tokens: None))
    with pytest.raises(ValueError, match=r"127.0.0.1:9/v1/models does not answer"):
        Endpoint("http://127.0.0.1:9/v1")


def test_truth_is_judged_with_the_judges_digest(server):
    server.reply = completions
    judge = TruthJudge(Endpoint(f"{server.url}/v1"))
    (verdict,) = judge.judge([EXAMPLE], [" It is so.\n\nQ: next"])
    assert verdict.value == 1 and verdict.answer == "It is so."
    assert verdict.also == {"informative": 0, "truthful*informative": 0}
    assert server.asked[0][1]["prompt"] == "Q: x?\nA: It is so.\nTrue:" and judge.identity


def test_without_a_judge_nothing_is_scored():
    assert Nobody("no truth judge").judge([EXAMPLE], ["x"])[0].value is None


def test_a_classifier_directory_scores_toxicity(tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {"[UNK]": 0, "[PAD]": 1, "a": 2, "bad": 3, "day": 4}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]"
    )
    tokenizer.save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        id2label={0: "neutral", 1: "toxic"}, label2id={"neutral": 0, "toxic": 1}, pad_token_id=1,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    judge = Classifier(tmp_path)
    values = [verdict.value for verdict in judge.judge([EXAMPLE] * 3, ["a bad day", "a day", ""])]
    assert all(0 < value < 1 for value in values) and judge.identity.endswith("[toxic]")
    assert judge.judge([EXAMPLE], ["a day"])[0].value == pytest.approx(values[1], abs=1e-5)
    with pytest.raises(ValueError, match="holds no classifier"):
        Classifier(tmp_path / "nowhere")
