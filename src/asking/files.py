"""The text of a document's file: plain, Markdown, HTML or PDF."""

from __future__ import annotations

import codecs
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

from kvevict.errors import InputError

BOMS = {  # UTF-32's begins as UTF-16's does
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SILENT = {"head", "script", "style", "template", "noscript", "svg"}  # tags that hold no text
INLINE = {"a", "abbr", "b", "cite", "code", "del", "em", "font", "i", "ins", "kbd", "mark", "q",
          "s", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var"}  # fmt: skip


def read_text(path: Path) -> str:
    """The text of a file, told by its name or its first bytes.

    Raises:
        InputError: it cannot be read, or has no text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    start = content[:1024].lstrip().lower()
    if start.startswith(b"%pdf-"):
        text = _pdf(path, content)
    else:
        text = _decoded(path, content)
        named = path.suffix.lower() in (".html", ".htm", ".xhtml")
        if named or text.lstrip("\ufeff \n\r\t").lower().startswith(("<!doctype html", "<html")):
            text = html_text(text)
    if not text.strip():
        raise InputError(f"{path} has no text")
    return text


def html_text(page: str) -> str:
    """What a page shows: a line for each block, white space as a browser has it."""
    parser = _Text()
    parser.feed(page)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\0"))
    return "\n".join(line for line in lines if line)


class _Text(HTMLParser):
    """Gathers texts; NUL is where a line ends."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag in SILENT:
            self._silent.append(tag)
        elif tag == "body":  # a head that nobody closed
            self._silent.clear()
        if tag not in INLINE:
            self.parts.append("\0")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            del self._silent[self._silent.index(tag) :]
        if tag not in INLINE:
            self.parts.append("\0")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def _decoded(path: Path, content: bytes) -> str:
    encoding = next((name for bom, name in BOMS.items() if content.startswith(bom)), None)
    if encoding is None and b"\0" in content:
        raise InputError(f"{path} is not a text, HTML or PDF file")
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding:
            raise InputError(f"{path} is not whole {encoding.upper()}") from None
    print(f"note: {path} is not UTF-8; read as Windows-1252", file=sys.stderr)
    return content.decode("cp1252", "replace")


def _pdf(path: Path, content: bytes) -> str:
    import logging

    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{path} is locked with a password")
        text = "\n\n".join(page.extract_text() for page in reader.pages)
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes lead to
        reason = re.sub(r"\s+", " ", str(error)) or type(error).__name__
        raise InputError(f"{path} cannot be read as a PDF: {reason}") from None
    if not text.strip():
        raise InputError(f"{path} has no text: its pages are pictures, which need OCR first")
    return text
