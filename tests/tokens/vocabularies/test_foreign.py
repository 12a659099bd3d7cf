"""Vocabularies of other formats give their own libraries' ids; llama.cpp's vectors are the last oracle."""

import io
import json
import struct

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from puna.added_tokens import added_tokens
from puna.gguf import read_header
from puna.tokens.mixture import Mixture
from puna.tokens.shards import write_shards
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.vocabularies.sentencepiece import PieceModel
from tests.tokens.published import llama_cpp_vocabularies

TEXTS = st.one_of(st.text(), st.text(st.sampled_from(list(" \t\n\r\0▅\u3000019٣é\u0301日🦙<s>/ae'"))))
SPECIAL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def special_tokens(**ids):
    return [{"id": id, "content": content, **SPECIAL} for content, id in ids.items()]


@pytest.fixture(scope="module")
def llama_json(small_tokenizer, tmp_path_factory):
    """The small tokenizer as the hub has LLaMA's: BPE with byte fallback, control tokens added."""
    definition = PieceModel(small_tokenizer.path.read_bytes()).definition()
    definition["added_tokens"] = special_tokens(**{"<unk>": 0, "<s>": 1, "</s>": 2})
    return write_json(tmp_path_factory.mktemp("llama") / "tokenizer.json", definition)


@pytest.fixture(scope="module")
def byte_level(make, tmp_path_factory):
    """A byte-level BPE by the library of the format, with two special tokens."""
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(
        [make.prose(seed, 400) for seed in range(20)], vocab_size=600, show_progress=False
    )
    definition = json.loads(trained.to_str())
    definition["added_tokens"] = special_tokens(**{"<|begin|>": 600, "<|end|>": 601})
    path = write_json(tmp_path_factory.mktemp("bytes") / "tokenizer.json", definition)
    write_json(
        path.parent / "tokenizer_config.json",
        {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}},
    )
    return path


# ---- SentencePiece -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_meta_trained(make, tmp_path_factory):
    """A tokenizer.model with the flags of LLaMA's: unlike ours, with its own surface of <unk>."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make.prose(1, 20_000).split("\n")),
        model_writer=model,
        model_type="bpe",
        vocab_size=500,
        split_digits=True,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        unk_surface=" \u2047 ",
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("meta") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


def test_a_tokenizer_model_as_meta_trains_them_loads_and_is_exact(as_meta_trained):
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(as_meta_trained))
    for fast in (False, True):
        loaded = Tokenizer(as_meta_trained, fast)
        assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (1, 2, 500)
        for text in ("the llama 1984", "  two\n\tspaces ", "日本 🦙"):
            assert loaded.encode(text) == oracle.encode(text)
            assert loaded.decode(loaded.encode(text)) == text


# ---- tokenizer.json ----------------------------------------------------------------------------


@given(text=TEXTS)
def test_a_llama_tokenizer_json_gives_the_ids_of_the_sentencepiece_model(llama_json, small_tokenizer, text):
    loaded = loaded_once(llama_json)
    assert loaded.encode(text) == small_tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


@given(text=TEXTS)
def test_a_byte_level_tokenizer_json_gives_the_ids_of_its_library_and_round_trips(byte_level, text):
    loaded = loaded_once(byte_level)
    library = library_once(byte_level)
    # The library takes special tokens out of the text, which for us is only text.
    if "<|" not in text:
        assert loaded.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert loaded.decode(loaded.encode(text)) == text


_loaded: dict = {}


def loaded_once(path):
    return _loaded.setdefault(path, Tokenizer(path, fast=False))


def library_once(path):
    return _loaded.setdefault(("library", path), tokenizers.Tokenizer.from_file(str(path)))


def test_the_separators_are_those_of_the_neighbouring_config(byte_level, llama_json):
    assert (Tokenizer(byte_level).bos_id, Tokenizer(byte_level).eos_id) == (600, 601)
    assert Tokenizer(byte_level.parent).vocab_size == 602
    assert (Tokenizer(llama_json).bos_id, Tokenizer(llama_json).eos_id) == (1, 2)


@pytest.mark.parametrize("text", ["<|begin|>", "a <|end|>", "<|end|><|end|>"])
def test_a_literal_special_token_stays_text(byte_level, text):
    loaded = Tokenizer(byte_level)
    ids = loaded.encode(text, bos=True, eos=True)
    assert (ids[0], ids[-1]) == (600, 601) and not {600, 601} & set(ids[1:-1])
    assert loaded.decode(ids) == text


def test_an_added_token_that_is_not_special_is_one_token_of_the_text(byte_level, tmp_path):
    definition = json.loads(byte_level.read_text())
    # After a special one, so that its id is not the next one free.
    definition["added_tokens"].append({**SPECIAL, "id": 602, "content": "<tab>", "special": False})
    path = write_json(tmp_path / "tokenizer.json", definition)
    (tmp_path / "tokenizer_config.json").write_bytes(
        (byte_level.parent / "tokenizer_config.json").read_bytes()
    )
    loaded = Tokenizer(path)
    assert 602 in loaded.encode("a<tab>b")
    assert loaded.decode(loaded.encode("a<tab>b")) == "a<tab>b"


@pytest.mark.parametrize("which", ["llama_json", "byte_level"])
def test_a_tokenizer_json_gives_the_same_ids_when_asked_to_be_fast(which, make, request):
    path = request.getfixturevalue(which)
    quick = Tokenizer(path, fast=True)
    # gigatoken 0.10 takes U+32467, which is no character, for a letter: where words are cut, that matters.
    assert quick.is_fast == (which == "llama_json")
    texts = [make.prose(seed, 60) for seed in range(30)] + ["<|end|>", "<s>", "🦙\0  '\n\n", "\U00032467't"]
    slow = Tokenizer(path, fast=False)
    assert [ids.tolist() for ids in quick.encode_arrays(texts)] == [slow.encode(text) for text in texts]


@pytest.mark.parametrize("which", ["llama_json", "byte_level", "gguf_pieces", "gguf_bytes"])
def test_a_saved_vocabulary_is_whole_and_keeps_its_fingerprint(which, request, tmp_path):
    first = Tokenizer(request.getfixturevalue(which))
    first.save(tmp_path / "tokenizer.model")
    again = Tokenizer(tmp_path)
    assert again.fingerprint == first.fingerprint
    assert (again.bos_id, again.eos_id, again.vocab_size) == (first.bos_id, first.eos_id, first.vocab_size)
    assert again.encode("  grass 12 🦙") == first.encode("  grass 12 🦙")


def test_shards_can_be_made_with_a_foreign_vocabulary(make, byte_level, tmp_path):
    docs = make.documents(tmp_path / "docs", "books", [make.prose(seed, 50) for seed in range(9)])
    manifest = write_shards([docs], byte_level, tmp_path / "out", workers=1)
    copied = Tokenizer(tmp_path / "out")
    assert manifest.inputs[-1].fingerprint == copied.fingerprint == Tokenizer(byte_level).fingerprint


def test_a_vocabulary_of_65536_pieces_or_more_makes_shards_of_32_bits_that_train(make, byte_level, tmp_path):
    definition = json.loads(byte_level.read_text())
    definition["added_tokens"] = special_tokens(**{"<|begin|>": 70_000, "<|end|>": 70_001})
    path = write_json(tmp_path / "tokenizer.json", definition)
    (tmp_path / "tokenizer_config.json").write_bytes(
        (byte_level.parent / "tokenizer_config.json").read_bytes()
    )
    docs = make.documents(tmp_path / "docs", "books", ["one llama", "two llamas"])
    manifest = write_shards([docs], path, tmp_path / "out", workers=1)
    assert (manifest.details["dtype"], manifest.details["vocab_size"]) == ("uint32", 70_002)
    batch = Mixture([tmp_path / "out"], {}, seed=1, context=64, batch_sequences=1).batch(0)
    assert batch.inputs[0, 0] == 70_000 and 70_001 in batch.targets


# ---- GGUF --------------------------------------------------------------------------------------


def write_gguf(path, **fields):
    """A GGUF file of `tokenizer.ggml.` fields and no weights; lists are arrays of what they hold."""

    def string(text):
        data = text.encode()
        return struct.pack("<Q", len(data)) + data

    def kind_and_data(value):
        if isinstance(value, str):
            return 8, string(value)
        return (6, struct.pack("<f", value)) if isinstance(value, float) else (4, struct.pack("<I", value))

    body = b""
    for key, value in fields.items():
        body += string(f"tokenizer.ggml.{key}")
        if isinstance(value, list):
            items = [kind_and_data(item) for item in value]
            body += struct.pack("<IIQ", 9, items[0][0], len(items)) + b"".join(data for _, data in items)
        else:
            kind, data = kind_and_data(value)
            body += struct.pack("<I", kind) + data
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, len(fields)) + body)
    return path


@pytest.fixture(scope="module")
def gguf_pieces(small_tokenizer, tmp_path_factory):
    model = sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer.path))
    size = model.vocab_size()
    kinds = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "pieces.gguf",
        model="llama",
        tokens=[model.id_to_piece(id) for id in range(size)],
        scores=[float(model.get_score(id)) for id in range(size)],
        token_type=kinds,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )


@pytest.fixture(scope="module")
def gguf_bytes(byte_level, tmp_path_factory):
    definition = json.loads(byte_level.read_text())
    vocab = definition["model"]["vocab"]
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "bytes.gguf",
        model="gpt2",
        pre="gpt-2",
        tokens=[*sorted(vocab, key=vocab.get), "<|begin|>", "<|end|>"],
        token_type=[1] * len(vocab) + [3, 3],
        merges=[" ".join(merge) for merge in definition["model"]["merges"]],
        bos_token_id=len(vocab),
        eos_token_id=len(vocab) + 1,
    )


@given(text=TEXTS)
def test_the_pieces_of_a_gguf_file_give_the_ids_of_sentencepiece(gguf_pieces, small_tokenizer, text):
    loaded = loaded_once(gguf_pieces)
    assert loaded.encode(text, bos=True, eos=True) == small_tokenizer.encode(text, bos=True, eos=True)
    assert loaded.decode(loaded.encode(text)) == text


@given(text=TEXTS)
def test_the_byte_level_vocabulary_of_a_gguf_file_gives_the_ids_of_its_tokenizer_json(
    gguf_bytes, byte_level, text
):
    assert loaded_once(gguf_bytes).encode(text) == loaded_once(byte_level).encode(text)


@pytest.mark.network
@pytest.mark.parametrize("name", ["llama-spm", "phi-3"])
def test_llama_cpps_vectors_for_pieces_pass(name, tmp_path):
    assert_vectors_pass(name, tmp_path / "vocab.gguf")


@pytest.mark.network
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "deepseek-coder", "deepseek-llm"])
def test_llama_cpps_vectors_for_byte_level_vocabularies_pass(name, tmp_path):
    assert_vectors_pass(name, tmp_path / "vocab.gguf")


def assert_vectors_pass(name, path):
    found = llama_cpp_vocabularies()
    path.write_bytes(found[f"ggml-vocab-{name}.gguf"])
    texts = found[f"ggml-vocab-{name}.gguf.inp"].decode().split("\n__ggml_vocab_test__\n")
    lines = found[f"ggml-vocab-{name}.gguf.out"].decode().split("\n")
    assert len(texts) > 40
    loaded = Tokenizer(path, fast=False)
    quick = Tokenizer(path, fast=True)  # where it is refused, the reference
    for text, line in zip(texts, lines, strict=False):
        ids = [int(word) for word in line.split()]
        assert loaded.encode(text) == quick.encode(text) == ids, text
        assert loaded.decode(ids) == text


# ---- what cannot be ----------------------------------------------------------------------------


def test_a_byte_that_the_vocabulary_lacks_is_named_and_not_dropped(byte_level, tmp_path):
    definition = json.loads(byte_level.read_text())
    del definition["model"]["vocab"]["ă"]  # the character of byte 0x03
    definition["puna_separators"] = {"bos_id": 600, "eos_id": 601}
    loaded = Tokenizer(write_json(tmp_path / "tokenizer.json", definition))
    assert loaded.decode(loaded.encode("grass")) == "grass"
    with pytest.raises(ValueError, match=r"no piece for the byte 0x03 of 'a\\x03b'"):
        loaded.encode("a\x03b")


def test_files_that_cannot_be_read_are_named(byte_level, gguf_bytes, tmp_path):
    def refused(path, match):
        with pytest.raises(ValueError, match=match) as caught:
            Tokenizer(path)
        assert str(caught.value).count(str(path)) == 1

    def changed(**parts):
        return write_json(tmp_path / "tokenizer.json", {**json.loads(byte_level.read_text()), **parts})

    (tmp_path / "cut.json").write_text('{"model": ')
    refused(tmp_path / "cut.json", "is not valid JSON")
    refused(write_json(tmp_path / "other.json", {"a": 1}), r"is not a tokenizer\.json")
    refused(changed(), "does not say which token ends a document")
    separators = {"puna_separators": {"bos_id": 1, "eos_id": 1}}
    refused(changed(**separators, model={"type": "Unigram", "vocab": []}), "holds a Unigram model")
    whole = gguf_bytes.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-3])
    refused(
        tmp_path / "cut.gguf",
        "is not a valid GGUF file: tokenizer.ggml.eos_token_id should be 4 bytes",
    )
    values = read_header(gguf_bytes).values
    fields = {key.removeprefix("tokenizer.ggml."): value for key, value in values.items()}
    refused(write_gguf(tmp_path / "bert.gguf", **{**fields, "model": "bert"}), "of the kind 'bert'")
    refused(write_gguf(tmp_path / "pre.gguf", **{**fields, "pre": "unheard"}), "way 'unheard', which is not")
    del fields["merges"]
    refused(write_gguf(tmp_path / "old.gguf", **fields), r"has no tokenizer\.ggml\.merges")


@pytest.mark.parametrize("id", [-1, 1 << 40])
def test_an_added_token_with_an_id_beyond_any_vocabulary_is_refused(tmp_path, id):
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<extra>": id}), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"added_tokens.json gives '<extra>' the id {id}; expected"):
        added_tokens(tmp_path)
