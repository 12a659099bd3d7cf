"""`puna tokens inspect` shows what training will see."""

import json

import pytest

from puna.cli import main
from puna.config import to_dict
from puna.files import write_json
from puna.recipes import recipe
from puna.tokens.inspect import marked_text, shortened
from puna.tokens.mixture import Mixture
from puna.tokens.tokenizer import Tokenizer


def inspected(capsys, *arguments):
    assert main(["tokens", "inspect", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_rows_shown_are_those_of_the_batch(shards, capsys):
    shown = inspected(capsys, shards, "--step", 3, "--context", 64, "--batch-tokens", 256, "--seed", 5)
    mixture = Mixture([shards], {}, seed=5, context=64, batch_sequences=4)
    tokenizer = Tokenizer(shards)
    batch = mixture.batch(3)
    assert shown["fingerprint"] == mixture.fingerprint
    assert [row["source"] for row in shown["rows"]] == [mixture.sources[index] for index in batch.sources]
    for row, inputs in zip(shown["rows"], batch.inputs, strict=True):
        bare = row["text"].replace("⟨s⟩", "").replace("⟨/s⟩", "")
        assert tokenizer.decode(inputs.tolist()).replace(" ", "") in bare.replace(" ", "")
        assert 0 <= row["window"] < row["windows"] == mixture.windows(row["source"])


def test_a_run_gives_its_context_batch_and_seed(shards, tmp_path, capsys):
    config = to_dict(recipe("tiny"))
    config["mixture"]["seed"] = 9
    write_json(tmp_path / "config.json", config)
    shown = inspected(capsys, shards, "--model", tmp_path, "--step", 2)
    context, tokens = config["model"]["context"], config["schedule"]["batch_tokens"]
    mixture = Mixture([shards], {}, seed=9, context=context, batch_sequences=tokens // context)
    assert (shown["context"], shown["fingerprint"]) == (context, mixture.fingerprint)
    assert len(shown["rows"]) == tokens // context


def test_shards_at_a_url_can_be_looked_at(shards, capsys):
    given = ("--context", 64, "--batch-tokens", 128)
    assert inspected(capsys, f"file://{shards}", *given) == inspected(capsys, shards, *given)


def test_a_person_gets_a_heading_a_window_and_its_text(shards, capsys):
    arguments = ["--context", "64", "--batch-tokens", "512", "--rows", "2", "--characters", "40"]
    assert main(["tokens", "inspect", str(shards), *arguments]) == 0
    out = capsys.readouterr().out
    assert out.count("── row") == 2 and "epoch 1, 64 tokens" in out and "characters…]" in out
    assert out.endswith("── step 0: 8 rows of 64 tokens; 2 shown\n")


def test_borders_of_documents_are_marked_and_cannot_be_taken_for_text(small_tokenizer):
    ids = [*small_tokenizer.encode("one <s>", bos=True, eos=True), *small_tokenizer.encode("two", bos=True)]
    assert marked_text(small_tokenizer, ids) == "⟨s⟩one <s>⟨/s⟩⟨s⟩two"


def test_a_long_text_keeps_its_ends():
    assert shortened("short", 5) == "short"
    assert shortened("a" * 50 + "b" * 50, 10) == "aaaaa […90 characters…] bbbbb"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such"], "no-such holds no finished shards"),
        (["--step", "-1"], 'Invalid value "-1" for --step. Must be >= 0'),
    ],
)
def test_what_cannot_be_shown_is_named(shards, capsys, arguments, message):
    given = arguments if arguments[0] == "no-such" else [str(shards), *arguments]
    assert main(["tokens", "inspect", *given]) == 2
    assert message in capsys.readouterr().err
