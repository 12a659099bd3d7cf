"""Optional packages: the extra that installs each, and the error when one is missing."""

from importlib.util import find_spec

# Module -> the extra of pyproject.toml that installs it.
EXTRAS = {
    "brotli": "corpus",
    "fasttext_pybind": "corpus",
    "mwparserfromhell": "corpus",
    "polars": "corpus",
    "py7zr": "corpus",
    "resiliparse": "corpus",
    "selectolax": "corpus",
    "httpx2": "fetch",
    "unearth": "fetch",
    "gguf": "convert",
    "llguidance": "json",
    "kenlm": "perplexity",
    "math_verify": "math",
    "transformers": "judges",
    "ray": "distributed",
    "codecarbon": "carbon",
    "tensorboard": "observe",
    "wandb": "observe",
}


class MissingExtra(ImportError):
    """A package is not installed; the message names the extra that brings it."""


def require(*modules: str) -> None:
    """Check that optional modules are installed, without importing them.

    Raises:
        MissingExtra: naming the first that is missing and how to install it.
    """
    for module in modules:
        try:
            found = find_spec(module) is not None
        except (ImportError, ValueError):  # ValueError: sys.modules[module] is None
            found = False
        if not found:
            raise MissingExtra(
                f'the package {module} is not installed; run: pip install "puna[{EXTRAS[module]}]"',
                name=module,
            )
