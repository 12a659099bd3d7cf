"""A configuration is written, read back the same, and says what is wrong with it."""

import json
from dataclasses import replace

import pytest

from puna.config import ModelConfig, RopeScaling, Sampling, read_config, run_config, to_dict
from puna.recipes import RECIPES, recipe
from tests.conftest import changed


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_survives_the_file(name, tmp_path):
    config = replace(recipe(name), data=("shards",))
    config.validate()
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert read_config(tmp_path) == config
    assert read_config(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("name", "lr", "tokens"),
    [("7b", 3e-4, 1e12), ("13b", 3e-4, 1e12), ("33b", 1.5e-4, 1.4e12), ("65b", 1.5e-4, 1.4e12)],
)
def test_the_papers_recipes_train_as_table_2_says(name, lr, tokens):
    config = recipe(name)
    assert config.optim.lr == lr
    assert config.schedule.batch_tokens == 2**22
    assert config.schedule.steps * config.schedule.batch_tokens == pytest.approx(tokens, rel=1e-5)
    assert (config.optim.beta1, config.optim.beta2, config.optim.weight_decay) == (0.9, 0.95, 0.1)
    assert (config.optim.clip, config.optim.warmup_steps, config.optim.final_lr_fraction) == (1.0, 2000, 0.1)
    assert config.model.context == 2048


def test_an_unknown_recipe_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="unknown recipe '99b'; choose one of: tiny, 15m"):
        recipe("99b")


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("model", "dim", 290, r"model\.dim is 290, not divisible by model\.n_heads 6"),
        ("model", "n_heads", 96, r"model\.dim / model\.n_heads is 3; RoPE rotates pairs"),
        ("model", "n_kv_heads", 4, r"model\.n_kv_heads is 4; it must divide"),
        ("model", "n_layers", 0, r"model\.n_layers is 0; it must be positive"),
        ("model", "n_kv_heads", 0, r"model\.n_kv_heads is 0; it must be positive"),
        ("model", "rope_base", 1.0, r"model\.rope_base is 1\.0; it must be above 1"),
        (
            "model",
            "rope_scaling",
            RopeScaling(0.5),
            r"model\.rope_scaling\.factor is 0\.5; it must be at least 1",
        ),
        (
            "model",
            "rope_scaling",
            RopeScaling(8.0, low_freq_factor=4.0),
            r"low_freq_factor is 4\.0; it must be below model\.rope_scaling\.high_freq_factor 4\.0",
        ),
        ("optim", "lr", -1.0, r"optim\.lr is -1\.0; it must be positive"),
        ("optim", "beta2", 1.5, r"optim\.beta2 is 1\.5; it must be at most 1"),
        ("optim", "lr", float("nan"), r"optim\.lr is nan; it must be a finite number"),
        (
            "schedule",
            "batch_tokens",
            1000,
            r"schedule\.batch_tokens is 1000, not a multiple of model\.context 512",
        ),
        ("schedule", "micro_batch", 3, r"schedule\.micro_batch is 3; it must divide the 8 sequences"),
        ("schedule", "steps", 2.5, r"schedule\.steps is 2\.5; it must be an integer"),
        ("save", "every", -1, r"save\.every is -1; it must be at least 0"),
        (
            "watch",
            "trackers",
            ("mlflow",),
            r"watch\.trackers\.0 is 'mlflow'; it must be 'tensorboard' or 'wandb'",
        ),
        ("mixture", "weights", {"books": 0.0}, r"mixture\.weights\.books is 0\.0"),
    ],
)
def test_an_impossible_value_is_named_by_its_field(section, field, value, message):
    config = replace(recipe("15m"), data=("shards",))
    with pytest.raises(ValueError, match=message):
        changed(config, **{section: {field: value}}).validate()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -2}, "top-k is -2; it must be at least 0"),
        ({"top_p": 0.0}, "top-p is 0.0; it must be positive"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808; it must be below 9223372036854775808"),
    ],
)
def test_sampling_names_its_invalid_option(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options).validate()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"width": 3}}, r"unknown field model\.width; the fields are: dim"),
        ({"model": {"dim": "wide"}}, r"model\.dim is 'wide'; it must be an integer"),
        ({"model": {"tied_embeddings": 1}}, r"model\.tied_embeddings is 1; it must be true or false"),
        ({"model": {"dim": True}}, r"model\.dim is True; it must be an integer"),
        ({"model": 3}, r"model is 3; it must be a section"),
        ({"model": {"rope_scaling": {"factor": 8, "width": 1}}}, r"unknown field model\.rope_scaling\.width"),
        ({"model": {"rope_scaling": {"low_freq_factor": 1}}}, r"model\.rope_scaling\.factor is missing"),
        (
            {"compute": {"precision": "fp8"}},
            r"compute\.precision is 'fp8'; it must be 'auto', 'bf16' or 'fp32'",
        ),
        ({"sched": {"steps": 1}}, r"unknown field sched; the fields are: recipe, data, seed, model"),
        ({"train": {"stops": 1}}, r"unknown field train"),
        ([], r"RunConfig is \[\]; it must be a section"),
    ],
)
def test_a_wrong_file_is_named_by_field(values, message):
    with pytest.raises(ValueError, match=message):
        run_config(values)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run configuration"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_config(tmp_path)


def test_missing_data_is_named_with_the_option():
    with pytest.raises(ValueError, match="--data DIR"):
        recipe("15m").validate()


# A file as version 0.1 wrote it (release a16401a, `puna train --recipe tiny` with options), by hand below it
# the same in today's sections.
OLD = {
    "recipe": "tiny",
    "data": ["shards"],
    "model": {
        "dim": 64, "n_layers": 2, "n_heads": 4, "ffn_dim": 256, "vocab_size": 512, "context": 64,
        "norm_eps": 1e-6, "n_kv_heads": None, "tied_embeddings": False, "rope_base": 10000.0,
        "rope_factor": 8.0, "rope_low_freq_factor": 1.0, "rope_high_freq_factor": 4.0,
        "rope_original_context": 8192,
    },
    "mixture": {"weights": {"books": 1.0}, "seed": 1},
    "optim": {
        "lr": 0.003, "final_lr_fraction": 0.1, "warmup_steps": 10, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
        "weight_decay": 0.1, "clip": 1.0,
    },
    "train": {
        "steps": 100, "batch_tokens": 1024, "micro_batch": 16, "precision": "fp32", "seed": 3,
        "validate_every": 50, "validation_windows": 16, "sample_every": 7, "save_every": 20, "keep": 3,
        "skip_outliers": 10.0, "deterministic": True, "track": ["tensorboard"], "profile": 2,
        "activations": "full", "compile": False, "allocator": "system", "threads": 1,
    },
}  # fmt: skip
NEW = {
    **{name: OLD[name] for name in ("recipe", "data", "mixture")},
    "seed": 3,
    "model": {name: value for name, value in OLD["model"].items() if not name.startswith("rope_")}
    | {
        "rope_base": 10000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192,
        },
    },
    "optim": OLD["optim"] | {"skip_outliers": 10.0},
    "schedule": {"steps": 100, "batch_tokens": 1024, "micro_batch": 16},
    "compute": {
        "precision": "fp32", "activations": "full", "compile": False, "threads": 1, "deterministic": True,
        "allocator": "system",
    },
    "parallel": {"tp": 1, "dp_shard": 1, "dp_replicate": 1, "reshard": True, "timeout": 600.0},
    "save": {"every": 20, "keep": 3},
    "watch": {
        "validate_every": 50, "validation_windows": 16, "sample_every": 7, "trackers": ["tensorboard"],
        "profile_steps": 2,
    },
}  # fmt: skip


def test_a_file_of_the_old_layout_is_read_as_the_same_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(OLD))
    since = {"layers_every": 100}, {"tasks": [], "every": 1000, "limit": 200, "data": "data/eval"}
    expected = {**NEW, "watch": {**NEW["watch"], **since[0]}, "eval": since[1]}
    assert to_dict(read_config(tmp_path)) == expected
    assert to_dict(run_config(NEW)) == expected
    without = {**OLD, "model": {**OLD["model"], "rope_factor": None}}
    assert run_config(without).model.rope_scaling is None


def test_key_heads_are_as_many_as_heads_unless_given():
    assert ModelConfig(n_heads=6).kv_heads == 6
    assert ModelConfig(n_heads=6, n_kv_heads=2).kv_heads == 2
