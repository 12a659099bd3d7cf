"""The small random model of the generation tests."""

from tests.generate.conftest import engine, model, one_thread, tokenizer

__all__ = ["engine", "model", "one_thread", "tokenizer"]
