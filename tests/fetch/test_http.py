"""Downloads end whole and right, whatever the server does, or say why not."""

import gzip
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from puna.cli import main
from puna.fetch import publishers
from puna.fetch.http import Fetcher, FetchError, Item, fetch_items, total_size
from puna.files import MANIFEST, sha256_file, to_path
from puna.manifest import load_manifest

DATA = bytes(range(256)) * 4096  # 1 MB


@dataclass
class Publisher:
    """What the server holds, and how it misbehaves: a list of moods, one a GET, then it is well."""

    files: dict[str, bytes] = field(default_factory=dict)
    moods: list[str] = field(default_factory=list)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def publisher():
    state = Publisher()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            state.requests.append(("HEAD", self.path, None))
            data = state.files.get(self.path)
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append(("GET", self.path, asked))
            mood = state.moods.pop(0) if state.moods else ""
            if mood.isdecimal():
                self.send_response(int(mood))
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = state.files.get(self.path)
            if data is None:
                self.send_error(404)
                return
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            begin = 0
            if asked and mood != "no ranges" and self.headers.get("If-Range", tag) == tag:
                begin = int(asked.removeprefix("bytes=").rstrip("-"))
                if begin >= len(data):
                    self.send_response(416)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            self.send_response(206 if begin else 200)
            if mood != "no tag":
                self.send_header("ETag", tag)
            body = data[begin:]
            if mood == "too short":  # ends as if it were whole
                body = body[: len(body) // 2]
                self.send_header("Content-Length", str(len(body)))
            elif mood == "no length":
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if mood == "cut":
                body = body[: len(body) // 2]
                self.close_connection = True
            if mood == "garbled":
                body = body[:-1] + bytes([body[-1] ^ 1])
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetcher():
    with Fetcher(waits=(0.0, 0.0, 0.0), timeout=10) as fetcher:
        yield fetcher


def item_of(publisher: Publisher, data: bytes = DATA, **values: object) -> Item:
    publisher.files["/dump.gz"] = data
    return Item(f"{publisher.url}/dump.gz", "dump.gz", **values)


PUBLISHED = {"size": len(DATA), "digest": ("sha1", hashlib.sha1(DATA).hexdigest())}


@pytest.mark.parametrize(
    "moods",
    [
        [],
        ["503", "503"],
        ["429", "403", "500"],
        ["cut"],
        ["cut", "503", "cut", "cut"],
        ["cut", "no ranges"],
        ["no tag", "cut"],
        ["no length"],
        ["cut"] * 12,  # more than there are waits: as long as bytes come, it goes on
    ],
    ids="-".join,
)
@pytest.mark.parametrize("published", [{}, PUBLISHED], ids=["nothing published", "size and digest"])
def test_a_file_comes_whole_whatever_happens_on_the_way(publisher, fetcher, tmp_path, moods, published):
    item = item_of(publisher, **published)
    publisher.moods[:] = moods
    advanced = []
    path = fetcher.download(item, tmp_path, advanced.append)
    assert path.read_bytes() == DATA
    assert sum(advanced) == len(DATA)
    assert [file.name for file in tmp_path.iterdir()] == ["dump.gz"]


def test_what_was_cut_is_continued_and_not_begun_again(publisher, fetcher, tmp_path):
    item = item_of(publisher)
    publisher.moods[:] = ["cut", "503"]
    fetcher.download(item, tmp_path)
    assert [asked for _, _, asked in publisher.requests] == [None, *2 * [f"bytes={len(DATA) // 2}-"]]


def test_a_file_that_changed_in_between_is_begun_again(publisher, tmp_path):
    item = item_of(publisher)
    publisher.moods[:] = ["cut", "503"]
    with (
        Fetcher(waits=()) as impatient,
        pytest.raises(FetchError, match="run the same command again"),
    ):
        impatient.download(item, tmp_path)
    publisher.files["/dump.gz"] = new = DATA[::-1]
    with Fetcher(waits=()) as fetcher:
        assert fetcher.download(item, tmp_path).read_bytes() == new


def test_a_file_that_became_shorter_is_begun_again(publisher, fetcher, tmp_path):
    publisher.files["/dump.gz"] = new = b"short"
    (tmp_path / "dump.gz.part").write_bytes(DATA)
    item = Item(f"{publisher.url}/dump.gz", "dump.gz", None, ("md5", hashlib.md5(new).hexdigest()))
    assert fetcher.download(item, tmp_path).read_bytes() == new


def test_a_length_that_is_not_the_published_one_is_an_error(publisher, fetcher, tmp_path):
    item = item_of(publisher, size=len(DATA))
    publisher.moods[:] = ["too short"]
    with pytest.raises(FetchError, match=rf"has {len(DATA) // 2} bytes, and {len(DATA)} were published"):
        fetcher.download(item, tmp_path)
    assert not (tmp_path / "dump.gz").exists()


def test_a_wrong_digest_is_an_error_and_nothing_stays(publisher, fetcher, tmp_path):
    item = item_of(publisher, **PUBLISHED)
    publisher.moods[:] = ["garbled"]
    with pytest.raises(FetchError, match=r"sha1 .* was published; it was deleted"):
        fetcher.download(item, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_who_is_never_well_is_given_up(publisher, fetcher, tmp_path):
    item = item_of(publisher)
    publisher.moods[:] = ["503"] * 9
    with pytest.raises(FetchError, match=r"could not be downloaded \(HTTP 503\); run the same command"):
        fetcher.download(item, tmp_path)
    assert len(publisher.requests) == 4  # one, and one after each wait


def test_a_name_that_is_not_there_is_not_asked_for_again(publisher, fetcher, tmp_path):
    with pytest.raises(FetchError, match=r"nothing returned HTTP 404; check its name"):
        fetcher.download(Item(f"{publisher.url}/nothing", "nothing"), tmp_path)
    assert len(publisher.requests) == 1


def test_requests_keep_their_distance(publisher, tmp_path, monkeypatch):
    slept: list[float] = []
    now = [100.0]
    monkeypatch.setattr("puna.fetch.http.time.monotonic", lambda: now[0])
    monkeypatch.setattr(
        "puna.fetch.http.time.sleep", lambda s: (slept.append(s), now.__setitem__(0, now[0] + s))
    )
    item_of(publisher)
    with Fetcher(pause=2.0) as fetcher:
        for _ in range(3):
            fetcher.read(f"{publisher.url}/dump.gz")
    assert slept == [2.0, 2.0]


def test_what_is_held_whole_is_not_fetched_again(publisher, fetcher, tmp_path):
    items = [item_of(publisher, **PUBLISHED)]
    first = fetch_items("books", items, tmp_path, fetcher)
    assert first.outputs[0].sha256 == sha256_file(tmp_path / "dump.gz")
    assert load_manifest(tmp_path / MANIFEST) == first
    asked = len(publisher.requests)
    assert fetch_items("books", items, tmp_path, fetcher) == first
    assert len(publisher.requests) == asked
    (tmp_path / "dump.gz").write_bytes(DATA[:100])  # damaged since
    fetch_items("books", items, tmp_path, fetcher)
    assert (tmp_path / "dump.gz").read_bytes() == DATA


def test_the_size_is_said_before(publisher, fetcher, tmp_path):
    said: list[str] = []
    fetch_items("books", [item_of(publisher)], tmp_path, fetcher, said.append)
    assert said == ["books: 1 of 1 files to fetch, 1.0 MB"]
    many = [Item(f"{publisher.url}/dump.gz", str(number)) for number in range(100)]
    publisher.requests.clear()
    assert total_size(many, fetcher) == (100 * len(DATA), False)
    assert len(publisher.requests) == 8


# ---- publishers


def test_the_files_of_a_crawl(publisher, tmp_path, capsys):
    dump = "CC-MAIN-2023-06"
    paths = [f"crawl-data/{dump}/segments/1/wet/CC-{number}.warc.wet.gz" for number in range(5)]
    publisher.files[f"/crawl-data/{dump}/wet.paths.gz"] = gzip.compress("\n".join(paths).encode())
    publisher.files |= {f"/{path}": path.encode() for path in paths}
    command = ["fetch", "commoncrawl", dump, "--limit", "2", "--out", str(tmp_path / "cc"), "--json"]
    assert main([*command, "--base", publisher.url]) == 0
    captured = capsys.readouterr()
    assert "2 of 2 files to fetch" in captured.err
    assert [file["path"] for file in json.loads(captured.out)["outputs"]] == [
        "CC-0.warc.wet.gz",
        "CC-1.warc.wet.gz",
    ]
    assert (tmp_path / "cc" / "CC-1.warc.wet.gz").read_bytes() == paths[1].encode()


def test_the_newest_finished_wikipedia(publisher, fetcher):
    publisher.files["/srwiki/"] = (
        b'<a href="20230101/">x</a> <a href="20230120/">x</a> <a href="latest/">x</a>'
    )

    def status(date: str, state: str) -> bytes:
        name = f"srwiki-{date}-pages-articles-multistream.xml.bz2"
        files = {
            name: {"size": 7, "url": f"/srwiki/{date}/{name}", "sha1": "ab", "md5": "cd"},
            f"srwiki-{date}-index.txt.bz2": {"size": 1, "url": "/x", "sha1": "ef"},
        }
        return json.dumps({"jobs": {"articlesmultistreamdump": {"status": state, "files": files}}}).encode()

    publisher.files["/srwiki/20230101/dumpstatus.json"] = status("20230101", "done")
    publisher.files["/srwiki/20230120/dumpstatus.json"] = status("20230120", "in-progress")
    (item,) = publishers.wikipedia(fetcher, publisher.url, "sr")
    name = "srwiki-20230101-pages-articles-multistream.xml.bz2"
    assert item == Item(f"{publisher.url}/srwiki/20230101/{name}", name, 7, ("sha1", "ab"))
    with pytest.raises(FetchError, match="no finished dump of articles"):
        publishers.wikipedia(fetcher, publisher.url, "sr", "20230120")


def test_the_sites_of_stackexchange(publisher, fetcher):
    listed = [
        {"name": "coffee.stackexchange.com.7z", "size": "12", "sha1": "ab"},
        {"name": "stackoverflow.com-Posts.7z", "size": "34", "sha1": "cd"},
        {"name": "stackoverflow.com-Votes.7z", "size": "56", "sha1": "ef"},
    ]
    publisher.files["/metadata/stackexchange"] = json.dumps({"files": listed}).encode()
    items = publishers.stackexchange(
        fetcher, publisher.url, ["stackoverflow.com", "coffee.stackexchange.com"]
    )
    assert [(item.name, item.size) for item in items] == [
        ("stackoverflow.com-Posts.7z", 34),
        ("coffee.stackexchange.com.7z", 12),
    ]
    with pytest.raises(FetchError, match=r"site 'tea' is not among the dumps"):
        publishers.stackexchange(fetcher, publisher.url, ["tea"])


def test_the_months_of_arxiv(publisher, fetcher):
    files = "".join(
        f"<file><filename>src/arXiv_src_{month}_001.tar</filename><md5sum>ab</md5sum><size>5</size>"
        f"<yymm>{month}</yymm></file>"
        for month in ("9107", "2301")
    )
    publisher.files["/src/arXiv_src_manifest.xml"] = f"<arXivSRC>{files}</arXivSRC>".encode()
    (item,) = publishers.arxiv(fetcher, f"{publisher.url}/src", ["2301"])
    assert item == Item(
        f"{publisher.url}/src/arXiv_src_2301_001.tar", "arXiv_src_2301_001.tar", 5, ("md5", "ab")
    )
    with pytest.raises(FetchError, match="lists nothing for 2413"):
        publishers.arxiv(fetcher, f"{publisher.url}/src", ["2413"])


def test_books_by_their_numbers(publisher, tmp_path, capsys):
    publisher.files["/84/pg84.txt"] = b"Frankenstein"
    ids = tmp_path / "ids.txt"
    ids.write_text("84\n")
    out = tmp_path / "books"
    command = ["fetch", "books", "--ids-file", str(ids), "--out", str(out), "--base", publisher.url]
    assert main([*command, "--pause", "0"]) == 0
    assert (out / "pg84.txt").read_bytes() == b"Frankenstein"
    ids.write_text("pg84\n")
    assert main(command) == 2
    assert "contains 'pg84'" in capsys.readouterr().err


def test_exports_in_object_storage(fetcher, tmp_path):
    bucket = to_path("memory://exports/github")
    (bucket / "files-000.json").write_bytes(b"{}\n")
    items = publishers.github(fetcher, "", bucket)
    fetch_items("github", items, tmp_path, fetcher)
    assert (tmp_path / "files-000.json").read_bytes() == b"{}\n"


@pytest.mark.parametrize("answer", [b"<html>", b"{}", b'{"jobs": []}', b"\xff\xfe"])
def test_a_list_that_is_none_is_named(publisher, fetcher, answer):
    dump = "CC-MAIN-2023-06"
    places = (f"/crawl-data/{dump}/wet.paths.gz", "/enwiki/20230101/dumpstatus.json")
    publisher.files = dict.fromkeys(
        (*places, "/metadata/stackexchange", "/src/arXiv_src_manifest.xml"), answer
    )
    calls = (
        lambda: publishers.commoncrawl(fetcher, publisher.url, dump),
        lambda: publishers.wikipedia(fetcher, publisher.url, "en", "20230101"),
        lambda: publishers.stackexchange(fetcher, publisher.url, ["x"]),
        lambda: publishers.arxiv(fetcher, f"{publisher.url}/src", ()),
    )
    for call in calls:
        with pytest.raises(FetchError, match="is not"):
            call()


def test_a_dump_that_cannot_be_named_so_is_refused_before_the_network(fetcher):
    with pytest.raises(FetchError, match="it must be like CC-MAIN-2023-06"):
        publishers.commoncrawl(fetcher, "", "../../etc")


def test_names_are_those_of_files_and_lead_nowhere_else(publisher, fetcher):
    listed = [{"name": "a/../../evil.7z", "size": "1", "sha1": "x"}]
    publisher.files["/metadata/stackexchange"] = json.dumps({"files": listed}).encode()
    with pytest.raises(FetchError, match="which is not a valid file name"):
        publishers.stackexchange(fetcher, publisher.url, ["a/../../evil"])
