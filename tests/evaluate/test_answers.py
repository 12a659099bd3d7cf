"""Extraction and comparison of generated answers."""

import re

import pytest

from puna.evaluate.answers import (
    exact_match,
    f1,
    first_line,
    gold_number,
    majority,
    normalised,
    normalised_number,
    number,
    until_stop,
)
from puna.evaluate.statistics import majority_at_k
from puna.evaluate.tasks import TASKS
from puna.evaluate.tasks.code import HUMANEVAL_STOPS


def test_articles_are_removed_as_whole_words_only():
    assert normalised("An  Apple, a day; the END.") == "apple day end"
    assert normalised("Banana Theatre anthem") == "banana theatre anthem"
    assert normalised("The The") == "the the" and normalised("A") == "a" and normalised("?") == "?"


def test_both_sides_are_stripped_before_comparison():
    assert exact_match(" Sunset  Boulevard \n", [" sunset boulevard"])
    assert exact_match("The Beatles", ["Beatles"]) and not exact_match("", ["", "x"])
    assert f1("the red house", ["red car"]) == pytest.approx(0.5)


def test_an_answer_is_cut_at_the_line_break_then_loses_one_dot_or_comma():
    assert first_line(" R. H. Thomson.\nQ: next") == "R. H. Thomson"
    assert first_line(" 10,000,") == "10,000" and first_line("etc..") == "etc."
    assert first_line(" R. H. Thomson.", "first") == "R" and first_line(" 10,000", "first") == "10"


def test_the_default_cut_leaves_every_reference_answerable(real):
    """All references of 316 of NQ's questions hold a dot or a comma; 310 remain so when normalised."""
    lost = {"final": 0, "first": 0}
    examples = list(TASKS["nq"].read(real))
    assert sum(all(re.search("[.,]", r) for r in example.references) for example in examples) == 316
    for example in examples:
        for cut in lost:
            lost[cut] += not any(
                exact_match(first_line(r, cut), example.references) for r in example.references
            )
    assert lost == {"final": 0, "first": 310}


def test_normalised_references_agree_with_triviaqas_own(real):
    agreed = total = 0
    for row in real.json_lines("triviaqa/wikipedia-dev.nocontext.jsonl"):
        answer = row["Answer"]
        total += 1
        agreed += exact_match(answer["NormalizedValue"], [answer["Value"], *answer["Aliases"]])
    assert agreed / total > 0.98  # theirs puts a space for punctuation


def test_gsm8k_takes_the_first_answer_mark_not_the_last_number():
    assert number(" 5 + 4 = 9. The answer is 9.\n\nQ: There are 20 cars. A: The answer is 20.") == "9"
    assert (
        number("so\n#### $1,250.00") == "1250"
        and number("\nA: 3.5%") == "3.5"
        and number("The answer is 7 apples.") == "7"
    )
    assert (
        number("I think 12") == ""
        and number("The answer is -3.") == "-3"
        and number("The answer is unknown.\n5") == ""
    )
    assert (
        normalised_number("$1,000.") == "1000" == gold_number("x\n#### 1,000")
        and normalised_number("-0") == "0"
    )


def test_gsm8k_extraction_gives_all_labels_of_the_published_solutions(real):
    names = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
    verdicts = [
        (number(row[name]["solution"]) == normalised_number(row["ground_truth"].rpartition("\nA:")[2]))
        == row[name]["is_correct"]
        for row in real.json_lines("gsm8k/example_model_solutions.jsonl")
        for name in names
    ]
    assert sum(verdicts) == len(verdicts) == 5276


def test_gold_answers_with_commas_match(real):
    rows = [row["answer"].rpartition("####")[2] for row in real.json_lines("gsm8k/test.jsonl")]
    commas = [text for text in rows if "," in text]
    assert len(commas) == 14
    assert all(
        number(f"The answer is {text.replace(',', '').strip()}.") == normalised_number(text)
        for text in commas
    )


def test_a_majority_counts_normalised_answers_and_ignores_unparsable_ones():
    assert (
        majority(["", "", "", "7", "8", "8"]) == "8"
        and majority(["3", "4", "4", "3"]) == "3"
        and majority(["", ""]) == ""
    )
    assert (
        majority_at_k(["1", "2", "2"], [True, False, False], 3) == 0
        and majority_at_k(["1", "2", "2"], [True, False, False], 1) == 1
    )
    with pytest.raises(ValueError, match="at least 5 samples, got 3"):
        majority_at_k(["1", "2", "2"], [True] * 3, 5)


def test_a_completion_is_kept_up_to_the_first_stop_and_keeps_its_leading_spaces():
    text = "    return x\n\n    # indented\ndef other():\n    if y:\n"
    assert until_stop(text, HUMANEVAL_STOPS) == "    return x\n\n    # indented"
    assert until_stop("    return 1\n", HUMANEVAL_STOPS) == "    return 1\n"
