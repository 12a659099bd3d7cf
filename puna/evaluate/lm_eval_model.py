"""Our engine as a model of lm-evaluation-harness: its tasks and templates, our arithmetic.

    from puna.evaluate.lm_eval_model import PunaLM
    lm_eval.simple_evaluate(model=PunaLM("runs/demo"), tasks=["arc_easy"])

lm_eval is imported here alone; it is not a dependency of the package.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM

from puna.config import Sampling
from puna.evaluate.model import EngineModel, Prompt, load_model
from puna.generate.likelihood import Row


class PunaLM(TemplateLM):  # type: ignore[misc]
    """A run or a converted model."""

    def __init__(self, path: str | Path, weights: str | None = None, max_batch: int = 16) -> None:
        super().__init__()
        self._model: EngineModel = load_model(Path(path), str(path), weights, max_batch)
        self._tokenizer = self._model.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The end of a text; what precedes a text without context."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """BOS where the vocabulary needs it."""
        return self._tokenizer.bos_id if self._model.begins_with_bos else self._tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **options: Any) -> list[int]:
        """The ids of a text, with BOS unless told otherwise."""
        bos = self._model.begins_with_bos if add_special_tokens is None else add_special_tokens
        return self._tokenizer.encode(string, bos=bos and self._model.begins_with_bos)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        rows = []
        for _, context, continuation in requests:
            whole = np.array([*context, *continuation], np.uint32)[-self._model.context :]
            border = len(whole) - len(continuation)
            rows.append(Row(whole[:border], whole[border:]))
        return [(found.logprob, found.greedy) for found in self._model.score(rows)]

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
        """The log-likelihood of whole texts, in windows of the context, each after one prefix token."""
        found = []
        for request in requests:
            ids = np.array(self.tok_encode(request.args[0], add_special_tokens=False), np.uint32)
            size, head = self._model.context - 1, np.array([self.prefix_token_id], np.uint32)
            rows = [Row(head, ids[start : start + size]) for start in range(0, len(ids), size)]
            found.append(sum(scored.logprob for scored in self._model.score(rows)))
        return found

    def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
        """Continue texts up to their stop strings."""
        prompts = []
        for request in requests:
            text, settings = request.args
            until = settings.get("until") or []
            most = int(settings.get("max_gen_toks", 256))
            temperature = float(settings.get("temperature") or 0) if settings.get("do_sample") else 0.0
            ids = np.array(self.tok_encode(text), np.uint32)[-(self._model.context - most) :]
            stop = (until,) if isinstance(until, str) else tuple(until)
            prompts.append(Prompt(text, ids, Sampling(temperature=temperature, top_p=1), most, stop))
        texts = [""] * len(prompts)
        for index, generated in self._model.generate(prompts):
            texts[index] = generated.text
        return texts
