"""Fast encoding gives SentencePiece's ids or steps aside. SentencePiece is the oracle."""

import random
import sys

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from puna.tokens import fast, tokenizer
from puna.tokens.fast import FastEncoder, hard_sample, load_fast
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.vocabularies.sentencepiece import PieceModel
from tests.tokens.published import mistral_model

HARD = [
    *" \t\n\r\0▅\u3000\u2028\ufeff\u200d019٣é\u0301日🦙\U0010ffff</>\x7f\x80\ufffd\ufffe\ue000",
    *("<s>", "</s>", "<unk>", "<0x0A>", "<0xE2>", "  ", "    ", "\n\n", "▁", " ▁"),
]


def fuzz(model, count, seed):
    """Texts of random Unicode, of what encoders get wrong, and of the vocabulary's own pieces."""
    draw = random.Random(seed)
    pieces = [model.id_to_piece(id).replace("▁", " ") for id in range(model.vocab_size())]
    letters = [piece for piece in pieces if len(piece) == 1]

    def character():
        code = draw.randrange(draw.choice([0x80, 0x800, 0x10000, 0x110000]))
        return "�" if 0xD800 <= code < 0xE000 else chr(code)

    def repeated():
        return "".join(draw.choices(draw.choices(letters, k=2), k=20))

    kinds = [character, lambda: draw.choice(HARD), lambda: draw.choice(pieces), repeated]
    for _ in range(count):
        chosen = draw.choice([[kind] for kind in kinds] + [kinds])
        yield "".join(draw.choice(chosen)() for _ in range(draw.choice([0, 1, 2, 3, 5, 10, 40, 200])))


def assert_same_ids(path, texts, threads=1):
    quick, slow = Tokenizer(path, fast=True), Tokenizer(path, fast=False)
    assert quick.is_fast and not slow.is_fast
    texts = list(texts)
    for text, ours, right in zip(
        texts, quick.encode_arrays(texts, threads), slow.encode_arrays(texts), strict=True
    ):
        assert ours.tolist() == right.tolist(), repr(text)


@pytest.fixture(scope="module")
def quick(small_tokenizer):
    return Tokenizer(small_tokenizer.path, fast=True)


@pytest.fixture(scope="module")
def oracle(small_tokenizer):
    return sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer.path))


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    path = tmp_path_factory.mktemp("mistral") / "tokenizer.model"
    path.write_bytes(mistral_model())
    return path


@given(text=st.one_of(st.text(), st.lists(st.sampled_from(HARD)).map("".join)).filter(lambda t: "▁" not in t))
@example("<s> </s> <unk> <0x0A>")
@example(" " * 1000 + "llama")
def test_fast_ids_are_those_of_sentencepiece(quick, oracle, text):
    assert quick.is_fast
    assert quick.encode(text) == oracle.encode(text)


@pytest.mark.parametrize("threads", [1, 2])
def test_fuzzed_texts_get_the_same_ids_fast_and_slow(small_tokenizer, oracle, threads):
    assert_same_ids(small_tokenizer.path, fuzz(oracle, 3000, seed=threads), threads)


@pytest.mark.parametrize("unit", ["a", " ", "ab", "\n", "é", "日", "grass", "=", "1"])
def test_a_very_long_word_gets_the_same_ids(quick, oracle, unit):
    text = unit * (100_000 // len(unit))
    assert quick.encode(text) == oracle.encode(text)


@pytest.mark.network
def test_a_real_vocabulary_of_32000_pieces_gets_the_same_ids_fast_and_slow(mistral):
    model = sentencepiece.SentencePieceProcessor(model_file=str(mistral))
    assert model.vocab_size() == 32_000
    for seed in range(3):
        assert_same_ids(mistral, fuzz(model, 10_000, seed))


@pytest.mark.network
def test_a_real_vocabulary_encodes_a_literal_space_mark_and_control_tokens_as_text(mistral):
    quick = Tokenizer(mistral, fast=True)
    for text in ("<s>", "</s>▁", "a▁b", "<0x0A>\n"):
        assert not {0, 1, 2} & set(quick.encode(text))
        assert quick.decode(quick.encode(text)) == text


def test_the_fast_encoder_starts_once_there_is_enough_text(make, small_tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "FAST_FROM", 10_000)
    begun = Tokenizer(small_tokenizer.path)
    texts = [make.prose(seed, 100) for seed in range(100)]
    encoded = [begun.encode(text) for text in texts]
    assert begun.is_fast
    assert encoded == [small_tokenizer.encode(text) for text in texts]
    assert not Tokenizer(small_tokenizer.path).is_fast


def test_its_memory_is_bounded_by_beginning_anew(make, small_tokenizer, monkeypatch):
    monkeypatch.setattr(fast, "RENEW_CHARACTERS", 2000)
    quick = FastEncoder(PieceModel(small_tokenizer.path.read_bytes()))
    texts = [make.prose(seed, 40) for seed in range(100)]
    renewed = 0
    for text in texts:
        before = quick.characters
        assert quick.encode([text], 1)[0].tolist() == small_tokenizer.encode(text)
        renewed += quick.characters < before
        assert quick.characters < 2000 + max(map(len, texts)) + sum(map(len, hard_sample([])))
    assert sum(map(len, texts)) > 10_000 and renewed > 1


# ---- when it steps aside -----------------------------------------------------------------------


class Wrong(PieceModel):
    """A reference that merges in another order than its own vocabulary says."""

    def encode(self, texts, threads):
        return [ids[::-1] for ids in super().encode(texts, threads)]


def test_an_encoder_of_other_ids_is_refused_in_one_line(small_tokenizer, caplog):
    assert load_fast(Wrong(small_tokenizer.path.read_bytes())) is None
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("falling back to the reference encoder (slower): ")
    assert caplog.messages[0].endswith("differently")


def test_without_gigatoken_the_reference_encodes_and_one_line_says_so(small_tokenizer, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "gigatoken.gigatoken_rs", None)
    slow = Tokenizer(small_tokenizer.path, fast=True)
    assert not slow.is_fast
    assert caplog.messages == [
        "falling back to the reference encoder (slower): gigatoken is not installed (pip install gigatoken)"
    ]
    assert slow.encode("grass 12") == small_tokenizer.encode("grass 12")


def test_a_vocabulary_that_gigatoken_cannot_do_is_refused_in_one_line(small_tokenizer, caplog):
    model = PieceModel(small_tokenizer.path.read_bytes())
    model.definition = lambda: {**PieceModel.definition(model), "pre_tokenizer": {"type": "Unheard"}}
    assert load_fast(model) is None
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]


def test_the_hard_sample_tries_where_the_vocabularys_own_pieces_overlap():
    table = [b"", b"a", b"ab", b"ba", b"aba", b"llama", b"l"]
    own = set(hard_sample(table)) - set(hard_sample([]))
    assert "ababa" in own  # ab|a|ba: "aba" from the left, and from the right
    assert not any("llama" in text for text in own)
