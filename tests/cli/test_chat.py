"""The conversation in the terminal: what is typed, what is shown, what the model is given."""

import json
import os
import signal
from dataclasses import replace

import pytest

from puna.cli.chat import Chat, printable
from puna.config import Sampling
from puna.generate.engine import Engine
from puna.generate.runners.pytorch import PlainRunner
from puna.tokens.chat_template import ChatTemplate
from tests.generate.conftest import CONFIG, generated, random_model

GREEDY = Sampling(temperature=0)
# Plain text around what is said: our own vocabulary has no control tokens but <s> and </s>.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] + ': ' + message['content'] + eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture
def small(tokenizer) -> Engine:
    """With a context that fills soon."""
    return Engine(PlainRunner(random_model(replace(CONFIG, context=128)), 2), tokenizer)


@pytest.fixture
def told(engine, tokenizer) -> Engine:
    """With a chat template."""
    return Engine(engine.runner, tokenizer, template=ChatTemplate(TEMPLATE, tokenizer))


def says(engine: Engine, prompt, sampling: Sampling, max_tokens: int) -> str:
    """What the model answers, as the terminal shows it."""
    return printable(generated(engine, prompt, sampling, max_tokens))


def talk(engine: Engine, *lines: str, sampling: Sampling = GREEDY, write=None, **options) -> str:
    """What chat writes when these lines are typed."""
    typed, written = iter(lines), []

    def read(prompt: str) -> str:
        written.append(prompt)
        line = next(typed, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    def show(text: str) -> None:
        written.append(text)
        if write:
            write(text)

    Chat(engine, sampling, 8, read, show, **options).run()
    return "".join(written)


def test_chat_answers_a_line_as_generate_does(engine):
    assert says(engine, "The llama", GREEDY, 8) in talk(engine, "The llama")


def test_chat_remembers_until_new(engine):
    first = generated(engine, "The llama", GREEDY, 8)
    second = says(engine, f"The llama{first}\nand", GREEDY, 8)
    assert second in talk(engine, "The llama", "and")
    assert says(engine, "and", GREEDY, 8) in talk(engine, "The llama", "/new", "and")


def test_a_template_lays_the_turns_out(told):
    messages = [{"role": "user", "content": "The llama"}]
    first = generated(told, told.template.encode(messages), GREEDY, 8)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "and"}]
    second = says(told, told.template.encode(messages), GREEDY, 8)
    assert talk(told, "The llama", "and").endswith(f"> {printable(first)}\n\n> {second}\n\n> \n")


def test_the_system_text_comes_first(told):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "The llama"}]
    expected = says(told, told.template.encode(messages), GREEDY, 8)
    assert expected in talk(told, "/system Be kind.", "The llama")
    assert expected in talk(told, "The llama", system="Be kind.")
    assert expected not in talk(told, "The llama")


def test_a_base_model_has_no_place_for_a_system_text(engine):
    assert "does not support a system prompt" in talk(engine, "/system Be kind.")


def test_undo_takes_the_last_turn_back(engine):
    assert talk(engine, "The llama", "and", "/undo", "but").endswith(
        talk(engine, "The llama", "but").partition("\n> ")[2].partition("\n> ")[2]
    )
    assert "there is no message to remove" in talk(engine, "/undo")


def test_retry_answers_the_same_line_with_the_next_seed(engine):
    warm = Sampling(1.0, top_p=1.0, seed=4)
    written = talk(engine, "The llama", "/retry", sampling=warm)
    for seed in (4, 5):
        assert says(engine, "The llama", replace(warm, seed=seed), 8) in written


def test_retry_that_fails_leaves_the_conversation(engine, tmp_path):
    def check(request):
        if request.sampling.seed > 1:
            raise ValueError("no")

    engine.check = check
    file = tmp_path / "talk.json"
    assert "no\n" in talk(engine, "The llama", "/retry", f"/save {file}")
    assert len(json.loads(file.read_text())["messages"]) == 2


def test_set_changes_how_tokens_are_drawn(engine):
    written = talk(engine, "/set temperature 0", "/set max-tokens 3", "The llama", sampling=Sampling())
    assert f"> {says(engine, 'The llama', GREEDY, 3)}\n" in written
    assert "temperature 0.0, top-k 0, top-p 0.95" in written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set warmth 1", "unknown option warmth; /set takes temperature, top-k"),
        ("/set temperature hot", "temperature is 'hot'; expected a number"),
        ("/set top-p 3", "top-p is 3.0"),
        ("/set max-tokens 0", "max-tokens is 0"),
        ("/exit", "unknown command /exit; /help lists the commands"),
        ("/save", "/save needs a file name"),
        ("/save /nowhere/at/all", "/nowhere"),
        ("stones " * 2000, "the prompt is"),
    ],
)
def test_a_mistake_is_said_and_the_conversation_goes_on(engine, line, message):
    written = talk(engine, line, "The llama")
    assert message in written
    assert says(engine, "The llama", GREEDY, 8) in written


def test_help_names_every_command(engine):
    written = talk(engine, "/help")
    for command in ("/new", "/undo", "/retry", "/system", "/set", "/save", "/quit"):
        assert f"\n{command}" in written


def test_save_writes_the_conversation(told, tmp_path):
    talk(told, "/system Be kind.", "The llama", f"/save {tmp_path / 'talk.json'}")
    messages = json.loads((tmp_path / "talk.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert told.template.encode(messages)


def test_a_text_of_several_lines_is_one_turn(engine):
    expected = says(engine, "The llama\nsees\nit", GREEDY, 8)
    assert expected in talk(engine, '"""The llama', "sees", 'it"""')
    assert expected in talk(engine, "The llama\\", "sees\\", "it")
    assert expected in talk(engine, '"""The llama', "sees", "it")  # the end of the input ends it too


def test_old_turns_are_forgotten_when_the_context_is_full(small):
    written = talk(small, *["The river forgets the stones."] * 12, "/quit", "never read")
    assert "the context of 128 tokens is full: the oldest turn is dropped" in written
    assert "oldest turns are dropped" in written
    assert written.count("\n> ") == 13
    assert "never read" not in written


def test_ctrl_c_stops_the_answer_and_not_the_program(engine):
    killed: list[bool] = []

    def interrupt(text: str) -> None:
        if text.strip() and whole.startswith(text) and not killed:  # its first piece
            killed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    whole = says(engine, "The llama", GREEDY, 8)
    before = signal.getsignal(signal.SIGINT)
    written = talk(engine, "The llama", "/new", "and", write=interrupt)
    assert "[stopped]" in written
    assert says(engine, "and", GREEDY, 8) in written
    assert signal.getsignal(signal.SIGINT) is before
    assert engine.idle


def test_ctrl_c_drops_the_line_being_typed(engine):
    assert says(engine, "The llama", GREEDY, 8) in talk(engine, "^C", "The llama")


def test_the_token_rate_is_shown_on_a_terminal_only(engine):
    assert "\x1b[2m[8 tokens, " in talk(engine, "The llama", is_terminal=True)
    assert "tokens, " not in talk(engine, "The llama")
    assert "\x1b" not in talk(engine, "The llama")


def test_a_model_cannot_command_the_terminal():
    assert printable("a\x1b[2J\x9b\rb\n\tç🦙") == "a�[2J��b\n\tç🦙"
