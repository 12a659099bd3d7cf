"""`puna eval` and its verbs: what they print and write; an invalid input is one line, and nothing is lost."""

import json
import re
import shutil
from pathlib import Path

import pytest

from puna.cli import main
from puna.evaluate.records import iterate_records, line, read_records


@pytest.fixture
def copied(data, tmp_path) -> Path:
    """The made-up benchmarks, to damage."""
    return Path(shutil.copytree(data.directory, tmp_path / "data"))


@pytest.fixture
def run(directory, data, tmp_path, capsys):
    """`puna eval` with the small model: its exit code, what it printed, what it said on stderr."""

    def command(*arguments: str, out: str = "out", files: Path = data.directory, model: str = str(directory)):
        where = ["--data", str(files), "--out", str(tmp_path / out), "--max-tokens", "4"]
        own = [] if model.startswith("http") else ["--weights", "fp32"]
        code = main(["eval", "--model", model, *where, *own, "--device", "cpu", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


@pytest.fixture
def failure(run):
    """The error of a command that fails: one line, beside what was announced."""

    def command(*arguments: str, **options) -> str:
        code, out, err = run(*arguments, **options)
        assert (code, out) == (2, "")
        errors = [text for text in err.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1 and "Traceback" not in err
        return errors[0]

    return command


def verb(capsys, *arguments) -> str:
    assert main(["eval", *map(str, arguments)]) == 0
    return capsys.readouterr().out


# ---- what works


def test_a_run_is_announced_scored_and_counted_again_without_the_model(run, tmp_path, capsys):
    code, out, err = run("--tasks", "piqa,winogrande", "--control")
    assert code == 0 and re.search(r"4 tasks, 104 examples: about [\d,]+ tokens .*; about \d", err)
    row = next(text for text in out.splitlines() if text.startswith("piqa"))
    assert "40 of 1,838" in row and "50.0" in row and "79.8" in row  # n, chance, LLaMA-7B
    assert "swapped" in out
    before = json.loads((tmp_path / "out/results.json").read_text())
    again = json.loads(verb(capsys, "recount", tmp_path / "out", "--json"))
    assert again["results"] == before["results"]
    byte = json.loads(verb(capsys, "recount", tmp_path / "out", "--normalisation", "byte", "--json"))
    scores = [r["scores"]["byte"] for r in iterate_records(tmp_path / "out/piqa.jsonl")]
    gold = [r["gold"][0] for r in iterate_records(tmp_path / "out/piqa.jsonl")]
    right = sum(values.index(max(values)) == g for values, g in zip(scores, gold, strict=True))
    assert byte["results"][0]["metrics"]["accuracy"]["value"] == pytest.approx(100 * right / 40)
    assert "winogrande" in verb(capsys, "recount", tmp_path / "out")


def test_a_page_is_written(run, tmp_path, capsys):
    run("--tasks", "piqa,nq", "--limit", "3")
    assert verb(capsys, "view", tmp_path / "out").strip() == str(tmp_path / "out/view.html")
    page = (tmp_path / "out/view.html").read_text()
    assert 'data-task="piqa"' in page and 'data-task="nq"' in page
    verb(capsys, "view", tmp_path / "out", "--out", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text() == page


def test_two_runs_are_compared_and_flipped_examples_listed(run, tmp_path, capsys):
    run("--tasks", "piqa", out="a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    records = read_records(tmp_path / "b/piqa.jsonl")
    for record in records[:8]:
        record["values"]["accuracy"] = 1 - record["values"]["accuracy"]
    (tmp_path / "b/piqa.jsonl").write_text("".join(map(line, records)))
    found = json.loads(verb(capsys, "compare", tmp_path / "a", tmp_path / "b", "--json"))["comparisons"]
    flipped = found[0]["only_first_ids"] + found[0]["only_second_ids"]
    assert sorted(flipped) == sorted(record["id"] for record in records[:8])
    said = verb(capsys, "compare", tmp_path / "a", tmp_path / "b", "--flipped", "2")
    assert "exact McNemar" in said and "p (Holm)" in said and " …" in said
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "none holds no finished evaluation (no results.json); run: puna eval" in capsys.readouterr().err
    run("--tasks", "winogrande", out="c")
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "c")]) == 2
    assert "share no scored examples; compare runs of the same tasks" in capsys.readouterr().err


def test_contamination_is_counted_per_task(run, copied, shards, tmp_path):
    from puna.tokens.tokenizer import Tokenizer
    from tests.conftest import sentences

    rows = [json.loads(text) for text in (copied / "piqa/valid.jsonl").read_text().splitlines()]
    rows[4]["goal"] = sentences(3, 60)  # a document of the shards, or of their held-out part
    rows[5]["goal"] = sentences(4, 60)
    (copied / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(Tokenizer(shards).encode(rows[4]["goal"])) > 13
    code, out, _ = run("--tasks", "piqa", "--limit", "8", "--contamination", shards, files=copied)
    assert code == 0 and re.search(r"piqa: [12] of 8 items share 13 tokens in a row with the shards", out)
    found = json.loads((tmp_path / "out/results.json").read_text())["results"][0]["contamination"]
    assert set(found["ids"]) <= {"5", "6"}


def test_contamination_needs_shards(failure, tmp_path):
    (tmp_path / "empty").mkdir()
    said = failure("--tasks", "piqa", "--contamination", tmp_path / "empty")
    assert "no token shards (*.npy)" in said and "give the directory that puna shards wrote" in said


# ---- invalid input


def cut(path: Path, count: int = -20) -> None:
    path.write_bytes(path.read_bytes()[:count])


@pytest.mark.parametrize(
    ("task", "file", "damage", "message"),
    [
        ("piqa", "piqa/valid.jsonl", Path.unlink, r"no file .*piqa/valid\.jsonl; download it with: puna"),
        ("piqa", "piqa/valid.jsonl", cut, r"valid\.jsonl, row 40: truncated .* download it again"),
        ("piqa", "piqa/valid-labels.lst", cut, r"40 examples, but 30 labels; download both files again"),
        ("piqa", "piqa/valid-labels.lst", "2\n" * 40, r"row 1: the label is '2'; expected one of 0, 1"),
        ("piqa", "piqa/valid.jsonl", '{"goal": "a"}\n' * 40, r"row 1: no field 'sol1'; download the"),
        ("piqa", "piqa/valid.jsonl", "[1]\n", r"row 1: expected an object, got list"),
        ("mmlu", "mmlu/test/anatomy_test.csv", "a,b\n", r"anatomy_test\.csv, row 1: 2 columns, expected 6"),
        ("mmlu", "mmlu/test/anatomy_test.csv", "q,1,2,3,4,E\n", r"row 1: the label is 'E'; expected"),
        ("arc_easy", "", None, r"no file .*ARC-Easy-Test\.jsonl"),
        ("arc_easy", "arc/ARC-Easy-Test.jsonl", '{"question": {"stem": "a"}}\n', r"row 1: no field"),
        ("mbpp", "mbpp/mbpp.jsonl", "\x80", r"mbpp\.jsonl, row 1: truncated or not valid JSON"),
        ("no-such-task", "", None, r"no task 'no-such-task'; give a \.py or \.yaml file, or one of"),
        ("own.py", "", None, r"no task file own\.py"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_its_row_and_the_fix(
    task, file, damage, message, failure, copied, tmp_path
):
    path = copied / file
    if isinstance(damage, str):
        path.parent.mkdir(exist_ok=True)
        path.write_text(damage)
    elif damage:
        damage(path)
    unsafe = ("--unsafe-exec",) if task == "mbpp" else ()
    assert re.search(message, failure("--tasks", task, *unsafe, files=copied))
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_a_truncated_archive_is_named(failure, copied):
    (copied / "humaneval").mkdir()
    (copied / "humaneval/HumanEval.jsonl.gz").write_bytes(b"\x1f\x8b\x08\x00")
    said = failure("--tasks", "humaneval", "--unsafe-exec", files=copied)
    assert re.search(r"HumanEval\.jsonl\.gz is truncated or corrupt .* download it again", said)


def test_no_data_no_model_a_wrong_option_and_a_file_of_tasks_that_does_not_run(failure, tmp_path):
    assert "puna fetch eval" in failure("--tasks", "piqa", files=tmp_path / "nowhere")
    assert "there is no model nowhere" in failure("--tasks", "piqa", model="nowhere")
    # cyclopts' words where pydantic was imported before, else puna's.
    assert re.search(
        r"limit.* must be (greater than 0|positive)", failure("--tasks", "piqa", "--limit", "-1")
    )
    (tmp_path / "own.py").write_text("TASKS = 1 / 0\n")
    assert "own.py does not run (ZeroDivisionError" in failure("--tasks", tmp_path / "own.py")


def test_one_damaged_task_leaves_the_others(run, copied):
    cut(copied / "piqa/valid.jsonl")
    code, out, err = run("--tasks", "piqa,winogrande", files=copied)
    assert code == 0 and "piqa is not scored: " in err and "row 40" in err
    assert re.search(r"piqa +not scored", out) and re.search(r"winogrande +accuracy", out)


def test_a_context_that_is_too_short_is_said_with_the_fix(failure, copied):
    rows = [{"goal": "stone " * 2000, "sol1": "a", "sol2": "b"}] * 40
    (copied / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = failure("--tasks", "piqa", files=copied)
    assert "no example fits the model's context of 640 tokens; give fewer --shots" in said


def test_an_endpoint_that_is_dead_or_dies(run, failure, tmp_path, monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from puna.evaluate import endpoint

    asked = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body["prompt"])
            status = 200 if len(asked) <= limit else 400
            reply = json.dumps({"choices": [{"text": " apple", "finish_reason": "stop"}]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def do_GET(self):
            reply = b'{"data": [{"id": "m"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            return

    server = HTTPServer(("127.0.0.1", 0), Server)
    url = f"http://127.0.0.1:{server.server_port}/v1"
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(endpoint, "CONCURRENT", 1)
    limit = 5
    said = failure("--tasks", "nq", model=url)
    assert f"{url}/completions does not answer (status 400" in said and "the same command resumes" in said
    assert len(read_records(tmp_path / "out/nq.jsonl")) == 5  # of ten: nothing that was answered is lost
    limit, before = 1000, len(asked)
    code, out, _ = run("--tasks", "nq", model=url)
    assert code == 0 and "10 of 3,610" in out and len(asked) == before + 5
    assert "can only generate" in failure("--tasks", "piqa", model=url)
    server.shutdown()
    server.server_close()
    assert f"{url}/models does not answer" in failure("--tasks", "nq", model=url)


def test_a_full_disk_loses_nothing(run, failure, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/winogrande.jsonl").symlink_to("/dev/full")
    said = failure("--tasks", "piqa,winogrande")
    assert "winogrande.jsonl" in said and "free some space and run the same command to resume" in said
    kept = (tmp_path / "out/piqa.jsonl").read_bytes()
    assert kept.count(b"\n") == 40
    (tmp_path / "out/winogrande.jsonl").unlink()
    assert run("--tasks", "piqa,winogrande")[0] == 0
    run("--tasks", "piqa,winogrande", out="whole")
    for name in ("piqa", "winogrande"):
        assert (tmp_path / f"out/{name}.jsonl").read_bytes() == (
            tmp_path / f"whole/{name}.jsonl"
        ).read_bytes()
    assert (tmp_path / "out/piqa.jsonl").read_bytes() == kept
