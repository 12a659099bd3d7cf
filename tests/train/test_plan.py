"""`puna plan`: the paper's figures from formulas, refusals that name their flag, and no torch."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.cli import main
from puna.config import MeshConfig, ModelConfig
from puna.model.llama import Llama
from puna.model.sizes import LOGITS_ROWS
from puna.recipes import recipe
from puna.train.dry_run import peak_bytes
from puna.train.here import loopback_rate
from puna.train.machines import machine
from puna.train.plan import Job, describe, plan, search

BATCH = 2**22
# GPU-hours of Table 15, and tokens of Table 2.
PAPER = {
    "7b": (82_432, 1.0e12),
    "13b": (135_168, 1.0e12),
    "33b": (530_432, 1.4e12),
    "65b": (1_022_362, 1.4e12),
}


@pytest.mark.parametrize("name", PAPER)
def test_gpu_hours_of_table_15_at_one_share_of_the_peak(name):
    hours, tokens = PAPER[name]
    fitting, _ = search(Job(recipe(name).model, BATCH, tokens), machine("a100-80gb"), 2048)
    assert fitting[0].footprint.gpu_hours == pytest.approx(hours, rel=0.1)


def test_the_65b_on_2048_gpus():
    fitting, others = search(Job(recipe("65b").model, BATCH, 1.4e12), machine("a100-80gb"), 2048)
    assert fitting[0].tokens_per_second_per_gpu == pytest.approx(380, rel=0.15)
    assert 18 <= fitting[0].days <= 25
    assert others, "a replica of the 65B on every node cannot fit"
    speeds = [item.tokens_per_second_per_gpu for item in fitting]
    assert speeds == sorted(speeds, reverse=True)


def test_one_process_is_counted_like_the_real_model():
    config = ModelConfig(
        dim=64, n_heads=4, n_kv_heads=2, n_layers=3, ffn_dim=192, vocab_size=1023, context=64
    )
    memory = plan(Job(config, 4096, 1e6), machine("l40s"), MeshConfig()).memory
    model = Llama(config, device=torch.device("meta"))
    assert memory["parameters"] == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert memory["rotary tables"] == 4 * (model.cos.numel() + model.sin.numel())


meshes = st.builds(MeshConfig, st.sampled_from([1, 2, 4, 8]), *[st.sampled_from([1, 2, 4, 16])] * 2)


@settings(deadline=None)
@given(meshes, st.sampled_from([1, 2]))
def test_more_ranks_hold_less_each(mesh, micro_batch):
    job = Job(recipe("7b").model, BATCH, 1e12)
    one, many = (
        plan(job, machine("h100"), m, micro_batch) for m in (MeshConfig(dp_replicate=mesh.dp_replicate), mesh)
    )
    for name in ("parameters", "optimiser moments"):
        assert many.memory[name] <= one.memory[name]
    assert many.total_memory <= one.total_memory
    assert many.tokens_per_second_per_gpu <= one.tokens_per_second_per_gpu * 1.001


def test_a_cpu_needs_memory_for_packed_weights_and_holes():
    model = ModelConfig(dim=64, n_heads=4, n_layers=2, ffn_dim=192, vocab_size=4096, context=64)
    job = Job(model, 256, 1e6, compute_bytes=4, gather_bytes=4)
    plain, cpu = (
        plan(item, machine("l40s"), MeshConfig())
        for item in (job, replace(job, packed_bytes=4, heap_holes=0.2))
    )
    packed = 2 * 4 * 4096 * 64  # the output projection, for the logits and for the hidden states' gradient
    assert cpu.memory["packed weights"] == packed
    held = sum(plain.memory[name] for name in ("parameters", "optimiser moments", "rotary tables"))
    passing = plain.total_memory - held + packed
    assert cpu.total_memory == pytest.approx(held + 1.2 * passing)


def test_traffic_beside_arithmetic_where_the_machine_overlaps_them():
    job = Job(recipe("7b").model, BATCH, 1e12)
    gpu = machine("h100")
    beside, after = (
        plan(job, replace(gpu, overlaps=overlaps), MeshConfig(2, 4), 1) for overlaps in (True, False)
    )
    assert beside.step_seconds == max(beside.seconds.values())
    assert after.step_seconds == sum(beside.seconds.values()) > beside.step_seconds


def test_the_loopback_is_measured():
    assert 1e6 < loopback_rate(1 << 20, rounds=1) < 1e12


def test_recomputation_trades_memory_for_arithmetic():
    model = recipe("7b").model
    kept, again = (
        plan(Job(model, BATCH, 1e12, mode), machine("h100"), MeshConfig(1, 64), 4)
        for mode in ("manual", "full")
    )
    assert again.memory["activations"] < kept.memory["activations"] / 3
    assert again.seconds["arithmetic"] == pytest.approx(kept.seconds["arithmetic"] * 4 / 3)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--recipe", "9b"], "9b"),
        (["--machine", "abacus"], "abacus"),
        (["--gpus", "3", "--parallel.tp", "3"], "--parallel.tp is 3"),
        (["--gpus", "8", "--parallel.tp", "4"], "--gpus is 8"),
        (["--gpus", "1", "--parallel.tp", "0"], "--parallel"),
        (["--gpus", "0"], "for --gpus"),
        (["--batch-tokens", "1000"], "--batch-tokens is 1000; expected a multiple of the context"),
        (["--batch-tokens", "0"], "--batch-tokens is 0"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--price", "-2"], "for --price"),
        (["--gpus", "4096", "--parallel.dp-shard", "4096"], "4096 data-parallel ranks"),
        (["--gpus", "7"], "no mesh of 7 GPUs"),
        (["--mfu", "1.5"], "mfu is 1.5"),
        (["--gpus", "2048", "--parallel.dp-shard", "2048", "--micro-batch", "9"], "micro-batch is 9"),
        (["--context", "0"], "model.context"),
    ],
)
def test_refusals_name_the_flag(arguments, named, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_machines_of_ones_own(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        "[mine]\nmemory_gb = 24\npeak_tflops = 100\ngpus_per_node = 2\n"
        "link_gbs = 10\nnetwork_gbs = 1\nwatts = 200\n"
    )
    assert main(["plan", "--recipe", "110m", "--machine", "mine", "--machines", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] and found["machine"] == "mine"
    file.write_text("[mine]\nmemory_gb = -1\n")
    assert main(["plan", "--machine", "mine", "--machines", str(file)]) == 2
    assert "memory_gb is -1" in capsys.readouterr().err


WHOLE = {
    "memory_gb": "24",
    "peak_tflops": "100",
    "gpus_per_node": "2",
    "link_gbs": "10",
    "network_gbs": "1",
    "watts": "200",
}


def test_a_machine_without_bf16_trains_in_fp32():
    job, volta = Job(recipe("1b").model, BATCH, 1e12), machine("v100-32gb")
    with_bf16, without = (
        plan(job, replace(volta, bf16=has), MeshConfig(dp_shard=8), 1) for has in (True, False)
    )
    for held in ("activations", "gathered layers"):
        assert without.memory[held] > 1.5 * with_bf16.memory[held]
    assert without.memory["parameters"] == with_bf16.memory["parameters"]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("bf16", "1", "bf16 is 1; expected true or false"),
        ("memory_gb", "nan", "memory_gb is nan; expected a positive number"),
        ("network_gbs", "inf", "network_gbs is inf"),
        ("gpus_per_node", "2.5", "gpus_per_node is 2.5; expected a positive whole number"),
        ("power", "3", "unknown field 'power'; the fields are memory_gb"),
        ("watts", "", "cannot be read as a file of machines"),
    ],
)
def test_a_wrong_machine_is_refused_by_its_field(tmp_path, field, value, named, capsys):
    file = tmp_path / "mine.toml"
    file.write_text("[mine]\n" + "".join(f"{k} = {v}\n" for k, v in {**WHOLE, field: value}.items()))
    assert main(["plan", "--machine", "mine", "--machines", str(file)]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


def test_this_machine_is_measured(capsys):
    arguments = ["--recipe", "15m", "--machine", "here", "--gpus", "2", "--parallel.dp-shard", "2"]
    assert main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "per process" in text and "holes in the heap" in text and "GPU-hours" not in text


def test_the_answer_in_the_terminal_and_as_a_page(tmp_path, capsys):
    page = tmp_path / "plan.html"
    arguments = ["--recipe", "65b", "--gpus", "2048", "--search", "--price", "2", "--page", str(page)]
    assert main(["plan", *arguments]) == 0
    text = capsys.readouterr().out
    assert "tokens per second per GPU" in text and "do not fit" in text and "tCO2eq" in text
    html = page.read_text(encoding="utf-8")
    assert "http" not in html and "<script" not in html and "optimiser moments" in html


def test_formulas_do_not_import_torch():
    code = (
        "import sys; from puna.cli import main; main(['plan', '--json']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_description_is_json():
    found = plan(Job(recipe("7b").model, BATCH, 1e12), machine("h100"), MeshConfig(1, 8))
    assert json.loads(json.dumps(describe(found, 2.0)))["cost"] == pytest.approx(
        2 * found.footprint.gpu_hours
    )


# recipe, layers, mesh (tp, dp_shard, dp_replicate), micro-batch, micro-batches of a step, activations
CONFIGURATIONS = [
    ("15m", 6, (1, 1, 1), 8, 2, "manual"),
    ("110m", 12, (1, 1, 1), 8, 2, "manual"),
    ("110m", 12, (1, 1, 1), 8, 1, "manual"),
    ("110m", 12, (1, 1, 1), 8, 2, "full"),
    ("110m", 12, (1, 1, 1), 8, 2, "none"),
    ("110m", 12, (1, 1, 1), 8, 2, "selective"),
    ("110m", 12, (1, 4, 1), 8, 2, "manual"),
    ("110m", 12, (1, 4, 1), 8, 1, "manual"),
    ("110m", 12, (2, 2, 2), 8, 2, "manual"),
    ("7b", 8, (4, 1, 1), 1, 2, "manual"),
    ("7b", 8, (1, 8, 1), 1, 2, "manual"),
    ("7b", 8, (4, 4, 2), 2, 2, "manual"),
]


@pytest.mark.parametrize(
    "name, layers, mesh, micro_batch, micro_batches, activations",
    [
        pytest.param(*values, marks=() if values[:2] == ("15m", 6) else pytest.mark.slow)
        for values in CONFIGURATIONS
    ],
)
def test_the_model_itself_takes_as_much_memory_within_5_percent(
    name, layers, mesh, micro_batch, micro_batches, activations
):
    model = replace(recipe(name).model, n_layers=layers)
    chosen = MeshConfig(*mesh)
    batch = chosen.dp * micro_batch * micro_batches * model.context
    job = Job(model, batch, 1e9, activations, gather_bytes=4, logits_rows=LOGITS_ROWS)
    planned = plan(job, machine("h100"), chosen, micro_batch).total_memory
    assert planned == pytest.approx(peak_bytes(job, chosen, micro_batch), rel=0.05)
