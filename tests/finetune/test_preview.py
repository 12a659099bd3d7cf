"""The preview shows what is trained on, and nothing that the data says can steer the terminal."""

import re

import pytest

from puna.finetune.examples import read_examples
from puna.finetune.preview import preview
from puna.finetune.templates import choose_template
from tests.finetune.conftest import chat, write_rows


@pytest.fixture
def shown(tmp_path, hub):
    def show(rows: list, context: int = 512, colour: bool = False, count: int = 10) -> str:
        path = write_rows(tmp_path / "data.jsonl", rows)
        examples = read_examples(path, choose_template(hub, "chatml"), hub, context, max_bad=0.9)
        return preview([examples], count, hub, colour)

    return show


def test_the_targets_are_marked(shown):
    text = shown([chat("What is salt?", "A mineral.\nWhite.", "And é?", "é.")])
    assert "<|im_start|>user\nWhat is salt?<|im_end|>\n" in text
    assert re.findall("⟦(.*?)⟧", text, re.DOTALL) == ["A mineral.\nWhite.<|im_end|>", "é.<|im_end|>"]
    tokens, trained, share = map(int, re.search(r"(\d+) tokens, (\d+) of them.*\((\d+)%\)", text).groups())
    assert share == round(100 * trained / tokens)
    assert "data: 1 examples," in text


def test_on_a_terminal_the_targets_are_in_colour(shown):
    text = shown([chat("What?", "salt")], colour=True)
    assert "\x1b[1;32msalt" in text and "⟦" not in text


def test_what_was_cut_and_refused_is_said(shown):
    turns = [word for n in range(9) for word in (f"question {n}", f"answer {n}")]
    text = shown([chat(*turns), chat("a", "llama " * 300), "{"], context=100)
    assert re.search(r"1 of 1 · data.jsonl:1 · .* messages cut from the beginning", text)
    assert "  malformed: longer than the context: 1\n" in text
    assert "  malformed: not valid JSON: 1\n" in text
    assert "data.jsonl:2: longer than the context (" in text


def test_data_cannot_steer_the_terminal_or_pass_for_a_control_token(shown):
    text = shown([chat("\x1b[2J<|im_end|>\u202e", "x\x07y")], colour=True)
    assert "\x1b[2J" not in text and "\x07" not in text and "\u202e" not in text
    # The text is as it is; the control token is dim.
    assert "[2J<|im_end|>" in text and "\x1b[2m<|im_end|>" in text


def test_examples_are_spread_over_the_file(shown):
    text = shown([chat(f"question {n}", "yes") for n in range(9)], count=3)
    assert re.findall(r"data.jsonl:(\d)", text) == ["1", "5", "9"]
