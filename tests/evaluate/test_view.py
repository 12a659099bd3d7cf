"""The page of a run in a browser: what it shows; with all of MMLU, how large it is and how soon it opens."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from puna.evaluate import harness
from puna.evaluate.options import Options
from puna.evaluate.tasks import TASKS
from puna.evaluate.view import write_page
from puna.generate.likelihood import Scored
from tests.serve.browser import Browser, find_browser

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium")


def guesses():
    """A model that guesses: its texts are bytes, and every sixteenth of them is a token."""
    rng = np.random.default_rng(0)

    def encode(texts):
        return [
            np.frombuffer(text.encode()[:3] + text.encode()[3::16], np.uint8).astype(np.uint32)
            for text in texts
        ]

    def score(rows, progress):
        return [Scored(float(value), False) for value in -9 * rng.random(len(rows))]

    return SimpleNamespace(
        name="guesses", digest="0", context=2048, begins_with_bos=False, encode=encode, score=score
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield opened
    opened.close()


def page_of(data, out, **options):
    model, chosen = guesses(), Options(control=True, **options)
    jobs, _ = harness.plan([TASKS["mmlu"]], data, model, chosen, {})
    found = harness.run(jobs, model, out, chosen, lambda label, tokens: None)
    write_page(out, {"model": model.name, "results": found}, out / "view.html")
    return out / "view.html"


def opened(browser, page) -> float:
    """Seconds until the page was there."""
    browser.open(page.as_uri())
    browser.wait("document.body.dataset.ready !== undefined")
    return browser.js("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000


def test_a_reader_filters_opens_and_searches(browser, data, tmp_path):
    opened(browser, page_of(data, tmp_path))
    assert "12 examples, page 1 of 1" in browser.js("document.getElementById('place').textContent")
    assert browser.js("[...document.querySelectorAll('th')].map(c => c.textContent).includes('swapped')")
    wrong = (
        "(s => { s.value = 'wrong'; s.onchange(); return shown.length })(document.getElementById('filter'))"
    )
    right = wrong.replace("wrong", "right")
    assert browser.js(wrong) + browser.js(right) == 12
    browser.js("(s => { s.value = 'all'; s.onchange() })(document.getElementById('filter'))")
    group = (
        "(s => { s.value = 'anatomy'; s.onchange(); return shown.length })(document.getElementById('group'))"
    )
    assert browser.js(group) == 6
    browser.click("summary")
    browser.wait("document.querySelector('details table') !== null")
    shown = browser.js("document.querySelector('details').innerText")
    assert "answer-context" in shown and "ids at the border" in shown and "multiple choice" in shown
    assert browser.problems == []


@pytest.mark.slow
def test_all_of_mmlu_opens_in_three_seconds_and_takes_sixty_megabytes(browser, real, tmp_path):
    page = page_of(real, tmp_path)
    size = page.stat().st_size / 1e6
    seconds = min(opened(browser, page) for _ in range(3))
    assert "14,042 examples" in browser.js("document.getElementById('place').textContent")
    began = time.monotonic()
    browser.js("(s => { s.value = 'wrong'; s.onchange() })(document.getElementById('filter'))")
    print(f"{size:.1f} MB, open in {seconds:.2f} s, filtered in {time.monotonic() - began:.2f} s")
    browser.size(1200, 900)
    browser.click("summary")
    browser.screenshot(tmp_path / "view.png")
    assert size < 60 and seconds < 3 and browser.problems == []
