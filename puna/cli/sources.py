"""The verbs `puna corpus SOURCE`, made when they are asked for: the sources take time to import."""

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from puna.cli.common import Json, print_result
from puna.corpus.clean import clean_source, source_module
from puna.corpus.document import TABLE_1
from puna.files import human_bytes, human_seconds, to_path
from puna.stages.stage import Executor, Unfinished


def __getattr__(name: str) -> Callable[..., int]:
    if name not in TABLE_1:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return source_verb(name)


def source_verb(source: str) -> Callable[..., int]:
    """The verb `puna corpus SOURCE`: its own options, and how its stages are run."""
    options_type: type = source_module(source).Options

    def verb(inputs: list[str], /, *, out: str, options: Any, executor: Executor, json: Json = False) -> int:
        try:
            manifest = clean_source(
                source, [to_path(location) for location in inputs], to_path(out), options, executor
            )
        except Unfinished as unfinished:
            print_result({"finished": False, "reason": str(unfinished)}, json, [str(unfinished)])
            return 0
        lines = [f"{count:>12,}  {reason}" for reason, count in manifest.counts.items()]
        if manifest.damaged:
            lines.append(f"{manifest.damaged:>12,}  damaged (listed in *.bad.jsonl under {out})")
        lines += [
            f"{out}: {human_bytes(manifest.bytes)} in {human_seconds(manifest.seconds)} of work",
            f"next: puna tokenizer train {out} --out tokenizer",
        ]
        print_result({"finished": True, **manifest.to_json()}, json, lines)
        return 0

    verb.__doc__ = f"""Clean {source} dumps into documents.

    Parameters
    ----------
    inputs
        Files, or folders that are searched for the source's files; here, or URLs that fsspec knows.
    out
        The directory to write.
    """
    verb.__annotations__["options"] = Annotated[options_type, Parameter(name="*", group="Source")]
    verb.__annotations__["executor"] = Annotated[Executor, Parameter(name="*", group="Run")]
    verb.__kwdefaults__ = {"options": options_type(), "executor": Executor(), "json": False}
    return verb
