"""Documents as people have them: encodings, HTML, PDF, and files that hold no text."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from pypdf import PdfWriter

from asking.files import html_text, read_text
from kvevict import InputError

TEXT = "Grüße aus Köln: the key is 4711."
PAGE = """<!DOCTYPE html><html><head><title>no</title><style>p { color: red }</style></head>
<body><h1>The   key</h1><p>It is <b>47</b>11 &amp; under
the stone.</p><script>if (1 < 2) alert("no")</script><ul><li>one<li>two</ul></body></html>"""


def pdf(text: str) -> bytes:
    """A page of Helvetica, by hand; no page with a text where it is empty."""
    drawn = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET" if text else "0 0 100 100 re f"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        "/Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(drawn)} >>\nstream\n{drawn}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    file, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(file))
        file += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    size, start = len(objects) + 1, len(file)
    file += f"xref\n0 {size}\n0000000000 65535 f \n{table}"
    file += f"trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return file.encode("ascii")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode("utf-8"),
        codecs.BOM_UTF8 + TEXT.encode("utf-8"),
        TEXT.encode("utf-16"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.encode("latin-1"),
    ],
)
def test_a_text_is_read_in_any_usual_encoding(tmp_path, content, capsys):
    assert read_text(written(tmp_path / "a.txt", content)) == TEXT
    assert ("not UTF-8" in capsys.readouterr().err) == (content == TEXT.encode("latin-1"))


def test_of_html_the_text_that_a_browser_shows(tmp_path):
    shown = "The key\nIt is 4711 & under the stone.\none\ntwo"
    assert html_text(PAGE) == shown
    for name in ("page.html", "page"):
        assert read_text(written(tmp_path / name, PAGE.encode())) == shown
    assert html_text("<head><title>a<body>b") == "b"


def test_markdown_and_code_that_name_tags_stay_as_they_are(tmp_path):
    text = "# Title\n\nUse `<html>` and a < b.\n"
    assert read_text(written(tmp_path / "a.md", text.encode())) == text


def test_of_pdf_the_text(tmp_path):
    assert read_text(written(tmp_path / "a.pdf", pdf("the key is 4711"))).strip() == (
        "the key is 4711"
    )


def test_what_holds_no_text_is_refused_by_a_sentence(tmp_path):
    locked = PdfWriter()
    locked.add_blank_page(100, 100)
    locked.encrypt("secret")
    locked.write(tmp_path / "locked.pdf")
    for name, content, why in (
        ("empty.txt", b"", "has no text"),
        ("spaces.md", b" \n\n", "has no text"),
        ("empty.html", b"<html><script>1</script>", "has no text"),
        ("picture.pdf", pdf(""), "OCR"),
        ("cut.pdf", pdf("the key")[:60], "cannot be read as a PDF"),
        ("binary", b"\x7fELF\0\0\1", "not a text, HTML or PDF"),
        ("odd.txt", TEXT.encode("utf-16") + b"x", "not whole UTF-16"),
        ("locked.pdf", None, "password"),
        ("nothing.txt", None, "cannot be read"),
    ):
        if content is not None:
            written(tmp_path / name, content)
        with pytest.raises(InputError, match=why) as refused:
            read_text(tmp_path / name)
        assert "\n" not in str(refused.value)
