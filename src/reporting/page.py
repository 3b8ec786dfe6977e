"""One HTML file with everything in it: tables, figures, and a prompt coloured by what was kept."""

from __future__ import annotations

import io
import json
import re
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from reporting.kept import Kept
from reporting.sections import Section
from reporting.style import FAINT, INK, OTHERS, display, style_of
from reporting.tables import HOW, Table

HERE = Path(__file__).parent
# The browser itself then sees to it that nothing is fetched.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(title: str, sections: list[Section], kept: Kept | None = None) -> str:
    """The whole page. Encode it with ``errors="replace"``: titles may hold lone surrogates."""
    body = [_section(section) for section in sections]
    if sections:
        body.append(f'<p class="how">{escape(HOW)}</p>')
    if kept:
        body.append(_viewer(kept))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{(HERE / "page.css").read_text("utf-8")}</style>
</head>
<body>
<header><h1>{escape(title)}</h1><button id="theme" type="button">Light or dark</button></header>
<main>
{"".join(body)}</main>
<script>
{(HERE / "page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def svg(figure: Figure, label: str) -> str:
    """A figure as an inline SVG element, no wider than it was drawn: all have text of one size.

    Ink, lines and paper are those of the page's theme.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(
        r' width="([\d.]+pt)" height="[\d.]+pt"', r' style="max-width: \1"', text, count=1
    )
    themes = {
        INK: "currentColor",
        FAINT: "var(--line)",
        OTHERS: "var(--others)",
        "#ffffff": "var(--paper)",
    }
    for color, themed in themes.items():
        text = re.sub(re.escape(color), themed, text, flags=re.IGNORECASE)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _section(section: Section) -> str:
    figures = "".join(
        f"<figure>{svg(picture.figure, picture.caption)}"
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
        for picture in section.pictures
    )
    tables = "".join(map(_table, section.tables))
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{figures}{tables}</section>\n"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n'
        for row in table.rows
    )
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in table.notes)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        f"<table><caption>{escape(table.title)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n{notes}"
    )


def _cell(text: str) -> str:
    value, bracket, interval = text.partition(" [")
    return f"<td>{escape(value)}{f' <small>[{escape(interval)}</small>' if bracket else ''}</td>"


def _viewer(kept: Kept) -> str:
    data = kept.to_json()
    data["methods"] = [
        {"name": display(name), "color": style_of(name)[0], "mask": mask}
        for name, mask in data.pop("masks").items()
    ]
    # Nothing in the text can then end the script element; the rest of JSON is ASCII.
    text = json.dumps(data).replace("<", "\\u003c")
    what = f"{kept.task}, example {kept.example}, {kept.model}"
    return f"""<section id="kept">
<h2>What each method kept of one prompt</h2>
<p>{escape(what)}: {len(kept.tokens)} tokens, of whose cache each method keeps
{100 * kept.keep_ratio:g}%. A map shows positions from left to right, layers and heads from top to
bottom, and the answer marked below. Choose a map, then a layer: the prompt is coloured by how many
heads kept each token. Point at a token, or move with the arrow keys, to see which heads.</p>
<noscript><p>This part needs JavaScript.</p></noscript>
<div id="methods" role="radiogroup" aria-label="Method"></div>
<div id="controls">
<label for="layer">Layer</label>
<input id="layer" type="range" min="0" value="0"><output id="shown" for="layer"></output>
<button id="answer" type="button">Go to the answer</button>
<span id="scale"><span>0</span><i></i><span id="most"></span> heads</span>
</div>
<div id="reading">
<div id="tokens" role="listbox" aria-label="Prompt, token by token" dir="ltr"></div>
<aside id="detail"><p id="token" aria-live="polite"></p><div id="heads" role="img"></div></aside>
</div>
<script type="application/json" id="data">{text}</script>
</section>
"""
