"""puna: LLaMA, end to end. Raw dumps -> documents -> tokens -> weights -> text and scores.

    import puna

    puna.clean("books", "raw", "documents/books")
    puna.train_tokenizer("documents/books", "tokenizer", vocab_size=4096)
    puna.write_shards("documents/books", "tokenizer", "shards")
    puna.train("runs/first", "shards", recipe="15m", model={"vocab_size": 4096})
    puna.load("runs/first").generate("Once upon a time")

Each function is a command of the same name, described in puna/api.py and loaded when it is first used:
`import puna` alone imports neither torch nor numpy.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from puna.devices import limit_cpu

if TYPE_CHECKING:
    from puna.api import (
        clean,
        convert,
        evaluate,
        finetune,
        load,
        plan,
        report,
        train,
        train_tokenizer,
        write_shards,
    )

__version__ = "0.1.0"
__all__ = [
    "clean",
    "convert",
    "evaluate",
    "finetune",
    "load",
    "plan",
    "report",
    "train",
    "train_tokenizer",
    "write_shards",
]

limit_cpu()  # here, because PyTorch's libraries read their settings when they are first used


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'puna' has no attribute {name!r}")
    from puna import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Verb(ModuleType):
    """A folder of the package that is called as the function of its name: puna.train, puna.report."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        from puna import api

        return getattr(api, self.__name__.removeprefix("puna."))(*args, **options)


class _Package(ModuleType):
    """The package, whose folders stay callable.

    NOTE: `import puna.train.loop` sets the attribute puna.train to the folder, so `__getattr__` is no longer
    called for it. Such folders become callable: puna.train(…) is the same before and after that import.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and type(value) is ModuleType:
            value.__class__ = _Verb
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
