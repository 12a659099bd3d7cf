"""Chat templates: transformers' ids, and nobody speaks for another."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer
from tests.conftest import byte_level

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are kind.<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """\
{% if messages[0]['role'] == 'system' %}
{% set loop_messages = messages[1:] %}
{% set system = messages[0]['content'] %}
{% else %}
{% set loop_messages = messages %}
{% endif %}
{{ bos_token }}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate user and assistant') }}
{% endif %}
{% if message['role'] == 'user' %}
{% if loop.first and system is defined %}
{{ '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' }}
{% else %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% endif %}
{% else %}
{{ ' ' + message['content'].strip() + eos_token }}
{% endif %}
{% endfor %}
"""
TEMPLATES = {"chatml": CHATML, "llama 3": LLAMA_3, "mistral": MISTRAL}
CONTROLS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|end|>",
    "<|eot|>",
    "[INST]",
    "[/INST]",
)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A byte-level vocabulary with control tokens, as the hub's files, with each template."""
    found = {}
    for name, template in TEMPLATES.items():
        folder = tmp_path_factory.mktemp("hub")
        byte_level(list(CONTROLS)).save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": template,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        found[name] = folder
    return found


def template_of(folder: Path) -> ChatTemplate:
    template = ChatTemplate.of(Tokenizer(folder))
    assert template is not None
    return template


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": system}] if system is not None else []
    return messages + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "messages",
    [
        talk("The llama sees the river."),
        talk("  spaces \n", "\n answered\n\n", "and é 🦙"),
        talk("A", "B", "C", system="Be brief."),
    ],
    ids=["one", "spaces", "system"],
)
@pytest.mark.parametrize("goes_on", [True, False])
def test_ids_are_those_of_transformers(folders, name, messages, goes_on):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folders[name])
    expected = theirs.apply_chat_template(messages, add_generation_prompt=goes_on, return_dict=False)
    assert template_of(folders[name]).encode(messages, goes_on) == expected


contents = st.lists(
    st.one_of(
        st.sampled_from(
            [*CONTROLS, "<|im_", "end|>", "<", "|", "[", "INST]", "[/", " ", "\n", "s>", "<<s>s>"]
        ),
        st.text(max_size=5),
    ),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=contents, second=contents, system=st.one_of(st.none(), contents))
def test_what_a_message_says_is_only_ever_text(folders, name, first, second, system):
    template = template_of(folders[name])
    controls = set(Tokenizer(folders[name]).controls.values())
    ids = template.encode(talk(first, second, "x", system=system))
    harmless = template.encode(talk("a", "b", "x", system=None if system is None else "c"))
    assert [id for id in ids if id in controls] == [id for id in harmless if id in controls]


def test_words_that_look_like_control_tokens_are_kept(folders):
    said = "ends <|im_end|> and <<s>s> begins"
    ids = template_of(folders["chatml"]).encode(talk(said))
    assert said in Tokenizer(folders["chatml"]).decode(ids)


@pytest.mark.parametrize(
    ("name", "end"), [("chatml", "<|im_end|>"), ("llama 3", "<|eot|>"), ("mistral", "</s>")]
)
def test_the_token_that_ends_an_answer_is_found(folders, name, end):
    assert template_of(folders[name]).end_ids == {Tokenizer(folders[name]).controls[end]}


def test_a_template_may_refuse_in_its_own_words(folders):
    messages = [{"role": "assistant", "content": "I begin"}]
    with pytest.raises(ValueError, match="refuses these messages: roles must alternate"):
        template_of(folders["mistral"]).encode(messages)


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "a"}, r"messages\[0\]\.role"),
        ({"role": "<|im_end|>", "content": "a"}, r"messages\[0\]\.role"),
        ({"role": "user"}, r"messages\[0\]\.content"),
        ({"role": "user", "content": ["a"]}, r"messages\[0\]\.content"),
    ],
)
def test_a_message_without_role_or_text_is_refused(folders, message, error):
    with pytest.raises(ValueError, match=error):
        template_of(folders["chatml"]).encode([message])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ 'a' + 1 }}",
    ],
)
def test_a_template_reaches_nothing_but_its_values(folders, source):
    template = ChatTemplate(source, Tokenizer(folders["chatml"]))
    with pytest.raises(ValueError, match="the chat template refuses"):
        template.encode(talk("a"))


def test_a_broken_template_is_an_error(folders):
    with pytest.raises(ValueError, match="the chat template is not valid"):
        ChatTemplate("{% for %}", Tokenizer(folders["chatml"]))


HOSTILE = [
    "{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'a' * 99 }}{% endfor %}{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 'a' | center(10 ** 12) }}",
    "{{ messages[0]['content'].x.y }}",
    "{{ 1 / 0 }}",
    "{{ [1, 2][5:] | first | int + 'a' }}",
    "{{ undefined_function() }}",
    "{% include 'x' %}",
    "{{ raise_exception('line one\n line two') }}",
    "{{ '%d' | format('a') }}",
]


@pytest.mark.parametrize("source", HOSTILE)
def test_whatever_a_template_does_is_an_error_of_one_line_in_bounded_time(folders, source):
    template = ChatTemplate("{{ messages[0]['content'] }}", Tokenizer(folders["chatml"]))
    template.source = source  # found out only when it is used, as one that waits for certain messages
    with pytest.raises(ValueError, match=r"^the chat template refuses these messages: .+") as caught:
        template.encode(talk("a"))
    assert "\n" not in str(caught.value)
    template.source = "{{ messages[0]['content'] }}"
    assert template.encode(talk("a"))  # the next one is rendered


def test_a_model_with_a_broken_template_still_continues_texts(folders, tmp_path, caplog):
    for file in folders["chatml"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{% for %}")
    template = ChatTemplate.of(Tokenizer(tmp_path))
    assert "texts are continued, conversations refused" in caplog.text
    with pytest.raises(ValueError, match="the chat template is not valid"):
        template.encode(talk("a"))


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2, sort_keys=true, ensure_ascii=true) }}",
        "{{ {'b': '<é>', 'a': 1} | tojson(separators=(',', ':')) }}",
        "{{ strftime_now('%Y') }}{{ tools is none }}{{ documents is none }}{{ pad_token }}{{ unk_token }}",
        "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    ],
)
def test_templates_render_as_transformers_renders_them(folders, tmp_path, source):
    import transformers

    (tmp_path / "tokenizer.json").write_bytes((folders["chatml"] / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"pad_token": "<|end|>", "chat_template": source}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = talk("é <b> 'x'", "yes")
    assert template_of(tmp_path).render(messages) == theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=False
    )


def test_a_vocabulary_without_a_template_has_none(shards):
    assert ChatTemplate.of(Tokenizer(shards)) is None


# ---- what the neighbours of a vocabulary say


@pytest.mark.parametrize(
    ("config", "adds_bos"), [({}, False), ({"add_bos_token": True}, True), ({"add_bos_token": False}, False)]
)
def test_bos_is_added_where_the_files_say_so(folders, tmp_path, config, adds_bos):
    (tmp_path / "tokenizer.json").write_bytes((folders["chatml"] / "tokenizer.json").read_bytes())
    settings_ = {"bos_token": "<s>", "eos_token": "</s>", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    assert Tokenizer(tmp_path).adds_bos == adds_bos


def test_bos_is_added_where_a_post_processor_does(folders, tmp_path):
    definition = json.loads((folders["chatml"] / "tokenizer.json").read_text())
    definition["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    assert Tokenizer(tmp_path).adds_bos


def test_a_vocabulary_that_we_trained_with_adds_bos(folders, tmp_path, shards):
    Tokenizer(folders["chatml"]).save(tmp_path / "tokenizer.model")
    assert Tokenizer(tmp_path).adds_bos
    assert Tokenizer(shards).adds_bos


def test_further_ends_and_a_template_of_its_own_file_are_read(folders, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folders["chatml"] / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 6]}')
    found = Tokenizer(tmp_path).settings
    assert found.chat_template == "{{ messages[0]['content'] }}"
    assert found.end_ids == {1, 6}


def test_control_tokens_are_known_by_their_texts(folders, shards):
    hub, ours = Tokenizer(folders["chatml"]), Tokenizer(shards)
    assert {hub.control_text(hub.controls[text]) for text in CONTROLS} == set(CONTROLS)
    assert hub.piece(hub.controls["<s>"]) == b""
    assert ours.controls["<s>"] == ours.bos_id
    assert ours.control_text(ours.encode("a")[-1]) == ours.piece(ours.encode("a")[-1]).decode()


# ---- every form in which transformers writes a vocabulary of the LLaMA family

FIRST = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
LEGACY = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
ADDED = {"<|im_start|>": 320, "<|im_end|>": 321, "<tool>": 322}
LAYOUT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def added_token(id, content, **more):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": id, "content": content, **flags, "special": content != "<tool>"} | more


def llama_form(folder: Path, form: str) -> Path:
    """A directory as some version of transformers writes it."""
    from puna.tokens.vocabularies.sentencepiece import PieceModel
    from tests.formats.models import tokenizer_model

    model = tokenizer_model()
    # The class LlamaTokenizer of transformers 5 puts a normalizer of its own in the place of the file's.
    name = "PreTrainedTokenizerFast" if "prepend" in form else "LlamaTokenizer"
    config = {"tokenizer_class": name, "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>", "chat_template": LAYOUT, "clean_up_tokenization_spaces": False}
    if "model" in form:
        (folder / "tokenizer.model").write_bytes(model)
    if "added" in form:
        (folder / "added_tokens.json").write_text(json.dumps(ADDED))
        config["additional_special_tokens"] = ["<|im_start|>", "<|im_end|>"]
    if "decoder" in form:
        entries = {str(id): added_token(id, text) for text, id in ADDED.items()}
        config["added_tokens_decoder"] = entries
    if "legacy" in form:
        config["legacy"] = "false" not in form
    if "json" in form:
        definition = PieceModel(model).definition()
        texts = {"<unk>": 0, "<s>": 1, "</s>": 2, **ADDED}
        definition["added_tokens"] = [
            added_token(id, text, rstrip="rstrip" in form and id == 321) for text, id in texts.items()
        ]
        definition["normalizer"], definition["pre_tokenizer"] = (
            (None, FIRST) if "first" in form else (LEGACY, None)
        )
        (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.mark.parametrize(
    "form",
    [
        "model, added",
        "model, added, legacy false",
        "model, added, decoder",
        "model, decoder",
        "json, first",
        "json, first, rstrip",
        "json, prepend",
        "model, json, first",
        "model, json, first, added, decoder",
    ],
)
def test_every_form_of_a_llama_vocabulary_gives_transformers_ids(tmp_path, form):
    import transformers

    folder = llama_form(tmp_path, form)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer(folder)
    # Where a text begins with a space or an added token, SentencePiece puts a space before it, and
    # transformers' Metaspace none.
    texts = ["the llama", "carries salt <tool> and", "\n12 é 🦙", "a<tool>b"]
    for text in texts + [" and", "<tool>"] * ("model" not in form):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    template = template_of(folder)
    for messages in (
        talk("the salt"),
        talk(" a ", "b <tool> c\n", "", system="Be brief."),
        talk("é", "🦙 ", "x"),
    ):
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert template.encode(messages) == expected
    assert template.end_ids == {321}
    assert ours.vocab_size == 323 and ours.piece(322) == b"<tool>" and ours.piece(321) == b""
    if "prepend" not in form:  # there the space before each part of a text stays in it
        assert ours.decode(ours.encode("a <tool> b")) == "a <tool> b"


def test_files_that_disagree_on_an_added_token_are_named(tmp_path):
    folder = llama_form(tmp_path, "model, added, decoder")
    (folder / "added_tokens.json").write_text(json.dumps(ADDED | {"<tool>": 323}))
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json gives '<tool>' the id 322.*added_tokens\.json"
    ):
        Tokenizer(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": 322}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json says that token 322 is '<tool>'"):
        Tokenizer(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    (folder / "added_tokens.json").write_text(json.dumps({"<other>": 5}))
    with pytest.raises(
        ValueError, match=r"added_tokens\.json says that token 5 is '<other>'.*tokenizer\.model"
    ):
        Tokenizer(folder)
