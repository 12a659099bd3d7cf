"""Verbs that use weights: generate, chat, convert."""

import importlib.util
import json as json_module
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from puna.cli.common import Json, Many, print_result
from puna.cli.models import model_path, require_tokenizer
from puna.config import Sampling
from puna.devices import DeviceName
from puna.files import atomic_file, cache_dir

if TYPE_CHECKING:
    from puna.generate.engine import Engine
    from puna.generate.request import Request, Token

__all__ = ["chat", "convert", "generate", "model_path"]

Draws = Annotated[Sampling, Parameter(name="*")]
Weights = Literal["fp32", "bf16", "int8", "int4"]
CacheDtype = Literal["fp32", "bf16", "fp16"]


def generate(
    prompt: str | None = None,
    /,
    *,
    model: str,
    prompts: Path | None = None,
    n: int = 1,
    max_tokens: int = 128,
    stop: Annotated[tuple[str, ...], Many] = (),
    sampling: Draws = Sampling(),  # noqa: B008 (frozen)
    logprobs: int | None = None,
    lookup: int = 0,
    weights: Weights | None = None,
    cache_dtype: CacheDtype | None = None,
    device: DeviceName = "auto",
    json: Json = False,
) -> int:
    """Continue a prompt, or many together.

    Parameters
    ----------
    prompt
        The text to continue; defaults to standard input.
    model
        A run directory, one that `puna convert --to puna` wrote, a .gguf file, or smollm2.
    prompts
        File of prompts, one per line; in a .jsonl file, one JSON string or object with "prompt" per line.
    n
        Number of answers per prompt, with consecutive seeds from --seed on.
    max_tokens
        Maximum number of generated tokens.
    stop
        Stop strings: generation ends before the first of them.
    logprobs
        Report each token's log-probability and the k most likely alternatives.
    lookup
        Prompt-lookup decoding with up to this many draft tokens; greedy only (--temperature 0), same text.
    weights
        Precision of the weights in memory; defaults to the precision of training.
    cache_dtype
        Precision of the KV cache; defaults to the compute dtype.
    device
        Where to compute; auto is a CUDA device where there is one, else the CPU.
    """
    sampling.validate()
    if n < 1:
        raise ValueError(f"--n is {n}; it must be positive")
    texts = _prompts(prompt, prompts)
    from puna.generate.load import load_engine
    from puna.generate.request import Request

    batch = min(16, len(texts) * n)
    engine = load_engine(
        model_path(model), weights=weights, cache_dtype=cache_dtype, max_batch=batch, device=device
    )
    requests = [
        Request(
            prompt=tuple(engine.encode(text)),
            sampling=replace(sampling, seed=sampling.seed + place),
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            lookup=lookup,
        )
        for text in texts
        for place in range(n)
    ]
    if len(requests) == 1 and not json:
        _show(engine, requests[0], texts[0])
        return 0
    for place, answer in enumerate(_answers(engine, requests)):
        text = texts[place // n]
        result = {"prompt": text, **answer, "seed": requests[place].sampling.seed}
        if json:
            print(json_module.dumps(result, ensure_ascii=False), flush=True)
        else:
            title = f"[{place + 1} of {len(requests)}]"
            print(f"{title} {text}{answer['text']}\n{_table(answer.get('tokens', []))}", flush=True)
    return 0


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts of the command line, a file, or standard input."""
    if file is None:
        if prompt is None and sys.stdin.isatty():
            raise ValueError("there is no prompt; give one, or --prompts FILE, or pipe one in")
        return [sys.stdin.read().removeprefix("\ufeff").removesuffix("\n") if prompt is None else prompt]
    if prompt is not None:
        raise ValueError("a prompt and --prompts are given; leave one out")
    lines = [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no prompt; write one a line")
    return (
        [_of_json(file, place, line) for place, line in enumerate(lines, 1)]
        if file.suffix == ".jsonl"
        else lines
    )


def _of_json(file: Path, place: int, line: str) -> str:
    try:
        value = json_module.loads(line)
    except ValueError as error:
        raise ValueError(f"{file}, line {place} is not JSON ({error}); write a text or an object") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError(f'{file}, line {place} holds no prompt; write a JSON string, or {{"prompt": "…"}}')
    return prompt


def _show(engine: "Engine", request: "Request", prompt: str) -> None:
    """One answer, as it comes."""
    print(prompt, end="", flush=True)
    tokens: list[dict[str, Any]] = []
    for _, chunk in engine.answers([request]):
        print(chunk.text, end="", flush=True)
        tokens += [_record(engine, token) for token in chunk.tokens]
    print()
    if request.logprobs is not None:
        print(_table(tokens))


def _answers(engine: "Engine", requests: list["Request"]) -> Iterator[dict[str, Any]]:
    """Answers computed together, given in order, each as soon as those before it are there."""
    answers: list[dict[str, Any]] = [{"text": "", "finish": None, "count": 0} for _ in requests]
    given = 0
    for index, chunk in engine.answers(requests):
        answer = answers[index]
        answer["text"] += chunk.text
        answer["finish"] = chunk.finish
        answer["count"] += len(chunk.tokens)
        if requests[index].logprobs is not None:
            answer.setdefault("tokens", []).extend(_record(engine, token) for token in chunk.tokens)
        while given < len(answers) and answers[given]["finish"]:
            yield answers[given]
            given += 1


def _record(engine: "Engine", token: "Token") -> dict[str, Any]:
    def text(id: int) -> str:
        return engine.tokenizer.control_text(id)

    top = [{"id": id, "text": text(id), "logprob": value} for id, value in token.top]
    return {"id": token.id, "text": text(token.id), "logprob": token.logprob, "top": top}


def _table(tokens: list[dict[str, Any]]) -> str:
    """A line a token: its log-probability, and the likeliest with theirs."""
    lines = []
    for token in tokens:
        others = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
        lines.append(f"{token['logprob']:>9.3f}  {token['text']!r:<16}  {others}".rstrip())
    return "\n".join(lines)


def chat(
    *,
    model: str,
    max_tokens: int = 512,
    sampling: Draws = Sampling(),  # noqa: B008 (frozen)
    system: str = "",
    weights: Weights | None = None,
    cache_dtype: CacheDtype | None = None,
    device: DeviceName = "auto",
) -> int:
    """Chat with a model in the terminal.

    Parameters
    ----------
    model
        A run directory, one that `puna convert --to puna` wrote, a .gguf file, or smollm2.
    max_tokens
        Maximum number of tokens per answer.
    system
        System prompt.
    weights
        Precision of the weights in memory; defaults to the precision of training.
    cache_dtype
        Precision of the KV cache; defaults to the compute dtype.
    device
        Where to compute; auto is a CUDA device where there is one, else the CPU.
    """
    sampling.validate()
    if max_tokens < 1:
        raise ValueError(f"max-tokens is {max_tokens}; it must be positive")
    from puna.generate.chat import Chat
    from puna.generate.load import load_engine

    engine = load_engine(
        model_path(model), weights=weights, cache_dtype=cache_dtype, max_batch=1, device=device
    )
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    with _history(is_terminal):
        Chat(engine, sampling, max_tokens, is_terminal=is_terminal, system=system).run()
    return 0


@contextmanager
def _history(is_terminal: bool) -> Iterator[None]:
    """Lines typed in earlier conversations, for the arrow keys; kept in the cache directory."""
    if not is_terminal or importlib.util.find_spec("readline") is None:  # Windows has none
        yield
        return
    import readline

    file = cache_dir() / "chat-history"
    if file.is_file():
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with atomic_file(file) as temporary:
            readline.write_history_file(temporary)


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
        Precision of the written weights; defaults to the source's. q8_0 and q4_0 are for GGUF only.
    parts
        Number of model-parallel files in Meta's format: 1, 2, 4 or 8.
    context
        Overrides the source's context length; Meta's format has none, so 2048 is assumed.
    """
    from puna.files import human_bytes, human_seconds
    from puna.formats.convert import convert as convert_weights

    manifest = convert_weights(src, dst, to, dtype, parts, context)
    if to == "puna":
        require_tokenizer(dst)
    lines = [
        f"{dst}: {manifest.counts['parameters']:,} parameters, {human_bytes(manifest.bytes)} "
        f"in {human_seconds(manifest.seconds)}",
    ]
    lines += [f'next: puna generate --model {dst} "Once upon a time"'] if to == "puna" else []
    print_result(manifest.to_json(), json, lines)
    return 0
