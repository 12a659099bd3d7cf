"""The verb convert: weights from one format to another."""

from pathlib import Path
from typing import Literal

from puna.cli.common import Json, print_result, quoted


def convert(
    src: Path,
    dst: Path,
    /,
    *,
    to: Literal["puna", "hf", "meta", "gguf"],
    dtype: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] | None = None,
    parts: int = 1,
    context: int | None = None,
    json: Json = False,
) -> int:
    """Convert weights between puna, Hugging Face, Meta and GGUF, one tensor at a time.

    Parameters
    ----------
    src
        Weights to read: a run directory, a Hugging Face directory, a directory with Meta's params.json, or a
        .gguf file.
    dst
        Directory to write; with --to gguf, the .gguf file to write.
    to
        Format to write.
    dtype
        Precision of the written weights. Default: that of the source; fp32 for quantised sources. q8_0 and
        q4_0 are for GGUF only.
    parts
        Number of model-parallel files in Meta's format: 1, 2, 4 or 8.
    context
        Context length of the written model. Default: that of the source; 2048 for Meta's format, which does
        not store one.
    """
    from puna import api
    from puna.files import human_bytes, human_seconds

    manifest = api.convert(src, dst, to, dtype, parts, context)
    lines = [
        f"{dst}: {manifest.counts['parameters']:,} parameters, {human_bytes(manifest.bytes)} "
        f"in {human_seconds(manifest.seconds)}",
    ]
    lines += [f'next: puna generate --model {quoted(dst)} "Once upon a time"'] if to == "puna" else []
    print_result(manifest.to_json(), json, lines)
    return 0
