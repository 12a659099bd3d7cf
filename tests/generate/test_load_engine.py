"""An engine opens a model in any format, with the tokenizer that the model brings; nothing is written."""

from dataclasses import replace

import pytest

from puna.formats.convert import convert
from puna.generate.load import load_engine
from tests.formats.models import PLAIN, write_native_model
from tests.generate.conftest import generated


@pytest.fixture
def run(tmp_path, shards):
    folder = write_native_model(tmp_path / "run", replace(PLAIN, vocab_size=512))
    (folder / "tokenizer.model").write_bytes((shards / "tokenizer.model").read_bytes())
    return folder


@pytest.mark.parametrize("form", ["hf", "meta", "gguf"])
def test_every_format_generates_the_same_text(run, tmp_path, form):
    expected = generated(load_engine(run, weights="fp32", max_batch=1), "The llama", max_tokens=8)
    other = tmp_path / ("model.gguf" if form == "gguf" else "other")
    convert(run, other, form)
    if form == "meta":  # Meta's own downloads have it in the folder above
        (other / "tokenizer.model").rename(tmp_path / "tokenizer.model")
    before = sorted(tmp_path.rglob("*"))
    assert generated(load_engine(other, weights="fp32", max_batch=1), "The llama", max_tokens=8) == expected
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_without_a_tokenizer_is_refused(run):
    (run / "tokenizer.model").unlink()
    with pytest.raises(ValueError, match="no tokenizer; put the model's own tokenizer beside its weights"):
        load_engine(run)
