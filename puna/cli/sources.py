"""The verbs `puna corpus SOURCE`, created on demand: sources take time to import."""

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from puna.cli.common import Json, print_result, print_stage, quoted
from puna.corpus.clean import clean_source
from puna.corpus.registry import load_source, source_names
from puna.files import to_path
from puna.stages.stage import Executor, Unfinished


def __getattr__(name: str) -> Callable[..., None]:
    if name not in source_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return source_verb(name)


def source_verb(source: str) -> Callable[..., None]:
    """The verb `puna corpus SOURCE` with the source's own options and those of running stages."""
    options_type: type = load_source(source).Options

    def verb(inputs: list[str], /, *, out: str, options: Any, executor: Executor, json: Json = False) -> None:
        try:
            manifest = clean_source(
                source, [to_path(location) for location in inputs], to_path(out), options, executor
            )
        except Unfinished as unfinished:
            print_result({"finished": False, "reason": str(unfinished)}, json, [str(unfinished)])
            return
        lines = [f"{count:>12,}  {reason}" for reason, count in manifest.counts.items()]
        if manifest.damaged:
            lines.append(f"{manifest.damaged:>12,}  damaged (listed in *.bad.jsonl under {out})")
        print_stage(manifest, json, lines, out, f"puna tokenizer train {quoted(out)} --out tokenizer")

    verb.__doc__ = f"""{source_names()[source]}

    Parameters
    ----------
    inputs
        Input files, or folders to search for the source's files: local paths or fsspec URLs.
    out
        Output directory for the Parquet documents and the manifest.
    """
    verb.__annotations__["options"] = Annotated[options_type, Parameter(name="*", group="Source")]
    verb.__annotations__["executor"] = Annotated[Executor, Parameter(name="*", group="Run")]
    verb.__kwdefaults__ = {"options": options_type(), "executor": Executor(), "json": False}
    return verb
