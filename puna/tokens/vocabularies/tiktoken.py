"""tiktoken's files: Llama 3's tokenizer.model, as Meta gives it.

In:  a file of lines: a token's bytes in base64, and its rank.
Out: a HubModel of the same ids.

The file says neither how text is cut into words nor which control tokens follow the others; Meta's code does,
and they are the same in all of Llama 3: 256 of them, named here as in 3.1, whose ids are those of 3.0.
"""

import base64
from pathlib import Path

from puna.tokens.vocabularies.gguf import byte_level_model
from puna.tokens.vocabularies.tokenizer_json import HubModel, characters_of_bytes

_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
_CONTROLS = 256


def read_tiktoken(file: Path) -> HubModel:
    """The vocabulary of a tiktoken file.

    Raises:
        ValueError: saying what is wrong, after the file's name.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().splitlines(), 1):
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise ValueError(f"is damaged in line {number}; fetch it again") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError("does not rank its tokens from 0 on; fetch it again")
    characters = characters_of_bytes()
    texts = {token: "".join(characters[byte] for byte in token) for token in ranks}
    # Any two tokens that join to a third are a merge of the third's rank; of several, the longer left first.
    merges = [
        (rank, ranks[token[:cut]], ranks[token[cut:]], f"{texts[token[:cut]]} {texts[token[cut:]]}")
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    merges.sort()
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(3, 3 + _CONTROLS - len(_NAMED))]
    controls = [*_NAMED, *reserved]
    tokens = [texts[token] for token in sorted(ranks, key=ranks.__getitem__)]
    return byte_level_model(
        tokens=tokens + controls,
        kinds=[1] * len(tokens) + [3] * len(controls),
        merges=[merge for *_, merge in merges],
        pre="llama-bpe",
        bos_id=len(tokens),
        eos_id=len(tokens) + 1,
    )
