"""The verb generate: prompts to continuations."""

import json as json_module
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.types import PositiveInt

from puna.cli.common import Draws, Json, Many, Model, as_json
from puna.config import Sampling

if TYPE_CHECKING:
    from puna.generate.engine import Engine
    from puna.generate.request import Request, Token


def generate(
    prompt: str | None = None,
    /,
    *,
    model: Model,
    prompts: Path | None = None,
    n: PositiveInt = 1,
    max_tokens: int = 128,
    stop: Annotated[tuple[str, ...], Many] = (),
    sampling: Draws = Sampling(),  # noqa: B008 (frozen)
    logprobs: int | None = None,
    lookup: int = 0,
    json: Json = False,
) -> None:
    """Generate continuations of one or many prompts.

    Parameters
    ----------
    prompt
        Text to continue; defaults to standard input.
    prompts
        File with one prompt per line; in a .jsonl file, one JSON string or object with "prompt" per line.
    n
        Number of continuations per prompt, with consecutive seeds from --seed on.
    max_tokens
        Maximum number of generated tokens per continuation.
    stop
        Stop strings: generation ends before the first of them.
    logprobs
        Report each token's log-probability and the k most likely alternatives. Default: none.
    lookup
        Maximum number of draft tokens of prompt-lookup decoding; needs --temperature 0 and does not change
        the text. 0 disables.
    """
    sampling.validate()
    texts = _prompts(prompt, prompts)
    from puna.generate.request import Request

    engine = model.load(max_batch=min(16, len(texts) * n))
    requests = [
        Request(
            prompt=tuple(engine.encode(text)),
            sampling=replace(sampling, seed=sampling.seed + offset),
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            lookup=lookup,
        )
        for text in texts
        for offset in range(n)
    ]
    is_streamed = len(requests) == 1 and not json
    if is_streamed:
        print(texts[0], end="", flush=True)
    for index, answer in enumerate(_answers(engine, requests, is_streamed)):
        text, table = texts[index // n], _table(answer.get("tokens", []))
        if json:
            result = {"prompt": text, **answer, "seed": requests[index].sampling.seed}
            print(as_json(result), flush=True)
        elif is_streamed:
            print(f"\n{table}".rstrip("\n"))
        else:
            print(f"[{index + 1} of {len(requests)}] {text}{answer['text']}\n{table}", flush=True)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompts: from the command line, a file, or standard input."""
    if file is None:
        if prompt is None and sys.stdin.isatty():
            raise ValueError("no prompt is given; give one, or --prompts FILE, or pipe one in")
        return [sys.stdin.read().removeprefix("\ufeff").removesuffix("\n") if prompt is None else prompt]
    if prompt is not None:
        raise ValueError("a prompt and --prompts are given; use one of them")
    lines = [line for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{file} holds no prompt; write one per line")
    return (
        [_json_prompt(file, number, line) for number, line in enumerate(lines, 1)]
        if file.suffix == ".jsonl"
        else lines
    )


def _json_prompt(file: Path, number: int, line: str) -> str:
    try:
        value = json_module.loads(line)
    except ValueError as error:
        raise ValueError(f"{file}, line {number} is not JSON ({error}); write a string or object") from error
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise ValueError(f'{file}, line {number} holds no prompt; write a JSON string, or {{"prompt": "…"}}')
    return prompt


def _answers(engine: "Engine", requests: list["Request"], is_streamed: bool) -> Iterator[dict[str, Any]]:
    """Answers computed together, yielded in order, each as soon as those before it are finished.

    With `is_streamed` the texts are printed as they are generated.
    """
    answers: list[dict[str, Any]] = [{"text": "", "finish": None, "count": 0} for _ in requests]
    n_yielded = 0
    for index, chunk in engine.answers(requests):
        answer = answers[index]
        if is_streamed:
            print(chunk.text, end="", flush=True)
        answer["text"] += chunk.text
        answer["finish"] = chunk.finish
        answer["count"] += len(chunk.tokens)
        if requests[index].logprobs is not None:
            answer.setdefault("tokens", []).extend(_record(engine, token) for token in chunk.tokens)
        while n_yielded < len(answers) and answers[n_yielded]["finish"]:
            yield answers[n_yielded]
            n_yielded += 1


def _record(engine: "Engine", token: "Token") -> dict[str, Any]:
    def text(id: int) -> str:
        return engine.tokenizer.control_text(id)

    top = [{"id": id, "text": text(id), "logprob": value} for id, value in token.top]
    return {"id": token.id, "text": text(token.id), "logprob": token.logprob, "top": top}


def _table(tokens: list[dict[str, Any]]) -> str:
    """One line per token: its log-probability, then the most likely alternatives with theirs."""
    lines = []
    for token in tokens:
        others = "  ".join(f"{other['text']!r} {other['logprob']:.3f}" for other in token["top"])
        lines.append(f"{token['logprob']:>9.3f}  {token['text']!r:<16}  {others}".rstrip())
    return "\n".join(lines)
