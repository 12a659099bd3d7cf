"""Files of real models, and real programs that read ours: llama.cpp, SmolLM2.

llama.cpp's Python package lives in an environment of its own: PUNA_LLAMACPP_PYTHON names its interpreter,
or `make peers` has installed it.
"""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from puna.cli import main
from puna.fetch.package_index import fetch_sample
from puna.formats.convert import convert
from puna.model.llama import Llama
from tests.formats.models import CONFIGS, PLAIN, load, write_native_model
from tests.generate.conftest import generated

ENCODE = """
import json, sys
from llama_cpp import Llama

model = Llama(sys.argv[1], vocab_only=True, verbose=False)
print(json.dumps([
    [model.tokenize(text.encode(), bos, special) for bos in (False, True) for special in (False, True)]
    for text in json.load(sys.stdin)
]))
"""
CONTINUE = """
import json, sys
import numpy as np
from llama_cpp import Llama

path, text, ids, count = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
model = Llama(path, n_ctx=96, n_threads=1, logits_all=True, verbose=False, type_k=0, type_v=0)  # fp32 cache
encoded = model.tokenize(text.encode(), add_bos=True)
ids = ids or encoded
model.eval(ids)
prompt, logits = list(ids), model.scores[len(ids) - 1].tolist()
for _ in range(count):
    token = int(np.argmax(model.scores[model.n_tokens - 1]))
    ids.append(token)
    model.eval([token])
answer = {"encoded": encoded, "prompt": prompt, "new": ids[len(prompt):], "logits": logits}
print(json.dumps(answer | {"text": model.detokenize(ids).decode(errors="replace")}))
"""


@pytest.fixture(scope="session")
def peer() -> str:
    """The interpreter that has llama.cpp's Python package."""
    beside = Path(__file__).parents[2] / ".venv-peers/llama-cpp/bin/python"
    python = os.environ.get("PUNA_LLAMACPP_PYTHON", str(beside))
    try:
        subprocess.run([python, "-c", "import llama_cpp"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("llama_cpp is not importable: name its interpreter in PUNA_LLAMACPP_PYTHON")
    return python


def ids_of_peer(peer: str, file: Path, texts: list[str]) -> list[list[list[int]]]:
    """llama.cpp's ids of texts: as they are, with control tokens found in them; then both with BOS."""
    command = [peer, "-c", ENCODE, str(file)]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def llama_cpp(peer):
    """A function that lets llama.cpp continue a text or ids greedily."""

    def answer(path: Path, text: str = "", ids: list[int] | None = None, count: int = 0) -> dict:
        command = [peer, "-c", CONTINUE, str(path), text, json.dumps(ids or []), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return answer


@torch.inference_mode()
def greedy(model: Llama, ids: list[int], count: int) -> tuple[list[int], torch.Tensor]:
    """The likeliest continuation, and the logits after the prompt."""
    ids, first = list(ids), model(torch.tensor([ids]))[0, -1]
    new = []
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1]
        assert logits.isfinite().all()
        new.append(int(logits.argmax()))
        ids.append(new[-1])
    return new, first


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_llama_cpp_gives_the_same_greedy_tokens(tmp_path, llama_cpp, name, dtype):
    source = write_native_model(tmp_path / "source", CONFIGS[name])
    convert(source, tmp_path / "rounded", "hf", dtype=dtype)
    convert(tmp_path / "rounded", tmp_path / "puna", "puna", dtype="fp32")
    convert(tmp_path / "rounded", tmp_path / "model.gguf", "gguf")
    theirs = llama_cpp(tmp_path / "model.gguf", ids=[1, 300, 17, 44, 280, 9, 310, 261], count=36)
    new, logits = greedy(load(tmp_path / "puna"), theirs["prompt"], 36)
    # llama.cpp rounds activations to the weights' precision before a product.
    tolerance = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.15}[dtype]
    torch.testing.assert_close(torch.tensor(theirs["logits"]), logits, atol=tolerance, rtol=0)
    assert len(set(new)) > 3
    if dtype == "fp32":
        assert theirs["new"] == new


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("q8_0", 0.05), ("q4_0", 0.6)])
def test_llama_cpp_reads_quantised_files(tmp_path, llama_cpp, dtype, tolerance):
    config = replace(PLAIN, dim=256, ffn_dim=512, n_heads=8)
    source = write_native_model(tmp_path / "source", config)
    convert(source, tmp_path / "model.gguf", "gguf", dtype=dtype)
    convert(tmp_path / "model.gguf", tmp_path / "puna", "puna")
    theirs = llama_cpp(tmp_path / "model.gguf", ids=[1, 300, 17, 44, 280, 9, 310, 261])
    _, logits = greedy(load(tmp_path / "puna"), theirs["prompt"], 0)
    error = (torch.tensor(theirs["logits"]) - logits).norm() / logits.norm()
    assert error < tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["the llama carries 12 stones", " two  spaces\tand\nlines", "Ünïcødé 雪 2024", "a"]
)
def test_llama_cpp_encodes_with_our_vocabulary(tmp_path, llama_cpp, text):
    import sentencepiece

    source = write_native_model(tmp_path / "source", PLAIN)
    convert(source, tmp_path / "model.gguf", "gguf")
    pieces = sentencepiece.SentencePieceProcessor(str(source / "tokenizer.model"))
    assert llama_cpp(tmp_path / "model.gguf", text)["encoded"] == [1, *pieces.encode(text)]


# "The capital of France is", and what llama.cpp continues it with from the same weights in fp32.
PROMPT = [504, 3575, 282, 4649, 314]
PARIS = 7042


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    """SmolLM2, fetched into the cache and converted."""
    file = next(fetch_sample("smollm2").glob("*.gguf"))
    folder = tmp_path_factory.mktemp("smollm2") / "puna"
    assert main(["convert", str(file), str(folder), "--to", "puna", "--dtype", "fp32"]) == 0
    return folder


@pytest.mark.network
def test_smollm2_knows_the_capital_of_france(smollm2):
    new, _ = greedy(load(smollm2), PROMPT, 4)
    assert new[0] == PARIS


@pytest.mark.network
def test_smollm2_speaks_english(smollm2):
    from puna.config import Sampling
    from puna.generate.load import load_engine

    text = generated(load_engine(smollm2), "The capital of France is", Sampling(temperature=0), 8)
    assert text.startswith(" Paris")


@pytest.mark.network
@pytest.mark.slow
def test_llama_cpp_agrees_on_smollm2(smollm2, llama_cpp, tmp_path):
    convert(smollm2, tmp_path / "smollm2.gguf", "gguf")
    theirs = llama_cpp(tmp_path / "smollm2.gguf", ids=PROMPT, count=24)
    new, logits = greedy(load(smollm2), PROMPT, 24)
    torch.testing.assert_close(torch.tensor(theirs["logits"]), logits, atol=1e-2, rtol=0)
    assert theirs["new"] == new
