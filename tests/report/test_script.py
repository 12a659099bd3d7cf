"""The page's script in a browser: zoom, smoothing, axes, hidden curves, and the policy that lets it run."""

import html
import re
import subprocess
from pathlib import Path

import pytest

from puna.report.page import build_report
from tests.report.test_report import make_run
from tests.serve.browser import find_browser

CHROMIUM = find_browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

# What a reader does: steps as the axis, more smoothing, a zoom to the middle, a log axis, one curve hidden.
ACTIONS = """<script>
const change = (selector, value, event) => {
  const control = document.querySelector(selector);
  control.value = value;
  control.dispatchEvent(new Event(event));
};
change(".tools select", "steps", "change");
change(".tools input[type=range]", 100, "input");
const svg = document.querySelector("figure.chart svg"), box = svg.getBoundingClientRect();
svg.setPointerCapture = () => {};
const point = (kind, share) => svg.dispatchEvent(new PointerEvent(kind, {
  clientX: box.left + box.width * share, clientY: box.top + box.height / 2,
  pointerType: "mouse", button: 0, pointerId: 1 }));
point("pointerdown", 0.4);
point("pointermove", 0.7);
point("pointerup", 0.7);
document.querySelector("figcaption button").click();
document.querySelector(".legend li").click();
point("pointermove", 0.5);
document.title = "done";
</script></body>"""


def browsed(page: Path, folder: Path) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={folder}/profile", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return build_report(make_run(tmp_path_factory.mktemp("script")))


def test_the_policy_lets_the_script_run(page, tmp_path):
    assert 'class="tools"' not in page.read_text(encoding="utf-8")
    assert '<div class="tools">' in browsed(page, tmp_path)


def test_a_reader_zooms_smooths_changes_axes_and_hides_curves(page, tmp_path):
    source = page.read_text(encoding="utf-8")
    source = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source
    )  # as ACTIONS is not in it
    copy = tmp_path / "copy.html"
    copy.write_text(source.replace("</body>", ACTIONS), encoding="utf-8")
    dom = browsed(copy, tmp_path)
    figure = html.unescape(dom[dom.index('<figure class="chart wide"') : dom.index("</figure>")])
    assert "<title>done</title>" in dom
    labels = re.findall(r'class="tick"[^>]*>([^<]+)<', figure)
    assert {"50", "60", "70"} <= set(labels)
    assert not {"0", "120"} & set(labels)
    assert "loss, nats per token, log scale" in figure
    assert "centred mean of 13 steps" in figure
    assert re.search(r'<li data-series="0"[^>]* aria-pressed="false"', figure)
    assert re.search(r'class="tip"[^>]*><div>[\d.]+ steps</div>', figure)
    assert not re.search(r"NaN|Infinity|undefined", figure)
