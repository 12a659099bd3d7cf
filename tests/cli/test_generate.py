"""puna generate and puna chat, as they are typed."""

import io
import json

import pytest

from puna.api import find_model
from puna.cli import main
from puna.cli.chat import printable
from puna.config import RunConfig, Sampling, to_dict
from puna.files import write_json
from puna.generate.engine import Engine
from puna.generate.load import load_engine
from puna.model.weights import save_weights
from tests.generate.conftest import CONFIG, generated, random_model

GREEDY = ("--temperature", "0", "--max-tokens", "6")


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A run directory with a random model in fp32."""
    folder = tmp_path_factory.mktemp("verbs") / "run"
    folder.mkdir()
    save_weights(random_model(), folder)
    config = to_dict(RunConfig(model=CONFIG))
    config["compute"]["precision"] = "fp32"
    write_json(folder / "config.json", config)
    (folder / "tokenizer.model").write_bytes((shards / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="module")
def engine(run) -> Engine:
    return load_engine(run)


def out(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def failure(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def greedy(engine: Engine, prompt: str) -> str:
    return generated(engine, prompt, Sampling(temperature=0), 6)


def test_a_prompt_is_continued(run, engine, capsys):
    assert out(capsys, "generate", "The", "--model", str(run), *GREEDY) == f"The{greedy(engine, 'The')}\n"


def test_a_prompt_may_be_piped_in(run, engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The llama\n"))
    text = out(capsys, "generate", "--model", str(run), *GREEDY, "--json")
    result = json.loads(text)
    assert (result["prompt"], result["text"]) == ("The llama", greedy(engine, "The llama"))


def test_many_prompts_are_answered_together_and_in_order(run, engine, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("The\n\nA llama\n")
    (tmp_path / "prompts.jsonl").write_text('"The"\n{"prompt": "A llama"}\n')
    for name in ("prompts.txt", "prompts.jsonl"):
        arguments = ("--prompts", str(tmp_path / name), "--model", str(run), *GREEDY, "--n", "2", "--json")
        results = [json.loads(line) for line in out(capsys, "generate", *arguments).splitlines()]
        assert [result["prompt"] for result in results] == ["The", "The", "A llama", "A llama"]
        assert [result["seed"] for result in results] == [1, 2, 1, 2]
        assert all(result["text"] == greedy(engine, result["prompt"]) for result in results)
        assert all(result["finish"] in ("length", "stop") for result in results)


def test_logprobs_come_with_the_tokens(run, capsys):
    text = out(capsys, "generate", "The", "--model", str(run), *GREEDY, "--logprobs", "2", "--json")
    tokens = json.loads(text)["tokens"]
    assert tokens
    for token in tokens:
        assert token["logprob"] == token["top"][0]["logprob"] <= 0  # greedy
        assert len(token["top"]) == 2


def test_a_stop_string_ends_the_text(run, engine, capsys):
    prompt = next(p for p in ("The", "A", "llama", "def") if len(greedy(engine, p).strip()) > 2)
    whole = greedy(engine, prompt)
    stop = whole.strip()[1:3]
    text = out(capsys, "generate", prompt, "--model", str(run), *GREEDY, "--stop", stop, "--json")
    result = json.loads(text)
    assert (result["text"], result["finish"]) == (whole[: whole.find(stop)], "stop")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_precision_of_the_cache_is_chosen(run, capsys, precision):
    arguments = ("--model", str(run), *GREEDY, "--cache-dtype", precision, "--json")
    assert json.loads(out(capsys, "generate", "The", *arguments))["count"] > 0


def test_guessing_ahead_gives_the_same_text(run, engine, capsys):
    arguments = ("--model", str(run), *GREEDY, "--lookup", "4", "--device", "cpu", "--json")
    text = out(capsys, "generate", "The The The", *arguments)
    assert json.loads(text)["text"] == greedy(engine, "The The The")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("The", "--n", "0"), 'Invalid value "0" for --n. Must be > 0'),
        (("The", "--top-p", "2"), '"2.0" for --top-p. It must be less than or equal to 1.'),
        (("The", "--lookup", "4"), "lookup is exact only for greedy"),
        (("The", "--prompts", "x.txt"), "a prompt and --prompts are given"),
        (("--prompts", "x.txt"), "x.txt"),
    ],
)
def test_a_mistake_is_named(run, capsys, arguments, message):
    assert message in failure(capsys, "generate", *arguments, "--model", str(run))


@pytest.mark.parametrize("line", ["{}", '{"prompt": 3}', "[1]", "{"])
def test_a_line_that_holds_no_prompt_is_named(run, capsys, tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"good"\n{line}\n')
    assert f"{file}, line 2" in failure(capsys, "generate", "--prompts", str(file), "--model", str(run))


def test_a_model_that_is_not_there_is_named_with_the_ways_to_one(capsys):
    line = failure(capsys, "generate", "The", "--model", "lama")
    assert "there is no model lama" in line
    assert "smollm2" in line


def test_chat_talks_through_pipes(run, engine, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("The llama\n/quit\n"))
    text = out(capsys, "chat", "--model", str(run), *GREEDY)
    assert f"> {printable(greedy(engine, 'The llama'))}\n" in text
    assert "\x1b" not in text


@pytest.mark.network
def test_smollm2_answers_by_its_name(capsys):
    engine = load_engine(find_model("smollm2"), max_batch=1)
    assert engine.template is not None
    ids = engine.template.encode([{"role": "user", "content": "What is the capital of France?"}])
    # As the template says by itself: <|im_start|>system … <|im_end|> \n, the user's, the assistant's.
    assert [ids.count(id) for id in (1, 2)] == [3, 2]
    assert "Paris" in generated(engine, ids, Sampling(temperature=0), 30)
