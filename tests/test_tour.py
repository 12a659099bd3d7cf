"""The commands of the pages are valid, and those of docs/tour.md run, in their order, on tiny data."""

import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from puna.cli import app, main
from puna.rundir import REPORT

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks, continued lines joined, without comments; here-documents whole."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        lines = iter(block.replace("\\\n", " ").splitlines())
        for line in lines:
            if "<<'END'" in line:
                rest = list(iter(lambda: next(lines), "END"))  # noqa: B023
                found.append("\n".join([line, *rest]))
            elif line.strip():
                found.append(re.sub(r"\s+#\s.*", "", line).strip())
    return found


def puna_commands() -> list[tuple[str, str]]:
    lines = {(page.name, line) for page in PAGES for line in commands(page) if line.startswith("puna ")}
    # An ellipsis stands for what a reader fills in; "recipes" is a source of one's own.
    return sorted(item for item in lines if not re.search(r"…|\.\.\.|corpus recipes", item[1]))


@pytest.mark.parametrize(("page", "line"), puna_commands())
def test_a_command_of_the_pages_is_valid(page, line):
    app.parse_args(shlex.split(line.split(" | ")[0])[1:], exit_on_error=False, print_error=False)


def write_books(folder: Path) -> None:
    """Books with enough different words for the tour's vocabulary."""
    folder.mkdir(parents=True)
    for number in range(3):
        words = [f"{a}{b}{c}" for a in "bdfgk" for b in ("ra", "le", "ni", "mo") for c in "stlmnrpx"]
        lines = [
            " ".join(words[(7 * i + j * number + j) % len(words)] for j in range(11)) for i in range(300)
        ]
        (folder / f"book{number}.txt").write_text(".\n".join(lines), encoding="utf-8")


def run(line: str) -> None:
    """One command of the tour, in this process, in the current directory."""
    if "<<'END'" in line:
        head, _, text = line.partition("\n")
        Path(head.split()[2]).write_text(text + "\n")
        return
    words: list[str] = []
    for word in shlex.split(line)[1:]:
        words += sorted(map(str, Path().glob(word))) if "*" in word else [word]
    assert main(words) == 0, line


def test_the_tour_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    write_books(tmp_path / "cache" / "samples" / "books-sample")  # in place of the download
    without = ("pip install", "export ", "puna fetch", "puna serve")
    for line in commands(TOUR):
        if not line.startswith(without):
            run(line)
    assert (tmp_path / "runs" / "tour" / REPORT).is_file()
    out, _ = capfd.readouterr()
    assert "held-out loss" in out and "capitals" in out and "CO2eq" in out

    (serve,) = (line for line in commands(TOUR) if line.startswith("puna serve"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = shlex.split(serve.replace("8000", str(port)))[1:]
    server = subprocess.Popen([sys.executable, "-m", "puna.cli", *words], stderr=subprocess.DEVNULL)
    try:
        assert answers(f"http://127.0.0.1:{port}/health")
    finally:
        server.terminate()
        server.wait(30)


def answers(url: str, seconds: float = 90) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return urllib.request.urlopen(url, timeout=5).status == 200
        except OSError:
            time.sleep(0.3)
    return False
