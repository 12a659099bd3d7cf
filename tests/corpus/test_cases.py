"""Small inputs after public reports of faults in other tools, each with the outcome that is right.

`cases/expected.jsonl` has a line per input: the document holds each string of `must` and none of `must_not`,
or is left out for the reason that `dropped` begins; `files` says so for each path (null: left out).
"""

import importlib
import json
from pathlib import Path

import pytest

from puna.corpus.document import DamagedRecord, Document, Drop

CASES = Path(__file__).parent / "cases"
EXPECTED = [json.loads(line) for line in (CASES / "expected.jsonl").read_text().splitlines()]


def results_of(case):
    """(record, Document or Drop) for each record of a case, by its source's own reader and cleaner."""
    source = importlib.import_module(f"puna.corpus.{case['source']}.source")
    path = CASES / case["input"]
    paths = source.find(path) if path.is_dir() else [path]
    records = [record for found in paths for record in source.read(found)]
    assert not [record for record in records if isinstance(record, DamagedRecord)]
    return [(record, source.clean(record)) for record in records]


def check_text(result, must, must_not):
    assert isinstance(result, Document), result
    assert [words for words in must if words not in result.text] == []
    assert [words for words in must_not if words in result.text] == []


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case["case"])
def test_what_other_tools_get_wrong(case):
    results = results_of(case)
    if "files" in case:
        by_path = {record.path: result for record, result in results}
        for path, wanted in case["files"].items():
            if wanted is None:
                assert isinstance(by_path[path], Drop), path
            else:
                check_text(by_path[path], wanted["must"], wanted["must_not"])
        return
    [(_, result)] = results
    if "dropped" in case:
        assert isinstance(result, Drop) and result.reason.startswith(case["dropped"]), result
    else:
        check_text(result, case["must"], case["must_not"])
