"""Real vocabularies, out of packages on the package index: pinned, checked, cached, never installed."""

import tarfile
import zipfile
from functools import cache
from pathlib import Path

from puna.fetch.package_index import Package, fetch_packages
from puna.files import cache_dir

# Mistral 7B's first tokenizer: 32,000 pieces, SentencePiece BPE with byte fallback.
MISTRAL = Package(
    "mistral-common",
    "1.13.1",
    "mistral_common-1.13.1-py3-none-any.whl",
    "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
)
# llama.cpp's test vocabularies, each with texts (.inp) and the ids that they are to give (.out).
LLAMA_CPP = Package(
    "llama-cpp-python",
    "0.3.36",
    "llama_cpp_python-0.3.36.tar.gz",
    "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
)


def _archive(package: Package) -> Path:
    return fetch_packages([package], cache_dir() / "packages")[0]


def mistral_model() -> bytes:
    with zipfile.ZipFile(_archive(MISTRAL)) as wheel:
        return wheel.read("mistral_common/data/tokenizer.model.v1")


@cache
def llama_cpp_vocabularies() -> dict[str, bytes]:
    """File name -> bytes of everything in llama.cpp's models/ whose name begins with ggml-vocab-."""
    found = {}
    with tarfile.open(_archive(LLAMA_CPP)) as sdist:
        for member in sdist:
            name = Path(member.name).name
            if name.startswith("ggml-vocab-") and (file := sdist.extractfile(member)):
                found[name] = file.read()
    return found
