"""A byte-pair encoding in the form of a tokenizer.json, which the libraries of that format read.

In:  a vocabulary, merges, and how text is prepared.
Out: {"version": "1.0", …, "model": {"type": "BPE", "vocab": {…}, "merges": [["a", "b"], …]}}
"""

from collections.abc import Mapping, Sequence
from typing import Any


def added_token(id: int, content: str, special: bool) -> dict[str, Any]:
    """A token that is one piece wherever its text occurs; a special one adds nothing to a text."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": special}


def definition(
    vocab: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    added: Sequence[Mapping[str, Any]],
    *,
    normalizer: Mapping[str, Any] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
    decoder: Mapping[str, Any] | None = None,
    unknown: str | None = None,
    whole_words: bool = False,
) -> dict[str, Any]:
    """The tokenizer.json. The order of its keys is a part of a vocabulary's fingerprint.

    Args:
        vocab: the ids of pieces.
        merges: pairs of pieces that are joined, the first pair first.
        added: see `added_token`.
        normalizer: how text is changed before it is cut into words.
        pre_tokenizer: how text is cut into words.
        decoder: how pieces become text.
        unknown: the piece for what has none, which is spelled in bytes (SentencePiece); None: byte-level.
        whole_words: whether a word that is a piece is taken whole, before any merge.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": unknown is not None,
            "byte_fallback": unknown is not None,
            "ignore_merges": whole_words,
            "vocab": vocab,
            "merges": merges,
        },
    }
