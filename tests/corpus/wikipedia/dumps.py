"""Small MediaWiki dumps, written as the real ones are."""

from pathlib import Path
from xml.sax.saxutils import escape

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{language}">
  <siteinfo>
    <sitename>Wikipedia</sitename>
    <dbname>{language}wiki</dbname>
    <namespaces>
      <namespace key="-2" case="first-letter">{media}</namespace>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">{file}</namespace>
      <namespace key="14" case="first-letter">{category}</namespace>
    </namespaces>
  </siteinfo>
"""
END = "</mediawiki>\n"
PROSE = "The vicuña lives on the high grassland, where the nights are cold and the sky is near. "


def head(language="en", media="Media", file="File", category="Category") -> str:
    return HEAD.format(language=language, media=media, file=file, category=category)


def page(number: int, text: str = PROSE, title: str = "", namespace: int = 0, extra: str = "") -> str:
    return (
        f"  <page>\n    <title>{escape(title or f'Page {number}')}</title>\n    <ns>{namespace}</ns>\n"
        f"    <id>{number}</id>\n    {extra}\n    <revision>\n      <id>{number + 1000}</id>\n"
        f'      <text xml:space="preserve">{escape(text)}</text>\n    </revision>\n  </page>\n'
    )


def write_dump(path: Path, pages: list[str], **site: str) -> Path:
    path.write_text(head(**site) + "".join(pages) + END, encoding="utf-8")
    return path
