"""Download published dumps: resumed, checked, polite.

In:  items: a URL, the name it is kept under, and where the publisher says them its size and digest.
Out: a folder of whole files, and manifest.json with where each came from and its SHA-256.

    NAME.part  <── GET, or GET Range: bytes=N- where one was cut ── 403 429 5xx, cut: wait, again
       └─ size and digest as published? ──> NAME

Run again, it goes on: what is whole stays, what is partial is continued, and only if it is still the same
file there. Nothing is fetched twice, and no more than one request at a time is made of a publisher.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2

from puna import __version__
from puna.files import MANIFEST, human_bytes, read_json, sha256_file, to_path, write_json
from puna.progress import Bar

_WAITS = (1.0, 4.0, 15.0, 60.0, 120.0)  # seconds between attempts that bring nothing
_LONGEST_WAIT = 600.0
_AGAIN = frozenset({403, 408, 429, 500, 502, 503, 504})  # publishers answer 403 to who comes too often
_BLOCK_BYTES = 1 << 18
_SAMPLED = 8  # files asked for their size, where there are too many to ask for each


@dataclass(frozen=True)
class Item:
    """One file of a dump. `digest` is ("md5" | "sha1" | "sha256", hexadecimal)."""

    url: str
    name: str
    size: int | None = None
    digest: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        if PurePosixPath(self.name).name != self.name or "\\" in self.name:
            raise FetchError(f"{self.url} is to be kept as {self.name!r}, which is no file's name")


class FetchError(ValueError):
    """A file that could not be had, or is not what was published."""


class Fetcher:
    """Asks one publisher for files, one after the other, at most one request in `pause` seconds."""

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
        """A small file: an index.

        Raises:
            FetchError: when it cannot be had.
        """

        def attempt() -> bytes:
            self._be_polite()
            return _checked(self._client.get(url)).content

        return self._persist(url, attempt, lambda: False)

    def size(self, url: str) -> int | None:
        """Bytes of a file as the server says them; None when it does not."""

        def attempt() -> int | None:
            self._be_polite()
            length = _checked(self._client.head(url)).headers.get("Content-Length")
            return int(length) if length else None

        return self._persist(url, attempt, lambda: False)

    def download(self, item: Item, folder: Path, advance: Callable[[int], None] = lambda count: None) -> Path:
        """The whole file in `folder`.

        Raises:
            FetchError: when it cannot be had, or is not what was published.
            OSError: when it cannot be written.
        """
        target = folder / item.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        begun = partial.stat().st_size if partial.is_file() else 0
        advance(begun)
        held = [begun]  # bytes at the last attempt's end: as long as they grow, there is no giving up

        def attempt() -> None:
            self._get_rest(item, partial, advance)

        def has_gained() -> bool:
            before, held[0] = held[0], partial.stat().st_size if partial.is_file() else 0
            return held[0] > before

        self._persist(item.url, attempt, has_gained)
        _check_digest(item, partial)
        partial.replace(target)
        return target

    def _get_rest(self, item: Item, partial: Path, advance: Callable[[int], None]) -> None:
        """Ask for what `partial` lacks, and append it."""
        begun = partial.stat().st_size if partial.is_file() else 0
        if item.size is not None and begun == item.size:
            return
        if not item.url.startswith(("http://", "https://")):
            _copy_rest(item, partial, begun, advance)
            return
        tag = partial.with_name(partial.name + ".etag")
        headers = {}
        if begun and tag.is_file():
            # If it has changed there since, the server sends all of the new one.
            headers = {"Range": f"bytes={begun}-", "If-Range": tag.read_text(encoding="utf-8")}
        elif begun and item.digest:
            headers = {"Range": f"bytes={begun}-"}  # were it another file, the digest would tell
        self._be_polite()
        with self._client.stream("GET", item.url, headers=headers) as response:
            if response.status_code == 416:  # what is held is longer than what is there
                partial.unlink()
                raise _TryAgain("the file there is shorter than what was begun of it")
            _checked(response)
            continues = response.status_code == 206
            if not continues and begun:
                advance(-begun)
            known = response.headers.get("ETag") or response.headers.get("Last-Modified") or "W/"
            if not known.startswith("W/"):  # a weak tag does not say that the bytes are the same
                tag.write_text(known, encoding="utf-8")
            expected = _expected_size(response, begun if continues else 0)
            if item.size is not None and expected not in (None, item.size):
                raise FetchError(
                    f"{item.url} has {expected} bytes, and {item.size} were published; fetch the list again"
                )
            with partial.open("ab" if continues else "wb") as file:
                for block in response.iter_raw():  # as it comes: nothing of it is lost when it is cut
                    file.write(block)
                    advance(len(block))
        size = partial.stat().st_size
        if expected is not None and size < expected:
            raise _TryAgain(f"cut after {size} of {expected} bytes")
        if item.size is not None and size != item.size:
            raise _TryAgain(f"{size} bytes came, {item.size} were published")
        tag.unlink(missing_ok=True)

    def _be_polite(self) -> None:
        wait = self._last + self._pause - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._last = time.monotonic()

    def _persist(self, url: str, attempt: Callable[[], Any], has_gained: Callable[[], bool]) -> Any:
        """Attempt until it succeeds; give up after as many attempts in a row as there are waits, and one."""
        failures = 0
        while True:
            asked = 0.0
            try:
                return attempt()
            except _TryAgain as error:
                trouble, asked = str(error), error.wait
            except httpx2.TransportError as error:
                trouble = " ".join(str(error).split()) or type(error).__name__
            failures = 0 if has_gained() else failures + 1
            if failures > len(self._waits):
                raise FetchError(
                    f"{url} could not be downloaded ({trouble}); the same command goes on from here"
                )
            wait = self._waits[max(0, failures - 1)] if self._waits else 0.0
            time.sleep(min(max(asked, wait), _LONGEST_WAIT))


class _TryAgain(Exception):
    def __init__(self, trouble: str, wait: float = 0.0) -> None:
        super().__init__(trouble)
        self.wait = wait


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.status_code in _AGAIN:
        after = response.headers.get("Retry-After", "")
        raise _TryAgain(f"HTTP {response.status_code}", float(after) if after.isdecimal() else 0.0)
    if response.status_code >= 400:
        raise FetchError(f"{response.url} answers HTTP {response.status_code}; check its name")
    return response


def _expected_size(response: httpx2.Response, begun: int) -> int | None:
    """Bytes of the whole file, by what this answer says of itself."""
    length = response.headers.get("Content-Length")
    return begun + int(length) if length else None


def _copy_rest(item: Item, partial: Path, begun: int, advance: Callable[[int], None]) -> None:
    """What `partial` lacks of a file in object storage; its file system has retries of its own."""
    with to_path(item.url).open("rb") as source, partial.open("ab") as file:
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
    """(bytes of all items, whether that is exact); asks for a few sizes where none were published."""
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
) -> dict[str, Any]:
    """Download what `out` does not hold whole, then write and return its manifest.

    Raises:
        FetchError: naming the first file that could not be had.
        OSError: when a file cannot be written.
    """
    manifest_path = out / MANIFEST
    held = {entry["name"]: entry for entry in _entries(manifest_path)}
    missing = [item for item in items if not _is_held(item, out, held)]
    size, exact = total_size(missing, fetcher)
    amount = "of unknown size" if size is None else f"{'' if exact else 'about '}{human_bytes(size)}"
    say(f"{source}: {len(missing):,} of {len(items):,} files to fetch, {amount}")
    out.mkdir(parents=True, exist_ok=True)
    with Bar(f"fetch {source}", size or 0, "bytes", out / "progress.jsonl") as bar:
        for item in missing:
            path = fetcher.download(item, out, bar.advance)
            held[item.name] = {
                "name": item.name,
                "url": item.url,
                "bytes": path.stat().st_size,
                "sha256": sha256_file(path),
                **({item.digest[0]: item.digest[1]} if item.digest else {}),
            }
            # After every file: a fetch of weeks may be stopped at any time.
            write_json(manifest_path, {"stage": "fetch", "source": source, "files": _in_order(held)})
    return {"source": source, "out": str(out), "files": _in_order(held)}


def _in_order(held: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [held[name] for name in sorted(held)]


def _entries(manifest: Path) -> Iterator[dict[str, Any]]:
    if manifest.is_file():
        yield from read_json(manifest)["files"]


def _is_held(item: Item, out: Path, held: dict[str, dict[str, Any]]) -> bool:
    """Whether a file is there as the manifest says, from the same place, and as now published."""
    entry, path = held.get(item.name), out / item.name
    return (
        entry is not None
        and entry["url"] == item.url
        and path.is_file()
        and path.stat().st_size == entry["bytes"]
        and item.size in (None, entry["bytes"])
        and (item.digest is None or entry.get(item.digest[0]) == item.digest[1])
    )
