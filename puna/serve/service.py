"""What the endpoints share: from a request body to the engine, and from the engine to the response.

In:  a body and its prompts as token ids.
Out: the response, as JSON or as server-sent events; the work is cancelled when the client disconnects.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.config import Sampling
from puna.extras import MissingExtra
from puna.generate.engine import Engine
from puna.generate.json_schema import Grammar
from puna.generate.request import Request
from puna.generate.runners.cache import BLOCK
from puna.serve.answers import Answer, ChatCompletion, Completion, Usage
from puna.serve.errors import ServeError
from puna.serve.schemas import Generation, ResponseFormat
from puna.serve.worker import Work, Worker
from puna.tokens.chat_template import encode_special

T = TypeVar("T")


class Service:
    """A model, its name, and the thread that runs it."""

    def __init__(self, engine: Engine, worker: Worker, name: str, max_tokens: int) -> None:
        self.engine, self.worker, self.name = engine, worker, name
        # The keys and values of the last sampled token are never computed.
        self.context = min(engine.context, engine.runner.n_blocks * BLOCK + 1)
        self.max_tokens = min(max_tokens, self.context - 1)
        self.created = int(time.time())
        # Encoding a long text would block the event loop, so one thread does it. Templates have a thread of
        # their own: a template that does not terminate must not block encoding.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._template = ThreadPoolExecutor(1, thread_name_prefix="template")
        self._grammar = ThreadPoolExecutor(1, thread_name_prefix="grammar")  # likewise
        engine.tokenizer.stay_with_reference()  # starting the fast encoder would delay all requests
        with suppress(MissingExtra):  # likewise; a request for JSON names the extra
            _ = engine.grammars

    def require_model(self, name: str | None) -> None:
        """Raise ServeError 404 when another model is named."""
        if name is not None and name != self.name:
            message = f"there is no model {name[:80]!r}; this server has {self.name!r}"
            raise ServeError(404, message, "model_not_found", "model")

    async def encode(self, text: str, bos: bool, parse_special: bool = False) -> list[int]:
        """Encode a text; with `parse_special`, control tokens written in it become those tokens."""
        tokenizer = self.engine.tokenizer
        if not parse_special:
            return await self._run(self._encoder, partial(tokenizer.encode, text, bos=bos), "prompt")
        ids = await self._run(self._encoder, partial(encode_special, tokenizer, text), "prompt")
        # The text may already begin with BOS, from a template.
        return [tokenizer.bos_id, *ids] if bos and ids[:1] != [tokenizer.bos_id] else ids

    async def decode(self, ids: Sequence[int]) -> str:
        """Decode token ids.

        Raises:
            ValueError: when an id is outside the vocabulary.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._encoder, self.engine.tokenizer.decode, ids
        )

    async def _run(self, executor: ThreadPoolExecutor, function: Callable[[], T], param: str) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, function)
        except ValueError as error:
            raise ServeError(400, str(error), "invalid_value", param) from error

    def require_short(self, texts: Iterable[str], param: str) -> None:
        """Reject, without encoding them, texts of more bytes than a context of the longest tokens."""
        most = self.context * self.engine.tokenizer.longest_piece
        size = 0
        for text in texts:
            size += len(text)
            if size * 4 > most:  # only then do the bytes need to be counted
                size += len(text.encode("utf-8", "surrogatepass")) - len(text)
        if size > most:
            raise ServeError(
                400,
                f"the {param} holds {size:,} bytes, but the context holds {self.context} tokens of at most "
                f"{self.engine.tokenizer.longest_piece}; shorten it",
                "context_length_exceeded",
                param,
            )

    async def encode_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Encode a conversation of (role, text), up to where the assistant's message begins."""
        template = self.engine.template
        if template is None:
            raise ServeError(
                400,
                f"{self.name} has no chat template; use /v1/completions",
                "no_chat_template",
                "messages",
            )
        # OpenAI renamed the system role; templates use the old name.
        turns = [
            {"role": "system" if role == "developer" else role, "content": text} for role, text in messages
        ]
        self.require_short((text for _, text in messages), "messages")
        laid_out = await self._run(self._template, partial(template.lay_out, turns), "messages")
        return await self._run(self._encoder, partial(template.ids, *laid_out), "messages")

    async def grammar(self, form: ResponseFormat | None) -> Grammar | None:
        """Compile the schema of a response format; None for text."""
        try:
            schema = form.schema_text if form else None
            if schema is None:
                return None
            grammars = self.engine.grammars
            if known := grammars.known(schema):  # does not wait for the compilation of others
                return known
            return await self._run(self._grammar, partial(grammars.compile, schema), "response_format")
        except ValueError as error:
            raise ServeError(400, str(error), "invalid_value", "response_format") from error
        except MissingExtra as error:
            raise ServeError(400, f"response_format: {error}", "not_installed", "response_format") from error
        except RecursionError:
            message = "response_format: the JSON schema is nested too deeply; simplify it"
            raise ServeError(400, message, "invalid_value", "response_format") from None

    def requests(
        self,
        body: Generation,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: bool = False,
        grammar: Grammar | None = None,
    ) -> list[Request]:
        """The engine's requests, validated: n per prompt.

        Without `max_tokens` an answer may fill the context.

        Raises:
            ServeError: 400, when a prompt and its answer do not fit the context, or an option is invalid.
        """
        seed = secrets.randbits(62) if body.seed is None else body.seed
        requests = []
        for ids in prompts:
            room = self.context - len(ids)
            wanted = min(self.max_tokens, max(1, room)) if max_tokens is None else max_tokens
            if wanted > room:
                raise ServeError(
                    400,
                    f"the prompt has {len(ids)} tokens and max_tokens is {wanted}, but the context holds "
                    f"{self.context}; shorten the prompt or reduce max_tokens",
                    "context_length_exceeded",
                    "messages" if hasattr(body, "messages") else "prompt",
                )
            prompt = tuple(ids)
            for index in range(body.n or 1):
                request = Request(
                    prompt=prompt,
                    sampling=_sampling(body, (seed + index) % 2**63),
                    max_tokens=wanted,
                    stop=body.stops,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                    ignore_eos=bool(body.ignore_eos),
                    presence_penalty=body.presence_penalty or 0.0,
                    frequency_penalty=body.frequency_penalty or 0.0,
                    logit_bias=body.biases,
                    grammar=grammar,
                    lookup=body.lookup or 0,
                )
                if index == 0:  # the others differ only by their seed
                    try:
                        self.engine.check(request)
                    except ValueError as error:
                        raise ServeError(400, str(error), "invalid_value") from error
                requests.append(request)
        return requests


def _sampling(body: Generation, seed: int) -> Sampling:
    """The sampling options, with OpenAI's defaults: the unchanged distribution."""
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        # Dividing logits by less than this overflows; such a distribution is greedy anyway.
        temperature=0.0 if temperature < 1e-4 else temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0: only the most likely token
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        seed=seed,
    )


def new_id(kind: str) -> str:
    """A random id of an answer."""
    return f"{kind}-{secrets.token_hex(12)}"


def usage(work: Work, n: int, generated: int) -> Usage:
    """Token counts of an answer; a prompt counts once for its n answers."""
    prompt = sum(len(job.request.prompt) for job in work.jobs[::n])
    return Usage(prompt_tokens=prompt, completion_tokens=generated, total_tokens=prompt + generated)


# ---- whole answers ------------------------------------------------------------------------------


async def collect(http: HttpRequest, work: Work, collecting: Coroutine[Any, Any, None]) -> bool:
    """Wait until an answer is collected. False when the client disconnected first; its work is cancelled."""
    return await _unless_disconnected(http.receive, work, collecting)


async def _unless_disconnected(receive: Receive, work: Work, doing: Coroutine[Any, Any, None]) -> bool:
    """Run until done or the client disconnects; in both cases the engine is left without this work."""
    done, disconnect = asyncio.create_task(doing), asyncio.create_task(_until_disconnected(receive))
    try:
        await asyncio.wait({done, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()
            return True
        return False
    finally:
        work.cancel()
        done.cancel()
        disconnect.cancel()


async def _until_disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def json_response(answer: Answer) -> Response:
    """An answer as JSON."""
    return Response(answer.to_json(), media_type="application/json")


async def json_response_by_choice(answer: Completion | ChatCompletion) -> Response:
    """An answer as JSON, written choice by choice in a thread, so that a long one does not block the loop."""

    def text() -> str:
        head = answer.model_dump_json(exclude={"choices"}).removesuffix("}")
        return f'{head},"choices":[{",".join(choice.to_json() for choice in answer.choices)}]}}'

    return Response(await asyncio.to_thread(text), media_type="application/json")


# ---- streams ------------------------------------------------------------------------------------


class EventStream(Response):
    """Server-sent events: `data: {…}` each, then `data: [DONE]`; errors are events too.

    The work is cancelled when the client disconnects or the stream ends for any reason.
    """

    media_type = "text/event-stream"

    def __init__(self, work: Work, events: AsyncIterator[Answer]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work, self._events = work, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the end, or until the client disconnects."""
        await _unless_disconnected(receive, self._work, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(text: str, more: bool = True) -> None:
            await send(
                {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": more}
            )

        try:
            async for event in self._events:
                await write(event.to_json())
                await asyncio.sleep(
                    0
                )  # let the event loop notice a disconnected client before the next write
        except ServeError as error:
            await write(error.answer().to_json())
        await write("[DONE]", more=False)
