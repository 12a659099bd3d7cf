"""GET /v1/models, GET /v1/models/{model}: the served model."""

from puna.serve.answers import ModelCard, ModelList
from puna.serve.service import Service


def model_card(service: Service) -> ModelCard:
    """The served model, its limits, and whether it has a chat template."""
    return ModelCard(
        id=service.name,
        object="model",
        created=service.created,
        owned_by="puna",
        context=service.context,
        max_tokens=service.max_tokens,
        chat=service.engine.template is not None,
    )


def model_list(service: Service) -> ModelList:
    """The served model, as a list."""
    return ModelList(object="list", data=[model_card(service)])
