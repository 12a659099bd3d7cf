"""Instruction data: every format becomes the same conversation, and what is none is named."""

import gzip
import json

import pytest

from puna.finetune.examples import read_examples
from puna.finetune.formats import Malformed, Row, read_rows
from tests.finetune.conftest import chat, write_rows

ASKED, SAID = "Where does the llama live?", "On the puna."
SAME = {
    "messages": chat(ASKED, SAID),
    "sharegpt": {"conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": SAID}]},
    "alpaca": {"instruction": ASKED, "input": "", "output": SAID, "text": "the two, rendered"},
    "tasks": {"instruction": ASKED, "instances": [{"input": "", "output": SAID}]},
    "prompt": {"prompt": ASKED, "completion": SAID},
    "prompt of messages": {
        "prompt": [{"role": "user", "content": ASKED}],
        "completion": [{"role": "assistant", "content": SAID}],
    },
    "flan": {"inputs": ASKED, "targets": SAID, "task": "geography"},
}
TURN = {"role": "user", "content": "a"}
ANSWER = {"role": "assistant", "content": "b"}
MALFORMED = {
    "not valid JSON": '{"messages": [',
    "no JSON object": "[1, 2]",
    "fields of no known format": {"question": "a", "answer": "b"},
    "fits several formats": {**chat("a", "b"), "prompt": "a", "completion": "b"},
    "field of a wrong type": {"prompt": "a", "completion": 7},
    "field of a wrong type (list)": {"messages": "a"},
    "empty list": {"messages": []},
    "empty list (instances)": {"instruction": "a", "instances": []},
    "message is not a JSON object": {"messages": ["a"]},
    "unknown role": {"messages": [{"role": "robot", "content": "a"}, ANSWER]},
    "unknown role (none)": {"messages": [{"content": "a"}, ANSWER]},
    "unknown role (of sharegpt)": {"messages": [{"role": "human", "content": "a"}, ANSWER]},
    "field of a wrong type (content)": {"messages": [TURN, {"role": "assistant", "content": None}]},
    "field of a wrong type (parts)": {"messages": [{"role": "user", "content": [{"text": "a"}]}, ANSWER]},
    "no answer": {"messages": [TURN]},
    "begins with an answer": {"messages": [ANSWER, TURN, ANSWER]},
    "two system messages": {"messages": [{"role": "system", "content": "a"}] * 2 + [TURN, ANSWER]},
    "system message not first": {"messages": [TURN, {"role": "system", "content": "a"}, ANSWER]},
    "empty answer": {"prompt": "a", "completion": " \n"},
    "empty question": {"prompt": "", "completion": "b"},
    "empty text": {"text": "  "},
    "not Unicode text": '{"prompt": "\\ud800", "completion": "b"}',
    "NUL character": {"prompt": "a", "completion": "b\0"},
    "text too long": {"prompt": "a" * (5 << 20), "completion": "b"},
    "missing field": {"instruction": "a", "instances": [{"input": "c"}]},
}


@pytest.mark.parametrize("format", SAME)
def test_every_format_is_recognised_and_gives_the_same_conversation(tmp_path, format):
    (row,) = read_rows(write_rows(tmp_path / "data.jsonl", [SAME[format]]))
    assert row == Row("data.jsonl:1", tuple(SAME["messages"]["messages"]))


def test_an_input_follows_its_instruction_and_each_instance_is_an_example(tmp_path):
    instances = [{"input": "salt", "output": "white"}, {"input": "coal", "output": "black"}]
    path = write_rows(tmp_path / "data.jsonl", [{"instruction": "Which colour?", "instances": instances}])
    first, second = read_rows(path)
    assert first.messages[0]["content"] == "Which colour?\n\nsalt"
    assert second.messages == (
        {"role": "user", "content": "Which colour?\n\ncoal"},
        {"role": "assistant", "content": "black"},
    )


def test_a_question_without_an_answer_at_the_end_is_not_used(tmp_path):
    (row,) = read_rows(write_rows(tmp_path / "data.jsonl", [chat("a", "b", "c")]))
    assert [message["content"] for message in row.messages] == ["a", "b"]


def test_json_arrays_parquet_and_compressed_lines_hold_the_same_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(3)]
    plain = write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    read = [[row.messages for row in read_rows(path)] for path in sorted(tmp_path.iterdir())]
    assert len(read) == 4 and len(read[0]) == 3
    assert all(rows == read[0] for rows in read)


@pytest.mark.parametrize("reason", MALFORMED)
def test_a_malformed_record_is_named_with_its_line_and_set_aside(tmp_path, reason):
    path = write_rows(tmp_path / "data.jsonl", [chat("a", "b"), MALFORMED[reason], chat("c", "d")])
    before, malformed, after = read_rows(path)
    assert isinstance(before, Row) and isinstance(after, Row)
    assert isinstance(malformed, Malformed)
    assert malformed.place == "data.jsonl:2"
    assert malformed.reason == reason.split(" (")[0]
    assert "\n" not in str(malformed)


def test_a_truncated_compressed_file_gives_what_came_before(tmp_path):
    plain = write_rows(tmp_path / "a.jsonl", [chat(f"question {n}", f"answer {n}") for n in range(2000)])
    whole = gzip.compress(plain.read_bytes())
    (tmp_path / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    *rows, last = read_rows(tmp_path / "b.jsonl.gz")
    assert len(rows) > 100
    assert isinstance(last, Malformed) and last.reason in (
        "not valid JSON",
        "compressed data is damaged or cut off",
    )


def test_a_given_format_is_not_guessed(tmp_path):
    both = {**chat("a", "b"), "prompt": "c", "completion": "d"}
    path = write_rows(tmp_path / "data.jsonl", [both, {"inputs": "a", "targets": "b"}])
    row, malformed = read_rows(path, "prompt")
    assert row.messages[0]["content"] == "c"
    assert (malformed.reason, malformed.detail) == ("missing field", "prompt")


def test_more_malformed_records_than_allowed_stop_with_one_line(tmp_path, pieces, template):
    rows = [chat("a", "b")] * 3 + [{"messages": [TURN]}, "{"]
    path = write_rows(tmp_path / "data.jsonl", rows)
    with pytest.raises(ValueError, match=r"2 of 5 records of .* are malformed") as caught:
        read_examples(path, template, pieces, 64, max_bad=0.3)
    assert "the first is data.jsonl:4: no answer" in str(caught.value)
    assert "\n" not in str(caught.value)
    found = read_examples(path, template, pieces, 64, max_bad=0.4)
    assert found.counts["examples"] == 3
    assert found.counts["malformed: no answer"] == found.counts["malformed: not valid JSON"] == 1


@pytest.mark.parametrize(
    ("content", "error"), [(None, "there is no file"), ("", "is empty"), ("[{}, ", "is not a JSON array")]
)
def test_a_file_without_records_is_an_error(tmp_path, pieces, template, content, error):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=error):
        read_examples(path, template, pieces, 64)
