"""What tables and figures are made of: results read, kept and pooled."""

from __future__ import annotations

import pytest

from reporting import cost, figures, load, pool, tables
from reporting.intervals import estimate
from tests.reporting.runs import write_data, write_run


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(1, "1"), (511, "511"), (1000, "1K"), (1500, "1.5K"), (4090, "4K"), (130048, "127K")],
)
def test_lengths_have_names(tokens, name):
    assert pool.length_name(tokens) == name


def test_seeds_are_pooled_by_example(tmp_path):
    common = {"keep_ratio": 0.2}
    write_run(tmp_path / "a", "nacl", [True, True, False, False], seed=0, **common)
    write_run(tmp_path / "b", "nacl", [True, False, True, False], seed=1, **common)
    ((group,), results) = grouped(tmp_path)
    (cell,) = group.cells
    assert (cell.examples, cell.seeds, cell.score.mean) == (4, 2, 0.5)
    assert cell.score == estimate([1.0, 0.5, 0.5, 0.0], range(4))
    assert len(results) == 2


def test_runs_of_different_examples_are_put_together(tmp_path):
    write_run(tmp_path / "a", "snapkv", [True, True])
    write_run(tmp_path / "b", "snapkv", [False, False, True])  # the first two again
    ((group,), _) = grouped(tmp_path)
    assert [cell.examples for cell in group.cells] == [3]
    assert group.cells[0].score.mean == pytest.approx(2 / 3)


def test_models_and_modes_stay_apart(tmp_path):
    write_run(tmp_path / "a", "full", [True])
    write_run(tmp_path / "b", "full", [True], compress="context")
    write_run(tmp_path / "c", "full", [True], model="other")
    assert [group.title for group in grouped(tmp_path)[0]] == [
        "llama, context compressed before the question is known",
        "llama, question in the prompt",
        "other, question in the prompt",
    ]


def test_lengths_stay_apart_where_a_task_has_several(tmp_path):
    write_run(tmp_path / "a", "full", [True], tokens=2000)
    write_run(tmp_path / "b", "full", [False], tokens=1000)
    ((group,), _) = grouped(tmp_path)
    assert [name for name, _ in group.parts()] == ["1K", "2K"]
    assert [cells[0].score.mean for _, cells in group.parts()] == [0, 1]


def test_tasks_of_one_length_each_stand_together(tmp_path):
    write_run(tmp_path / "a", "full", [True], tokens=2000)
    write_run(tmp_path / "a", "full", [False], task="number_string", tokens=1000)
    ((group,), _) = grouped(tmp_path)
    ((name, cells),) = group.parts()
    assert name == "" and pool.task_names(cells) == ["passkey", "number_string"]
    assert pool.overall(cells, "full", 1.0).mean == 0.5


def test_a_mean_needs_every_task(tmp_path):
    write_run(tmp_path / "a", "full", [True])
    write_run(tmp_path / "a", "full", [False], task="number_string")
    write_run(tmp_path / "b", "h2o", [True])
    ((group,), _) = grouped(tmp_path)
    assert pool.overall(list(group.cells), "h2o", 0.2) is None


def test_depths_come_from_the_data_with_the_same_checksum(tmp_path):
    write_data(tmp_path / "data" / "deep" / "er", 4)
    write_data(tmp_path / "data" / "another", 3)
    data = tmp_path / "data" / "deep" / "er"
    write_run(tmp_path / "results", "full", [True, False, True, True], data=data)
    (result,) = load.read_runs(tmp_path / "results", tmp_path / "data")
    assert result.depths == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.01)
    (cell,) = pool.pool([result])[0].cells
    assert [score for _, score in cell.points] == [1, 0, 1, 1]
    assert load.read_runs(tmp_path / "results")[0].depths is None


def test_an_answer_is_found_as_a_whole_word():
    text = "117 17, 170 17"
    assert load.answer_spans(text, 17) == [(4, 6), (12, 14)]
    assert load.answer_spans(text, ["17"]) == [(4, 6), (12, 14)]
    assert load.answer_spans(text, "") == load.answer_spans(text, []) == []


def test_scores_are_kept_and_read_back(tmp_path):
    write_run(tmp_path / "results", "nacl", [True, False], keep_ratio=0.1)
    results = load.read_runs(tmp_path / "results")
    load.write_scores(tmp_path / "scores.jsonl.gz", results)
    assert load.read_scores(tmp_path / "scores.jsonl.gz") == results


def test_parts_of_a_run_in_several_directories_are_one_result(tmp_path):
    """Jobs that shared the examples of a file; the second had one of the first's again."""
    write_data(tmp_path / "data", 6)
    common = {"data": tmp_path / "data"}
    write_run(tmp_path / "results" / "0", "snapkv", [True, False, True], **common)
    write_run(tmp_path / "results" / "1", "snapkv", [False] * 6, **common)
    for kind in ("preds", "stats"):
        path = tmp_path / "results" / "1" / f"{kind}_passkey.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    write_run(tmp_path / "results" / "2", "h2o", [True], **common)
    joined, other = sorted(
        load.read_runs(tmp_path / "results", tmp_path / "data"), key=lambda one: -len(one.ids)
    )
    assert joined.ids == [0, 1, 2, 3, 4, 5] and other.ids == [0]
    assert joined.scores == [1, 0, 0.5, 0, 0, 0]
    assert joined.depths == sorted(joined.depths) and len(joined.prompt_tokens) == 6
    assert joined.cache_bytes == other.cache_bytes and joined.ms_per_token == pytest.approx(10.0)


def test_lengths_are_pooled_and_those_of_an_example_are_one_cluster(tmp_path):
    for tokens in (1000, 2000):
        write_run(tmp_path / str(tokens), "nacl", [True, True, False, False], tokens=tokens)
    (group,) = pool.pool(load.read_runs(tmp_path), by_length=False)
    (cell,) = group.cells
    assert (cell.length, cell.examples) == ("", 8)
    assert cell.score == estimate([1, 1, 0, 0], range(4)), "the second length adds nothing new"


def grouped(path):
    results = load.read_runs(path)
    return pool.pool(results), results


def test_the_time_of_a_batch_is_of_no_setting(tmp_path):
    write_run(tmp_path / "a", "snapkv", [True, False], together=True, keep_ratio=0.5)
    (group,) = pool.pool(load.read_runs(tmp_path))
    assert [cell.decoded_together for cell in group.cells] == [True]
    cells = list(group.cells)
    table = tables.cost_table(cells)
    assert table.rows[0][-1] == "–" and "Decoded as one batch" in table.markdown()
    assert len(cost.cost_figure(cells).axes) == 1


def test_budgets_in_entries_have_an_axis_of_their_own(tmp_path):
    write_run(tmp_path / "full", "full", [True, True])
    for budget in (128, 512):
        write_run(tmp_path / f"e{budget}", "snapkv", [True, False], budget=budget)
    ((alone,), _) = grouped(tmp_path)
    assert pool.ratios_of(alone.cells) == [128, 512]
    shown = tables.score_table(list(alone.cells)).rows
    assert [row[1] for row in shown] == ["100%", "512", "128"]
    assert figures.score_figure(list(alone.cells)).get_supxlabel() == "entries kept of each kv head"
    write_run(tmp_path / "ratio", "snapkv", [True, False], keep_ratio=0.2)
    (entries, shares), _ = grouped(tmp_path)
    assert entries.title.endswith("in entries") and pool.ratios_of(entries.cells) == [128, 512]
    assert shares.title.endswith("in shares") and pool.ratios_of(shares.cells) == [0.2]
    assert all("full" in {cell.method for cell in group.cells} for group in (entries, shares))
