"""puna: LLaMA, end to end. Raw dumps -> documents -> tokens -> weights -> text and scores."""

__version__ = "0.1.0"
