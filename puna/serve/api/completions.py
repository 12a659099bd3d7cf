"""POST /v1/completions: texts or token ids go on.

In:  one prompt or several, n answers to each; `echo` gives the prompt back, and with `logprobs` how likely it
     was, which is what evaluation harnesses ask for.
Out: choices, prompt by prompt, whole or as events.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.generate.request import Chunk, Token
from puna.serve.logprobs import CompletionLogprobs, joined
from puna.serve.schemas import CompletionRequest
from puna.serve.service import CLIENT_GONE, EventStream, Service, answer_choices, new_id, usage, whole

DEFAULT_MAX_TOKENS = 16  # OpenAI's


class _Choice:
    """One answer on its way: what its client is told, chunk after chunk."""

    def __init__(
        self, service: Service, body: CompletionRequest, index: int, ids: list[int], text: str
    ) -> None:
        self.index, self._text = index, text
        self._echo = bool(body.echo)
        # A BOS that was put there by us is no part of the text that is given back.
        is_text = isinstance(body.prompts[index // (body.n or 1)], str)
        self._hidden = int(is_text and service.engine.tokenizer.adds_bos)
        self._logprobs = None
        if body.logprobs is not None:
            tokenizer = service.engine.tokenizer
            before = ids[: self._hidden] if self._echo else ids
            decoder = tokenizer.stream_decoder(before)
            self._logprobs = CompletionLogprobs(decoder.push, tokenizer.piece)
        self._begun = False
        self.generated = 0

    def take(self, chunk: Chunk) -> dict[str, Any] | None:
        """The chunk as a part of the answer; None when there is nothing to tell yet."""
        text, tokens = chunk.text, chunk.tokens
        self.generated += len(tokens)
        shown: tuple[Token, ...] = tokens
        if self._echo and not self._begun:
            text, shown = self._text + text, chunk.prompt[self._hidden :] + tokens
        self._begun = True
        if not (text or chunk.finish or (self._logprobs and shown)):
            return None
        logprobs = self._logprobs.lists(shown) if self._logprobs else None
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": chunk.finish}


async def complete(service: Service, http: HttpRequest, body: CompletionRequest) -> Response:
    """Answer one request."""
    service.require_model(body.model)
    service.worker.require_room(len(body.prompts) * (body.n or 1))
    prompts, texts = [], []
    for prompt in body.prompts:
        if isinstance(prompt, str):
            service.require_short([prompt], "prompt")
            bos = service.engine.tokenizer.adds_bos
            prompts.append(await service.encode(prompt, bos, bool(body.parse_special)))
            texts.append(prompt)
        else:
            prompts.append(prompt)
            texts.append("")
    requests = service.requests(
        body,
        prompts,
        DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens,
        body.logprobs,
        prompt_logprobs=bool(body.echo) and (body.logprobs is not None or body.max_tokens == 0),
    )
    if body.echo:
        texts = [
            text if isinstance(prompt, str) else await service.decode(prompt)
            for prompt, text in zip(body.prompts, texts, strict=True)
        ]
    n = body.n or 1
    choices = [
        _Choice(service, body, index, prompts[index // n], texts[index // n])
        for index in range(len(requests))
    ]
    work = service.worker.submit(requests)
    head: dict[str, Any] = {"id": new_id("cmpl"), "object": "text_completion"}
    head |= {"created": int(time.time()), "model": service.name}
    parts = _parts(choices, work.chunks())
    if body.stream:
        with_usage = bool(body.stream_options and body.stream_options.include_usage)

        async def events() -> AsyncIterator[dict[str, Any]]:
            more = {"usage": None} if with_usage else {}
            async for part in parts:
                yield head | {"choices": [part]} | more
            if with_usage:
                yield head | {"choices": [], "usage": usage(work, n, sum(c.generated for c in choices))}

        return EventStream(work, events())
    by_choice: list[list[dict[str, Any]]] = [[] for _ in choices]

    async def collect() -> None:
        async for part in parts:
            by_choice[part["index"]].append(part)

    if not await whole(http, work, collect()):
        return Response(status_code=CLIENT_GONE)
    done = [_joined(parts_of_one) for parts_of_one in by_choice]
    return await answer_choices(head | {"usage": usage(work, n, sum(c.generated for c in choices))}, done)


async def _parts(
    choices: Sequence[_Choice], chunks: AsyncIterator[tuple[int, Chunk]]
) -> AsyncIterator[dict[str, Any]]:
    async for index, chunk in chunks:
        # The log-probabilities of a long prompt are worked out without keeping others waiting.
        take = choices[index].take
        if part := await asyncio.to_thread(take, chunk) if len(chunk.prompt) > 256 else take(chunk):
            yield part


def _joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The parts of one choice as a whole choice."""
    lists = [part["logprobs"] for part in parts if part["logprobs"] is not None]
    return {
        "index": parts[0]["index"],
        "text": "".join(part["text"] for part in parts),
        "logprobs": joined(lists) if lists else None,
        "finish_reason": parts[-1]["finish_reason"],
    }
