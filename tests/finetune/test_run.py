"""A finetuning run: learns, resumes exactly, is read like any model, and says what is wrong."""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from puna import api
from puna.cli import app, main
from puna.config import (
    ComputeConfig,
    FinetuneConfig,
    LoraConfig,
    ParallelConfig,
    SaveConfig,
    TuneConfig,
    WatchConfig,
    read_config,
    to_dict,
)
from puna.files import read_json_lines, sha256_file, write_json
from puna.finetune import run
from puna.formats.convert import convert, open_source
from puna.generate.runners.packed import plain_model
from puna.report.card import build_card
from puna.report.run import read_run
from puna.report.tables import commands
from puna.report.tables import settings as settings_of
from puna.rundir import newest_weights
from puna.tokens.mixture import Batch
from tests.conftest import sentences

LORA = LoraConfig(r=4, alpha=16.0, dropout=0.1)


@pytest.fixture(scope="module")
def base(shards, tmp_path_factory) -> Path:
    """A small random model in Hugging Face's format, with the vocabulary of the tests' shards."""
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            tie_word_embeddings=False,
        )
    )
    path = tmp_path_factory.mktemp("base") / "hf"
    model.save_pretrained(path)
    (path / "tokenizer.model").write_bytes((shards.parent / "tokenizer/tokenizer.model").read_bytes())
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Questions of some words, whose answers are always the same two sentences."""
    path = tmp_path_factory.mktemp("data") / "answers.jsonl"
    answers = [sentences(seed, 1) for seed in (1, 2)]
    rows = [{"prompt": sentences(seed, 1 + seed % 3), "completion": answers[seed % 2]} for seed in range(120)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def settings(base: Path, data: Path, lora: LoraConfig | None = None, **fields: Any) -> TuneConfig:
    chosen = {"template": "puna", "batch_tokens": 8 * 64, "context": 64, "epochs": 3.0, "held_out": 0.1}
    return TuneConfig(
        data=(str(data),),
        finetune=FinetuneConfig(model=str(base), lr=3e-3, **{**chosen, **fields}),
        lora=lora,
        compute=ComputeConfig(precision="fp32", threads=1, allocator="system"),
        save=SaveConfig(every=5),
        watch=WatchConfig(validate_every=10),
    )


def tune(config: TuneConfig, out: Path, **options: Any) -> Any:
    return run.finetune(run.prepare(config), out, **options)


@pytest.fixture(scope="module", params=["full", "lora"])
def finished(request, base, data, tmp_path_factory) -> tuple[TuneConfig, Path]:
    config = settings(base, data, LORA if request.param == "lora" else None)
    out = tmp_path_factory.mktemp("finished") / request.param
    assert tune(config, out).finished
    return config, out


def curve(out: Path) -> list[tuple[Any, ...]]:
    return [
        (record["kind"], record["step"], record["loss"], record.get("grad_norm"), record.get("lr"))
        for record in read_json_lines(out / "metrics.jsonl")
        if record["kind"] != "start"
    ]


def tuple_of(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def weights(out: Path) -> bytes:
    return (newest_weights(out) / "weights.safetensors").read_bytes()


def test_the_answers_are_learnt_at_a_constant_rate(finished):
    _, out = finished
    records = [r for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "train"]
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]  # adapters alone, of a random model, learn little
    assert records[-1]["lr"] == max(r["lr"] for r in records) == 3e-3
    held_out = [r for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "validation"]
    assert held_out[-1]["loss"] < held_out[0]["loss"]


def test_the_run_answers_with_the_template_that_trained_it(finished):
    _, out = finished
    model = api.load(out)
    template = model.engine.template
    assert template is not None
    assert template.render([{"role": "user", "content": "Hi"}]) == "<s>### user:\nHi\n\n### assistant:\n"
    assert isinstance(model.chat([{"role": "user", "content": sentences(7, 2)}], max_tokens=4), str)


def test_a_second_call_finds_it_finished_and_another_configuration_is_refused(finished):
    config, out = finished
    before = weights(out)
    assert tune(config, out).finished
    assert weights(out) == before
    with pytest.raises(ValueError, match="a run of another configuration"):
        tune(replace(config, finetune=replace(config.finetune, epochs=2.0)), out)


@torch.no_grad()
def test_a_lora_run_is_read_merged_and_peft_reads_its_adapter(base, finished, tmp_path):
    config, out = finished
    if config.lora is None:
        return
    tokens = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(1))
    merged = plain_model(open_source(out)[1], "fp32")(tokens)
    theirs = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), out / run.ADAPTER)
    torch.testing.assert_close(merged, theirs(tokens).logits, rtol=1e-4, atol=1e-4)
    convert(out, tmp_path / "merged", "hf")
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged, exported(tokens).logits, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "merged/chat_template.jinja").is_file()
    exact, rounded = run.merged_losses(run.prepare(config), out)
    last = [r for r in read_json_lines(out / "metrics.jsonl") if r["kind"] == "validation"][-1]
    assert exact == pytest.approx(last["loss"], rel=1e-5)
    assert 0 < abs(rounded - exact) < 0.05


def test_the_report_names_the_base_with_its_digest_and_a_command_that_repeats_the_run(base, finished):
    config, out = finished
    report = read_run(out)
    read = {Path(file.path).name: file for file in report.lineage.files}
    assert read["model.safetensors"].sha256 == sha256_file(base / "model.safetensors")
    assert {file.state for file in read.values()} == {""}
    assert {"answers.jsonl", "tokenizer.model", "config.json"} <= set(read)
    marked = {
        (section, field): other for section, rows in settings_of(config) for field, _, other in rows if other
    }
    assert marked.pop(("finetune", "held_out")) == "0.01"
    assert all(section in ("finetune", "compute", "save", "watch", "lora") for section, _ in marked)
    card = build_card(out, out / "card.md").read_text()
    assert f"finetuned from `{base.name}`{' with LoRA' if config.lora else ''} on " in card
    assert f"model.safetensors`, SHA-256 `{sha256_file(base / 'model.safetensors')}`" in card
    (line,) = commands(report)
    _, given, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    chosen = given.arguments
    assert (chosen["options"], chosen.get("lora")) == (config.finetune, config.lora)
    for section in ("compute", "save", "watch", "data"):
        assert tuple_of(chosen[section]) == tuple_of(getattr(report.config, section)), section


def test_the_batch_of_a_step_is_shown_with_its_targets(finished, capsys):
    config, out = finished
    assert main(["tokens", "inspect", "--model", str(out), "--step", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    batch = run.prepare(config).data.batch(2)
    assert sum(row["tokens"] for row in rows) == batch.global_tokens
    answers = [json.loads(line)["completion"] for line in Path(config.data[0]).read_text().splitlines()]
    for row in rows:
        marked = re.findall("⟦(.*?)⟧", row["text"], re.DOTALL)
        assert len(marked) == row["examples"]
        assert {text.removesuffix("</s>").strip() for text in marked} <= {text.strip() for text in answers}
    assert main(["tokens", "inspect", "--model", str(out), "--step", "-1"]) == 2
    assert 'Invalid value "-1" for --step. Must be >= 0' in capsys.readouterr().err
    assert main(["tokens", "inspect", "--model", str(out), "--seed", "7"]) == 2
    assert "give --step alone" in capsys.readouterr().err


def test_a_run_that_continues_a_run_leads_back_to_it(finished, data, tmp_path):
    _, first = finished
    out = tmp_path / "second"
    tune(settings(first, data, steps=1), out)
    report = read_run(out)
    (before,) = [stage for stage in report.lineage.walk() if stage.path == str(first)]
    assert {Path(file.path).name for file in before.files} >= {"answers.jsonl", "model.safetensors"}
    again = commands(report)
    assert [line.split()[1] for line in again] == ["finetune"] * 2
    assert f"--model {first}-again" in again[1]
    assert again[0].endswith(f"--out {first}-again")


SCRIPT = """
import sys
from pathlib import Path
from puna.config import read_config
from puna.finetune import run
job = run.prepare(read_config(Path(sys.argv[1])))
run.finetune(job, Path(sys.argv[2]))
"""


def kill_and_resume(config: TuneConfig, undisturbed: Path, folder: Path, kills: int) -> None:
    """Kill a run as often at random moments, and compare how it ends."""
    folder.mkdir()
    write_json(folder / "settings.json", to_dict(config))
    command = [sys.executable, "-c", SCRIPT, folder / "settings.json", folder / "run"]
    draw, killed = random.Random(kills), 0
    steps = read_config(undisturbed).schedule.steps
    while killed < kills:
        at = draw.randrange(1, steps)  # killed once it has recorded so many steps
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = folder / "run/metrics.jsonl"
        while process.poll() is None:
            lines = read_json_lines(metrics) if metrics.is_file() else []
            if lines and lines[-1]["step"] >= at:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait()
        killed += 1
    subprocess.run(command, check=True, capture_output=True)
    assert curve(folder / "run") == curve(undisturbed)
    assert weights(folder / "run") == weights(undisturbed)


def test_a_killed_run_resumes_bitwise(finished, tmp_path):
    config, out = finished
    kill_and_resume(config, out, tmp_path / "killed", kills=1)


@pytest.mark.slow
def test_a_run_killed_ten_times_resumes_bitwise(finished, tmp_path):
    config, out = finished
    kill_and_resume(config, out, tmp_path / "killed", kills=10)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["dp_shard", "tp"])
def test_two_ranks_finetune_like_one(finished, tmp_path, axis):
    config, out = finished
    if axis == "tp" and config.lora is not None:  # where dropout is refused
        config, out = replace(config, lora=replace(config.lora, dropout=0.0)), tmp_path / "alone"
        assert tune(config, out).finished
    config = replace(config, parallel=replace(config.parallel, **{axis: 2}))
    write_json(tmp_path / "settings.json", to_dict(config))
    torchrun = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--no-python"]
    script = [sys.executable, "-c", SCRIPT, tmp_path / "settings.json", tmp_path / "run"]
    subprocess.run([*torchrun, *script], check=True, capture_output=True, timeout=300)
    for ours, alone in zip(curve(tmp_path / "run"), curve(out), strict=True):
        assert ours[:2] == alone[:2]
        assert ours[2] == pytest.approx(alone[2], rel=1e-3)
    assert (tmp_path / "run" / run.ADAPTER).is_dir() == (config.lora is not None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("lora", [None, replace(LORA, dropout=0.0)], ids=["full", "lora"])
def test_a_cuda_device_finetunes_like_the_cpu(base, data, tmp_path, lora):
    for device in ("cpu", "cuda"):
        assert tune(settings(base, data, lora, steps=4), tmp_path / device, device=device).finished
    losses = [[record[2] for record in curve(tmp_path / device)] for device in ("cpu", "cuda")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    if lora is not None:
        assert tune(settings(base, data, LORA, steps=2), tmp_path / "dropout", device="cuda").finished


@pytest.mark.parametrize("kind", ["gguf", "meta", "puna"])
def test_a_base_of_any_format_finetunes_alike(base, data, tmp_path, kind):
    converted = tmp_path / ("base.gguf" if kind == "gguf" else "base")
    convert(base, converted, kind, "fp32")
    losses = []
    for path in (base, converted):
        out = tmp_path / f"run-{path.name}"
        assert tune(settings(path, data, replace(LORA, dropout=0.0), steps=2), out).finished
        assert isinstance(api.load(out).generate("The", max_tokens=2), str)
        losses.append([record[2] for record in curve(out)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_cost_is_printed_before_anything_trains(base, data, tmp_path, capsys):
    tune(settings(base, data, LORA, steps=1), tmp_path / "run")
    said = capsys.readouterr().err
    assert "data: 120 examples" in said
    assert "training: 1 steps of 8 rows of 64 tokens" in said
    adapters = 2 * LORA.r * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert f"; {adapters:,} of " in said


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"template": None}, r"has no chat template; choose one by --template"),
        ({"template": "chatml"}, r"needs the control tokens <\|im_start\|>"),
        ({"context": 256, "batch_tokens": 1024}, r"--context is 256, but the model was made for 128"),
        ({"batch_tokens": 100}, r"--batch-tokens is 100, not a multiple of --context 64"),
        ({"held_out": 1.0}, r"held-out is 1\.0; it must be below 1"),
        ({"max_bad": 1.5}, r"max-bad is 1\.5; it must be at most 1"),
        ({"format": "xml"}, r"format is 'xml'; it must be 'messages', 'sharegpt', "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(base, data, fields, words):
    with pytest.raises(ValueError, match=words):
        run.prepare(settings(base, data, **fields))


def test_weights_of_files_are_checked(base, data):
    config = settings(base, data)
    job = run.prepare(replace(config, data=(f"{data}=2.5",)))
    assert job.data.shares == {"answers": 1.0}
    for wrong in (f"{data}=much", f"{data}=-1"):
        with pytest.raises(ValueError, match="the weight"):
            run.prepare(replace(config, data=(wrong,)))


def test_lora_that_is_not_supported_is_named(base, data):
    config = settings(base, data, replace(LORA, targets=("lm_head",)))
    with pytest.raises(ValueError, match=r"lora\.targets names lm_head"):
        run.prepare(config)
    for changed in ({"compute": ComputeConfig(activations="full")}, {"parallel": ParallelConfig(tp=2)}):
        with pytest.raises(ValueError, match=r"--lora\.dropout needs --compute\.activations manual and "):
            run.prepare(replace(settings(base, data, LORA), **changed))


def test_a_model_too_large_for_the_memory_is_refused_before_it_is_read(base, data, monkeypatch):
    job = run.prepare(settings(base, data))
    pages = os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else 4096)
    assert pages > 1000
    with pytest.raises(ValueError, match=r"needs .* of memory, and there are 4\.1 MB; use .*--lora\.r 16"):
        run.cost(job)


def test_a_batch_without_targets_stops_the_run(base, data, tmp_path, monkeypatch):
    job = run.prepare(settings(base, data))
    batch = job.data.batch

    def empty(*arguments: int) -> Batch:
        return replace(batch(*arguments), global_tokens=0)

    monkeypatch.setattr(job.data, "batch", empty)
    with pytest.raises(ValueError, match="step 1: the batch has no target token"):
        run.finetune(job, tmp_path / "run")


def test_the_command_previews_and_trains(base, data, tmp_path, capsys):
    command = ["finetune", "--model", str(base), "--data", str(data), "--out", str(tmp_path / "run")]
    command += ["--template", "puna", "--context", "64", "--batch-tokens", "512", "--steps", "2"]
    command += ["--compute.precision", "fp32", "--compute.allocator", "system", "--lora.r", "2"]
    assert main([*command, "--preview", "1"]) == 0
    shown = capsys.readouterr().out
    assert "⟦" in shown
    assert not (tmp_path / "run").exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "adapter in PEFT's layout" in said
    assert "merged: held-out loss" in said
    assert main(["generate", "--model", str(tmp_path / "run"), "The", "--max-tokens", "4"]) == 0


def test_tasks_are_scored_before_and_after_with_any_models_vocabulary(base, data, tmp_path):
    convert(base, tmp_path / "base.gguf", "gguf", "fp32")
    row = '{"asked": "Hi", "options": ["yes", "no"], "gold": 0}\n'
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text(3 * row)
        values = {"file": f"{name}.jsonl", "prompt": "{asked}", "options": "options", "gold": "gold"}
        (tmp_path / f"{name}.yaml").write_text(json.dumps({"name": name, **values}))
    tasks = [str(tmp_path / f"{name}.yaml") for name in ("one", "two")]
    command = ["finetune", "--model", str(tmp_path / "base.gguf"), "--data", str(data), "--steps", "2"]
    command += ["--out", str(tmp_path / "run"), "--template", "puna", "--context", "64", "--lora.r", "2"]
    command += ["--batch-tokens", "512", "--lora.targets", "q_proj", "wo", "--eval.tasks", *tasks]
    command += ["--eval.data", str(tmp_path), "--eval.limit", "2"]
    command += ["--compute.precision", "fp32", "--compute.allocator", "system"]
    assert main(command) == 0
    records = [r for r in read_json_lines(tmp_path / "run/metrics.jsonl") if "evaluation" in r]
    assert [record["step"] for record in records] == [0, 2]
    assert all(record["evaluation"][name]["n"] == 2 for record in records for name in ("one", "two"))
