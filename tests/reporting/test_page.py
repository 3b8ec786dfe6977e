"""The page, in a real browser."""

from __future__ import annotations

import time

import numpy as np
import pytest
from matplotlib.figure import Figure

from reporting.kept import Kept
from reporting.page import page
from reporting.sections import Picture, Section
from reporting.style import FAINT, INK
from reporting.tables import Table
from tests.reporting.browser import Browser, binary

pytestmark = pytest.mark.skipif(binary() is None, reason="no Chromium on this machine")

EVIL = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
TOKENS = ["The", " key", " is", " 68", "509", ".\n", EVIL, "", "שלום", "\ud83d", "<b>", " end"]
LAYERS, HEADS = 4, 2


@pytest.fixture(scope="module")
def masks():
    return {
        name: np.random.default_rng(seed).random((LAYERS, HEADS, len(TOKENS))) < 0.4
        for seed, name in enumerate(("nacl", EVIL, "snapkv"))
    }


@pytest.fixture(scope="module")
def browser(tmp_path_factory, masks):
    figure = Figure()
    figure.text(0.5, 0.5, EVIL, color=INK, bbox={"facecolor": FAINT})
    table = Table(EVIL, ["Method", EVIL], [[EVIL, "0.5 [0.1, 0.9]"]], [EVIL])
    section = Section(EVIL, [Picture("x.png", EVIL, figure)], [table])
    kept = Kept(EVIL, "passkey", 0, 0.4, TOKENS, [3, 4], masks)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(page(f"{EVIL} \ud800", [section], kept), "utf-8", "replace")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser, path
    browser.close()


@pytest.fixture
def opened(browser):
    browser, path = browser
    browser.events.clear()
    browser.open(path)
    return browser


def shades(browser):
    """How strongly each token is coloured, 0 to 1."""
    return browser.evaluate(
        "[...document.querySelectorAll('#tokens span')]"
        ".map((span) => Number(span.style.getPropertyValue('--k')))"
    )


def choose_layer(browser, value):
    browser.evaluate(
        f"document.getElementById('layer').value = {value};"
        "document.getElementById('layer').dispatchEvent(new Event('input'))"
    )


def test_it_loads_in_silence_and_fetches_nothing(opened):
    time.sleep(0.2)
    opened.evaluate("0")  # receive what has come meanwhile
    methods = [event["method"] for event in opened.events]
    assert "Runtime.exceptionThrown" not in methods and "Log.entryAdded" not in methods
    assert methods.count("Network.requestWillBeSent") == 1, "the page itself and nothing else"


def test_all_text_is_text(opened):
    assert opened.evaluate("window.hacked") is None
    assert opened.evaluate("document.querySelectorAll('img').length") == 0
    for selector in ("h1", "h2", "figcaption", "caption", "tbody th", ".table + p", "svg text"):
        assert EVIL in opened.evaluate(f"document.querySelector('{selector}').textContent"), (
            selector
        )
    texts = opened.evaluate(
        "[...document.querySelectorAll('#tokens span')].map((span) => span.textContent)"
    )
    assert texts[6] == EVIL and texts[5] == ".⏎\n" and texts[7] == "·"
    assert texts[8] == "שלום" and len(texts) == len(TOKENS)
    names = opened.evaluate(
        "[...document.querySelectorAll('#methods b')].map((b) => b.textContent)"
    )
    assert names == ["NACL", EVIL, "SnapKV"]


def test_tokens_are_coloured_by_how_many_heads_kept_them(opened, masks):
    assert shades(opened) == pytest.approx(masks["nacl"].mean(axis=(0, 1)), abs=1e-3)
    assert opened.evaluate("document.getElementById('shown').textContent") == "all layers"
    for layer in range(LAYERS):
        choose_layer(opened, layer + 1)
        assert shades(opened) == pytest.approx(masks["nacl"][layer].mean(axis=0), abs=1e-3)
        assert opened.evaluate("document.getElementById('shown').textContent") == f"layer {layer}"
    opened.evaluate("document.querySelectorAll('#methods input')[2].click()")
    assert shades(opened) == pytest.approx(masks["snapkv"][-1].mean(axis=0), abs=1e-3)
    choose_layer(opened, 0)
    assert shades(opened) == pytest.approx(masks["snapkv"].mean(axis=(0, 1)), abs=1e-3)


def test_a_token_says_which_heads_kept_it(opened, masks):
    opened.evaluate(
        "document.querySelectorAll('#tokens span')[4]"
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    kept = masks["nacl"][:, :, 4]
    text = opened.evaluate("document.getElementById('token').textContent")
    assert text == f"509position 4: NACL keeps it in {kept.sum()} of {LAYERS * HEADS} heads"
    cells = opened.evaluate(
        "[...document.querySelectorAll('#heads i')].map((i) => i.classList.contains('kept'))"
    )
    assert cells == kept.ravel().tolist()


def test_the_keyboard_reaches_everything(opened):
    stops = []
    for _ in range(8):
        opened.press("Tab")
        stops.append(
            opened.evaluate("document.activeElement.id || document.activeElement.className")
        )
        if opened.evaluate("document.activeElement.dataset.at") is not None:
            break
    assert [stop for stop in stops if stop] == ["theme", "table", "layer", "answer", "here"]
    at = "Number(document.activeElement.dataset.at)"
    for key, wanted in (
        ("ArrowRight", 1),
        ("End", len(TOKENS) - 1),
        ("ArrowLeft", 10),
        ("Home", 0),
    ):
        opened.press(key)
        assert opened.evaluate(at) == wanted
        assert f"position {wanted}:" in opened.evaluate(
            "document.getElementById('token').textContent"
        )
    opened.evaluate("document.getElementById('answer').click()")
    assert opened.evaluate(at) == 3


def test_light_and_dark(opened):
    def paper():
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    def ink():
        return opened.evaluate("getComputedStyle(document.querySelector('svg text')).fill")

    before = paper(), ink()
    opened.evaluate("document.getElementById('theme').click()")
    after = paper(), ink()
    assert before[0] != after[0] and before[1] != after[1]
    opened.evaluate("document.getElementById('theme').click()")
    assert (paper(), ink()) == before
