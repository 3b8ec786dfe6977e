"""The rows of a depth-by-length map."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from reporting import heatmap, load, pool
from tests.reporting.runs import write_run


def cell(*depths: float) -> SimpleNamespace:
    return SimpleNamespace(points=tuple((depth, 1.0) for depth in depths))


@pytest.mark.parametrize("count", [4, 5, 7, 11])
def test_a_grid_has_a_row_for_each_of_its_depths(count):
    """Answers stand a little before or after where they were put, by whole sentences."""
    grid = [i / (count - 1) for i in range(count)]
    shifted = [min(1, max(0, depth + (-1) ** i * 0.03)) for i, depth in enumerate(grid)]
    assert heatmap._bins([cell(*grid, *shifted), cell(*shifted)]) == count
    assert [heatmap._row(depth, count) for depth in shifted] == list(range(count))


def test_no_cell_is_left_empty_as_long_as_there_are_enough_depths():
    assert heatmap._bins([cell(*(i / 99 for i in range(100))), cell(0, 0.3, 0.7, 1)]) == 4
    assert heatmap._bins([cell(0.5)]) == heatmap.FEWEST_DEPTHS


def test_a_map_has_the_mean_score_of_each_depth_and_length(tmp_path):
    for tokens, right in ((1000, [True, False, True, False]), (2000, [True] * 4)):
        write_run(tmp_path / str(tokens), "nacl", right, tokens=tokens)
    results = [
        dataclasses.replace(result, depths=[0.0, 0.02, 0.5, 1.0])
        for result in load.read_runs(tmp_path)
    ]
    (group,) = pool.pool(results)
    ((_, _, figure),) = heatmap.heat_maps(group)
    (mesh,) = [c for ax in figure.axes for c in ax.collections if c.get_array() is not None][:1]
    assert mesh.get_array().reshape(3, 2).tolist() == [[0.5, 1.0], [1.0, 1.0], [0.0, 1.0]]
