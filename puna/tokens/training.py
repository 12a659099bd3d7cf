"""Documents -> a tokenizer of their own: SentencePiece byte-pair encoding, as the paper has it (section 2.1).

In:  directories of finished documents.
Out: tokenizer.model (SentencePiece's format) and manifest.json, with what the sample was made of.

    documents ──sample──> lines ──SentencePiece──> tokenizer.model

Ids: 0 <unk>, 1 <s>, 2 </s>, 3..258 the 256 bytes, then the pieces. Digits stand alone; characters outside
the vocabulary become their UTF-8 bytes; text is never normalised, so it comes back exactly.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sentencepiece

from puna.corpus.finished import Finished, as_inputs, find_finished
from puna.files import write_file
from puna.manifest import Manifest
from puna.progress import Bar
from puna.tokens.sample import LINE_CHARACTERS, Sample, sample_documents
from puna.trained import Training

MODEL = "tokenizer.model"
# SentencePiece holds about 13 bytes for each byte of the sample: 1.3 GB, for half a minute.
SAMPLE_BYTES = 100_000_000
_BAR_BYTES = 1 << 20
_TRAINING = Training("tokenizer", "puna tokenizer train DOCS… --out DIR", "tokens", (MODEL,), "tokenizer")


def train_tokenizer(
    docs: Sequence[Path],
    out: Path,
    vocab_size: int = 32_000,
    sample_bytes: int = SAMPLE_BYTES,
    weights: Mapping[str, float] | None = None,
    seed: int = 1,
) -> Manifest:
    """Train a tokenizer on a sample of the documents, write it into `out`, return the manifest.

    The same documents and arguments give the same bytes. `weights` are the sources' shares of the sample
    (Table 1's when none are given); `seed` decides which documents are in it.

    Raises:
        ValueError: no documents, a vocabulary the sample cannot fill, `out` of another configuration.
    """
    documents = find_finished(docs)
    config = {
        "vocab_size": vocab_size,
        "sample_bytes": sample_bytes,
        "weights": dict(sorted((weights or {}).items())),
        "seed": seed,
    }

    def work() -> tuple[dict[str, int], dict[str, Any]]:
        sample = _sample(documents, sample_bytes, weights or {}, seed, out)
        model = _train(sample, vocab_size, out)
        write_file(out / MODEL, model)
        return {"pieces": vocab_size}, {"sample": sample.report()}

    return _TRAINING.once(out, config, as_inputs(documents), work)


def _sample(
    documents: Sequence[Finished], sample_bytes: int, weights: Mapping[str, float], seed: int, out: Path
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
    """SentencePiece's error in our words: the field and how to fix it."""
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
