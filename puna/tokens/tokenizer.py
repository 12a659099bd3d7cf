"""Text <-> token ids: SentencePiece byte-pair encoding as LLaMA uses it (paper section 2.1).

In:  directories of finished documents.
Out: tokenizer.model (SentencePiece's format) and manifest.json, with what the sample was made of.

    documents ──sample──> lines ──SentencePiece──> tokenizer.model

    "Year 1066\\n" ──encode──> ▁Year ▁ 1 0 6 6 <0x0A>
                   <──decode──

Ids: 0 <unk>, 1 <s>, 2 </s>, 3..258 the 256 bytes, then the pieces. Digits stand alone; characters outside
the vocabulary become their UTF-8 bytes; text is never normalised, so it comes back exactly.
"""

import codecs
import hashlib
import io
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from puna.files import (
    MANIFEST,
    atomic_file,
    code_version,
    fingerprint,
    read_manifest,
    remove_partials,
    write_json,
)
from puna.progress import Bar
from puna.tokens.sample import LINE_CHARACTERS, Documents, Sample, find_documents, sample_documents

MODEL = "tokenizer.model"
# SentencePiece holds about 13 bytes for each byte of the sample: 1.3 GB, for half a minute.
SAMPLE_BYTES = 100_000_000
_BAR_BYTES = 1 << 20

# SentencePiece writes a space as U+2581 and so would decode a literal one as a space.
_SPACE = "\u2581"
# What SentencePiece decodes <unk> to.
_UNKNOWN = " \u2047 ".encode()


# ---- training ----------------------------------------------------------------------------------


def train_tokenizer(
    docs: Sequence[Path],
    out: Path,
    vocab_size: int = 32_000,
    sample_bytes: int = SAMPLE_BYTES,
    weights: Mapping[str, float] | None = None,
    seed: int = 1,
) -> dict[str, Any]:
    """Train a tokenizer on a sample of the documents, write it into `out`, return the manifest.

    The same documents and arguments give the same bytes. `weights` are the sources' shares of the sample
    (Table 1's when none are given); `seed` decides which documents are in it.

    Raises:
        ValueError: no documents, a vocabulary the sample cannot fill, `out` of another configuration.
    """
    started = time.monotonic()
    documents = find_documents(docs)
    config = {
        "vocab_size": vocab_size,
        "sample_bytes": sample_bytes,
        "weights": dict(sorted((weights or {}).items())),
        "seed": seed,
    }
    inputs = [{"path": str(item.directory), "fingerprint": item.fingerprint} for item in documents]
    if (held := _finished(out, config, inputs)) is not None:
        return held
    out.mkdir(parents=True, exist_ok=True)
    remove_partials(out)

    sample = _sample(documents, sample_bytes, weights or {}, seed, out)
    model = _train(sample, vocab_size, out)
    with atomic_file(out / MODEL) as temporary:
        temporary.write_bytes(model)
    digest = hashlib.sha256(model).hexdigest()
    manifest = {
        "stage": "tokenizer",
        "fingerprint": fingerprint(["tokenizer", config, [item["fingerprint"] for item in inputs], digest]),
        "config": config,
        "code_version": code_version(),
        "counts": {"pieces": vocab_size},
        "sample": sample.report(),
        "bytes": len(model),
        "seconds": round(time.monotonic() - started, 3),
        "inputs": inputs,
        "outputs": [{"path": MODEL, "bytes": len(model), "sha256": digest}],
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _finished(
    out: Path, config: dict[str, Any], inputs: Sequence[Mapping[str, str]]
) -> dict[str, Any] | None:
    """The manifest in `out` if it is of the same configuration and documents, None if there is none."""
    if not (out / MANIFEST).is_file() or not (out / MODEL).is_file():
        return None
    manifest = read_manifest(out, "tokenizer", "puna tokenizer train DOCS… --out DIR")
    differing = [key for key in config if manifest["config"].get(key) != config[key]]
    if [item["fingerprint"] for item in manifest["inputs"]] != [item["fingerprint"] for item in inputs]:
        differing.append("documents")
    if differing:
        raise ValueError(
            f"{out} holds a tokenizer trained with another {' and '.join(differing)}; "
            f"choose another --out, or delete {out} to train again"
        )
    return manifest


def _sample(
    documents: Sequence[Documents], sample_bytes: int, weights: Mapping[str, float], seed: int, out: Path
) -> Sample:
    total = sum(item.bytes for item in documents)
    with Bar("sample documents", total, "bytes", out / "progress.jsonl") as bar:
        return sample_documents(
            documents, sample_bytes, weights, seed, lambda file: bar.advance(file.stat().st_size)
        )


def _train(sample: Sample, vocab_size: int, out: Path) -> bytes:
    def lines(bar: Bar) -> Iterator[str]:
        size = 0
        for line in sample.lines():
            yield line
            size += len(line.encode()) + 1
            if size >= _BAR_BYTES:
                bar.advance(size, note="then merging pairs")
                size = 0
        bar.advance(size, note="merging pairs")

    model = io.BytesIO()
    with Bar("train tokenizer", sample.bytes, "bytes", out / "progress.jsonl") as bar:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines(bar),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=0.99995,
                split_digits=True,
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                add_dummy_prefix=True,
                unk_id=0,
                bos_id=1,
                eos_id=2,
                pad_id=-1,
                max_sentence_length=4 * LINE_CHARACTERS + 1,
                # A constant: the number is stored in the model, and the model's bytes must not vary.
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _explained(error, vocab_size, sample) from error
    return model.getvalue()


def _explained(error: RuntimeError, vocab_size: int, sample: Sample) -> Exception:
    """SentencePiece's error in our words: the field, and the mend."""
    message = str(error)
    if "Vocabulary size too high" in message:
        most = message.rsplit("<=", 1)[-1].strip(" .")
        return ValueError(
            f"vocab_size is {vocab_size}, but {sample.bytes} bytes of sample give at most {most} pieces; "
            f"lower --vocab-size to {most}, or give more documents"
        )
    if "smaller than required_chars" in message:
        least = message.rsplit("vs", 1)[-1].split(".")[0].strip()
        return ValueError(
            f"vocab_size is {vocab_size}, fewer than the {least} bytes and characters that the sample needs; "
            f"raise --vocab-size"
        )
    return error


# ---- use ---------------------------------------------------------------------------------------


class Tokenizer:
    """A SentencePiece model: text to ids and back, exactly.

    `path` is a model file, or a directory that holds `tokenizer.model`. Text is only ever text: a literal
    "<s>" is encoded as its characters; only `bos` and `eos` give control tokens.

    Raises:
        ValueError: naming the path, when there is no such model or it cannot spell every text.
    """

    def __init__(self, path: Path | str) -> None:
        file = Path(path) / MODEL if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise ValueError(f"no tokenizer at {file}; make one with: puna tokenizer train DOCS… --out DIR")
        model = file.read_bytes()
        self.path = file
        self.fingerprint = hashlib.sha256(model).hexdigest()
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(f"{file} is not a SentencePiece model; give a tokenizer.model") from error
        self.vocab_size: int = self._model.vocab_size()
        self.bos_id: int = self._model.bos_id()
        self.eos_id: int = self._model.eos_id()
        if self.bos_id < 0 or self.eos_id < 0:
            raise ValueError(f"{file} has no <s> or no </s>, which separate documents; give another model")
        self._bytes = [self._bytes_of(id) for id in range(self.vocab_size)]
        byte_ids = {self._bytes[id]: id for id in range(self.vocab_size) if self._model.is_byte(id)}
        if len(byte_ids) != 256:
            raise ValueError(
                f"{file} has no byte fallback, so it cannot spell every text; give another model"
            )
        self._byte_ids = byte_ids

    def _bytes_of(self, id: int) -> bytes:
        """What a token adds to the text, as UTF-8 bytes; a byte token may add a part of a character."""
        piece: str = self._model.id_to_piece(id)
        if self._model.is_byte(id):
            return bytes([int(piece[1:-1], 16)])
        if self._model.is_control(id):
            return b""
        return _UNKNOWN if self._model.is_unknown(id) else piece.replace(_SPACE, " ").encode()

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """The ids of a text, after BOS and before EOS where asked for.

        Raises:
            ValueError: text with half a surrogate pair, which is not Unicode text.
        """
        ids = self.encode_batch([text])[0]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[list[int]]:
        """The ids of each text, without BOS or EOS; `threads` only make it faster."""
        for text in texts:
            if not _is_unicode(text):
                raise ValueError(f"text is not valid Unicode (half a surrogate pair): {text[:40]!r}")
        marked = {place: text for place, text in enumerate(texts) if _SPACE in text}
        plain = [text for place, text in enumerate(texts) if place not in marked]
        ids = iter(self._model.encode(plain, num_threads=threads) if plain else [])
        return [
            self._encode_marked(marked[place]) if place in marked else next(ids)
            for place in range(len(texts))
        ]

    def _encode_marked(self, text: str) -> list[int]:
        """Encode a text with a literal U+2581: as a stand-in that has no piece, then with its own bytes."""
        stand_in = next(
            character
            for character in map(chr, range(0x10FFFF, 0xE000, -1))
            if character not in text and self._model.piece_to_id(character) == self._model.unk_id()
        )
        ids: list[int] = self._model.encode(text.replace(_SPACE, stand_in))
        sought = self._spelled(stand_in)
        spelled = self._spelled(_SPACE)
        result: list[int] = []
        place = 0
        while place < len(ids):
            found = ids[place : place + len(sought)] == sought
            result += spelled if found else ids[place : place + 1]
            place += len(sought) if found else 1
        return result

    def _spelled(self, character: str) -> list[int]:
        return [self._byte_ids[bytes([value])] for value in character.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; control tokens add nothing, bytes that are no UTF-8 become U+FFFD."""
        stream = self.stream_decoder()
        return "".join([stream.push(id) for id in ids]) + stream.flush()

    def stream_decoder(self, after: Sequence[int] = ()) -> "StreamDecoder":
        """A decoder fed one id at a time; with the ids of a prompt, its text continues the prompt's."""
        stream = StreamDecoder(self._bytes)
        for id in after:
            stream.push(id)
        return stream


class StreamDecoder:
    """Ids in, text out as soon as its characters are whole: the pieces joined equal `decode` of all ids."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True

    def push(self, id: int) -> str:
        """The text that this id completes; empty in the middle of a character.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        if not 0 <= id < len(self._table):
            raise ValueError(f"token id {id} is not in a vocabulary of {len(self._table)} pieces")
        data = self._table[id]
        if self._at_start and data:
            # The space that encoding put before the first word.
            self._at_start = False
            data = data if data == _UNKNOWN else data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
