"""The chat page in a real browser: what a person does, and what they see."""

import json
from pathlib import Path

import httpx2
import pytest

from puna.serve.app import PAGE, Limits
from tests.serve.browser import ALT, SHIFT, Browser, find_browser
from tests.serve.conftest import live, slowed, tiny_engine

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium")

TURNS = "[...document.querySelectorAll('#log .turn .body')].map(e => e.innerText)"
IS_DONE = "!running && document.querySelectorAll('.turn.assistant').length"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield browser
    browser.close()
    assert browser.problems == []


@pytest.fixture(scope="module")
def slow_served(vocabulary):
    """Slow enough to see an answer being written."""
    with live(slowed(tiny_engine(vocabulary), 0.02)) as one:
        yield one


@pytest.fixture
def fresh(browser):
    """Opens a server's page with nothing kept from before."""

    def open_page(server, **settings):
        browser.size(1280, 800)
        browser.open(f"{server.url}/openapi.json")
        kept = {"max_tokens": "12", "temperature": "0", **settings}
        browser.js(
            f"localStorage.clear(), localStorage.setItem('puna.settings', {json.dumps(json.dumps(kept))})"
        )
        browser.open(f"{server.url}/")
        browser.wait("typeof model !== 'undefined' && (model || problem)")
        return browser

    return open_page


def say(browser, text):
    browser.click("#input")
    browser.type(text)
    browser.press("Enter")
    browser.wait(f"({IS_DONE} || problem) && !running")


def ask(server, *contents):
    """The answer that the API gives to the same conversation."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    body = {"messages": messages, "temperature": 0, "top_p": 0.95, "max_tokens": 12}
    return server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]


def kept(browser):
    return browser.js("talk.messages.map(m => m.content)")


def test_a_conversation_is_what_the_api_answers_and_survives_a_reload(served, fresh):
    page = fresh(served)
    say(page, "the llama")
    first = ask(served, "the llama")
    say(page, "and the wind")
    expected = ["the llama", first, "and the wind", ask(served, "the llama", first, "and the wind")]
    assert kept(page) == expected
    assert "tokens" in page.js("$('rate').textContent")
    page.open(f"{served.url}/")
    page.wait("model")
    assert kept(page) == expected
    assert page.js("document.querySelector('#list [data-current] .open').textContent") == "the llama"


def test_an_answer_is_seen_while_it_is_written_and_escape_stops_it(slow_served, fresh):
    page = fresh(slow_served, max_tokens="400", seed="2", temperature="1")
    page.click("#input")
    page.type("the salt")
    page.press("Enter")
    page.wait("document.querySelector('.writing .body')?.innerText.length > 8")
    assert page.js("$('send').hidden && !$('stop').hidden")
    assert "per second" in page.js("$('rate').textContent")
    page.press("Escape")
    page.wait("!running")
    slow_served.wait_until_free(2)
    assert "Stopped." in page.js("document.querySelector('.turn.assistant .note').textContent")
    assert len(kept(page)) == 2
    assert page.js("!$('send').hidden && $('stop').hidden")


def test_a_message_is_edited_and_an_answer_tried_again(served, fresh):
    page = fresh(served)
    say(page, "one")
    say(page, "two")
    assert len(kept(page)) == 4
    page.js("[...document.querySelectorAll('.turn.user button')].find(b => b.textContent === 'Edit').click()")
    assert page.js("document.activeElement.value") == "one"
    page.js("document.activeElement.select()")
    page.type("seven stones")
    page.press("Enter")
    page.wait(IS_DONE)
    assert kept(page) == ["seven stones", ask(served, "seven stones")]
    page.js("talk.messages[1].content = 'to be replaced'")
    page.press("r", ALT)
    page.wait(IS_DONE)
    assert kept(page) == ["seven stones", ask(served, "seven stones")]
    # The arrow in an empty box edits the last message; Escape leaves it as it was.
    page.click("#input")
    page.press("ArrowUp")
    assert page.js("document.activeElement.value") == "seven stones"
    page.press("Escape")
    assert page.js("document.activeElement.id") == "input"
    assert len(kept(page)) == 2


def test_shift_enter_begins_a_line(served, fresh):
    page = fresh(served)
    page.click("#input")
    page.type("one")
    page.press("Enter", SHIFT)
    page.type("two")
    assert page.js("$('input').value") == "one\ntwo"
    assert kept(page) == []


def test_conversations_are_named_deleted_and_brought_back(served, fresh):
    page = fresh(served)
    say(page, "first")
    page.press("n", ALT)
    assert kept(page) == []
    say(page, "second")
    names = "[...document.querySelectorAll('#list .open')].map(e => e.textContent)"
    assert page.js(names) == ["second", "first"]
    page.click("#list [aria-label='Rename second']")
    page.type("another name")
    page.press("Enter")
    assert page.js(names) == ["another name", "first"]
    page.click("#list [aria-label='Delete another name']")
    assert page.js(names) == ["first"]
    page.click("#undo button")
    assert page.js(names) == ["another name", "first"]
    assert kept(page)[0] == "second"
    page.press("ArrowDown", ALT)
    assert kept(page)[0] == "first"


def test_what_a_model_writes_is_text_and_never_runs(served, fresh):
    page = fresh(served)
    attack = "<img src=x onerror=\"document.title='hit'\"> **<b>bold</b>** `<i>` [x](javascript:alert(1))"
    attack += (
        "\n\n```html\n<script>document.title = 'hit'</script>\n```\n\n1. one\n2. [two](https://a.example)"
    )
    page.js(f"talk.messages = [{{ role: 'assistant', content: {json.dumps(attack)} }}], draw()")
    assert page.js("document.querySelectorAll('.body img, .body script, .body b, .body i').length") == 0
    assert page.js("[...document.querySelectorAll('.body a')].map(a => a.href)") == ["https://a.example/"]
    assert page.js("document.querySelector('.body strong').textContent") == "<b>bold</b>"
    assert page.js("document.querySelector('.block pre').textContent") == (
        "<script>document.title = 'hit'</script>"
    )
    assert page.js("document.querySelectorAll('.body ol li').length") == 2
    assert page.js("document.title") == "puna"
    # And if it came in by another way, the page's policy would stop it.
    page.js("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))")
    assert page.js("window.ran") is None
    assert any("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


def test_the_page_brings_everything_with_it(served, fresh):
    page = fresh(served)
    loaded = page.js("performance.getEntriesByType('resource').map(e => new URL(e.name).host)")
    assert set(loaded) <= {served.url.removeprefix("http://")}
    policy = httpx2.get(f"{served.url}/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert "innerHTML" not in PAGE.read_text(encoding="utf-8")


def test_errors_say_what_to_do(vocabulary, fresh):
    problem = "document.querySelector('.problem')?.textContent"
    with live(tiny_engine(vocabulary), api_keys=("open-sesame",)) as locked:
        page = fresh(locked)
        assert "requires an API key" in page.js(problem)
        page.click(".problem button")
        page.click("#key")
        page.type("open-sesame")
        page.click("#settings .main")
        page.wait("model && !problem")
        say(page, "stones " * 600)
        assert "too long for the model" in page.js(problem)
        assert "512 tokens" in page.js(problem)
        page.press("n", ALT)
        say(page, "the wind")
        assert len(kept(page)) == 2
    say(page, "are you there")
    assert "The server cannot be reached" in page.js(problem)
    assert kept(page)[-1] == "are you there"


def test_a_busy_server_is_said_so(vocabulary, fresh):
    with live(slowed(tiny_engine(vocabulary, max_batch=1), 0.02), limits=Limits(queue=0)) as one:
        page = fresh(one)
        stream = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
        with httpx2.stream("POST", f"{one.url}/v1/completions", json=stream) as answer:
            lines = answer.iter_lines()  # a reader that is dropped hangs up
            next(lines)
            say(page, "the wind")
        assert "The server is busy" in page.js("document.querySelector('.problem').textContent")


def test_a_base_model_continues_texts(vocabulary, fresh):
    with live(tiny_engine(vocabulary, template=False)) as base:
        page = fresh(base)
        assert "base model" in page.js("$('hello').textContent")
        say(page, "the llama")
        text = base.complete(prompt="the llama", max_tokens=12, ignore_eos=False, top_p=0.95)["choices"][0][
            "text"
        ]
        assert kept(page) == ["the llama", text]
        say(page, "seven")
        longer = f"the llama{text}\nseven"
        more = base.complete(prompt=longer, max_tokens=12, ignore_eos=False, top_p=0.95)["choices"][0]["text"]
        assert kept(page)[-1] == more


CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(served, fresh, browser, scheme):
    browser.prefer(color_scheme=scheme)
    page = fresh(served)
    say(page, "the llama")
    page.js(
        "talk.messages[1].content = '# A\\n> b\\n\\n`c` [d](https://e.example)\\n```py\\nf\\n```', "
        "problem = { id: talk.id, ...explain({ status: 401 }) }, draw()"
    )
    assert page.js("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    assert page.js(CONTRAST) == []
    page.js("openSettings()")
    assert page.js(CONTRAST) == []


def test_a_phone_shows_everything_without_scrolling_sideways(served, fresh):
    page = fresh(served)
    page.size(360, 700, phone=True)
    say_button = "document.querySelector('#send').getBoundingClientRect()"
    page.js("ask('x'.repeat(300))")
    page.wait(IS_DONE)
    assert page.js("document.documentElement.scrollWidth") <= 360
    assert page.js("$('log').scrollWidth <= $('log').clientWidth")
    assert page.js(f"{say_button}.right <= 360 && {say_button}.bottom <= 700")
    page.wait("getComputedStyle($('side')).visibility === 'hidden'")
    page.click("#menu")
    page.wait("getComputedStyle($('side')).visibility === 'visible'")
    assert page.js("$('menu').getAttribute('aria-expanded')") == "true"
    page.press("Escape")
    page.wait("getComputedStyle($('side')).visibility === 'hidden'")


def test_everything_that_can_be_pressed_has_a_name_and_the_keyboard_reaches_it(served, fresh):
    page = fresh(served)
    say(page, "the llama")
    page.js("openSettings()")
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    pressed = [
        n for n in tree if n.get("role", {}).get("value") in ("button", "textbox", "spinbutton", "combobox")
    ]
    assert len(pressed) > 5
    nameless = [n for n in pressed if not n.get("name", {}).get("value")]
    assert nameless == []
    page.js("$('settings').close('')")
    reached = set()
    for _ in range(20):
        page.press("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.textContent"))
    assert {"new", "open-settings", "open-keys", "export", "Edit", "Retry", "input", "send"} <= reached
    page.js("$('shortcuts').showModal()")
    assert page.js("document.querySelectorAll('#keys tr').length") >= 8
    page.press("Escape")
    assert page.js("!$('shortcuts').open")
    # What a screen reader is told: once, when the answer is whole.
    assert kept(page)[1].strip() in page.js("$('said').textContent")
