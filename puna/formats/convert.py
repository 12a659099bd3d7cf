"""Weights from one format to another, a tensor at a time.

In:  a directory or file of puna, Hugging Face, Meta or llama.cpp (GGUF).
Out: one of another format, whole or absent, with the tokenizer beside or within.

    SRC ─> which format? ─> Source: sizes, names and shapes checked ─┐
                                                                     │ parts, in the model's order:
    DST <─ renamed into place <─ written under a temporary name <────┘ read, reordered, cast, written

Formats know only themselves and `parts.py`. Memory: one part and its copy in another order or precision,
not the model. Without a change of precision the values are bitwise identical.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import torch

from puna.extras import require
from puna.files import atomic_directory, atomic_file, code_version, fingerprint, sha256_file
from puna.formats import huggingface, meta, native
from puna.formats.adapters import ADAPTER_CONFIG, open_adapted
from puna.formats.hub_vocabulary import write_hub_vocabulary
from puna.manifest import Input, Manifest, Output, write_manifest
from puna.model.parts import VOCABULARIES, Part, Source, parts
from puna.progress import Bar
from puna.rundir import WEIGHTS
from puna.tokens.model_files import tokenizer_of

Format = Literal["puna", "hf", "meta", "gguf"]
Quantised = Literal["q8_0", "q4_0"]
Precision = Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def format_of(path: Path) -> Format:
    """The format of a file or directory, by its name and contents.

    Raises:
        ValueError: when it is none of the four.
    """
    if not path.exists():
        raise ValueError(f"{path} is not there; give a directory of weights or a .gguf file")
    if path.is_file():
        if path.suffix == ".gguf":
            return "gguf"
        raise ValueError(f"{path} is not a .gguf file; for other formats pass the directory")
    if (path / ADAPTER_CONFIG).is_file():
        return "hf"
    if (path / meta.PARAMS).is_file():
        return "meta"
    if native.is_native(path):
        return "puna"
    if (path / huggingface.CONFIG).is_file():
        return "hf"
    raise ValueError(
        f"{path} holds neither config.json (puna, Hugging Face) nor params.json (Meta); "
        "give the directory that the weights are in, or a .gguf file"
    )


def open_source(path: Path) -> tuple[Format, Source]:
    """Open a model; check that it is complete and that puna implements it.

    Raises:
        ValueError: naming the file and what is wrong with it.
        MissingExtra: a GGUF file needs the extra `convert`.
    """
    kind = format_of(path)
    if (adapted := open_adapted(path, lambda base: open_source(base)[1])) is not None:
        return kind, adapted
    if kind == "gguf":
        return kind, _gguf_files().GGUFSource(path)
    openers: dict[Format, Callable[[Path], Source]] = {
        "puna": native.NativeSource,
        "hf": huggingface.HuggingFaceSource,
        "meta": meta.MetaSource,
    }
    return kind, openers[kind](path)


def _gguf_files() -> ModuleType:
    """The module of GGUF, which needs a package that the other formats do without."""
    require("gguf")
    from puna.formats import gguf_files

    return gguf_files


def convert(
    src: Path,
    dst: Path,
    to: Format,
    dtype: Precision | None = None,
    n_parts: int = 1,
    context: int | None = None,
) -> Manifest:
    """Convert weights; returns the manifest, which is also written into a puna directory.

    `dtype` None keeps the precision; quantised tensors become fp32. `n_parts` is the number of model-parallel
    parts of Meta's format. `context` replaces the source's, which Meta's files do not state.

    Raises:
        ValueError: naming what is wrong with the source, the destination, or the choice of precision.
        OSError: when the destination cannot be written; nothing of it is left.
    """
    started = time.monotonic()
    precision = _precision(dtype, to)
    if n_parts != 1 and to != "meta":
        raise ValueError(f"--parts is {n_parts}; only Meta's files come in model-parallel parts")
    if to == "gguf" and dst.suffix != ".gguf":
        raise ValueError(f"{dst} must end in .gguf: that format is one file")
    if dst.exists() and (dst.is_file() or any(dst.iterdir())):
        raise ValueError(f"{dst} is there already; choose another name, or delete it")
    kind, source = open_source(src)
    # Read here, so that nothing is written which generation would refuse.
    has_vocabulary = not source.tokenizer.keys().isdisjoint(VOCABULARIES)
    tokenizer = tokenizer_of(src, source.tokenizer) if has_vocabulary else None
    if context is not None:
        source.config = replace(source.config, context=context)
        source.config.validate()

    def size(part: Part) -> int:
        return part.elements * source.dtype(part).itemsize

    config = {"to": to, "dtype": dtype or "as it was", "context": source.config.context}

    def manifest(files: Iterable[Path], mark: str = "") -> Manifest:
        outputs = tuple(Output(file.name, file.stat().st_size) for file in sorted(files))
        return Manifest(
            stage="convert",
            fingerprint=mark,
            config=config,
            code_version=code_version("formats"),
            counts={"parameters": sum(part.elements for part in parts(source.config))},
            inputs=(Input(str(src)),),
            outputs=outputs,
            bytes=sum(output.bytes for output in outputs),
            seconds=round(time.monotonic() - started, 3),
            details={"from": kind},
        )

    with Bar(f"convert to {to}", sum(map(size, parts(source.config))), "bytes") as bar:

        def advance(part: Part) -> None:
            bar.advance(size(part))

        if to == "gguf":
            with atomic_file(dst) as file:
                _gguf_files().write_gguf(source, file, precision, advance, tokenizer, dst.stem)
            return manifest([dst])
        assert not isinstance(precision, str)
        with atomic_directory(dst) as folder:
            if to == "puna":
                native.write_native(source, folder, precision, advance)
            elif to == "hf":
                huggingface.write_huggingface(source, folder, precision, advance, tokenizer)
            else:
                meta.write_meta(source, folder, precision, advance, n_parts)
            for name, data in source.tokenizer.items():
                (folder / name).write_bytes(data if isinstance(data, bytes) else data.read_bytes())
            if to == "hf" and tokenizer:
                write_hub_vocabulary(folder, tokenizer)
            if to != "puna":
                return manifest(folder.iterdir())
            result = manifest(folder.iterdir(), fingerprint([sha256_file(folder / WEIGHTS), config]))
            write_manifest(folder, result)
            return result


def _precision(dtype: Precision | None, to: Format) -> torch.dtype | Quantised | None:
    if dtype is None or dtype in _DTYPES:
        return None if dtype is None else _DTYPES[dtype]
    if dtype not in get_args(Precision):
        raise ValueError(f"--dtype is {dtype}; it must be one of: {', '.join(get_args(Precision))}")
    if to != "gguf":
        raise ValueError(f"--dtype {dtype} is a precision of GGUF files; for {to} give fp32, bf16 or fp16")
    return dtype  # type: ignore[return-value]
