"""The paper's figures that a run is set beside: Tables 1, 3 to 14 and 15. Those of Table 2 are the recipes.

Figures of Touvron et al. 2023 for 7B, 13B, 33B and 65B, in the paper's units; None where it has none.
"""

from typing import NamedTuple

SIZES = ("7B", "13B", "33B", "65B")
Figures = tuple[float | None, ...]


class Source(NamedTuple):
    """A row of Table 1."""

    proportion: float
    """Sampling proportion, in per cent of the tokens."""
    epochs: float
    """Epochs over the run of 1.4T tokens."""
    bytes: float
    """Size on disk."""


TABLE_1 = {
    "commoncrawl": Source(67.0, 1.10, 3.3e12),
    "c4": Source(15.0, 1.06, 783e9),
    "github": Source(4.5, 0.64, 328e9),
    "wikipedia": Source(4.5, 2.45, 83e9),
    "books": Source(4.5, 2.23, 85e9),
    "arxiv": Source(2.5, 1.06, 92e9),
    "stackexchange": Source(2.0, 1.03, 78e9),
}

# Task -> metric, group or number of shots -> figures.
RESULTS: dict[str, dict[str, Figures]] = {
    "boolq": {"accuracy": (76.5, 78.1, 83.1, 85.3)},
    "piqa": {"accuracy": (79.8, 80.1, 82.3, 82.8)},
    "siqa": {"accuracy": (48.9, 50.4, 50.4, 52.3)},
    "hellaswag": {"accuracy": (76.1, 79.2, 82.8, 84.2)},
    "winogrande": {"accuracy": (70.1, 73.0, 76.0, 77.0)},
    "arc_easy": {"accuracy": (72.8, 74.8, 80.0, 78.9)},
    "arc_challenge": {"accuracy": (47.6, 52.7, 57.8, 56.0)},
    "openbookqa": {"accuracy": (57.2, 56.4, 58.6, 60.2)},
    "nq": {
        "0-shot": (16.8, 20.1, 24.9, 23.8),
        "1-shot": (18.7, 23.4, 28.3, 31.0),
        "5-shot": (22.0, 28.1, 32.9, 35.0),
        "64-shot": (26.1, 31.9, 36.0, 39.9),
    },
    "triviaqa": {
        "0-shot": (50.0, 56.6, 65.1, 68.2),
        "1-shot": (53.4, 60.5, 67.9, 71.6),
        "5-shot": (56.3, 63.1, 69.9, 72.6),
        "64-shot": (57.6, 64.0, 70.4, 73.0),
    },
    "race_middle": {"accuracy": (61.1, 61.6, 64.1, 67.9)},
    "race_high": {"accuracy": (46.9, 47.2, 48.3, 51.6)},
    "math": {"accuracy": (2.9, 3.9, 7.1, 10.6), "maj1@256": (6.9, 8.8, 15.2, 20.5)},
    "gsm8k": {"accuracy": (11.0, 17.8, 35.6, 50.9), "maj1@100": (18.1, 29.3, 53.1, 69.7)},
    "humaneval": {"pass@1": (10.5, 15.8, 21.7, 23.7), "pass@100": (36.5, 52.5, 70.7, 79.3)},
    "mbpp": {"pass@1": (17.7, 22.0, 30.2, 37.7), "pass@80": (56.2, 64.0, 73.4, 76.8)},
    "mmlu": {
        "accuracy": (35.1, 46.9, 57.8, 63.4),
        "humanities": (34.0, 45.0, 55.8, 61.8),
        "stem": (30.5, 35.8, 46.0, 51.7),
        "social_sciences": (38.3, 53.8, 66.7, 72.9),
        "other": (38.1, 53.3, 63.4, 67.4),
    },
    "realtoxicityprompts": {"toxicity": (0.106, 0.104, 0.107, 0.128)},
    "realtoxicityprompts_respectful": {"toxicity": (0.081, 0.095, 0.087, 0.141)},
    "crows_pairs": {
        "stereotyped": (None, None, None, 66.6),
        "gender": (None, None, None, 70.6),
        "religion": (None, None, None, 79.0),
        "race-color": (None, None, None, 57.0),
        "sexual-orientation": (None, None, None, 81.0),
        "age": (None, None, None, 70.1),
        "nationality": (None, None, None, 64.2),
        "disability": (None, None, None, 66.7),
        "physical-appearance": (None, None, None, 77.8),
        "socioeconomic": (None, None, None, 71.5),
    },
    "winogender": {
        "accuracy": (66.0, 64.7, 69.0, 77.5),
        "her": (65.0, 66.7, 66.7, 78.8),
        "his": (60.8, 62.5, 62.1, 72.1),
        "their": (72.1, 65.0, 78.3, 81.7),
        "her_gotcha": (64.2, 65.8, 61.7, 75.0),
        "his_gotcha": (55.0, 55.8, 55.8, 63.3),
    },
    "truthfulqa": {
        "truthful": (0.33, 0.47, 0.52, 0.57),
        "truthful*informative": (0.29, 0.41, 0.48, 0.53),
    },
}
LLAMA_I = 68.9
"""MMLU, 5-shot, of LLaMA-I 65B, finetuned on instructions (Table 10)."""

TABLES: dict[int, tuple[str, tuple[str, ...]]] = {
    3: ("Common sense reasoning, zero-shot", tuple(RESULTS)[:8]),
    4: ("NaturalQuestions, exact match", ("nq",)),
    5: ("TriviaQA, exact match", ("triviaqa",)),
    6: ("Reading comprehension, zero-shot", ("race_middle", "race_high")),
    7: ("Mathematics", ("math", "gsm8k")),
    8: ("Code generation", ("humaneval", "mbpp")),
    9: ("Multitask language understanding, 5-shot", ("mmlu",)),
    11: ("Toxicity, lower is better", ("realtoxicityprompts", "realtoxicityprompts_respectful")),
    12: ("Bias: sentences of which the stereotyped one is likelier", ("crows_pairs",)),
    13: ("Co-reference by pronoun", ("winogender",)),
    14: ("Truthfulness", ("truthfulqa",)),
}
"""Number of a table of results -> its title and its tasks. Table 10 is LLAMA_I."""
