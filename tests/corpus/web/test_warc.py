"""Records of web archives: what is whole comes out, what is not is named, and reading goes on."""

import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.corpus.document import DamagedRecord
from puna.corpus.web import warc
from puna.corpus.web.warc import WarcRecord, read_records
from tests.corpus.web.archives import wet, zipped

TEXTS = [f"Line of record {number}. " * 20 for number in range(4)]
REAL = os.environ.get("PUNA_REALDATA")
real = pytest.mark.skipif(not REAL, reason="PUNA_REALDATA is not set")


def pages() -> list[bytes]:
    return [wet(text, f"https://example.org/{number}") for number, text in enumerate(TEXTS)]


def read(path: Path, data: bytes) -> tuple[list[str], list[DamagedRecord]]:
    """(the bodies of whole records, what was damaged)."""
    path.write_bytes(data)
    found = list(read_records(path))
    return (
        [item.body.decode() for item in found if isinstance(item, WarcRecord)],
        [item for item in found if isinstance(item, DamagedRecord)],
    )


@pytest.fixture(params=["plain", "a member a record", "one member"])
def packed(request):
    """Records -> the bytes of a file, in each way that they are stored."""
    if request.param == "plain":
        return b"".join
    if request.param == "one member":
        return lambda records: gzip.compress(b"".join(records), mtime=0)
    return lambda records: b"".join(zipped(records))


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
def test_whole_records_come_out_as_they_are_however_the_file_is_packed_and_read(
    tmp_path, packed, piece, monkeypatch
):
    monkeypatch.setattr(warc, "PIECE_BYTES", piece)
    monkeypatch.setattr(warc, "BLOCK_BYTES", max(piece, 16))
    texts, bad = read(tmp_path / "x.warc", packed(pages()))
    assert texts == TEXTS and bad == []


def test_headers_are_found_by_name_wherever_they_stand(tmp_path):
    late = wet("a text", WARC_Identified_Content_Language="eng").replace(
        b"WARC-Date", b"WARC-New: 1\r\nwarc-date"
    )
    path = tmp_path / "x.warc"
    path.write_bytes(late)
    (found,) = read_records(path)
    assert isinstance(found, WarcRecord)
    assert found.headers["warc-date"] == "2024-05-18T01:58:10Z"
    assert found.headers["warc-target-uri"] == "https://example.org/page"


def test_offsets_are_where_the_record_or_its_gzip_member_begins(tmp_path):
    for records, joined in ((pages(), b"".join(pages())), (zipped(pages()), b"".join(zipped(pages())))):
        path = tmp_path / "x.warc"
        path.write_bytes(joined)
        for found, begins in zip(read_records(path), records, strict=True):
            assert joined[found.offset :].startswith(begins)


@pytest.mark.parametrize("length", [1, 300, 469, 475, 476, 480, 1000, 100_000, 10**12])
def test_a_wrong_content_length_costs_its_own_record_and_no_other(tmp_path, packed, length):
    records = pages()
    records[1] = wet(TEXTS[1], length=length)
    texts, bad = read(tmp_path / "x.warc", packed(records))
    assert texts == [TEXTS[0], TEXTS[2], TEXTS[3]]
    assert len(bad) == 1 and bad[0].file == "x.warc" and "Content-Length" in bad[0].reason


def test_a_wrong_content_length_is_named_with_place_and_size(tmp_path):
    records = pages()
    records[2] = wet(TEXTS[2], length=470)
    _, bad = read(tmp_path / "x.warc", b"".join(records))
    offset = len(records[0]) + len(records[1])
    assert bad == [
        DamagedRecord("x.warc", offset, f"Content-Length says 470 bytes, the record has {len(TEXTS[2])}")
    ]


@pytest.mark.parametrize("value", [b"", b"-5", b"many", b"1e3"])
def test_a_record_without_a_usable_length_is_set_aside(tmp_path, packed, value):
    records = pages()
    records[1] = records[1].replace(b"Content-Length: 360", b"Content-Length: " + value)
    assert records[1] != pages()[1]
    texts, bad = read(tmp_path / "x.warc", packed(records))
    assert texts == [TEXTS[0], TEXTS[2], TEXTS[3]]
    assert len(bad) == 1 and "Content-Length" in bad[0].reason


@pytest.mark.parametrize("damage", ["flip", "crc", "cut"])
def test_a_damaged_gzip_member_costs_its_own_record_and_no_other(tmp_path, damage):
    members = zipped(pages())
    if damage == "cut":
        members[1] = members[1][:-30]
    else:
        place = 60 if damage == "flip" else len(members[1]) - 6
        members[1] = members[1][:place] + bytes([members[1][place] ^ 0xFF]) + members[1][place + 1 :]
    texts, bad = read(tmp_path / "x.warc.gz", b"".join(members))
    assert texts == [TEXTS[0], TEXTS[2], TEXTS[3]]
    assert [(item.file, item.offset) for item in bad] == [("x.warc.gz", len(members[0]))]
    assert "gzip member is damaged" in bad[0].reason


def test_a_file_cut_anywhere_gives_its_whole_records_and_names_the_cut_one(tmp_path, packed):
    data = packed(pages())
    parts = {b"".join(pages()): pages(), b"".join(zipped(pages())): zipped(pages())}.get(data, [data])
    for size in range(0, len(data), 23):
        texts, bad = read(tmp_path / "x.warc", data[:size])
        assert texts == TEXTS[: len(texts)]
        begun = sum(sum(map(len, parts[:number])) < size for number in range(len(parts)))
        assert len(bad) <= 1
        if len(parts) > 1:
            assert len(texts) + len(bad) == begun
        else:
            assert bad or not size or texts == TEXTS


def test_rubbish_between_records_is_named_and_passed_over(tmp_path):
    records = pages()
    texts, bad = read(
        tmp_path / "x.warc", b"".join([*records[:2], b"rubbish\r\nand more\r\n\r\n", *records[2:]])
    )
    assert texts == TEXTS
    assert bad == [DamagedRecord("x.warc", len(records[0]) + len(records[1]), "no WARC record begins here")]


def test_rubbish_between_gzip_members_is_named_and_passed_over(tmp_path):
    members = zipped(pages())
    texts, bad = read(tmp_path / "x.warc.gz", b"".join([*members[:2], b"rubbish" * 9, *members[2:]]))
    assert texts == TEXTS
    assert bad == [
        DamagedRecord("x.warc.gz", len(members[0]) + len(members[1]), "bytes that are not a gzip member")
    ]
    texts, bad = read(tmp_path / "x.warc.gz", b"".join([*members, b"\0" * 5000]))
    assert texts == TEXTS and bad == []  # padding of tapes and block stores


def test_a_page_about_web_archives_is_not_cut_at_the_header_that_it_shows(tmp_path, packed):
    shown = "A record begins so:\nWARC/1.0\nWARC-Type: response\n\nand goes on."
    texts, bad = read(tmp_path / "x.warc", packed([wet(TEXTS[0]), wet(shown), wet(TEXTS[2])]))
    assert texts == [TEXTS[0], shown, TEXTS[2]] and bad == []


def test_a_file_with_lf_line_ends_is_cut_at_its_headers(tmp_path):
    # As after a conversion of CRLF to LF: the lengths still count the bytes that are gone.
    texts = ["One.\nTwo.\nThree.", "Four.\nFive."]
    data = b"".join(wet(text, length=len(text) + text.count("\n"), end=b"\n") for text in texts)
    assert read(tmp_path / "x.warc", data) == (texts, [])
    found, bad = read(tmp_path / "x.warc", data[:-9])
    assert found == texts[:1] and "cut off" in bad[0].reason


@pytest.mark.parametrize("written", [b"WARC/1.", b"WARC/1.0\r\n", b"\0", b"\x1f\x8b\0"])
def test_damage_at_the_start_of_a_compressed_file_costs_one_record(tmp_path, written):
    data = b"".join(zipped(pages()))
    for removed in (0, len(written)):
        texts, bad = read(tmp_path / "x.warc.gz", written + data[removed:])
        assert texts[-3:] == TEXTS[1:] and len(bad) == 1


def test_a_file_that_is_not_compressed_is_read_whatever_its_name(tmp_path):
    assert read(tmp_path / "x.warc.gz", b"".join(pages())) == (TEXTS, [])


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_one_place_of_damage_costs_two_records_at_most_and_invents_none(tmp_path_factory, data):
    compressed = data.draw(st.booleans())
    whole = b"".join(zipped(pages()) if compressed else pages())
    place = data.draw(st.integers(0, len(whole) - 1))
    removed = data.draw(st.integers(0, 40))
    harmed = whole[:place] + data.draw(st.binary(max_size=40)) + whole[place + removed :]
    path = tmp_path_factory.mktemp("warc") / ("x.warc.gz" if compressed else "x.warc")
    path.write_bytes(harmed)
    found = list(read_records(path))
    texts = [item.body.decode("latin-1") for item in found if isinstance(item, WarcRecord)]
    whole_ones = [text for text in texts if text in TEXTS]
    assert whole_ones == sorted(set(whole_ones)) and len(whole_ones) >= 2
    # What has its length and its end but not its text was changed inside, where a plain file has no sum.
    assert len(texts) - len(whole_ones) <= 2


# ---- the real files, damaged and whole

CUT = "the gzip member is cut off: 75207 of the record's 88275 bytes"
OUTCOMES: dict[str, tuple[list[str], list[tuple[int, str]]]] = {
    "ccnet-sample.warc.wet.txt": (["warcinfo", *["conversion"] * 3], []),
    "dolma-sample-0000.warc.gz": (
        ["warcinfo", *["request", "response"] * 22, "metadata", "resource", "resource"],
        [],
    ),
    "resiliparse-clipped.warc.gz": ([], [(0, CUT)]),
    "warcio-example.warc.gz": (
        ["warcinfo", "warcinfo", "response", "request", "revisit", "request"],
        [],
    ),
    # Compressed as a whole instead of record by record: nothing is damaged.
    "warcio-example-bad-non-chunked.warc.gz": (
        ["warcinfo", "warcinfo", "response", "request", "revisit", "request"],
        [],
    ),
    "warcio-example-iana.org-chunked.warc": (["warcinfo", "response", "request"], []),
    "warcio-example-trunc.warc": (
        ["warcinfo", "warcinfo", "request"],
        [(1197, "Content-Length says 973 bytes, the record has 975")],
    ),
    "warcio-example-wget-bad-target-uri.warc.gz": (
        ["warcinfo", "request", "response", "metadata", "resource", "resource"],
        [],
    ),
    "whirlwind.warc.gz": (["warcinfo", "request", "response", "metadata"], []),
    "whirlwind.warc.wat.gz": (["warcinfo", "metadata"], []),
    "whirlwind.warc.wet.gz": (["warcinfo", "conversion"], []),
}


@real
@pytest.mark.parametrize("name", OUTCOMES)
def test_each_real_file_gives_exactly_its_whole_records(name):
    found = list(read_records(Path(REAL or "") / "commoncrawl" / name))
    kinds, bad = OUTCOMES[name]
    assert sorted(item.headers["warc-type"] for item in found if isinstance(item, WarcRecord)) == sorted(
        kinds
    )
    assert [(item.offset, item.reason) for item in found if isinstance(item, DamagedRecord)] == bad
