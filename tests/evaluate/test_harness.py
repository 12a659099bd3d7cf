"""Prompts as token ids, records, resuming, recounting, comparing, the page; with a small random model."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from puna.evaluate import harness, results
from puna.evaluate.answers import normalised
from puna.evaluate.compare import compare_runs, print_comparison
from puna.evaluate.contamination import overlap
from puna.evaluate.judges import Rule
from puna.evaluate.model import load_model
from puna.evaluate.options import Options
from puna.evaluate.prompts import Prompter, divided, moved
from puna.evaluate.records import iterate_records, line, read_records
from puna.evaluate.task import Example, Task, Verdict
from puna.evaluate.tasks import TASKS
from puna.evaluate.view import write_page
from puna.model.weights import save_weights
from tests.generate.conftest import CONFIG, random_model


def evaluate(model, data, out, names=("piqa", "winogrande", "mmlu"), **options):
    chosen = Options(**options)
    tasks = [TASKS[name] for name in names]
    jobs, missing = harness.plan(tasks, data, model, chosen, {})
    assert not missing
    return harness.run(jobs, model, out, chosen, lambda label, tokens: None)


# ---- tokens


def test_an_options_tokens_follow_the_longest_common_prefix(model):
    for context, option in (("Question: a\nAnswer:", " yes"), ("Ans", "wer"), ("x ", "y"), ("a", ": C")):
        head, whole = model.encode([context, context + option])
        row = divided(head, whole)
        assert np.array_equal(row.tokens, whole)
        border = len(row.context)
        assert border == len(whole) - 1 or not np.array_equal(head[: border + 1], whole[: border + 1])
        assert np.array_equal(head[:border], whole[:border]) and len(row.continuation) >= 1


def test_no_option_has_zero_tokens():
    ids = np.array([1, 5, 6], np.uint32)
    assert divided(ids, ids).continuation.tolist() == [6]
    assert divided(np.array([1, 5, 6, 7], np.uint32), ids).continuation.tolist() == [6]
    assert divided(np.empty(0, np.uint32), ids).context.tolist() == [1]


def test_white_space_at_the_end_of_a_context_belongs_to_the_option():
    assert moved("Answer: ", "yes") == ("Answer:", " yes") and moved("a\n\n", " b") == ("a", "\n\n b")


def test_every_sequence_begins_with_one_bos(model, data):
    assert model.begins_with_bos
    bos = model.tokenizer.bos_id
    for name in ("piqa", "winogrande", "mmlu"):
        task = TASKS[name]
        for prepared in Prompter(task, data, model).prepare(list(task.read(data))[:4]):
            assert all(row.tokens.tolist().count(bos) == 1 == (row.tokens[0] == bos) for row in prepared.rows)


def test_options_that_begin_alike_are_scored_from_the_contexts_end(model, data):
    task = dataclasses.replace(TASKS["piqa"], name="alike")
    example = Example(id="1", question="river stone:", options=(" green table", " green paper"), gold=(0,))
    (prepared,) = Prompter(task, data, model, with_base=False).prepare([example])
    one, other = prepared.rows
    assert np.array_equal(one.context, other.context) and one.continuation[0] == other.continuation[0]


def test_shots_that_do_not_fit_are_dropped_last_first_and_an_example_that_never_fits_is_skipped(model, data):
    task = TASKS["mmlu"]
    examples = list(task.read(data))[:2]
    prompter = Prompter(task, data, model, 5)
    (full,) = prompter.prepare(examples[:1])
    assert full.shots == 5
    long = examples[0]
    for words in range(0, CONFIG.context, 10):
        long = dataclasses.replace(long, question=" stone" * words + examples[0].question)
        if prompter.prepare([long])[0].shots < 5:
            break
    never = dataclasses.replace(examples[0], question="stone " * CONFIG.context * 2)
    (fewer,), (skipped,) = prompter.prepare([long]), prompter.prepare([never])
    header, shots = prompter.prefix("anatomy")
    assert 0 <= fewer.shots < 5
    assert fewer.context == header + "".join(shots[: fewer.shots]) + long.question
    assert max(len(row.tokens) for row in fewer.rows) <= model.context
    assert not skipped.fits


def test_a_skipped_example_is_counted_in_n_of_total(model, data, tmp_path):
    examples = list(TASKS["piqa"].read(data))
    examples[3] = dataclasses.replace(examples[3], question="stone " * CONFIG.context * 2)
    task = dataclasses.replace(TASKS["piqa"], read=lambda data: examples)
    jobs, _ = harness.plan([task], data, model, Options(), {})
    (found,) = harness.run(jobs, model, tmp_path, Options(), lambda label, tokens: None)
    assert (found["n"], found["skipped"], found["of"]) == (39, 1, 1838)
    assert "39 of 1,838" in results.table_rows(found)[0]


# ---- the same bits


def test_records_are_the_same_bytes_for_any_batch_order_and_limit(
    directory, model, data, tmp_path, monkeypatch
):
    evaluate(model, data, tmp_path / "a")
    monkeypatch.setattr(harness, "WINDOW", 3)
    single = load_model(directory, "small", "fp32", 1)
    evaluate(single, data, tmp_path / "b", ("mmlu", "piqa", "winogrande"))
    evaluate(single, data, tmp_path / "c", limit=5)
    for name in ("piqa", "winogrande", "mmlu"):
        whole = (tmp_path / f"a/{name}.jsonl").read_bytes()
        assert whole == (tmp_path / f"b/{name}.jsonl").read_bytes()
        assert whole.startswith((tmp_path / f"c/{name}.jsonl").read_bytes())
        assert len(read_records(tmp_path / f"c/{name}.jsonl")) == 5
    evaluate(single, data, tmp_path / "c")
    assert (tmp_path / "c/piqa.jsonl").read_bytes() == (tmp_path / "a/piqa.jsonl").read_bytes()


def test_sampled_texts_do_not_depend_on_batch_or_limit(directory, model, data, tmp_path):
    options = {"names": ("nq",), "samples": 3, "temperature": 0.8, "max_tokens": 6}
    evaluate(model, data, tmp_path / "a", **options)
    evaluate(load_model(directory, "small", "fp32", 2), data, tmp_path / "b", **options)
    evaluate(model, data, tmp_path / "c", limit=4, **options)
    whole = (tmp_path / "a/nq.jsonl").read_bytes()
    assert whole == (tmp_path / "b/nq.jsonl").read_bytes()
    assert whole.startswith((tmp_path / "c/nq.jsonl").read_bytes())


SCRIPT = """
import sys
from pathlib import Path
from puna.evaluate import harness
from puna.evaluate.data import Data
from puna.evaluate.options import Options
from puna.evaluate.model import load_model
from puna.evaluate.tasks import TASKS
harness.WINDOW = 2
model, data, out = map(Path, sys.argv[1:])
engine, options = load_model(model, "small", "fp32"), Options(max_tokens=4)
jobs, _ = harness.plan([TASKS["piqa"], TASKS["nq"]], Data(data), engine, options, {})
print("ready", flush=True)
harness.run(jobs, engine, out, options, lambda label, tokens: None)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_resumes_to_the_same_bytes(kills, directory, data, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, str(script), str(directory), str(data.directory), str(tmp_path / out)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    whole, began = start("whole"), time.monotonic()
    assert whole.wait(120) == 0
    seconds = time.monotonic() - began
    rng = random.Random(2)
    unfinished = 0
    for _ in range(kills):
        process = start("killed")
        time.sleep(rng.random() * min(0.5, 2 * seconds / kills))
        unfinished += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "killed").glob("*.jsonl"):  # a write that a power cut divided
            data_ = path.read_bytes()
            path.write_bytes(data_[: len(data_) - rng.randrange(40)] if data_ else data_)
    assert unfinished > kills // 2
    assert start("killed").wait(120) == 0
    for name in ("piqa.jsonl", "nq.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_was_scored_is_not_scored_again_and_a_change_is_a_miss(directory, data, tmp_path):
    model = load_model(directory, "small", "fp32")
    counted = []
    model_score = model.score
    model.score = lambda rows, progress: (counted.append(len(rows)), model_score(rows, progress))[1]
    evaluate(model, data, tmp_path, ("piqa",))
    first = sum(counted)
    evaluate(model, data, tmp_path, ("piqa",))
    assert sum(counted) == first
    model.digest = "another model"
    evaluate(model, data, tmp_path, ("piqa",))
    assert sum(counted) == 2 * first


@pytest.mark.parametrize("change", ["precision", "weights", "tokenizer"])
def test_the_models_digest_depends_on(change, directory, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    before = load_model(copy, "x", "fp32").digest
    assert load_model(copy, "x", "fp32").digest == before
    if change == "precision":
        assert load_model(copy, "x", "bf16").digest != before
    elif change == "weights":
        save_weights(random_model(seed=9), copy)
        assert load_model(copy, "x", "fp32").digest != before
    else:
        file = next(path for path in copy.iterdir() if path.name.startswith("tokenizer."))
        from puna.evaluate.model import model_digest

        old = model_digest(copy, "fp32")
        file.write_bytes(file.read_bytes() + b" ")
        assert model_digest(copy, "fp32") != old


# ---- records, numbers


def test_a_record_lets_anyone_recompute_the_number(model, data, tmp_path):
    found = evaluate(model, data, tmp_path)
    for result in found:
        path = tmp_path / f"{result['label']}.jsonl"
        task = TASKS[result["task"]]
        assert results.recount(task, path)["metrics"] == result["metrics"]
        for record in iterate_records(path):
            assert line(record) in path.read_text()
            assert {
                "id",
                "key",
                "prompt",
                "shots",
                "bos",
                "tokens",
                "border",
                "options",
                "scores",
                "gold",
                "values",
            } <= record.keys()
            assert set(record["scores"]) == {"none", "char", "byte", "token", "answer-context"}
            assert record["bos"] is True
    other = results.recount(TASKS["piqa"], tmp_path / "piqa.jsonl", "answer-context")
    assert other["normalisation"] == "answer-context"
    by_hand = []
    for record in iterate_records(tmp_path / "piqa.jsonl"):
        scores = [option["logprob"] - option["base"] for option in record["options"]]
        by_hand.append(scores.index(max(scores)) == record["gold"][0])
    assert other["metrics"]["accuracy"]["value"] == pytest.approx(100 * sum(by_hand) / len(by_hand))


def test_groups_are_averaged_over_their_questions(model, data, tmp_path):
    (found,) = evaluate(model, data, tmp_path, ("mmlu",))
    assert found["groups"]["anatomy"]["n"] == 6 and found["groups"]["other"]["n"] == 6 and found["n"] == 12
    assert found["chance"] == 25


def test_without_answer_context_its_normalisation_is_refused(model, data, tmp_path):
    evaluate(model, data, tmp_path, ("piqa",), answer_context=False)
    with pytest.raises(ValueError, match="needs; score it again without --no-answer-context"):
        results.recount(TASKS["piqa"], tmp_path / "piqa.jsonl", "answer-context")


def test_controls_have_the_questions_of_other_examples(model, data, tmp_path):
    examples = list(TASKS["mmlu"].read(data))
    moved_ = harness.swapped(examples)
    assert all(a.question != b.question and a.options == b.options and a.gold == b.gold and a.topic == b.topic
               for a, b in zip(examples, moved_, strict=True))  # fmt: skip
    assert {e.question for e in examples} == {e.question for e in moved_}
    (found,) = evaluate(model, data, tmp_path, ("mmlu",), control=True)
    assert found["control"]["accuracy"]["n"] == 12


def test_maj_at_k_and_shots(model, data, tmp_path):
    check = Rule(lambda example, text: Verdict(1.0, normalised(text[:1])))
    found = evaluate(model, data, tmp_path, ("nq",), shots=(0, 5), limit=3, max_tokens=4)
    assert [result["label"] for result in found] == ["nq", "nq-5shot"]
    assert results.table_rows(found[1])[0][-4:] == ("22.0", "28.1", "32.9", "35.0")
    assert check.judge([Example(id="1", question="")], ["The"])[0].answer == "t"


def test_a_task_whose_data_is_missing_is_a_row_and_the_others_are_scored(model, data):
    jobs, missing = harness.plan([TASKS["piqa"], TASKS["boolq"]], data, model, Options(), {})
    assert [job.label for job in jobs] == ["piqa"]
    assert missing[0]["task"] == "boolq" and "no file" in missing[0]["why"]
    with pytest.raises(ValueError, match=r"boolq/val\.jsonl"):
        harness.plan([TASKS["boolq"]], data, model, Options(), {})


def test_without_a_judge_a_row_says_not_scored(model, data, tmp_path):
    task = dataclasses.replace(TASKS["nq"], name="toxic", check=None, judge="toxicity")
    jobs, _ = harness.plan([task], data, model, Options(limit=2, max_tokens=3), {})
    (found,) = harness.run(jobs, model, tmp_path, Options(limit=2, max_tokens=3), lambda label, tokens: None)
    assert results.table_rows(found)[0][2] == "not scored" and found["metrics"] == {}
    assert all(
        record["samples"][0]["text"] is not None for record in iterate_records(tmp_path / "toxic.jsonl")
    )


# ---- two runs


def test_two_runs_are_compared_on_the_same_examples(model, data, tmp_path, capsys):
    runs = []
    for name, limit in (("a", None), ("b", 30)):
        found = evaluate(model, data, tmp_path / name, ("piqa", "mmlu"), limit=limit)
        runs.append((tmp_path / name, {"results": found}))
    path = tmp_path / "b/piqa.jsonl"
    records = read_records(path)
    for record in records[:6]:
        record["values"]["accuracy"] = 1 - record["values"]["accuracy"]
    path.write_text("".join(map(line, records)))
    found = compare_runs(*runs[0], *runs[1])
    piqa, mmlu = found
    assert piqa["n"] == 30 and piqa["only_first"] + piqa["only_second"] == 6 and mmlu["p"] == 1
    assert piqa["p_holm"] == pytest.approx(min(1, 2 * piqa["p"]))
    flipped = {*piqa["only_first_ids"], *piqa["only_second_ids"]}
    assert flipped == {record["id"] for record in records[:6]}
    print_comparison(found, 3)
    said = capsys.readouterr().out
    assert "only the first right: " in said or "only the second right: " in said
    right = sum(record["values"]["accuracy"] for record in read_records(tmp_path / "a/piqa.jsonl")[:30])
    assert piqa["first"] == pytest.approx(100 * right / 30) and f" {piqa['first']:.1f} " in said
    runs[1][1]["results"][0]["normalisation"] = "byte"
    with pytest.raises(ValueError, match=r"piqa: normalisation is char .* and byte"):
        compare_runs(*runs[0], *runs[1])


# ---- the page, contamination


def test_the_page_holds_every_example_and_cannot_be_broken_out_of(model, data, tmp_path):
    examples = [
        dataclasses.replace(e, question=e.question + "</script><b>" + chr(0x1F600))
        for e in TASKS["piqa"].read(data)
    ]
    task = dataclasses.replace(TASKS["piqa"], read=lambda data: examples)
    jobs, _ = harness.plan([task], data, model, Options(), {})
    found = harness.run(jobs, model, tmp_path, Options(), lambda label, tokens: None)
    write_page(tmp_path, {"model": "<small>", "results": found}, tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text()
    start = page.index('data-task="piqa">') + len('data-task="piqa">')
    rows = json.loads(page[start : page.index("</script>", start)])
    assert len(rows) == 40 and "<title>&lt;small&gt;" in page
    prompt = ""
    for row, record in zip(rows, iterate_records(tmp_path / "piqa.jsonl"), strict=True):
        kept = prompt.encode("utf-16-le")[: 2 * row["p"][0]].decode("utf-16-le")
        prompt = kept + row["p"][1]
        assert prompt == record["prompt"]


def test_items_that_share_thirteen_tokens_with_the_shards_are_found(model, tmp_path):
    texts = [
        "river stone apple light seven cloud green table paper north river stone apple light " * 2,
        "paper table green cloud seven light apple stone river north table table paper paper " * 2,
        "short",
    ]
    (ids,) = model.encode([texts[0]])
    shard = np.concatenate([np.arange(7, 60), ids[1:], np.arange(9, 90)]).astype(np.uint16)
    np.save(tmp_path / "00000.npy", shard)
    examples = [Example(id=str(place), question=text) for place, text in enumerate(texts)]
    found = overlap(tmp_path, {"own": examples}, model)["own"]["contamination"]
    assert found == {"items": 1, "of": 3, "too_short": 1, "ids": ["0"]}


def test_the_estimate_is_near_what_is_computed(model, data, tmp_path):
    jobs, _ = harness.plan([TASKS["mmlu"], TASKS["piqa"]], data, model, Options(), {})
    read, generated = harness.estimate(jobs)
    counted = []
    harness.run(jobs, model, tmp_path, Options(), lambda label, tokens: counted.append(tokens))
    assert generated == 0 and 0.4 < sum(counted) / read < 1.6


def test_a_task_of_the_package_is_small():
    assert all(isinstance(task, Task) for task in TASKS.values())
