"""POST /v1/completions: continuations of texts or token ids.

In:  one prompt or several, n answers per prompt; `echo` returns the prompt too, and with `logprobs` its
     log-probabilities, which is what evaluation harnesses ask for.
Out: choices in the order of the prompts, whole or as events.
"""

import asyncio
from collections.abc import Sequence

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puna.generate.request import Chunk, Request, Token
from puna.serve.answers import Completion, CompletionChoice, CompletionChunk, CompletionLogprobs
from puna.serve.logprobs import LogprobLists
from puna.serve.respond import Form, respond
from puna.serve.schemas import CompletionRequest
from puna.serve.service import Service

DEFAULT_MAX_TOKENS = 16  # OpenAI's
FORM = Form("cmpl", CompletionChunk, "text_completion", Completion, "text_completion")


class _Choice:
    """One answer in progress: chunks of the engine in, chunks of the answer out."""

    def __init__(
        self, service: Service, body: CompletionRequest, index: int, ids: Sequence[int], text: str
    ) -> None:
        self.index, self._text = index, text
        self._echo = bool(body.echo)
        # A BOS that the server prepended is not echoed.
        is_text = isinstance(body.prompts[index // (body.n or 1)], str)
        self._hidden = int(is_text and service.engine.tokenizer.adds_bos)
        self._logprobs = None
        if body.logprobs is not None:
            tokenizer = service.engine.tokenizer
            before = ids[: self._hidden] if self._echo else ids
            decoder = tokenizer.stream_decoder(before)
            self._logprobs = LogprobLists(decoder.push, tokenizer.piece)
        self._begun = False

    def push(self, chunk: Chunk) -> CompletionChoice | None:
        """The chunk as a part of the answer; None when it adds nothing yet."""
        text, tokens = chunk.text, chunk.tokens
        shown: tuple[Token, ...] = tokens
        if self._echo and not self._begun:
            text, shown = self._text + text, chunk.prompt[self._hidden :] + tokens
        if self._echo and chunk.end:  # evaluation harnesses drop one generated token, which must be there
            shown += (chunk.end,)
        self._begun = True
        if not (text or chunk.finish or (self._logprobs and shown)):
            return None
        logprobs = self._logprobs.push(shown) if self._logprobs else None
        return CompletionChoice(index=self.index, text=text, logprobs=logprobs, finish_reason=chunk.finish)


async def complete(service: Service, http: HttpRequest, body: CompletionRequest) -> Response:
    """Answer one request."""
    service.require_model(body.model)
    service.worker.require_room(len(body.prompts) * (body.n or 1))
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    prompt_logprobs = bool(body.echo) and (body.logprobs is not None or max_tokens == 0)
    requests: list[Request] = []
    texts = []
    for prompt in body.prompts:  # one by one: others are answered meanwhile, and the first error ends it
        await asyncio.sleep(0)
        if isinstance(prompt, str):
            service.require_short([prompt], "prompt")
            bos = service.engine.tokenizer.adds_bos
            ids, text = await service.encode(prompt, bos, bool(body.parse_special)), prompt
        else:
            ids, text = prompt, ""
        service.add_requests(requests, body, ids, max_tokens, body.logprobs, prompt_logprobs)
        if body.echo and not text:
            text = await service.decode(ids)
        texts.append(text)
    choices = [
        _Choice(service, body, index, request.prompt, texts[index // (body.n or 1)])
        for index, request in enumerate(requests)
    ]

    def part(index: int, chunk: Chunk) -> CompletionChoice | None:
        return choices[index].push(chunk)

    work = service.worker.submit(requests)
    return await respond(service, http, body, work, part, _join, FORM)


def _join(parts: Sequence[CompletionChoice]) -> CompletionChoice:
    """The parts of one choice as a whole choice."""
    lists = [part.logprobs for part in parts if part.logprobs is not None]
    names = CompletionLogprobs.model_fields if lists else ()
    joined = {name: [value for one in lists for value in getattr(one, name)] for name in names}
    return CompletionChoice(
        index=parts[0].index,
        text="".join(part.text for part in parts),
        logprobs=CompletionLogprobs(**joined) if lists else None,
        finish_reason=parts[-1].finish_reason,
    )
