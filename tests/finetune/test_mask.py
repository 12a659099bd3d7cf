"""The loss mask: targets are the tokens of the answers and of their ends, whatever the template."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.finetune.examples import Example, encode_rows, read_examples
from puna.finetune.formats import Malformed, Row, read_rows
from puna.finetune.templates import TEMPLATES, choose_template, with_template
from puna.formats.convert import convert
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer
from tests.finetune.conftest import LATE_END, SOURCES, chat, write_rows
from tests.formats.models import PLAIN, write_native_model

ANY_VOCABULARY = ("alpaca", "puna", "plain", "mistral", "late end")
CASES = [("hub", name) for name in SOURCES] + [("pieces", name) for name in ANY_VOCABULARY]
ENDS = {
    "chatml": "<|im_end|>",
    "published chatml": "<|im_end|>",
    "llama 3": "<|eot|>",
    "generation": "<|eot|>",
}
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
said = words.filter(str.strip)
pairs = st.lists(st.tuples(said, said), min_size=1, max_size=3)


def every_format(pairs: list[tuple[str, str]]) -> list[tuple[dict, list[str]]]:
    """The same turns in each format, and the answers; formats without turns take the first."""
    asked, answer = pairs[0]
    flat = [text for pair in pairs for text in pair]
    speakers = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(flat)]
    answers = [answer for _, answer in pairs]
    return [
        (chat(*flat), answers),
        (chat(*flat, system="Be brief."), answers),
        ({"conversations": speakers}, answers),
        ({"instruction": asked, "input": "x", "output": answer}, [answer]),
        ({"instruction": asked, "instances": [{"input": "", "output": answer}]}, [answer]),
        ({"prompt": asked, "completion": answer}, [answer]),
        ({"inputs": asked, "targets": answer}, [answer]),
    ]


def target_texts(example: Example, tokenizer: Tokenizer, end: int) -> list[str]:
    """The decoded targets of each answer; each must finish with its end token."""
    texts, last = [], None
    for place, (id, trained) in enumerate(zip(example.ids.tolist(), example.is_target.tolist(), strict=True)):
        if trained and last is None:
            last = place
        if last is not None and id == end:
            texts.append(tokenizer.decode(example.ids[last:place].tolist()))
            last = None
        assert trained == (last is not None or (id == end and example.is_target[place]))
    assert last is None, "the last target is an end token"
    return texts


@pytest.mark.parametrize(("vocabulary", "name"), CASES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=pairs)
def test_decoded_targets_are_the_answers_and_their_ends(request, tmp_path, vocabulary, name, pairs):
    tokenizer = request.getfixturevalue(vocabulary)
    template = ChatTemplate(SOURCES[name], tokenizer)
    end = tokenizer.controls[ENDS.get(name, "</s>")]
    cases = every_format(pairs)
    rows = read_rows(write_rows(tmp_path / "data.jsonl", [row for row, _ in cases]))
    for item, (_, answers) in zip(encode_rows(list(rows), template, tokenizer, 4096), cases, strict=True):
        if isinstance(item, Malformed):
            # Its white space makes one token with the prompt's, which only templates that trim rule out.
            assert item.reason == "answer merges with what precedes it"
            assert name in ("plain", "published chatml")
            continue
        found = target_texts(item, tokenizer, end)
        assert [text.strip() for text in found] == [answer.strip() for answer in answers]
        assert item.is_target.sum() > len(answers)


@pytest.mark.parametrize(("vocabulary", "name"), CASES)
def test_ordinary_answers_are_never_refused(request, vocabulary, name):
    tokenizer = request.getfixturevalue(vocabulary)
    template = ChatTemplate(SOURCES[name], tokenizer)
    turns = ["Who sings?\n", " The llama <|im_end|> & </s>.", "And then?\n", " 12 stones:\n- one\n- two"]
    row = Row("", tuple(chat(*turns)["messages"]))
    (example,) = encode_rows([row], template, tokenizer, 4096)
    assert isinstance(example, Example), example
    end = tokenizer.controls[ENDS.get(name, "</s>")]
    found = [text.strip() for text in target_texts(example, tokenizer, end)]
    assert found == [turns[1].strip(), turns[3].strip()]


def test_a_prompt_is_what_chat_and_serving_send(hub, pieces):
    for tokenizer, name in ((hub, "chatml"), (pieces, "puna")):
        template = choose_template(tokenizer, name)
        messages = chat("the llama", "sees", "the river", "flows")["messages"]
        (example,) = encode_rows([Row("", tuple(messages))], template, tokenizer, 4096)
        prompt = template.encode(messages[:3])
        assert example.ids.tolist()[: len(prompt)] == prompt
        assert example.is_target[len(prompt) :].all()


def test_there_is_one_bos(hub, pieces):
    for tokenizer in (hub, pieces):
        for name in TEMPLATES.keys() - ({"chatml"} if tokenizer is pieces else set()):
            template = choose_template(tokenizer, name)
            (example,) = encode_rows([Row("", tuple(chat("a", "b")["messages"]))], template, tokenizer, 512)
            assert example.ids.tolist().count(tokenizer.bos_id) == tokenizer.adds_bos
            assert (example.ids[0] == tokenizer.bos_id) == tokenizer.adds_bos


def test_an_end_that_is_written_with_the_next_message_is_a_target_of_each_answer(pieces):
    template = ChatTemplate(LATE_END, pieces)
    assert template.end_ids == {pieces.eos_id}
    row = Row("", tuple(chat("the puna", "wind", "the river", "salt")["messages"]))
    (example,) = encode_rows([row], template, pieces, 64)
    assert example.ids[example.is_target].tolist().count(pieces.eos_id) == 2


def test_an_answer_that_merges_with_its_prompt_is_refused_by_name(pieces):
    template = choose_template(pieces, "plain")
    assert len(pieces.encode("carries")) < len(pieces.encode("carr")) + len(pieces.encode("ies"))
    row = Row("data.jsonl:7", tuple(chat("carr", "ies")["messages"]))
    (item,) = encode_rows([row], template, pieces, 64)
    assert isinstance(item, Malformed)
    assert str(item).startswith("data.jsonl:7: answer merges with what precedes it")


def test_a_template_that_rewrites_earlier_turns_is_refused_by_name(pieces):
    source = (
        "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '…' }}"
        "{{ eos_token }}{% endfor %}"
    )
    row = Row("data.jsonl:7", tuple(chat("a", "b", "c", "d")["messages"]))
    (item,) = encode_rows([row], ChatTemplate(source, pieces), pieces, 64)
    assert isinstance(item, Malformed)
    assert item.reason == "template rewrites earlier turns"


def test_a_conversation_that_the_template_refuses_spoils_no_other(hub):
    template = ChatTemplate(SOURCES["mistral"], hub)
    good, bad = chat("a", "b")["messages"], chat("a", "b", "c", "d")["messages"]
    del bad[1]
    items = encode_rows(
        [Row("1", tuple(good)), Row("2", tuple(bad)), Row("3", tuple(good))], template, hub, 64
    )
    assert [type(item) for item in items] == [Example, Malformed, Example]
    assert items[1].reason == "refused by the template"
    assert "roles must alternate" in items[1].detail


def test_a_hostile_conversation_spoils_no_other(hub):
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    source = "{% if 'x' in messages[0].content %}" + endless + "{% endif %}" + TEMPLATES["puna"]
    rows = [Row(str(n), tuple(chat(text, "b")["messages"])) for n, text in enumerate("axa")]
    items = encode_rows(rows, ChatTemplate(source, hub), hub, 64)
    assert [type(item) for item in items] == [Example, Malformed, Example]


# ---- what is too long


def test_a_long_conversation_loses_its_first_turns_and_never_a_part_of_an_answer(pieces, template):
    turns = [f"{kind} number {n} of the river" for n in range(8) for kind in ("question", "answer")]
    row = Row("", tuple(chat(*turns, system="the puna")["messages"]))
    (whole,) = encode_rows([row], template, pieces, 4096)
    (example,) = encode_rows([row], template, pieces, 100)
    assert len(whole.ids) > 200 and 50 < len(example.ids) <= 101
    text = pieces.decode(example.ids.tolist())
    assert text.startswith("### system:\nthe puna\n\n### user:\nquestion number")
    answers = target_texts(example, pieces, pieces.eos_id)
    assert answers == turns[1::2][-len(answers) :]
    assert example.cut_turns == 2 * example.cut_answers == 2 * (8 - len(answers))
    assert example.key == whole.key


def test_an_answer_that_does_not_fit_is_refused_and_the_cuts_are_counted(tmp_path, pieces, template):
    rows = [chat("short", "answer"), chat("a", "b", "stones " * 9, "salt"), chat("a", "llama " * 90)]
    path = write_rows(tmp_path / "data.jsonl", rows)
    found = read_examples(path, template, pieces, 60, max_bad=0.5)
    assert found.counts == {
        "examples": 2,
        "malformed": 1,
        "conversations cut": 1,
        "messages cut": 2,
        "answers cut": 1,
        "malformed: longer than the context": 1,
    }
    assert str(found.malformed[0]).startswith("data.jsonl:3: longer than the context (")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=said, context=st.integers(4, 40))
def test_every_token_of_a_text_is_a_target_once(pieces, template, text, context):
    examples = encode_rows([Row("", text=text)], template, pieces, context)
    ids = pieces.encode(text, eos=True)
    assert [id for example in examples for id in example.ids[example.is_target].tolist()] == ids
    assert examples[0].ids[0] == pieces.bos_id
    assert max(len(example.ids) for example in examples) <= context + 1


# ---- templates


def test_a_model_without_a_template_needs_a_name(pieces):
    with pytest.raises(
        ValueError, match=r"has no chat template; choose one by --template: chatml, alpaca, puna"
    ):
        choose_template(pieces, None)
    with pytest.raises(ValueError, match="template is 'vicuna'; it must be one of: chatml"):
        choose_template(pieces, "vicuna")


def test_a_template_whose_control_tokens_are_missing_is_an_error_with_the_fix(pieces):
    with pytest.raises(
        ValueError, match=r"needs the control tokens <\|im_start\|>, <\|im_end\|>.*--template puna"
    ):
        choose_template(pieces, "chatml")


@pytest.mark.parametrize("name", ["alpaca", "puna", "plain"])
def test_the_template_that_trained_serves_and_is_exported(tmp_path, name):
    run = write_native_model(tmp_path / "run", PLAIN)
    tokenizer = Tokenizer(run)
    template = choose_template(tokenizer, name)
    for file, data in with_template(
        {"tokenizer.model": run / "tokenizer.model"}, template, tokenizer
    ).items():
        if isinstance(data, bytes):
            (run / file).write_bytes(data)
    convert(run, tmp_path / "hf", "hf")
    convert(run, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "back", "puna")
    messages = chat("the puna", "wind", "the river")["messages"]
    for folder in (run, tmp_path / "hf", tmp_path / "model.gguf", tmp_path / "back"):
        found = ChatTemplate.of(Tokenizer(folder))
        assert found is not None
        assert found.source == template.source
        assert found.encode(messages) == template.encode(messages)
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == template.encode(messages)


def test_a_template_replaces_that_of_a_gguf_vocabulary(tmp_path, pieces):
    source = write_native_model(tmp_path / "source", PLAIN)
    (source / "chat_template.jinja").write_text(TEMPLATES["alpaca"])
    convert(source, tmp_path / "model.gguf", "gguf")
    convert(tmp_path / "model.gguf", tmp_path / "run", "puna")
    vocabulary = tmp_path / "run" / "tokenizer.gguf"
    tokenizer = Tokenizer(vocabulary)
    template = choose_template(tokenizer, "puna")
    for file, data in with_template({"tokenizer.gguf": vocabulary}, template, tokenizer).items():
        if isinstance(data, bytes):
            (tmp_path / "run" / file).write_bytes(data)
    convert(tmp_path / "run", tmp_path / "exported.gguf", "gguf")
    for place in (tmp_path / "run", tmp_path / "exported.gguf"):
        assert Tokenizer(place).settings.chat_template == template.source
