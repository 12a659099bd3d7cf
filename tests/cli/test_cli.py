"""The command line: the verbs work, errors are one line with exit code 2, help is quick."""

import json
import os
import subprocess
import sys

import pytest

from puna import __version__
from puna.cli import app, main
from tests.conftest import write_corpus

VERBS = ["demo", "fetch", "corpus", "tokenizer", "tokenizer train", "tokenizer encode", "tokenizer decode"]
VERBS += ["shards", "train", "generate", "chat", "serve", "report"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    assert main([*verb.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: puna {verb}" in out


def test_help_is_laid_out_for_the_terminal(capsys):
    """Sentences run on where a docstring breaks a line, and defaults are shown as they are typed."""
    assert main(["corpus", "wikipedia", "--help"]) == 0
    lines = [line.strip("│ ") for line in capsys.readouterr().out.splitlines()]
    text = " ".join(lines)
    assert "0 exits instead, and the same command is run again later." in text
    assert any(line.endswith("and the same command is run") for line in lines)
    assert "[default: bg ca cs" in text
    assert "[default: None]" not in text


def test_help_imports_nothing_heavy():
    """The promise is --help in under half a second; what would break it is an import of one of these."""
    heavy = "{'torch', 'numpy', 'pyarrow', 'sentencepiece', 'mwparserfromhell', 'unearth', 'jinja2'}"
    script = (
        "import sys; from puna.cli import main; main(['train', '--help']); "
        f"print(sorted({heavy} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("json", "expected"), [(False, r"Z\xfcrich \u4e2d"), (True, r'"Z\u00fcrich \u4e2d"')]
)
def test_a_terminal_without_utf_8_loses_nothing(json, expected):
    script = (
        "from puna.cli import main; from puna.cli.common import print_result; main(['--version']); "
        f"print_result({{'text': 'Z\\xfcrich \\u4e2d'}}, {json}, ['Z\\xfcrich \\u4e2d'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout


def failure(arguments: list[str], capsys) -> str:
    """The one line on stderr of a command that fails as an error of input should."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--recipe", "99b", "--data", "x", "--out", "y"],
            "unknown recipe '99b'; choose one of: tiny",
        ),
        (["train", "--model.width", "3", "--data", "x", "--out", "y"], "Unknown option: --model.width"),
        (["train", "--model.dim", "wide", "--data", "x", "--out", "y"], "--model.dim"),
        (["train", "--model.dim", "7", "--data", "x", "--out", "y"], "model.dim is 7, not divisible"),
        (["train", "--out", "y"], "--data DIR"),
        (["train", "--data", "no-such", "--out", "y"], "no-such holds no finished shards"),
        (["train", "--config", "no-such", "--out", "y"], "no-such holds no run configuration"),
        (["fetch", "library"], "library"),
        (
            ["corpus", "library", ".", "--out", "y"],
            'Unknown command "library". Available commands: commoncrawl',
        ),
        (["corpus", "books", "no-such", "--out", "y"], "input no-such does not exist"),
        (["tokenizer", "train", "no-such", "--out", "y"], "no-such"),
        (["generate", "hello", "--model", "no-such"], "there is no model no-such; give a run directory"),
        (["report", "no-such"], "no-such"),
        (["trian"], "Did you mean"),
    ],
)
def test_an_error_is_one_line_that_names_the_thing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in failure(arguments, capsys)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_corpus_without_documents_is_an_error(capsys, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    assert "no books input found" in failure(
        ["corpus", "books", str(raw), "--out", str(tmp_path / "out")], capsys
    )
    (raw / "empty.txt").write_text("")
    line = failure(["corpus", "books", str(raw), "--out", str(tmp_path / "out")], capsys)
    assert "no books document was kept" in line


def test_the_verbs_lead_from_documents_to_a_model_that_answers(tmp_path, capsys, monkeypatch):
    from tests.conftest import functions, sentences

    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "documents/books", "books", [sentences(seed, 60) for seed in range(20)])
    write_corpus(tmp_path / "documents/github", "github", [functions(seed, 40) for seed in range(20)])

    def result(*arguments: str) -> dict:
        assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    documents = ["documents/books", "documents/github"]
    result("tokenizer", "train", *documents, "--out", "tokenizer", "--vocab-size", "512")
    ids = result("tokenizer", "encode", "The llama, 12.", "--tokenizer", "tokenizer")["ids"]
    decoded = result("tokenizer", "decode", *map(str, ids), "--tokenizer", "tokenizer/tokenizer.model")
    assert decoded["text"] == "The llama, 12."
    manifest = result("shards", *documents, "--tokenizer", "tokenizer", "--out", "shards", "--workers", "1")
    assert manifest["details"]["vocab_size"] == 512
    settings = ["--recipe", "tiny", "--model.vocab-size", "512", "--schedule.steps", "12"]
    run = result("train", *settings, "--data", "shards", "--out", "run", "--mixture.weights.books", "1")
    assert run["finished"]
    assert set(run["validation"]["loss_by_source"]) == {"books"}
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["recipe"] == "tiny"
    assert config["schedule"]["steps"] == 12
    assert config["save"]["every"] == 20  # the recipe's own
    assert config["mixture"]["weights"] == {"books": 1.0}
    again = result("train", "--config", "run", "--out", "again", "--optim.lr", "0.002")
    assert again["step"] == 12
    assert json.loads((tmp_path / "again/config.json").read_text())["optim"]["lr"] == 0.002
    text = result("generate", "The llama", "--model", "run", "--max-tokens", "5")["text"]
    assert text
    assert result("report", "run")["report"] == "run/report.html"
    assert "another configuration (schedule.steps is 12 there, 13 here)" in failure(
        ["train", *settings[:-1], "13", "--data", "shards", "--out", "run", "--mixture.weights.books", "1"],
        capsys,
    )


def test_a_prompt_longer_than_the_context_is_an_error(tmp_path, capsys, shards):
    settings = ["--recipe", "tiny", "--model.vocab-size", "512", "--schedule.steps", "2"]
    assert main(["train", *settings, "--data", str(shards), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    line = failure(["generate", "stones " * 200, "--model", str(tmp_path / "run"), "--json"], capsys)
    assert "model.context 64" in line


def test_python_runs_the_package_as_the_command():
    done = subprocess.run([sys.executable, "-m", "puna", "--version"], capture_output=True, text=True)
    assert done.stdout == f"{__version__}\n"


def test_the_app_knows_its_version(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert app.name[0] == "puna"
