"""A real quantised model, computed from its .gguf file: the same text as transformers gives in fp32."""

import pytest
import torch

import puna
from puna.api import find_model

PROMPTS = [
    "The capital of France is",
    "Once upon a time, there was a",
    "def fibonacci(n):",
    "Water boils at a temperature of",
    "The three primary colours are",
]
TOKENS = 32


@pytest.mark.network
@pytest.mark.slow
def test_fp32_weights_of_a_quantised_file_continue_texts_as_transformers_does(tmp_path):
    """Q4_1 weights rounded to bf16 on the way changed one of five continuations."""
    from transformers import AutoModelForCausalLM

    file = find_model("smollm2")
    model = puna.load(file, weights="fp32")
    puna.convert(file, tmp_path / "hf", to="hf", dtype="fp32")  # the dequantised weights
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    expected = []
    for prompt in PROMPTS:
        ids = model.engine.encode(prompt)
        whole = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=TOKENS)[0].tolist()
        expected.append(model.engine.tokenizer.decode(whole[len(ids) :]))
    assert model.generate(PROMPTS, max_tokens=TOKENS, temperature=0) == expected
