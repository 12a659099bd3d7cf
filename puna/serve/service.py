"""What the endpoints share: from a request body to the engine's requests.

In:  a body, its texts or its conversation.
Out: token ids, and the engine's requests, within the limits of the server.
"""

import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from puna.config import Sampling
from puna.extras import MissingExtra
from puna.generate.engine import Engine
from puna.generate.json_schema import Grammar
from puna.generate.request import Request
from puna.generate.runners.cache import BLOCK
from puna.serve.answers import ModelCard
from puna.serve.errors import ServeError
from puna.serve.schemas import Generation, ResponseFormat
from puna.serve.worker import Worker
from puna.tokens.chat_template import encode_special

T = TypeVar("T")
MAX_LOGPROBS = 2_000_000  # of one request: 400 MB until they are sent


class Service:
    """A model, its name, and the thread that runs it."""

    def __init__(self, engine: Engine, worker: Worker, name: str, max_tokens: int) -> None:
        self.engine, self.worker, self.name = engine, worker, name
        # The keys and values of the last sampled token are never computed.
        self.context = min(engine.context, engine.runner.n_blocks * BLOCK + 1)
        self.max_tokens = min(max_tokens, self.context - 1)
        self.created = int(time.time())
        # Encoding a long text would block the event loop, so one thread does it. Templates and schemas have
        # threads of their own: one that does not terminate must not block encoding.
        self._encoder, self._template, self._grammar = (
            ThreadPoolExecutor(1, name, _give_way) for name in ("encoder", "template", "grammar")
        )
        engine.tokenizer.stay_with_reference()  # starting the fast encoder would delay all requests
        with suppress(MissingExtra):  # likewise; a request for JSON names the extra
            _ = engine.grammars

    def require_model(self, name: str | None) -> None:
        """Raise ServeError 404 when another model is named."""
        if name is not None and name != self.name:
            message = f"there is no model {name[:80]!r}; this server has {self.name!r}"
            raise ServeError(404, message, "model_not_found", "model")

    def card(self) -> ModelCard:
        """The served model, its limits, and whether it has a chat template."""
        return ModelCard(
            id=self.name,
            object="model",
            created=self.created,
            owned_by="puna",
            context=self.context,
            max_tokens=self.max_tokens,
            chat=self.engine.template is not None,
        )

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

    def add_requests(
        self,
        requests: list[Request],
        body: Generation,
        ids: Sequence[int],
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: bool = False,
        grammar: Grammar | None = None,
    ) -> None:
        """Add the engine's requests for one prompt, n of them, validated.

        Without `max_tokens` an answer may fill the context.

        Raises:
            ServeError: 400, when a prompt and its answer do not fit the context, or an option is invalid.
        """
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
        first = Request(
            prompt=tuple(ids),
            sampling=_sampling(body),
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
        try:
            self.engine.check(first)
        except ValueError as error:
            raise ServeError(400, str(error), "invalid_value") from error
        for index in range(body.n or 1):
            seed = (first.sampling.seed + index) % 2**63
            requests.append(replace(first, sampling=replace(first.sampling, seed=seed)))
        if sum(request.n_logprobs for request in requests) > MAX_LOGPROBS:
            raise ServeError(
                400,
                f"the answers may hold more than {MAX_LOGPROBS:,} log-probabilities, counting "
                "alternatives; split the request, or reduce logprobs or max_tokens",
                "too_many_logprobs",
                "logprobs",
            )


def _give_way() -> None:
    """Let the engine's threads have the cores: each of them waits for the slowest at every product."""
    if sys.platform == "linux":  # elsewhere a process has one priority
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)


def _sampling(body: Generation) -> Sampling:
    """The sampling options, with OpenAI's defaults: the unchanged distribution."""
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        # Dividing logits by less than this overflows; such a distribution is greedy anyway.
        temperature=0.0 if temperature < 1e-4 else temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else max(body.top_p, 1e-9),  # 0: only the most likely token
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        seed=secrets.randbits(62) if body.seed is None else body.seed % 2**63,
    )
