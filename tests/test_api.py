"""The public API: it is what its docstrings say, and importing it costs nothing."""

import doctest
import inspect
import json
import subprocess
import sys

import pytest

import puna
from puna import api
from puna.cli import main
from puna.generate.language_model import LanguageModel
from tests.conftest import sentences

# In this order each example finds what the one before it wrote.
PIPELINE = [
    "plan", "clean", "train_tokenizer", "write_shards", "train", "finetune", "evaluate", "load", "convert",
    "report",
]  # fmt: skip


def test_importing_puna_imports_neither_torch_nor_numpy():
    script = (
        "import sys, puna; dir(puna); print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_the_package_is_called_as_the_function_of_its_name():
    script = (
        "import puna; before = puna.train; import puna.train.loop, puna.report.page; "
        "from puna.train.loop import train\n"
        "for verb in (before, puna.train, puna.report):\n"
        "    try: verb()\n"
        "    except TypeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == lines[1] == "train() missing 1 required positional argument: 'out'"
    assert lines[2] == "report() missing 1 required positional argument: 'run'"


def test_every_public_function_is_documented_with_an_example():
    assert sorted(PIPELINE) == sorted(puna.__all__)
    assert set(PIPELINE) <= set(dir(puna))
    for name in PIPELINE:
        text = inspect.getdoc(getattr(api, name))
        assert ">>> " in text
        for parameter in inspect.signature(getattr(api, name)).parameters:
            assert f"{parameter}: " in text, (name, parameter)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        puna.trian  # noqa: B018


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A directory with raw books."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "raw/books").mkdir(parents=True)
    for seed in (1, 2):
        (folder / f"raw/books/{seed}.txt").write_text(sentences(seed, 600) + "\n")
    answer = {"prompt": "Who?", "completion": "A llama."}
    (folder / "answers.jsonl").write_text("\n".join([json.dumps(answer)] * 8))
    places = [("Peru", "Lima", "Quito", 0), ("Fiji", "Apia", "Suva", 1)]
    rows = [dict(zip(("land", "a", "b", "right"), place, strict=True)) for place in places]
    (folder / "capitals.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "capitals.yaml").write_text(
        'file: capitals.jsonl\nprompt: "The capital of {land} is"\noptions: [" {a}", " {b}"]\ngold: right\n'
    )
    return folder


def test_the_examples_of_the_docstrings_run_one_after_the_other(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {"puna": puna}
    functions = [getattr(api, name) for name in PIPELINE]
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    for tested in [*functions, LanguageModel.generate, LanguageModel.stream]:
        for case in finder.find(tested, globs=names):
            report: list[str] = []
            failed = runner.run(case, out=report.append, clear_globs=False).failed
            assert not failed, "".join(report)
            names |= case.globs


def test_a_list_of_prompts_gives_a_list_of_texts(workplace):
    model = puna.load(workplace / "runs/first")
    texts = model.generate(["The llama", "A"], max_tokens=6, temperature=0)
    assert texts == [model.generate(text, max_tokens=6, temperature=0) for text in ("The llama", "A")]
    whole = model.generate("The", max_tokens=30, temperature=0)
    stop = whole[3:5]
    assert model.generate("The", max_tokens=30, temperature=0, stop=stop) == whole[: whole.find(stop)]
    with pytest.raises(TypeError, match="heat"):
        model.generate("The", heat=1)
    with pytest.raises(ValueError, match="top-p is 2"):
        model.generate("The", top_p=2)
    with pytest.raises(ValueError, match="no chat template"):
        model.chat([{"role": "user", "content": "Hello"}])


def test_a_conversation_is_answered_through_the_chat_template(workplace, tmp_path):
    folder = tmp_path / "chat"
    puna.convert(workplace / "runs/first", folder, to="hf")
    template = "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    names = {"chat_template": template, "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    model = puna.load(folder)
    messages = [{"role": "user", "content": "The llama"}]
    answer = model.chat(messages, max_tokens=5, temperature=0)
    assert answer == "".join(model.stream(messages, max_tokens=5, temperature=0))
    assert answer == model.generate("user: The llama", max_tokens=5, temperature=0)


def test_a_model_without_a_tokenizer_is_not_converted(workplace, tmp_path):
    puna.convert(workplace / "runs/first", tmp_path / "hf", to="hf")
    for name in ("tokenizer.model", "tokenizer.json"):
        (tmp_path / "hf" / name).unlink()
    with pytest.raises(ValueError, match="no tokenizer"):
        puna.load(tmp_path / "hf")
    with pytest.raises(ValueError, match="put the model's own tokenizer beside its weights"):
        puna.convert(tmp_path / "hf", tmp_path / "back", to="puna")
    assert not (tmp_path / "back").exists()


def test_a_plan_is_the_commands(capsys):
    options = {"activations": "full", "context": 1024, "tokens": 1e9}
    plan = puna.plan("13b", "h100", 16, {"tp": 2, "dp_shard": 8}, micro_batch=2, **options)
    mesh = "--machine h100 --gpus 16 --parallel.tp 2 --parallel.dp-shard 8 --micro-batch 2"
    changes = "--activations full --context 1024 --tokens 1e9"
    assert main(f"plan --recipe 13b {mesh} {changes} --json".split()) == 0
    found = json.loads(capsys.readouterr().out)
    assert (plan.total_memory, plan.step_seconds) == (found["total_memory"], found["step_seconds"])
    with pytest.raises(ValueError, match="makes 2 ranks, but --gpus is 4"):
        puna.plan("7b", gpus=4, parallel={"tp": 2})


def test_an_evaluation_is_the_commands(workplace, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    run = puna.evaluate("runs/first", ["capitals.yaml"], data=".", out=tmp_path / "a", limit=1)
    given = "--model runs/first --tasks capitals.yaml --data . --limit 1 --json --out"
    assert main(["eval", *given.split(), str(tmp_path / "b")]) == 0
    other = json.loads(capsys.readouterr().out)
    assert [item["n"] for item in run["results"]] == [1]
    assert run["results"][0]["metrics"] == other["results"][0]["metrics"]
    with pytest.raises(ValueError, match="no task 'capital'"):
        puna.evaluate("runs/first", "capital", out=tmp_path / "c")
