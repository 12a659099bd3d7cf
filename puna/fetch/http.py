"""Download published dumps: resumable, verified, rate-limited.

In:  items: a URL, a file name, and the published size and digest where there are any.
Out: a folder of complete files, and manifest.json with the URL and SHA-256 of each.

    NAME.part  <── GET, or GET with Range: bytes=N- to resume ── 403, 429, 5xx, truncated: wait, retry
       └─ size and digest as published? ──> NAME

Running the same command again resumes it: complete files are skipped, and a partial file is continued if it
is still the same on the server. Each publisher gets one request at a time.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx2

from puna import __version__
from puna.files import MANIFEST, code_version, fingerprint, human_bytes, named_when_full, to_path
from puna.manifest import Input, Manifest, Output, load_manifest, write_manifest
from puna.progress import Bar
from puna.retry import TryAgain, one_line, retry

_WAITS = (1.0, 4.0, 15.0, 60.0, 120.0)  # seconds between attempts without progress
_AGAIN = frozenset({403, 408, 429, 500, 502, 503, 504})  # some publishers answer 403 to frequent requests
_BLOCK_BYTES = 1 << 18
_SAMPLED = 8  # files whose size is requested to estimate the total


T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One file of a dump. `digest` is ("md5" | "sha1" | "sha256", hexadecimal)."""

    url: str
    name: str
    size: int | None = None
    digest: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if PurePosixPath(self.name).name != self.name or "\\" in self.name:
            raise FetchError(f"{self.url} would be saved as {self.name!r}, which is not a valid file name")


class FetchError(ValueError):
    """A download failed, or its contents are not what was published."""


class Fetcher:
    """Downloads files of one publisher sequentially, at most one request per `pause` seconds."""

    def __init__(self, pause: float = 0.0, waits: Sequence[float] = _WAITS, timeout: float = 60.0) -> None:
        headers = {"User-Agent": f"puna/{__version__} (corpus download)", "Accept-Encoding": "identity"}
        self._client = httpx2.Client(timeout=timeout, follow_redirects=True, headers=headers)
        self._pause, self._waits = pause, waits
        self._last = -pause

    def __enter__(self) -> "Fetcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def read(self, url: str) -> bytes:
        """Download a small file, such as an index.

        Raises:
            FetchError: when the download fails.
        """

        def attempt() -> bytes:
            self._be_polite()
            return _checked(self._client.get(url)).content

        return self._persist(url, attempt)

    def size(self, url: str) -> int | None:
        """Size of a file in bytes by the server's headers; None when they do not tell."""

        def attempt() -> int | None:
            self._be_polite()
            length = _checked(self._client.head(url)).headers.get("Content-Length")
            return int(length) if length else None

        return self._persist(url, attempt)

    def download(self, item: Item, folder: Path, advance: Callable[[int], None] = lambda count: None) -> Path:
        """Download a file into `folder`, resuming a partial one.

        Raises:
            FetchError: when the download fails, or is not what was published.
            OSError: when it cannot be written.
        """
        target = folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        begun = partial.stat().st_size if partial.is_file() else 0
        advance(begun)
        held = [begun]  # bytes after the last attempt: while they grow, the download is retried

        def attempt() -> None:
            self._get_rest(item, partial, advance)

        def has_progressed() -> bool:
            before, held[0] = held[0], partial.stat().st_size if partial.is_file() else 0
            return held[0] > before

        self._persist(item.url, attempt, has_progressed)
        _check_digest(item, partial)
        partial.replace(target)
        return target

    def _get_rest(self, item: Item, partial: Path, advance: Callable[[int], None]) -> None:
        """Request what `partial` lacks, and append it."""
        begun = partial.stat().st_size if partial.is_file() else 0
        if item.size is not None and begun == item.size:
            return
        if not item.url.startswith(("http://", "https://")):
            _copy_rest(item, partial, begun, advance)
            return
        tag = partial.with_name(partial.name + ".etag")
        headers = {}
        if begun and tag.is_file():
            # If the file has changed on the server, the whole new file is sent.
            headers = {"Range": f"bytes={begun}-", "If-Range": tag.read_text(encoding="utf-8")}
        elif begun and item.digest:
            headers = {"Range": f"bytes={begun}-"}  # another file is detected by its digest
        self._be_polite()
        with self._client.stream("GET", item.url, headers=headers) as response:
            if response.status_code == 416:  # the partial file is longer than the file on the server
                partial.unlink()
                raise TryAgain("the file on the server is shorter than the partial download")
            _checked(response)
            continues = response.status_code == 206
            if not continues and begun:
                advance(-begun)
            known = response.headers.get("ETag") or response.headers.get("Last-Modified") or "W/"
            if not known.startswith("W/"):  # a weak tag does not guarantee identical bytes
                tag.write_text(known, encoding="utf-8")
            expected = _expected_size(response, begun if continues else 0)
            if item.size is not None and expected not in (None, item.size):
                raise FetchError(
                    f"{item.url} has {expected} bytes, and {item.size} were published; fetch the list again"
                )
            with named_when_full(partial), partial.open("ab" if continues else "wb") as file:
                for block in response.iter_raw():  # unbuffered: nothing is lost when the connection drops
                    file.write(block)
                    advance(len(block))
        size = partial.stat().st_size
        if expected is not None and size < expected:
            raise TryAgain(f"truncated after {size} of {expected} bytes")
        if item.size is not None and size != item.size:
            raise TryAgain(f"received {size} bytes, {item.size} were published")
        tag.unlink(missing_ok=True)

    def _be_polite(self) -> None:
        wait = self._last + self._pause - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._last = time.monotonic()

    def _persist(
        self, url: str, attempt: Callable[[], T], has_progressed: Callable[[], bool] = lambda: False
    ) -> T:
        """Retry a request; every attempt that made progress resets the count of failures."""

        def request() -> T:
            try:
                return attempt()
            except httpx2.TransportError as error:
                raise TryAgain(one_line(error)) from error

        try:
            return retry(request, self._waits, has_progressed)
        except TryAgain as error:
            raise FetchError(
                f"{url} could not be downloaded ({error}); run the same command again to resume"
            ) from error


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.status_code in _AGAIN:
        after = response.headers.get("Retry-After", "")
        raise TryAgain(f"HTTP {response.status_code}", float(after) if after.isdecimal() else 0.0)
    if response.status_code >= 400:
        raise FetchError(f"{response.url} returned HTTP {response.status_code}; check its name")
    return response


def _expected_size(response: httpx2.Response, begun: int) -> int | None:
    """Bytes of the whole file, by the headers of a response."""
    length = response.headers.get("Content-Length")
    return begun + int(length) if length else None


def _copy_rest(item: Item, partial: Path, begun: int, advance: Callable[[int], None]) -> None:
    """Append what `partial` lacks of a file in object storage, whose file system has retries of its own."""
    with named_when_full(partial), to_path(item.url).open("rb") as source, partial.open("ab") as file:
        source.seek(begun)
        while block := source.read(_BLOCK_BYTES):
            file.write(block)
            advance(len(block))


def _check_digest(item: Item, partial: Path) -> None:
    if item.digest is None:
        return
    algorithm, published = item.digest
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != published:
        partial.unlink()
        raise FetchError(
            f"{item.url} has {algorithm} {found}, and {published} was published; it was deleted: "
            "run the same command again"
        )


def total_size(items: Sequence[Item], fetcher: Fetcher) -> tuple[int | None, bool]:
    """(total bytes, whether that is exact); estimated from a few files where no sizes were published."""
    known = [item.size for item in items if item.size is not None]
    unknown = [item for item in items if item.size is None]
    if not unknown:
        return sum(known), True
    step = max(1, len(unknown) // _SAMPLED)
    asked = [fetcher.size(item.url) for item in unknown[::step][:_SAMPLED]]
    sizes = [size for size in asked if size is not None]
    if not sizes:
        return None, False
    return sum(known) + round(sum(sizes) / len(sizes) * len(unknown)), len(unknown) == len(sizes)


def fetch_items(
    source: str,
    items: Sequence[Item],
    out: Path,
    fetcher: Fetcher,
    say: Callable[[str], None] = lambda t: None,
) -> Manifest:
    """Download the files that `out` does not hold whole, then return its manifest.

    Raises:
        FetchError: naming the first file that could not be downloaded.
        OSError: when a file cannot be written.
    """
    held = _held(out)
    missing = [item for item in items if not _is_whole(item, out, held)]
    size, exact = total_size(missing, fetcher)
    amount = "of unknown size" if size is None else f"{'' if exact else 'about '}{human_bytes(size)}"
    say(f"{source}: {len(missing):,} of {len(items):,} files to fetch, {amount}")
    out.mkdir(parents=True, exist_ok=True)
    with Bar(f"fetch {source}", size or 0, "bytes", out / "progress.jsonl") as bar:
        for item in missing:
            path = fetcher.download(item, out, bar.advance)
            published = [":".join(item.digest)] if item.digest else []
            held[item.name] = _Held(item.url, Output.file(path), published)
            # After every file: a download of weeks may be stopped at any time.
            write_manifest(out, _manifest(source, held))
    return _manifest(source, held)


@dataclass(frozen=True)
class _Held:
    """A downloaded file: its URL, size and SHA-256, and the digest that was published, if any."""

    url: str
    file: Output
    published: list[str]


def _manifest(source: str, held: Mapping[str, _Held]) -> Manifest:
    files = [held[name] for name in sorted(held)]
    return Manifest(
        stage="fetch",
        fingerprint=fingerprint(["fetch", source, [one.file.sha256 for one in files]]),
        config={"source": source},
        code_version=code_version("fetch"),
        counts={"files": len(files)},
        inputs=tuple(Input(one.url) for one in files),
        outputs=tuple(one.file for one in files),
        bytes=sum(one.file.bytes for one in files),
        details={"published": {one.file.path: one.published for one in files}},
    )


def _held(out: Path) -> dict[str, _Held]:
    """The files of the manifest by name."""
    try:
        manifest = load_manifest(out / MANIFEST)
    except FileNotFoundError:
        return {}
    published = manifest.details.get("published", {})
    return {
        output.path: _Held(origin.path, output, published.get(output.path, []))
        for origin, output in zip(manifest.inputs, manifest.outputs, strict=True)
    }


def _is_whole(item: Item, out: Path, held: Mapping[str, _Held]) -> bool:
    """Whether a file is there as the manifest says, from the same place, and as now published."""
    entry, path = held.get(item.name), out / item.name
    return (
        entry is not None
        and entry.url == item.url
        and path.is_file()
        and path.stat().st_size == entry.file.bytes
        and item.size in (None, entry.file.bytes)
        and (item.digest is None or ":".join(item.digest) in entry.published)
    )
