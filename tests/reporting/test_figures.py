"""What figures show: points side by side, names at line ends, one form where there are many."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from reporting import figures, load, pool
from reporting.mean_figure import apart, mean_figure
from reporting.page import svg
from reporting.style import METHOD_STYLE
from tests.reporting.runs import write_run

RATIOS = (0.05, 0.2, 0.5)


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list[pool.Cell]:
    """The full cache and three methods, two of which score alike."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "full", "full", [True] * 4)
    for ratio in RATIOS:
        for method, right in (("laprox", 2), ("snapkv", 2), ("tova", 3)):
            correct = [i < right for i in range(4)]
            write_run(root / f"{method}{ratio}", method, correct, keep_ratio=ratio)
    (group,) = pool.pool(load.read_runs(root))
    return list(group.cells)


def test_equal_scores_stand_side_by_side(cells):
    figure = figures.score_figure(cells)
    figure.canvas.draw()
    (ax,) = figure.axes
    curves = [line for line in ax.lines if len(line.get_xdata()) == len(RATIOS)]
    assert all(list(line.get_xdata()) == list(RATIOS) for line in curves), "data stay as they are"
    laprox, snapkv = [line for line in curves if list(line.get_ydata()) == [0.5] * 3]
    places = [line.get_transform().transform(line.get_xydata()) for line in (laprox, snapkv)]
    assert (places[0][:, 1] == places[1][:, 1]).all()
    gap = abs(places[0][:, 0] - places[1][:, 0]) * 72 / figure.dpi
    assert gap == pytest.approx([figures.STEP] * 3)


def test_names_stand_at_line_ends_the_best_first(cells):
    figure = mean_figure(cells, ("tova",))
    (ax,) = figure.axes
    names = {text.get_text(): text.xyann[1] for text in ax.texts if hasattr(text, "xyann")}
    assert sorted(names, key=names.get, reverse=True) == ["TOVA", "LaProx", "SnapKV"]
    assert len(ax.collections) == 1, "the interval of the one that is shaded"
    starts = {tuple(line.get_xydata()[0]) for line in ax.lines if len(line.get_xdata()) == 4}
    assert starts == {(1, 1)}, "every line begins at the full cache"


@given(st.lists(st.floats(0, 1), max_size=15), st.floats(0.01, 0.1))
def test_heights_are_moved_apart_and_no_more(heights, gap):
    heights = sorted(heights, reverse=True)
    moved = apart(heights, gap)
    assert all(upper - lower >= gap - 1e-9 for upper, lower in zip(moved, moved[1:]))
    assert sum(moved) == pytest.approx(sum(heights))
    assert apart(moved, gap - 1e-6) == pytest.approx(moved), "what is apart is left"


def many(cells: list[pool.Cell], count: int) -> pool.Group:
    """With ``count`` more settings of TOVA."""
    (tova,) = [c for c in cells if (c.method, c.keep) == ("tova", 0.2)]
    forms = [dataclasses.replace(tova, method=f"tova (kernel {i})") for i in range(count)]
    return pool.Group("", tuple([*cells, *forms]))


def test_of_many_settings_one_form_of_each_method_is_drawn(cells):
    (_, few, drawn), *_ = figures.figures(many(cells, 2))
    assert "One form" not in few and len(drawn.legends[0].get_texts()) == 6
    (_, note, drawn), *_ = figures.figures(many(cells, len(METHOD_STYLE)))
    names = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert names == ["full cache", "LaProx", "SnapKV", "TOVA"]
    assert note.endswith(f"; the tables have all {4 + len(METHOD_STYLE)}")


def test_the_first_form_stands_for_a_method_without_a_plain_one(cells):
    forms = [c for c in many(cells, 3).cells if c.method not in ("tova", "full")]
    assert {c.method for c in pool.plain(forms)} == {"laprox", "snapkv", "tova (kernel 0)"}


def test_a_picture_on_the_page_is_no_wider_than_it_was_drawn():
    text = svg(Figure(figsize=(3, 2)), "small")
    head = text[: text.index(">")]
    assert 'style="max-width: 216pt"' in head and " width=" not in head and " height=" not in head
