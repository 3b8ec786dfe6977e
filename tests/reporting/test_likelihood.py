"""The table of likelihoods: what it has of the runs, and how it ranks them beside the scores."""

from __future__ import annotations

import numpy as np
import pytest

from reporting.likelihood import likelihood_table, spearman
from reporting.load import Result, read_scores, write_scores
from reporting.pool import pool
from reporting.sections import tables


def result(name: str, keep: float, task: str, scores: list[float], nll) -> Result:
    policy = {"name": name, "keep_ratio": keep, "seed": 0, "decode_slack": None}
    policy |= {"scorer": {}, "allocator": {}, "selector": {}}
    settings = {"model": "m", "compress": "prompt", "policy": policy}
    ids, tokens = list(range(len(scores))), [99] * len(scores)
    return Result(settings, task, task, ids, scores, tokens, None, 1, 1, 1, 1, 1, nll)


def results() -> list[Result]:
    """Scores fall with the share kept; likelihoods too for one task, and rise for the other."""
    made = []
    for keep, score, nll in ((1.0, 1.0, 0.5), (0.2, 0.5, 1.5), (0.1, 0.0, 4.0)):
        name = "full" if keep == 1 else "snapkv"
        made.append(result(name, keep, "passkey", [score, score], [nll, nll + 1]))
        made.append(result(name, keep, "kv_retrieval", [score, score], [-nll, None]))
    return made


def test_a_row_a_setting_and_below_them_how_they_rank(tmp_path) -> None:
    write_scores(tmp_path / "scores.jsonl.gz", results())
    (group,) = pool(read_scores(tmp_path / "scores.jsonl.gz"))
    table = likelihood_table(list(group.cells))
    assert [row[2:] for row in table.rows] == [
        ["1.000", "-0.500", "0.250"],
        ["2.000", "-1.500", "0.250"],
        ["4.500", "-4.000", "0.250"],
        ["1.00", "-1.00", "–"],
    ]
    assert table.rows[-1][0] == "ρ"
    assert [one.title.partition(" ")[0] for one in tables(group)] == ["Score", "Negative", "Cost"]


def test_runs_without_likelihoods_have_no_such_table() -> None:
    made = [result("full", 1.0, "passkey", [1.0], None)]
    (group,) = pool(made)
    assert [one.title for one in tables(group)] == ["Score", "Cost"]


def test_ranks_of_equals_are_their_mean() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    # Ranks 1, 2.5, 2.5, 4 beside 1, 2, 3, 4: a covariance of 4.5 over the root of 4.5 · 5.
    assert spearman([0, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(np.sqrt(4.5 / 5))
    assert np.isnan(spearman([1, 1], [1, 2]))
