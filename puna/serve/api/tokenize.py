"""POST /tokenize, POST /detokenize, GET /tokenizer_info: text to token ids and back.

In:  a text, or token ids.
Out: the ids, the text; what a client that tokenizes locally needs to know.
"""

from starlette.responses import Response

from puna.serve.answers import Answer, Detokenized, Tokenized, TokenizerInfo
from puna.serve.errors import ServeError
from puna.serve.schemas import DetokenizeRequest, TokenizeRequest
from puna.serve.service import Service


async def encode_text(service: Service, body: TokenizeRequest) -> Response:
    """The token ids of a text."""
    service.require_model(body.model)
    tokenizer = service.engine.tokenizer
    special = dict(_special(service).values())
    if body.prompt in special:
        ids = [special[body.prompt]]
    else:
        parse = bool(service.engine.template) if body.parse_special is None else body.parse_special
        ids = await service.encode(body.prompt, body.add_special_tokens and tokenizer.adds_bos, parse)
    return _response(Tokenized(tokens=ids, count=len(ids), max_model_len=service.context))


async def decode_ids(service: Service, body: DetokenizeRequest) -> Response:
    """The text of token ids."""
    service.require_model(body.model)
    try:
        return _response(Detokenized(prompt=await service.decode(body.tokens)))
    except ValueError as error:
        raise ServeError(400, str(error), "invalid_value", "tokens") from error


def _response(answer: Answer) -> Response:
    """A long answer, without the framework's own way, which takes a second for a million ids."""
    return Response(answer.to_json(), media_type="application/json")


def describe_tokenizer(service: Service) -> TokenizerInfo:
    """What a client that tokenizes locally needs to know."""
    special = _special(service)
    template = service.engine.template
    return TokenizerInfo(
        tokenizer_class="puna",
        bos_token=special["bos_token"][0],
        eos_token=special["eos_token"][0],
        chat_template=template.source if template else None,
    )


def _special(service: Service) -> dict[str, tuple[str, int]]:
    """The text and the id of the tokens that separate documents."""
    tokenizer = service.engine.tokenizer
    ids = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id}
    return {name: (tokenizer.control_text(id), id) for name, id in ids.items()}
