"""puna: LLaMA, end to end. Raw dumps -> documents -> tokens -> weights -> text and scores."""

from puna.devices import limit_cpu

__version__ = "0.1.0"

limit_cpu()  # here, because PyTorch's libraries read their settings when they are first used
