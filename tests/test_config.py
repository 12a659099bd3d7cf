"""A configuration is written, read back the same, and says what is wrong with it."""

import json
from dataclasses import replace

import pytest

from puna.config import ModelConfig, RunConfig, from_dict, read_config, to_dict
from puna.recipes import RECIPES, recipe


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
    assert config.train.batch_tokens == 2**22
    assert config.train.steps * config.train.batch_tokens == pytest.approx(tokens, rel=1e-5)
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
        ("optim", "lr", -1.0, r"optim\.lr is -1\.0; it must be positive"),
        ("optim", "beta2", 1.5, r"optim\.beta2 is 1\.5; it must be in 0\.\.1"),
        ("train", "batch_tokens", 1000, r"train\.batch_tokens is 1000, not a multiple of model\.context 512"),
        ("train", "micro_batch", 3, r"train\.micro_batch is 3; it must divide the 8 sequences"),
        ("train", "save_every", -1, r"train\.save_every is -1"),
        ("mixture", "weights", {"books": 0.0}, r"mixture\.weights\.books is 0\.0"),
    ],
)
def test_an_impossible_value_is_named_by_its_field(section, field, value, message):
    config = replace(recipe("15m"), data=("shards",))
    config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    with pytest.raises(ValueError, match=message):
        config.validate()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"width": 3}}, r"unknown field model\.width; the fields are: dim"),
        ({"model": {"dim": "wide"}}, r"model\.dim is 'wide'; it must be int"),
        ({"model": {"tied_embeddings": 1}}, r"model\.tied_embeddings is 1; it must be bool"),
        ({"model": {"dim": True}}, r"model\.dim is True; it must be int"),
        ({"model": 3}, r"model is 3; it must be a section"),
        ({"train": {"precision": "fp8"}}, r"train\.precision is 'fp8'"),
    ],
)
def test_a_wrong_file_is_named_by_field(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(RunConfig, values)


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run configuration"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        read_config(tmp_path)


def test_no_data_is_said_with_the_mend():
    with pytest.raises(ValueError, match="--data DIR"):
        recipe("15m").validate()


def test_key_heads_are_as_many_as_heads_unless_given():
    assert ModelConfig(n_heads=6).kv_heads == 6
    assert ModelConfig(n_heads=6, n_kv_heads=2).kv_heads == 2
