"""Wikipedia dumps -> the URLs that their references cite (paper section 2.1).

In:  MediaWiki XML dumps, as puna.corpus.wikipedia.source reads them.
Out: a text file, one URL per line, sorted, without duplicates, and a manifest beside it.

    <ref>{{cite web|url=http://A|archive-url=https://web.archive.org/web/2007/http://A}}</ref> ─> http://a/
    <ref name="x">[HTTP://B.org:80/p#top Title], ''Paper''</ref>  <ref name="x" />             ─> http://b.org/p
    {{#tag:ref|See http://c.org/q.}}                                                           ─> http://c.org/q

A copy in a web archive counts as the original page. The list is sorted in pieces on disk, so memory is
bounded.
"""

import heapq
import html
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote

from puna.corpus.document import DamagedRecord
from puna.energy import Meter, of_uses
from puna.files import atomic_file, code_version, fingerprint, human_bytes, remove_partials, write_json
from puna.manifest import Input, Manifest, Output
from puna.progress import Bar

STAGE = "references"
_SORTED_AT_ONCE = 500_000  # URLs, some 100 MB

# ---- one page -------------------------------------------------------------------------------------

# Comments and escaped markup, which show no references.
_HIDDEN = re.compile(r"<!--.*?(?:-->|\Z)|<(nowiki|pre)\b[^<>]*(?<!/)>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# A reference's text: to its end, or to the next one if the end is missing. `<ref name=x />` has no text.
_REF = re.compile(
    r"<ref(?:\s(?:\"[^\"]*\"|'[^']*'|[^<>\"'])*?)?(?<!/)>(.*?)(?=</ref\s*>|<ref[\s>/]|\Z)"
    r"|\{\{\s*#tag:\s*ref\s*\|(.*?)(?=<ref[\s>/]|\{\{\s*#tag:|\n\n|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_URL = re.compile(r"(?:https?:)?//[^\s\[\]<>\"|{}\x00-\x20]+", re.IGNORECASE)
# `&amp;`, but not the `&copy` of `?a=1&copy=2`.
_ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-f]+|[a-z]+\d*);", re.IGNORECASE)
# Where `//host` is a link: after a bracket, or as a template's value.
_LINK_START = re.compile(r"[\[=]\s*$")
_QUOTES = re.compile(r"'{2,}.*")
_ARCHIVE = re.compile(
    r"https?://(?:[\w-]+\.)*(?:archive\.(?:org|today|is|ph|li|md|fo|vn)|archive-it\.org|webcitation\.org|"
    r"webarchive\.org\.uk|wayback\.\w+|megalodon\.jp|perma\.cc|ghostarchive\.org)(?=[/?:]|$)",
    re.IGNORECASE,
)
_ORIGINAL = re.compile(r"(?<=.)(?:https?:/{1,2}|https?%3A%2F%2F)[^/].*", re.IGNORECASE)
_PARTS = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_HOST = re.compile(r"(?:[\w-]+\.)+[^\W\d_][\w-]*|\d+(?:\.\d+){3}")


def reference_urls(wikitext: str) -> Iterator[str]:
    """The URLs in the references of a page, normalised, with repetitions."""
    for reference in _REF.finditer(_HIDDEN.sub("", wikitext)):
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), reference[1] or reference[2] or "")
        text = text.replace("{{!}}", "|").replace("{{=}}", "=")
        for found in _URL.finditer(text):
            url = _QUOTES.sub("", found[0])
            if not _LINK_START.search(text, max(found.start() - 20, 0), found.start()):
                if url.startswith("//"):
                    continue
                url = _without_stops(url)
            elif url.startswith("//"):
                url = f"https:{url}"
            if normal := normal_url(_original(url)):
                yield normal


def _without_stops(url: str) -> str:
    """A bare URL in a sentence ends before the punctuation, as in MediaWiki."""
    stops = ",;\\.:!?" if "(" in url else ",;\\.:!?)"
    return url.rstrip(stops)


def _original(url: str) -> str:
    """The original URL of an archived copy; empty if the copy's URL does not contain it."""
    if not (archive := _ARCHIVE.match(url)):
        return url
    if not (original := _ORIGINAL.search(url, archive.end())):
        # web.archive.org/web/2007*/example.org is a copy; other pages of archive.org are originals.
        return "" if "/web/" in url or "archive.org" not in archive[0].lower() else url
    found = original[0]
    if "%3a" in found[:8].lower():  # it is the value of a query field
        found = unquote(found.partition("&")[0])
    return re.sub(r"^(https?:)/+", r"\1//", found, flags=re.IGNORECASE)


def normal_url(url: str) -> str:
    """The normalised URL: scheme and host in lower case, no default port or fragment; "" if invalid."""
    parts = _PARTS.match(url.strip())
    if not parts:
        return ""
    scheme, host, rest = parts[1].lower(), parts[2].lower().rpartition("@")[2], parts[3]
    host = host.removesuffix(":80" if scheme == "http" else ":443").rstrip(".")
    if not _HOST.fullmatch(host.partition(":")[0]):
        return ""
    return f"{scheme}://{host}{rest if rest.startswith('/') else '/' + rest}"


def page_key(url: str) -> str:
    """The URL without scheme, `www.` and final `/`, to compare pages; "" if it is invalid."""
    return normal_url(url).partition("://")[2].removeprefix("www.").rstrip("/")


# ---- dumps ----------------------------------------------------------------------------------------


def write_references(dumps: Sequence[Path], out: Path, max_bad: float = 0.1) -> Manifest:
    """Write the URLs of all references of the dumps into the file `out`; returns the manifest, `out`.json.

    Only articles are read: namespace 0, no redirects.

    Raises:
        ValueError: no dumps, no reference in them, a larger share of damaged pages than `max_bad`.
    """
    from puna.corpus.clean import find_inputs
    from puna.corpus.wikipedia.source import read

    started = time.monotonic()
    paths = find_inputs("wikipedia", dumps)
    counts = {"pages": 0, "references": 0, "urls": 0}
    bad: list[DamagedRecord] = []
    total = sum(path.stat().st_size for path in paths)

    def urls(bar: Bar) -> Iterator[str]:
        for path in paths:
            for page in read(path):
                if isinstance(page, DamagedRecord):
                    bad.append(page)
                elif page.namespace == "0" and not page.is_redirect:
                    counts["pages"] += 1
                    for url in reference_urls(page.wikitext):
                        counts["references"] += 1
                        yield url
            bar.advance(path.stat().st_size)

    remove_partials(out.parent, out.name)
    with Meter() as meter, Bar("read references", total, "bytes") as bar, atomic_file(out) as temporary:
        counts["urls"] = write_sorted(urls(bar), temporary)
        if len(bad) > max_bad * max(counts["pages"] + len(bad), 1):
            raise ValueError(
                f"{len(bad)} of {counts['pages'] + len(bad)} pages are damaged, over --max-bad {max_bad:g}: "
                f"{bad[0].file} at byte {bad[0].offset}: {bad[0].reason}"
            )
        if not counts["urls"]:
            raise ValueError(f"no reference has a URL in the {counts['pages']} articles; give other dumps")
    output = Output.file(out)
    manifest = Manifest(
        stage=STAGE,
        fingerprint=fingerprint([STAGE, output.sha256]),
        config={},
        code_version=code_version("corpus"),
        counts=counts,
        damaged=len(bad),
        inputs=tuple(map(Input.file, paths)),
        outputs=(output,),
        bytes=output.bytes,
        seconds=round(time.monotonic() - started, 3),
        energy=of_uses([meter.use()]),
        details={"damaged": [vars(item) for item in bad]},
    )
    write_json(out.with_name(f"{out.name}.json"), manifest.to_json())
    return manifest


def write_sorted(lines: Iterable[str], path: Path, at_once: int = _SORTED_AT_ONCE) -> int:
    """Write the lines without duplicates, sorted by bytes, with `at_once` in memory; return their number."""
    folder = path.with_name(f".{path.name.strip('.')}.sorting.partial")  # a name that remove_partials knows
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    runs: list[Path] = []
    held: set[bytes] = set()

    def write_run() -> None:
        runs.append(folder / str(len(runs)))
        with runs[-1].open("wb") as file:
            file.writelines(line + b"\n" for line in sorted(held))
        held.clear()

    try:
        for line in lines:
            held.add(line.encode("utf-8", "replace"))
            if len(held) >= at_once:
                write_run()
        write_run()
        count, last = 0, None
        with path.open("wb") as file, ExitStack() as stack:
            for merged in heapq.merge(*(stack.enter_context(run.open("rb")) for run in runs)):
                if merged != last:
                    file.write(merged)
                    count, last = count + 1, merged
        return count
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_references(path: Path) -> Iterator[str]:
    """The URLs of a list, one per line.

    Raises:
        ValueError: the file does not exist.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it with: puna corpus references DUMP… --out FILE")
    with path.open("rb") as file:
        for line in file:
            yield line.decode("utf-8", "replace").strip()


def summary(manifest: Manifest) -> str:
    """A summary in one line."""
    counts = manifest.counts
    return (
        f"{counts['urls']:,} URLs, {counts['references']:,} times in the references of {counts['pages']:,} "
        f"articles, {human_bytes(manifest.bytes)}"
    )
