"""A language model from documents, and the perplexity of other texts (CCNet; paper section 2.1).

In:  directories of finished documents, in the paper Wikipedia's; the opening text of each is used.
Out: sentencepiece.model, model.arpa (read by `kenlm`), manifest.json.

    documents ─> opening texts ─> normal lines ─> SentencePiece unigram ─> pieces ─> 5-gram Kneser-Ney
    a text    ─> normal lines ─> pieces ─> log10 probabilities ─> perplexity ─> head, middle or tail

A text is scored line by line, each line as a sentence of its own: perplexity = 10^(-sum of log10 p / tokens),
where the end of each line counts as a token, as in CCNet. Empty lines are ignored. No piece crosses a space,
so each word is cut into pieces by itself, and the pieces of a word are cached.
"""

import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece
from numpy.typing import ArrayLike

from puna.corpus.finished import Finished, as_inputs, find_finished
from puna.corpus.ngram.counts import SPECIALS
from puna.corpus.ngram.kneser_ney import FALLBACK, train_kneser_ney
from puna.extras import require
from puna.files import MANIFEST, atomic_file, local_copy
from puna.manifest import Manifest
from puna.progress import Bar
from puna.retry import one_line
from puna.trained import Training

PIECES, ARPA = "sentencepiece.model", "model.arpa"
VOCAB_SIZE = 65_536
MAX_DOCUMENTS = 1_000_000
HEAD, MIDDLE = 0.30, 0.60  # the shares of a corpus below the first and the second bound

Bucket = Literal["head", "middle", "tail"]

_COMMAND = "puna corpus language-model DOCUMENTS… --out DIR"
_TRAINING = Training("language-model", _COMMAND, "corpus", (PIECES, ARPA), "language model")
_COVERAGE = 0.9995
_PIECE_CHARACTERS = 200_000_000  # of text to learn the pieces from; SentencePiece keeps all of it in memory
_PIECE_LINE = 4000  # characters per line: SentencePiece silently skips longer lines
_REMEMBERED = 500_000  # words, about 150 MB
_HEADING_CHARACTERS = 100


# ---- text -----------------------------------------------------------------------------------------


_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_DIGITS = bytes.maketrans(b"123456789", b"000000000")


@cache
def _plain(character: str) -> str:
    """A character without accents, or 0 for a digit of any script."""
    if character.isdecimal():
        return "0"
    parts = unicodedata.normalize("NFD", character)
    return "".join(part for part in parts if unicodedata.category(part) != "Mn")


def normal_lines(text: str) -> list[str]:
    """The normalised lines of a text: lower case, no accents, digits as 0, no empty lines."""
    text = _BEYOND_ASCII.sub(lambda found: _plain(found[0]), text.lower())
    text = text.encode("utf-8", "replace").translate(_DIGITS).decode()
    return [line for line in map(str.strip, text.splitlines()) if line]


def opening_text(text: str) -> str:
    """An article up to its first heading: a short line without a full stop after a paragraph."""
    blocks = text.split("\n\n")
    for place, block in enumerate(blocks[1:], 1):
        block = block.strip()
        if "\n" not in block and 0 < len(block) <= _HEADING_CHARACTERS and block[-1] not in ".!?:;,)\"'”»…":
            return "\n\n".join(blocks[:place])
    return text


# ---- training -------------------------------------------------------------------------------------


def train_language_model(
    documents: Sequence[Path],
    out: Path,
    vocab_size: int = VOCAB_SIZE,
    order: int = 5,
    prune: Sequence[int] = (),
    max_documents: int = MAX_DOCUMENTS,
    whole: bool = False,
    discount_fallback: bool = False,
    memory: int = 1 << 30,
) -> Manifest:
    """Train a language model on the documents' opening texts, write it into `out`, return the manifest.

    The first `max_documents` are used, in the order of the directories and their files. A text that is too
    small for `vocab_size` pieces gives a smaller vocabulary, whose size is in the manifest. `whole` uses
    whole texts. For `prune`, `discount_fallback` and `memory` see train_kneser_ney.

    Raises:
        ValueError: no documents, no text, too little of it, options out of range, `out` of another run.
    """
    found = find_finished(documents)
    config = {
        "vocab_size": vocab_size,
        "order": order,
        "prune": list(prune),
        "max_documents": max_documents,
        "whole": whole,
        "discount_fallback": discount_fallback,
    }
    if min(vocab_size, max_documents) < 1 or vocab_size > VOCAB_SIZE:
        raise ValueError(f"vocab_size must be from 1 to {VOCAB_SIZE}, max_documents at least 1")
    lines = out / f".lines.{MANIFEST}.partial"

    def work() -> tuple[dict[str, int], dict[str, Any]]:
        try:
            counts = _write_lines(found, max_documents, whole, lines, out)
            _train_pieces(lines, vocab_size, counts, out)
            pieces = WordPieces(out / PIECES)
            fallback = FALLBACK if discount_fallback else None
            with Bar("train language model", counts["bytes"], "bytes", out / "progress.jsonl") as bar:
                ids = _ids(pieces, lines, bar)
                model = train_kneser_ney(ids, pieces.names, out / ARPA, order, prune, memory, fallback)
        finally:
            lines.unlink(missing_ok=True)
        counts |= {"pieces": len(pieces.names), "tokens": model.pop("tokens")}
        return counts, model

    return _TRAINING.once(out, config, as_inputs(found), work)


def _write_lines(
    found: Sequence[Finished], max_documents: int, whole: bool, path: Path, out: Path
) -> dict[str, int]:
    """The normal lines of the documents in one file, and what they are."""
    counts = {"documents": 0, "lines": 0, "characters": 0, "bytes": 0}
    with path.open("wb") as file, Bar("read documents", 0, "bytes", out / "progress.jsonl") as bar:
        for document in (document for item in found for document in item.documents()):
            if counts["documents"] == max_documents:
                break
            lines = normal_lines(document.text if whole else opening_text(document.text))
            data = "".join(line + "\n" for line in lines).encode()
            file.write(data)
            counts["documents"] += 1
            counts["lines"] += len(lines)
            counts["characters"] += sum(map(len, lines))
            counts["bytes"] += len(data)
            bar.advance(len(data))
    if not counts["lines"]:
        names = ", ".join(str(item.directory) for item in found)
        raise ValueError(f"the {counts['documents']} documents of {names} hold no text; give other documents")
    return counts


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in file:
            yield line[:-1].decode()


def _train_pieces(lines: Path, vocab_size: int, counts: dict[str, int], out: Path) -> None:
    share = min(1.0, _PIECE_CHARACTERS / counts["characters"])

    def sample() -> Iterator[str]:
        """A sample of lines, evenly spaced over the text."""
        due = 1.0
        for line in _lines(lines):
            due += share
            if due >= 1:
                due -= 1
                yield line[:_PIECE_LINE]

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sample(),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=_COVERAGE,
            max_sentence_length=4 * _PIECE_LINE,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # A constant, not the number of cores: the sums, and so the bytes of the model, depend on it.
            num_threads=16,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"no pieces can be learned with vocab_size {vocab_size} from {counts['bytes']} bytes of text "
            f"({error}); give more documents, or another --vocab-size"
        ) from error
    with atomic_file(out / PIECES) as temporary:
        temporary.write_bytes(model.getvalue())


def _ids(pieces: "WordPieces", lines: Path, bar: Bar) -> Iterator[list[int]]:
    for line in _lines(lines):
        yield pieces.encode(line)
        bar.advance(len(line.encode()) + 1)


class _Remembered(dict[str, Any]):
    """A cache of a function of words, which is called once per word."""

    def __init__(self, ask: Callable[[str], Any]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, word: str) -> Any:
        if len(self) >= _REMEMBERED:
            self.clear()
        value = self[word] = self._ask(word)
        return value


class WordPieces:
    """Cuts lines into SentencePiece's pieces word by word, with a cache of words."""

    def __init__(self, path: Path) -> None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        self.names = names = [processor.id_to_piece(id) for id in range(processor.get_piece_size())]
        assert tuple(names[: len(SPECIALS)]) == SPECIALS
        assert not any(set(" \t\n\r\v\f") & set(name) for name in names), "a piece with a space in it"
        self._ids = _Remembered(processor.encode)
        self._spelled = _Remembered(lambda word: " ".join([names[id] for id in processor.encode(word)]))

    def encode(self, line: str) -> list[int]:
        """The ids of a line's pieces."""
        return list(chain.from_iterable(map(self._ids.__getitem__, line.split())))

    def spell(self, line: str) -> str:
        """The pieces of a line, separated by spaces."""
        return " ".join(map(self._spelled.__getitem__, line.split()))


# ---- using ----------------------------------------------------------------------------------------


class LanguageModel:
    """Computes the perplexity of texts; created by load_language_model."""

    def __init__(self, pieces: Path, arpa: Path, fingerprint: str) -> None:
        require("kenlm")  # compiled when it is installed, so it has an extra of its own; training needs none
        import kenlm

        self.fingerprint = fingerprint
        self._pieces = WordPieces(pieces)
        config = kenlm.Config()
        config.show_progress = False
        config.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            self._model = kenlm.Model(str(arpa), config)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"{arpa} cannot be read ({one_line(error)}); make it again with: {_COMMAND}"
            ) from error

    def score(self, text: str) -> tuple[float, int]:
        """log10 of the probability of a text's lines, and their number of tokens, line ends included."""
        lines = [self._pieces.spell(line) for line in normal_lines(text)]
        log10 = math.fsum(self._model.score(line) for line in lines)
        # A line has one more piece than spaces, and </s>.
        return log10, sum(line.count(" ") + (2 if line else 1) for line in lines)

    def perplexity(self, text: str) -> float:
        """10^(-log10 p / tokens); infinite for a text without a line."""
        log10, tokens = self.score(text)
        return 10 ** (-log10 / tokens) if tokens else math.inf


def load_language_model(directory: Path) -> LanguageModel:
    """Read a language model; 100 MB of ARPA take 5 CPU-seconds and 160 MB of memory.

    Raises:
        ValueError: no finished language model, or a file that cannot be read.
    """
    manifest = _TRAINING.read(directory)
    digests = {item.path: item.sha256 for item in manifest.outputs}
    try:
        pieces, arpa = (local_copy(directory / name, digests[name]) for name in (PIECES, ARPA))
        return LanguageModel(pieces, arpa, manifest.fingerprint)
    except OSError as error:
        raise ValueError(f"{directory} cannot be read ({error}); make it again with: {_COMMAND}") from error


def bucket_bounds(perplexities: ArrayLike) -> tuple[float, float]:
    """The perplexities that end the head and the middle of a corpus: its 30th and 60th percentiles.

    Each is the perplexity of a document, so that rounding cannot depend on the order or number of shards.

    Raises:
        ValueError: no perplexities.
    """
    values = np.asarray(perplexities, np.float64)
    if not values.size:
        raise ValueError("no perplexities to compute percentiles of: all documents were dropped before")
    head, middle = np.quantile(values, [HEAD, MIDDLE], method="inverted_cdf")
    return float(head), float(middle)


def bucket(perplexity: float, bounds: tuple[float, float]) -> Bucket:
    """Head below the first bound, middle below the second, tail the rest."""
    if perplexity < bounds[0]:
        return "head"
    return "middle" if perplexity < bounds[1] else "tail"
