"""Run directories survive being killed, and refuse to mix what does not belong together."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.runs import NO_LOCKS, Run
from kvevict.errors import InputError

SETTINGS = {"model": "m", "ratios": (0.1, 0.2)}
DATA = {"passkey": "0" * 64}
MODEL = {"config.json": "285:0", "model.safetensors": "380736:1"}


def opened(path: Path, settings=SETTINGS, data=DATA, model=MODEL) -> Run:
    run = Run(path, settings)
    run.check(data, model)
    run.open(data, model)
    return run


def predict(run: Run, example: int) -> None:
    text = f"é{example}\u2028" * (1 + example % 5)
    row = {"id": example, "prediction": text, "ground_truth": "\ud800"}
    run.append("passkey", row, {"id": example, "new_tokens": example})


def tear(file: Path, random) -> None:
    """Break off the last line at any byte, or nowhere."""
    last = file.read_bytes().splitlines(keepends=True)[-1]
    cut(file, random.randrange(len(last) + 1))


def cut(file: Path, keep: int) -> None:
    """Leave ``keep`` bytes of the last line."""
    *lines, last = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines) + last[:keep])


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*_passkey*")}


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.floats(0, 1), min_size=4)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_killed_anywhere_and_continued_in_any_layout_a_run_is_that_of_one_process(
    count, attempts, random
):
    with tempfile.TemporaryDirectory() as folder:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        run = opened(whole)
        for example in range(count):
            predict(run, example)
        run.merge("passkey")

        for world, progress in [*attempts, (1, [1.0])]:
            first = opened(broken)
            pending = [e for e in range(count) if e not in first.done("passkey")]
            first._lock.close()
            for rank in range(world):
                own = pending[rank::world]
                last = Run(broken, SETTINGS, rank if world > 1 else None)
                for example in own[: round(len(own) * progress[rank])]:
                    predict(last, example)
                last.close()
            if progress == [1.0]:
                break
            for file in broken.glob("preds_passkey*"):
                if random.random() < 0.5:
                    tear(file, random)
                else:  # the kill came before this prediction's first byte
                    cut(file, 0)
                    tear(broken / file.name.replace("preds", "stats"), random)
        opened(broken)
        assert contents(broken) == contents(whole)


def test_a_merge_that_was_killed_before_it_removed_the_parts_is_repeated(tmp_path):
    for rank in (0, 1):
        part = Run(tmp_path, SETTINGS, rank)
        for example in range(rank, 6, 2):
            predict(part, example)
        part.close()
    for part in tmp_path.glob("*.rank1.jsonl"):
        shutil.copy(part, part.with_suffix(".kept"))
    Run(tmp_path, SETTINGS).merge("passkey")
    once = contents(tmp_path)
    for kept in tmp_path.glob("*.kept"):
        kept.rename(kept.with_suffix(".jsonl"))
    run = Run(tmp_path, SETTINGS)
    run.merge("passkey")
    once = {name: text for name, text in once.items() if name.endswith(".jsonl")}
    assert contents(tmp_path) == once
    assert [row["new_tokens"] for row in run.stats("passkey")] == [0, 1, 2, 3, 4, 5]


def test_statistics_without_their_prediction_are_dropped(tmp_path):
    run = opened(tmp_path)
    predict(run, 0)
    predict(run, 1)
    file = tmp_path / "preds_passkey.jsonl"
    file.write_bytes(file.read_bytes()[:-1])
    run.merge("passkey")
    assert run.done("passkey") == {0}
    assert [row["id"] for row in run.stats("passkey")] == [0]


def test_a_run_is_continued_only_with_its_own_settings_and_data(tmp_path):
    opened(tmp_path)
    opened(tmp_path, data={"kv_retrieval": "1" * 64})
    with pytest.raises(InputError, match=r"other settings \(model\); give another --model_name"):
        opened(tmp_path, settings={**SETTINGS, "model": "n"})
    with pytest.raises(InputError, match=r"other settings \(seed\)"):
        opened(tmp_path, settings={**SETTINGS, "seed": 0})
    with pytest.raises(InputError, match="begun on other data of passkey; give another"):
        opened(tmp_path, data={"passkey": "1" * 64})
    opened(tmp_path)


def test_a_run_is_continued_with_its_own_model_alone(tmp_path):
    predict(opened(tmp_path), 0)
    other = {**MODEL, "model.safetensors": "380736:2"}
    message = r"was begun with another model \(model\.safetensors\); give another --model_name"
    with pytest.raises(InputError, match=message):
        opened(tmp_path, model=other)
    with pytest.raises(InputError, match=r"\(adapter_model\.safetensors, config\.json\)"):
        opened(tmp_path, model={"model.safetensors": "380736:1", "adapter_model.safetensors": ""})
    assert opened(tmp_path).done("passkey") == {0}


def test_a_record_from_before_models_were_known_is_continued_with_a_note(tmp_path, capsys):
    predict(opened(tmp_path), 0)
    file = tmp_path / "run.json"
    record = json.loads(file.read_text())
    del record["model_files"]
    file.write_text(json.dumps(record))
    opened(tmp_path)
    assert capsys.readouterr().err == (
        f"note: {file} does not say of which weights the predictions so far are\n"
    )
    assert json.loads(file.read_text())["model_files"] == MODEL
    opened(tmp_path)
    assert capsys.readouterr().err == ""


def test_checking_writes_nothing(tmp_path):
    run = Run(tmp_path / "new" / "run", SETTINGS)
    run.check(DATA, MODEL)
    assert not [*tmp_path.iterdir()]
    predict(opened(tmp_path / "old"), 0)
    before = {path: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    for changes in ({"settings": {"model": "n"}}, {"data": {"passkey": "1"}}, {"model": {}}):
        given = {"settings": SETTINGS, "data": DATA, "model": MODEL, **changes}
        with pytest.raises(InputError, match="give another --model_name"):
            Run(tmp_path / "old", given["settings"]).check(given["data"], given["model"])
    assert {path: path.read_bytes() for path in (tmp_path / "old").iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"cannot write to .*: {tmp_path / 'file'} is not a dir"):
        Run(tmp_path / "file" / "run", SETTINGS).check(DATA, MODEL)


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks_is_written_to_with_a_note(
    tmp_path, monkeypatch, capsys, number
):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    for example in (0, 1):
        predict(opened(tmp_path), example)
    assert opened(tmp_path).done("passkey") == {0, 1}
    note = capsys.readouterr().err
    assert note.startswith(f"note: the file system of {tmp_path} has no locks: ")
    assert note.count("\n") == 1, "said once"


def test_a_directory_in_use_is_refused_until_it_is_let_go(tmp_path):
    run = opened(tmp_path)
    with pytest.raises(InputError, match="in use by another process"):
        opened(tmp_path)
    del run
    opened(tmp_path)


def test_a_part_that_another_process_still_writes_is_refused(tmp_path):
    left_over, new = Run(tmp_path, SETTINGS, 1), Run(tmp_path, SETTINGS, 1)
    predict(left_over, 0)
    with pytest.raises(InputError, match="in use by another process"):
        predict(new, 1)


def test_predictions_of_unknown_origin_are_left_alone(tmp_path):
    file = tmp_path / "preds_passkey.jsonl"
    file.write_text('{"pred": "1", "label": "2"}\n')
    with pytest.raises(InputError, match=r"holds predictions without a run\.json"):
        opened(tmp_path)
    assert file.read_text() == '{"pred": "1", "label": "2"}\n'


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"settings": {}}', '{"settings": 1, "tasks": 2}']
)
def test_a_broken_record_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json is not the record of a run"):
        opened(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", '{"id": "x"}', '{"prediction": ""}'])
def test_a_whole_line_that_is_no_result_is_named(tmp_path, line):
    predict(opened(tmp_path), 0)
    with open(tmp_path / "preds_passkey.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=r"preds_passkey\.jsonl, line 2, is not a result"):
        opened(tmp_path)


def test_the_record_is_there_before_the_first_prediction(tmp_path):
    opened(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["settings"] == {"model": "m", "ratios": [0.1, 0.2]}
    assert record["tasks"]["passkey"]["data_sha256"] == DATA["passkey"]
    assert record["versions"]["kvevict"]
