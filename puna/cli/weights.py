"""Verbs that use weights: generate, chat, convert."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from puna.cli.common import Json, Run, print_result
from puna.config import Sampling


def generate(
    prompt: str,
    /,
    *,
    model: Run,
    max_tokens: int = 128,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),  # noqa: B008 (frozen)
    json: Json = False,
) -> int:
    """Continue a prompt with a trained model.

    Parameters
    ----------
    model
        A run directory, or one that `puna convert --to puna` wrote.
    max_tokens
        Longest continuation.
    """
    sampling.validate()
    from puna.generate.engine import load_engine

    engine = load_engine(model)
    if json:
        text = engine.generate(prompt, sampling, max_tokens)
        print_result({"prompt": prompt, "text": text, "seed": sampling.seed}, json, [])
        return 0
    print(prompt, end="", flush=True)
    for piece in engine.stream(prompt, sampling, max_tokens):
        print(piece, end="", flush=True)
    print()
    return 0


def chat(
    *,
    model: Run,
    max_tokens: int = 128,
    sampling: Annotated[Sampling, Parameter(name="*")] = Sampling(),  # noqa: B008 (frozen)
) -> int:
    """Talk with a trained model in the terminal.

    Parameters
    ----------
    model
        A run directory, or one that `puna convert --to puna` wrote.
    max_tokens
        Longest answer.
    """
    sampling.validate()
    from puna.generate.chat import chat as chat_in_terminal
    from puna.generate.engine import load_engine

    chat_in_terminal(load_engine(model), sampling, max_tokens)
    return 0


def convert(
    src: Path,
    dst: Path,
    /,
    *,
    to: Literal["puna", "hf", "meta", "gguf"],
    dtype: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] | None = None,
    parts: int = 1,
    context: int | None = None,
    json: Json = False,
) -> int:
    """Convert weights between puna, Hugging Face, Meta and GGUF, a tensor at a time.

    Parameters
    ----------
    src
        A run directory, a Hugging Face directory, a directory with Meta's params.json, or a .gguf file.
    dst
        The directory to write, or with --to gguf the .gguf file.
    to
        The format to write.
    dtype
        Precision of the weights, as they were when not given; q8_0 and q4_0 for GGUF alone.
    parts
        Model-parallel parts of Meta's files: 1, 2, 4 or 8.
    context
        Replaces the context that the source says; Meta's files say none, and are taken for 2048.
    """
    from puna.files import human_bytes, human_seconds
    from puna.model.formats import convert as convert_weights

    result = convert_weights(src, dst, to, dtype, parts, context)
    lines = [
        f"{dst}: {result['counts']['parameters']:,} parameters, {human_bytes(result['bytes'])} "
        f"in {human_seconds(result['seconds'])}",
    ]
    lines += [f'next: puna generate --model {dst} "Once upon a time"'] if to == "puna" else []
    print_result(result, json, lines)
    return 0
