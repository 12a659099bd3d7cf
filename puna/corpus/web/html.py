"""HTML -> text, one line per block of the page, as in Common Crawl's WET file of the same page.

The library is Resiliparse, because its lines are those of WET files. On a real page that is stored as WARC
and as WET it gave 86 % of the WET's lines and no other line, at 40 MB/s; selectolax, which splits text at
inline tags, 68 % and 138 other lines, at 180 MB/s; trafilatura, which extracts only the main text, 6 %, at
2 MB/s.
"""

_FIGURES = b"<figure", b"<FIGURE", b"<Figure"  # as they are written; a search for any case takes longer
_MEDIA = ["img", "svg", "area", "embed", "object", "video", "audio"]
_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


def html_text(payload: bytes, charset: str = "") -> str:
    """The page's title and text, without scripts and comments, but with text that a style hides, as in WET.

    The encoding is that of a byte order mark, else `charset` (from the server), else of the page's `<meta>`,
    else detected, as in browsers. Invalid bytes become U+FFFD.
    """
    # Imported here because other sources do not need it.
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str
    from resiliparse.parse.html import HTMLTree

    tree = HTMLTree.parse(bytes_to_str(payload, encoding_of(payload, charset), errors="replace"))
    # Without alternative texts of images, Resiliparse also omits every <figure>, with the code, tables and
    # captions in it.
    has_figures = any(tag in payload for tag in _FIGURES)
    text = extract_plain_text(
        tree, list_bullets=False, alt_texts=has_figures, skip_elements=_MEDIA if has_figures else None
    )
    title = " ".join((tree.title or "").split())
    return f"{title}\n{text}" if title else text


def encoding_of(payload: bytes, charset: str) -> str:
    """The name of the encoding that a browser would use for the page."""
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    for mark, encoding in _MARKS.items():
        if payload.startswith(mark):
            return encoding
    if charset and (known := map_encoding_to_html5(charset.strip("\"' "), fallback_utf8=False)):
        return known
    return detect_encoding(payload, from_html_meta=True) or "utf-8"
