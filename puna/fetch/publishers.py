"""What the publishers of the sources offer: lists of files, with sizes and digests where they are given.

    commoncrawl, c4   data.commoncrawl.org     crawl-data/DUMP/wet.paths.gz             no sums
    wikipedia         dumps.wikimedia.org      dumpstatus.json of a date                sizes, SHA-1
    stackexchange     archive.org              metadata of the item "stackexchange"     sizes, SHA-1
    books             Project Gutenberg        a file an id                             no sums
    arxiv             a copy of arXiv's src/   arXiv_src_manifest.xml                   sizes, MD5
    github            the user's own export    a folder that fsspec knows               sizes

Each source has a function of its name: fetcher, base URL (a publisher's or a mirror's), what is wanted.
"""

import gzip
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from puna.fetch.http import Fetcher, FetchError, Item

BASES = {
    "commoncrawl": "https://data.commoncrawl.org",
    "wikipedia": "https://dumps.wikimedia.org",
    "stackexchange": "https://archive.org",
    "books": "https://www.gutenberg.org/cache/epub",
}

_DATE = re.compile(r'href="(\d{8})/"')
_DUMP = re.compile(r"CC-MAIN-\d{4}(-\d{2}|-\d{4})?(-[a-z-]+)?")
_JOBS = ("articlesmultistreamdump", "articlesdump")


def commoncrawl(fetcher: Fetcher, base: str, dump: str, kind: Literal["wet", "warc"] = "wet") -> list[Item]:
    """The files of a crawl, in the publisher's order.

    Raises:
        FetchError: when there is no such dump, or its list is not one.
    """
    if not _DUMP.fullmatch(dump):
        raise FetchError(f"dump is {dump!r}; it must be like CC-MAIN-2023-06")
    url = f"{base}/crawl-data/{dump}/{kind}.paths.gz"
    try:
        paths = gzip.decompress(fetcher.read(url)).decode().split()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise FetchError(f"{url} is not a list of paths ({error}); try again") from error
    return [Item(f"{base}/{path}", path.rpartition("/")[2]) for path in paths]


def wikipedia(fetcher: Fetcher, base: str, language: str, date: str = "latest") -> list[Item]:
    """The files of a language's articles at a date (YYYYMMDD), or of the newest dump that is finished.

    Raises:
        FetchError: when there is none.
    """
    wiki = f"{language.replace('-', '_')}wiki"
    dates = [date]
    if date == "latest":
        listing = fetcher.read(f"{base}/{wiki}/").decode("utf-8", "replace")
        dates = sorted(set(_DATE.findall(listing)), reverse=True)
    for candidate in dates:
        url = f"{base}/{wiki}/{candidate}/dumpstatus.json"
        try:
            jobs = json.loads(fetcher.read(url))["jobs"]
            done = next((jobs[name] for name in _JOBS if jobs.get(name, {}).get("status") == "done"), None)
            if done is not None:
                return [
                    Item(f"{base}/{file['url'].lstrip('/')}", name, int(file["size"]), ("sha1", file["sha1"]))
                    for name, file in sorted(done["files"].items())
                    if name.endswith(".xml.bz2")
                ]
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise FetchError(f"{url} is not a dump's status ({error!r}); give another --date") from error
        except FetchError:
            if date != "latest":
                raise
    raise FetchError(f"{base}/{wiki}/ has no finished dump of articles ({date}); give a --date that has")


def stackexchange(fetcher: Fetcher, base: str, sites: Iterable[str]) -> list[Item]:
    """The archives of some sites; Stack Overflow's posts lie in an archive of their own.

    Raises:
        FetchError: naming a site that is not there.
    """
    url = f"{base}/metadata/stackexchange"
    try:
        listed = {file["name"]: file for file in json.loads(fetcher.read(url))["files"]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise FetchError(f"{url} is not an item's metadata ({error!r}); try again") from error
    items = []
    for site in sites:
        names = [name for name in (f"{site}-Posts.7z", f"{site}.7z") if name in listed]
        if not names:
            raise FetchError(f"site {site!r} is not among the dumps; sites are like coffee.stackexchange.com")
        file = listed[names[0]]
        digest = ("sha1", file["sha1"]) if "sha1" in file else None
        size = int(file["size"]) if "size" in file else None
        items.append(Item(f"{base}/download/stackexchange/{names[0]}", names[0], size, digest))
    return items


def books(fetcher: Fetcher, base: str, ids: Iterable[int]) -> list[Item]:
    """The plain text of some Gutenberg ids."""
    return [Item(f"{base}/{number}/pg{number}.txt", f"pg{number}.txt") for number in ids]


def arxiv(fetcher: Fetcher, base: str, months: Iterable[str]) -> list[Item]:
    """The source tars of some months (2301), of all when none is given, from a copy of arXiv's src/ folder.

    arXiv's own bucket is requester-pays; `base` is the URL of a copy of it, or of a mirror.

    Raises:
        FetchError: when the manifest is not one, or lists nothing for a month.
    """
    url = f"{base.rstrip('/')}/arXiv_src_manifest.xml"
    wanted = set(months)
    items, seen = [], set()
    try:
        for file in ElementTree.fromstring(fetcher.read(url)).iter("file"):
            fields = {child.tag: (child.text or "").strip() for child in file}
            month = fields["yymm"]
            if wanted and month not in wanted:
                continue
            seen.add(month)
            name = fields["filename"].rpartition("/")[2]
            items.append(
                Item(f"{base.rstrip('/')}/{name}", name, int(fields["size"]), ("md5", fields["md5sum"]))
            )
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        if isinstance(error, FetchError):
            raise
        raise FetchError(f"{url} is not arXiv's manifest ({error!r}); check --base") from error
    if missing := wanted - seen:
        raise FetchError(f"{url} lists nothing for {', '.join(sorted(missing))}; months are like 2301")
    return items


def github(fetcher: Fetcher, base: str, folder: Path) -> list[Item]:
    """The files of a folder in object storage, such as a BigQuery export to gs://bucket/github/.

    Raises:
        FetchError: when it holds none.
    """
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=str)
    if not files:
        raise FetchError(f"{folder} holds no files; give the folder of an export, like gs://bucket/github")
    return [Item(str(path), path.name, path.stat().st_size) for path in files]
