"""The tokenizer is LLaMA's: exact, digit by digit, the same every time. SentencePiece is the oracle."""

import hashlib
import re

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from puna.corpus.finished import find_finished
from puna.manifest import load_manifest
from puna.tokens.sample import LINE_CHARACTERS, sample_documents, split_lines
from puna.tokens.tokenizer import Tokenizer
from puna.tokens.training import train_tokenizer

# Characters that tokenizers get wrong, more often than chance would give them.
HARD = st.text(st.sampled_from(list(" \t\n\r\0▁▅\u3000\u2028\ufeff\u200d019٣é\u0301日🦙\U0010ffff<s>/ae")))
TEXTS = st.one_of(st.text(), HARD)


@pytest.fixture(scope="module")
def oracle(small_tokenizer):
    return sentencepiece.SentencePieceProcessor(model_file=str(small_tokenizer.path))


def piece(oracle, id):
    return oracle.id_to_piece(id)


# ---- text and ids ------------------------------------------------------------------------------


@given(text=TEXTS)
@example("\0")
@example("▁")
@example("a▁ ▁▁b\U0010ffff")
@example("  two\n\n\tthree   ")
def test_round_trip_is_exact(small_tokenizer, text):
    assert small_tokenizer.decode(small_tokenizer.encode(text)) == text


@given(text=TEXTS)
def test_round_trip_is_exact_between_bos_and_eos(small_tokenizer, text):
    ids = small_tokenizer.encode(text, bos=True, eos=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert ids[1:-1] == small_tokenizer.encode(text)
    assert small_tokenizer.decode(ids) == text


@given(text=TEXTS.map(lambda text: text.replace("▁", "")))
def test_ids_are_those_of_sentencepiece(small_tokenizer, oracle, text):
    assert small_tokenizer.encode(text) == oracle.encode(text)


def test_the_sign_that_sentencepiece_writes_for_a_space_is_spelled_in_bytes(small_tokenizer, oracle):
    ids = small_tokenizer.encode("grass▁land")
    assert [piece(oracle, id) for id in ids if oracle.is_byte(id)] == ["<0xE2>", "<0x96>", "<0x81>"]
    assert small_tokenizer.decode(ids) == "grass▁land"


def test_the_first_ids_are_unk_bos_eos_and_the_bytes(small_tokenizer, oracle):
    assert [piece(oracle, id) for id in range(3)] == ["<unk>", "<s>", "</s>"]
    assert [piece(oracle, id) for id in range(3, 259)] == [f"<0x{value:02X}>" for value in range(256)]
    assert oracle.pad_id() == -1
    assert (small_tokenizer.bos_id, small_tokenizer.eos_id, small_tokenizer.vocab_size) == (1, 2, 512)


@given(number=st.integers(min_value=0, max_value=10**12))
def test_digits_are_split_one_by_one(small_tokenizer, oracle, number):
    pieces = [piece(oracle, id) for id in small_tokenizer.encode(f"{number}")]
    assert [p for p in pieces if p != "▁"] == list(str(number))


def test_no_piece_holds_two_digits_or_a_newline(oracle):
    for id in range(259, oracle.vocab_size()):
        assert not re.search(r"\d.*\d|\n", piece(oracle, id))


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a <s> b", "<0x0A>", "<s></s>"])
def test_a_literal_control_token_stays_text(small_tokenizer, text):
    ids = small_tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert small_tokenizer.decode(ids) == text


@given(texts=st.lists(TEXTS, max_size=6), threads=st.integers(1, 3))
def test_a_batch_gives_what_each_text_gives(small_tokenizer, texts, threads):
    found = [ids.tolist() for ids in small_tokenizer.encode_arrays(texts, threads)]
    assert found == [small_tokenizer.encode(text) for text in texts]


def test_half_a_surrogate_pair_is_named_as_not_unicode(small_tokenizer):
    with pytest.raises(ValueError, match="half a surrogate pair"):
        small_tokenizer.encode("llama \ud83e")


@given(ids=st.lists(st.one_of(st.integers(0, 2), st.integers(259, 511))))
def test_decoding_is_that_of_sentencepiece(small_tokenizer, oracle, ids):
    assert small_tokenizer.decode(ids) == oracle.decode(ids)


# ---- one id at a time --------------------------------------------------------------------------


@given(ids=st.lists(st.integers(0, 511)))
def test_streamed_text_joined_is_the_decoded_text(small_tokenizer, ids):
    stream = small_tokenizer.stream_decoder()
    assert "".join([stream.push(id) for id in ids]) + stream.flush() == small_tokenizer.decode(ids)


@given(text=TEXTS.filter(lambda text: "\ufffd" not in text))
def test_a_stream_never_splits_a_character(small_tokenizer, text):
    stream = small_tokenizer.stream_decoder()
    assert "\ufffd" not in "".join(stream.push(id) for id in small_tokenizer.encode(text))
    assert stream.flush() == ""


@given(prompt=TEXTS, ids=st.lists(st.integers(259, 511)))
def test_streamed_text_continues_its_prompt(small_tokenizer, prompt, ids):
    before = small_tokenizer.encode(prompt, bos=True)
    stream = small_tokenizer.stream_decoder(after=before)
    assert prompt + "".join(stream.push(id) for id in ids) == small_tokenizer.decode([*before, *ids])


def test_an_unfinished_character_comes_out_as_replacement(small_tokenizer):
    stream = small_tokenizer.stream_decoder()
    llama = [3 + value for value in "🦙".encode()]
    assert [stream.push(id) for id in llama] == ["", "", "", "🦙"]
    assert [stream.push(id) for id in llama[:2]] == ["", ""]
    assert stream.flush() == "\ufffd"


@pytest.mark.parametrize("id", [-1, 512])
def test_an_id_outside_the_vocabulary_is_named(small_tokenizer, id):
    with pytest.raises(ValueError, match=f"token id {id} is not in a vocabulary of 512"):
        small_tokenizer.decode([id])


# ---- training ----------------------------------------------------------------------------------


@pytest.fixture
def books(make, tmp_path):
    return make.documents(tmp_path / "books", "books", [make.prose(seed, 300) for seed in range(8)], files=2)


@pytest.fixture
def github(make, tmp_path):
    return make.documents(tmp_path / "github", "github", [make.prose(seed, 300) for seed in range(50, 90)])


def test_training_again_gives_the_same_bytes_whatever_the_order_of_documents(books, github, tmp_path):
    first = train_tokenizer([books, github], tmp_path / "a", vocab_size=400)
    train_tokenizer([github, books], tmp_path / "b", vocab_size=400)
    model = (tmp_path / "a" / "tokenizer.model").read_bytes()
    assert model == (tmp_path / "b" / "tokenizer.model").read_bytes()
    assert (
        first.outputs[0].sha256 == hashlib.sha256(model).hexdigest() == Tokenizer(tmp_path / "a").fingerprint
    )
    assert first == load_manifest(tmp_path / "a" / "manifest.json")


def test_a_killed_training_leaves_nothing_for_whole_and_ends_the_same(make, books, tmp_path):
    make.killed_run(
        "import os, signal\n"
        "from pathlib import Path\n"
        "from puna import trained\n"
        "from puna.tokens import training\n"
        "trained.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"training.train_tokenizer([Path({str(books)!r})], Path({str(tmp_path / 'a')!r}), vocab_size=400)\n"
    )
    assert not (tmp_path / "a" / "manifest.json").exists()
    again = train_tokenizer([books], tmp_path / "a", vocab_size=400)
    undisturbed = train_tokenizer([books], tmp_path / "b", vocab_size=400)
    assert again.fingerprint == undisturbed.fingerprint
    assert Tokenizer(tmp_path / "a").fingerprint == Tokenizer(tmp_path / "b").fingerprint


def test_what_is_done_is_not_done_again_and_another_configuration_is_refused(books, github, tmp_path):
    out = tmp_path / "out"
    done = train_tokenizer([books], out, vocab_size=400)
    written = (out / "tokenizer.model").stat().st_mtime_ns
    assert train_tokenizer([books], out, vocab_size=400) == done
    assert (out / "tokenizer.model").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="another vocab_size"):
        train_tokenizer([books], out, vocab_size=401)
    with pytest.raises(ValueError, match="another documents"):
        train_tokenizer([github], out, vocab_size=400)


def test_a_vocabulary_that_does_not_fit_the_corpus_is_named_with_one_that_does(books, tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size is 50000.*lower --vocab-size to \d+") as caught:
        train_tokenizer([books], tmp_path / "out", vocab_size=50_000)
    most = int(re.search(r"lower --vocab-size to (\d+)", str(caught.value))[1])
    assert train_tokenizer([books], tmp_path / "out", vocab_size=most).counts["pieces"] == most
    with pytest.raises(ValueError, match=r"vocab_size is 200.*raise --vocab-size"):
        train_tokenizer([books], tmp_path / "small", vocab_size=200)


def test_training_without_documents_is_an_error(make, tmp_path):
    with pytest.raises(ValueError, match="no documents given"):
        train_tokenizer([], tmp_path / "out")
    with pytest.raises(ValueError, match="no document in"):
        train_tokenizer([make.documents(tmp_path / "none", "books", [])], tmp_path / "out")
    with pytest.raises(ValueError, match="holds no finished documents"):
        train_tokenizer([tmp_path], tmp_path / "out")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        Tokenizer(tmp_path)


# ---- the sample --------------------------------------------------------------------------------


def test_sources_of_equal_weight_give_equal_shares_of_the_sample(books, github):
    # 8 documents against 40: the small source is repeated until its half is full.
    sample = sample_documents(find_finished([books, github]), 10**9, {}, seed=1)
    report = sample.report()
    assert report["books"]["share"] == report["github"]["share"] == 0.5
    assert report["books"]["epochs"] > 2 and report["github"]["documents"] < 40
    given = sum(len(line.encode()) for line in sample.lines())
    # Lines are counted without their newlines.
    assert 0.9 * sample.bytes < given <= sample.bytes


def test_a_sample_keeps_its_bound_and_follows_its_seed(github):
    documents = find_finished([github])
    first, same, other = (sample_documents(documents, 5000, {}, seed=seed) for seed in (1, 1, 2))
    assert sum(len(line.encode()) for line in first.lines()) <= first.bytes == 5000
    assert list(first.lines()) == list(same.lines()) != list(other.lines())


@given(text=st.text(st.sampled_from("ab ▅▁\n日"), max_size=60).map(lambda text: text * 400))
def test_long_lines_are_cut_and_nothing_but_breaks_is_lost(text):
    lines = list(split_lines(text))
    assert all(0 < len(line) <= LINE_CHARACTERS and not set(line) & set("\n▁▅") for line in lines)
    assert "".join(lines).replace(" ", "") == re.sub("[ \n▁▅]", "", text)
