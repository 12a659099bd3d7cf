"""What the endpoints share: a request's way to the engine, and its answer's way back.

In:  a body and its prompts as ids.
Out: the work that answers it, whole or as server-sent events; cancelled when the client goes away.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from puna.config import Sampling
from puna.generate.engine import Engine
from puna.generate.request import Request
from puna.generate.runners.cache import BLOCK
from puna.serve.errors import ServeError
from puna.serve.schemas import Generation
from puna.serve.worker import Work, Worker
from puna.tokens.chat_template import encode_special

T = TypeVar("T")
CLIENT_GONE = 499  # nobody reads it; the metrics count it


class Service:
    """A model, its name, and the thread that runs it."""

    def __init__(self, engine: Engine, worker: Worker, name: str, max_tokens: int) -> None:
        self.engine, self.worker, self.name = engine, worker, name
        # The last token drawn needs no place in the cache.
        self.context = min(engine.context, engine.runner.n_blocks * BLOCK + 1)
        self.max_tokens = min(max_tokens, self.context - 1)
        self.created = int(time.time())
        # Encoding a long text takes long enough to be felt, so it has a thread, and always the same one. A
        # template has another: one that does not end shall not keep texts from being encoded.
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._template = ThreadPoolExecutor(1, thread_name_prefix="template")
        engine.tokenizer.stay_with_reference()  # the start of the fast encoder would be felt by all

    def require_model(self, name: str | None) -> None:
        """Refuse the name of a model that is not this one."""
        if name is not None and name != self.name:
            message = f"there is no model {name[:80]!r}; this server has {self.name!r}"
            raise ServeError(404, message, "model_not_found", "model")

    async def encode(self, text: str, bos: bool, parse_special: bool = False) -> list[int]:
        """The ids of a text; with `parse_special` the control tokens written in it are those tokens."""
        tokenizer = self.engine.tokenizer
        if not parse_special:
            return await self._run(self._encoder, partial(tokenizer.encode, text, bos=bos), "prompt")
        ids = await self._run(self._encoder, partial(encode_special, tokenizer, text), "prompt")
        # A template has put BOS there already.
        return [tokenizer.bos_id, *ids] if bos and ids[:1] != [tokenizer.bos_id] else ids

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of ids.

        Raises:
            ValueError: an id outside the vocabulary.
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
        """Refuse unencoded what has more bytes than a context of the longest pieces."""
        most = self.context * self.engine.tokenizer.longest_piece
        size = 0
        for text in texts:
            size += len(text)
            if size * 4 > most:  # only then its bytes have to be counted
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
        """The ids of a conversation, (role, text) each, up to where the assistant answers."""
        template = self.engine.template
        if template is None:
            raise ServeError(
                400,
                f"{self.name} has no chat template, it continues texts; use /v1/completions",
                "no_chat_template",
                "messages",
            )
        # OpenAI renamed the role; templates know the old name.
        turns = [
            {"role": "system" if role == "developer" else role, "content": text} for role, text in messages
        ]
        self.require_short((text for _, text in messages), "messages")
        laid_out = await self._run(self._template, partial(template.lay_out, turns), "messages")
        return await self._run(self._encoder, partial(template.ids, *laid_out), "messages")

    def requests(
        self,
        body: Generation,
        prompts: Sequence[Sequence[int]],
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: bool = False,
    ) -> list[Request]:
        """The engine's requests, checked: n answers to each prompt.

        `max_tokens` is what there is room for when it is None.

        Raises:
            ServeError: 400, when a prompt with its answer does not fit, or an option cannot be.
        """
        if max_tokens is not None and max_tokens > self.max_tokens:
            message = f"max_tokens is {max_tokens}; this server gives at most {self.max_tokens}"
            raise ServeError(400, message, "invalid_value", "max_tokens")
        seed = secrets.randbits(62) if body.seed is None else body.seed
        requests = []
        for ids in prompts:
            room = self.context - len(ids)
            wanted = min(self.max_tokens, max(1, room)) if max_tokens is None else max_tokens
            if wanted > room:
                raise ServeError(
                    400,
                    f"the prompt has {len(ids)} tokens and {wanted} are asked for, but the context holds "
                    f"{self.context}; shorten the prompt or ask for fewer",
                    "context_length_exceeded",
                    "messages" if hasattr(body, "messages") else "prompt",
                )
            self._require_known(ids)
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
                    lookup=body.lookup or 0,
                )
                if index == 0:  # the others differ by their seed alone
                    try:
                        self.engine.check(request)
                    except ValueError as error:
                        raise ServeError(400, str(error), "invalid_value") from error
                requests.append(request)
        return requests

    def _require_known(self, ids: Sequence[int]) -> None:
        size = self.engine.tokenizer.vocab_size
        if ids and max(ids) >= size:
            message = f"token id {max(ids)} is not in a vocabulary of {size} pieces"
            raise ServeError(400, message, "invalid_value", "prompt")


def _sampling(body: Generation, seed: int) -> Sampling:
    """OpenAI's defaults: the model's own distribution."""
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        # Below this a division by it leaves the numbers' range; the likeliest token has long taken all.
        temperature=0.0 if temperature < 1e-4 else temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0: the likeliest alone
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        seed=seed,
    )


def new_id(kind: str) -> str:
    """The name of an answer."""
    return f"{kind}-{secrets.token_hex(12)}"


def usage(work: Work, n: int, generated: int) -> dict[str, int]:
    """The tokens of an answer; a prompt counts once, however many answers it has."""
    prompt = sum(len(job.request.prompt) for job in work.jobs[::n])
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


# ---- whole answers ------------------------------------------------------------------------------


async def whole(http: HttpRequest, work: Work, collecting: Coroutine[Any, Any, None]) -> bool:
    """Wait for an answer to be collected. False when the client went away first, and all was cancelled."""
    return await _unless_gone(http.receive, work, collecting)


async def _unless_gone(receive: Receive, work: Work, doing: Coroutine[Any, Any, None]) -> bool:
    """Do something until it is done or the client is gone; whatever happens, nothing stays in the engine."""
    done, leaving = asyncio.create_task(doing), asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({done, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            done.result()
            return True
        return False
    finally:
        work.cancel()
        done.cancel()
        leaving.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def answer(body: dict[str, Any]) -> Response:
    """A whole answer, as JSON."""
    return Response(_json(body), media_type="application/json")


async def answer_choices(head: dict[str, Any], choices: Sequence[dict[str, Any]]) -> Response:
    """A whole answer with choices, which may be long: each becomes JSON apart, while others are served."""

    def text() -> str:
        rest = _json(head).removesuffix("}")
        return f'{rest}, "choices": [{", ".join(map(_json, choices))}]}}'

    return Response(await asyncio.to_thread(text), media_type="application/json")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# ---- streams ------------------------------------------------------------------------------------


class EventStream(Response):
    """Server-sent events: `data: {…}` for each, `data: [DONE]` at the end; an error is an event too.

    The work is cancelled when the client goes away, or the answer ends in whatever way.
    """

    media_type = "text/event-stream"

    def __init__(self, work: Work, events: AsyncIterator[dict[str, Any]]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._work, self._events = work, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _unless_gone(receive, self._work, self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})

        async def write(text: str, more: bool = True) -> None:
            await send(
                {"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": more}
            )

        try:
            async for event in self._events:
                await write(_json(event))
                await asyncio.sleep(0)  # let the loop see that the client has left, before the next write
        except ServeError as error:
            await write(json.dumps(error.body()))
        await write("[DONE]", more=False)
