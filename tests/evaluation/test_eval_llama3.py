"""Whole evaluations of a tiny model, in this process."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import tiny

import eval_llama3
from evaluation import predict
from reporting import load


@pytest.fixture
def prefills(monkeypatch) -> list[tuple[tuple[int, ...], int]]:
    """The tokens of each prompt that is really prefilled, and for how many policies."""
    seen, real = [], predict.prefill

    def prefill(model, ids, policies, *more, **others):
        seen.append((tuple(ids), len(policies)))
        return real(model, ids, policies, *more, **others)

    monkeypatch.setattr(predict, "prefill", prefill)
    return seen


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sweep_gives_what_separate_runs_give(evaluate, predictions, tmp_path):
    sweep = ["--method=full,nacl,laprox,h2o", "--keep_ratio=0.1,0.3", "--task=passkey"]
    evaluate(*sweep, "--stop_idx=2")
    together = predictions()
    assert len(together) == 7
    shutil.move(tmp_path / "out", tmp_path / "together")
    evaluate("--task=passkey", "--stop_idx=2")
    for method in ("nacl", "laprox", "h2o"):
        for keep_ratio in (0.1, 0.3):
            evaluate(f"--method={method}", f"--keep_ratio={keep_ratio}", *sweep[2:], "--stop_idx=2")
    assert predictions() == together
    assert len(set(together.values())) > 4, "the settings make a difference"


def test_a_sweep_goes_on_where_some_settings_are_further_than_others(
    evaluate, predictions, prefills, tmp_path
):
    sweep = ["--method=nacl,h2o", "--keep_ratio=0.2", "--task=passkey"]
    evaluate(*sweep)
    whole = predictions()
    shutil.move(tmp_path / "out", tmp_path / "whole")
    evaluate("--method=h2o", "--keep_ratio=0.2", "--task=passkey", "--start_idx=2", "--stop_idx=5")
    prefills.clear()
    evaluate(*sweep)
    assert predictions() == whole
    assert [policies for _, policies in prefills] == [2, 2, 1, 1, 1, 2, 2, 2]
    evaluate(*sweep)
    assert len(prefills) == 8, "nothing is left to do"


def test_pieces_add_up_to_the_whole(evaluate, predictions, tmp_path):
    nacl = ["--enable_nacl_evict", "--task=passkey"]
    evaluate(*nacl)
    whole = predictions()
    shutil.move(tmp_path / "out", tmp_path / "whole")
    for piece in (["--start_idx=5"], ["--stop_idx=3"], ["--start_idx=2", "--stop_idx=6"]):
        evaluate(*nacl, *piece)
    assert predictions() == whole
    (file,) = (tmp_path / "out").glob("*/preds_passkey.jsonl")
    assert [row["id"] for row in rows(file)] == list(range(8))


def test_the_questions_tokens_are_the_proxies(evaluate, predictions, monkeypatch):
    """As many rows as the prompts' questions have tokens, which are alike in this task."""
    asked, real = set(), predict.prefill

    def prefill(*arguments, question_tokens, **others):
        asked.add(question_tokens)
        return real(*arguments, question_tokens=question_tokens, **others)

    monkeypatch.setattr(predict, "prefill", prefill)
    own = ["--method=nacl", "--keep_ratio=0.1", "--task=passkey", "--stop_idx=3"]
    evaluate(*own, "--proxy_tokens=question", "--model_name=question")
    (tokens,) = asked
    assert 5 < tokens < 60
    evaluate(*own, f"--proxy_tokens={tokens}", "--model_name=number")
    evaluate(*own, "--proxy_tokens=1", "--model_name=one")
    by_question, by_number, by_one = (
        list(predictions(name).values()) for name in ("question", "number", "one")
    )
    assert by_question == by_number != by_one


def test_a_budget_in_entries_is_kept_and_reported(evaluate, tmp_path, capsys):
    evaluate("--method=full,nacl,laprox", "--budget=48", "--task=passkey", "--stop_idx=2")
    for run in (tmp_path / "out").glob("*-b48_*"):
        for row in rows(run / "stats_passkey.jsonl"):
            assert row["cache_entries"] == 48 * tiny.KV_HEADS * tiny.LAYERS
        policy = json.loads((run / "run.json").read_text())["settings"]["policy"]
        assert (policy["budget"], policy["keep_ratio"]) == (48, None)
    results = load.read_runs(tmp_path / "out")
    assert sorted(map(load.keep_of, results)) == [1.0, 48, 48]


def test_the_record_and_the_statistics_are_right(evaluate, tmp_path, capsys):
    evaluate("--enable_nacl_evict", "--seed=3", "--task=passkey,number_string", "--stop_idx=4")
    (run,) = (tmp_path / "out").iterdir()
    for row in rows(run / "stats_passkey.jsonl"):
        n = row["prompt_tokens"]
        kept = n // 5 * tiny.KV_HEADS * tiny.LAYERS
        assert row["cache_entries"] == kept
        assert row["cache_bytes"] == kept * tiny.ENTRY_BYTES
        assert row["full_cache_bytes"] == n * tiny.KV_HEADS * tiny.LAYERS * tiny.ENTRY_BYTES
        assert row["new_tokens"] == 6 and row["decode_steps"] == 5
        assert 0 < row["prefill_seconds"] < 30 and 0 < row["decode_seconds"] < 30
    record = json.loads((run / "run.json").read_text())
    assert record["settings"]["policy"]["seed"] == 3
    assert record["settings"]["policy"]["min_eviction_seqlen"] == 32
    assert record["settings"]["compress"] == "prompt"
    assert set(record["versions"]) >= {"python", "kvevict", "paddle", "paddlenlp"}
    assert record["peak_memory_bytes"] > 1e8 and record["threads"] >= 1
    evaluate("--enable_nacl_evict", "--seed=3", "--task=passkey,number_string", "--stop_idx=4")
    assert json.loads((run / "run.json").read_text()) == record, "nothing was left to predict"
    for task in ("passkey", "number_string"):
        stats, of_task = rows(run / f"stats_{task}.jsonl"), record["tasks"][task]
        assert of_task["examples"] == len(stats) == 4
        for name in ("prompt_tokens", "new_tokens"):
            assert of_task[name] == sum(row[name] for row in stats)
        for name in ("prefill_seconds", "cache_bytes", "full_cache_bytes"):
            mean = sum(row[name] for row in stats) / 4
            assert of_task[name] == pytest.approx(mean, abs=1 if "bytes" in name else 1e-4)


def test_settings_decoded_as_one_batch_answer_alike(evaluate, predictions, tmp_path):
    sweep = ["--method=full,nacl,h2o,laprox", "--keep_ratio=0.2,0.5", "--task=passkey"]

    def by_setting() -> dict[str, bytes]:
        return {name.rpartition("/")[0].rpartition("_")[0]: t for name, t in predictions().items()}

    evaluate(*sweep)
    one_by_one = by_setting()
    shutil.move(tmp_path / "out", tmp_path / "one_by_one")
    evaluate(*sweep, "--decode_together")
    assert by_setting() == one_by_one and len(one_by_one) == 7
    for run in (tmp_path / "out").iterdir():
        (row, *_) = rows(run / "stats_passkey.jsonl")
        assert row["decoded_together"] == 7
        other = next((tmp_path / "one_by_one").glob(run.name.rsplit("_", 1)[0] + "_*"))
        (alone, *_) = rows(other / "stats_passkey.jsonl")
        assert alone["decoded_together"] == 1
        for name in ("cache_bytes", "cache_entries", "new_tokens", "decode_steps"):
            assert row[name] == alone[name]


def test_killed_between_its_settings_a_batch_is_decoded_whole_again(
    evaluate, predictions, prefills, tmp_path
):
    sweep = ["--method=full,nacl,snapkv", "--decode_together", "--task=passkey", "--stop_idx=3"]
    evaluate(*sweep)
    whole = predictions()
    prefills.clear()
    for run in (tmp_path / "out").glob("*_nacl-*"):
        for kind in ("preds", "stats"):
            lines = (run / f"{kind}_passkey.jsonl").read_bytes().splitlines(keepends=True)
            (run / f"{kind}_passkey.jsonl").write_bytes(b"".join(lines[:2]))
    evaluate(*sweep)
    assert predictions() == whole
    assert [policies for _, policies in prefills] == [3]
    for run in (tmp_path / "out").iterdir():
        stats = rows(run / "stats_passkey.jsonl")
        assert [row["decoded_together"] for row in stats] == [3, 3, 3]


def test_what_is_printed(evaluate, flags, tmp_path, capsys):
    error = evaluate("--method=nacl,h2o", "--task=passkey", "--stop_idx=2")
    loading, progress = error.splitlines()  # a log gets few lines
    assert loading.startswith("loading /") and loading.endswith("/tiny (float32, cpu)")
    assert progress.startswith("Retrieve.PassKey: 2/2 in 00:0") and " tokens/s, cache 0." in error
    assert eval_llama3.main([*flags, "--method=nacl,h2o", "--task=passkey", "--stop_idx=3",
                             "--verbose"]) == 0  # fmt: skip
    *_, task, head, nacl, h2o, note, scores = out = capsys.readouterr().out.splitlines()
    assert (task, head.split()[0], head.split()[-1]) == ("Retrieve.PassKey", "examples", "run")
    for line, method in ((nacl, "nacl"), (h2o, "h2o")):
        (run,) = (tmp_path / "out").glob(f"*{method}*")
        assert line.split()[0] == "3" and line.endswith(f"%  0.0000  {run.name}")
        assert "  19." in line
        assert not {key for key in json.loads((run / "run.json").read_text()) if "peak" in key}
    assert nacl.split()[2].endswith("*") and nacl.index("*") == head.index(" s ") + 2
    assert h2o.split()[2] == '"' and h2o.index('"') == nacl.index("*")
    assert note == "* one prefill served several settings"
    assert scores == f"every run: python compute_scores.py --output_dir {tmp_path / 'out'}"
    shown = [line for line in out if " #2: " in line and "(label " in line]
    assert len(shown) == 2 and not any(" #1: " in line for line in out)


def test_what_is_printed_is_graded_as_compute_scores_does(evaluate, flags, tmp_path, capsys):
    task = ["--task=passkey", "--model_name=mine"]
    evaluate(*task, "--stop_idx=4")
    run = tmp_path / "out" / "mine"
    found = rows(run / "preds_passkey.jsonl")
    found[1]["prediction"] = f" {found[1]['ground_truth']}"
    for label, score in (("8", "0.2500"), ([], "–")):
        found[0].update(prediction="7", ground_truth=label)
        tiny.write_lines(run / "preds_passkey.jsonl", *found)
        capsys.readouterr()
        assert eval_llama3.main([*flags, *task, "--stop_idx=4"]) == 0
        assert capsys.readouterr().out.splitlines()[2].endswith(f"100.0%{score:>8}  mine")


def test_a_run_that_evicts_nothing_says_why(evaluate, flags, tmp_path, capsys):
    more = ["--task=passkey", "--stop_idx=1", "--min_eviction_seqlen=999"]
    for method, noted in (("h2o", True), ("full", False)):
        assert eval_llama3.main([*flags, *more, f"--method={method}"]) == 0
        out = capsys.readouterr().out
        assert ("note: prompts were left whole: 1 of 1 of Retrieve.PassKey" in out) == noted
        assert "*" not in out, "the prefill was this setting's own"
        (run,) = (tmp_path / "out").glob(f"*{method}*/run.json")
        assert json.loads(run.read_text())["tasks"]["passkey"]["left_whole"] == 1


@pytest.mark.parametrize("method", ["nacl", "h2o", "tova", "kvzip", "expected_attention"])
def test_questions_on_one_context_share_its_compressed_cache(
    evaluate, predictions, prefills, tmp_path, method
):
    file = tiny.write_questions(tmp_path / "data", contexts=3, questions=2)
    mode = [f"--method={method}", "--compress=context", "--task=passkey"]
    mode.append(f"--data_dir={file.parent}")
    for index in range(6):  # each on its own, the last one first
        evaluate(*mode, f"--start_idx={5 - index}", f"--stop_idx={6 - index}")
    alone = predictions()
    shutil.move(tmp_path / "out", tmp_path / "alone")
    prefills.clear()
    evaluate(*mode)
    assert predictions() == alone
    prefilled = [ids for ids, _ in prefills]
    assert len(prefilled) == len(set(prefilled)) == 3
    (run,) = (tmp_path / "out").iterdir()
    assert f"_{method}-0.2-context_" in run.name
    assert json.loads((run / "run.json").read_text())["settings"]["compress"] == "context"
    answers = [row["prediction"] for row in rows(run / "preds_passkey.jsonl")]
    assert len(set(answers)) > 3, "questions make a difference"
    stats = rows(run / "stats_passkey.jsonl")
    assert [row.get("context_reused", False) for row in stats] == [False, True] * 3
    of_task = json.loads((run / "run.json").read_text())["tasks"]["passkey"]
    assert (of_task["examples"], of_task["prefills"]) == (6, 3)
    seconds = [row["prefill_seconds"] for row in stats[::2]]
    assert of_task["prefill_seconds"] == pytest.approx(sum(seconds) / 3, abs=1e-4)
    for ids, row in zip([i for i in prefilled for _ in "12"], rows(run / "stats_passkey.jsonl")):
        kept = len(ids) // 5 * tiny.KV_HEADS * tiny.LAYERS
        assert row["cache_entries"] == kept and row["cache_bytes"] == kept * tiny.ENTRY_BYTES
        assert row["prompt_tokens"] > len(ids)
        assert row["full_cache_bytes"] == len(ids) * tiny.KV_HEADS * tiny.LAYERS * tiny.ENTRY_BYTES


@pytest.mark.parametrize("mode", ["prompt", "context"])
def test_prompts_leave_positions_for_what_is_repeated_behind_them(
    evaluate, predictions, tmp_path, mode
):
    text = {"context": "x" * 1900, "input": "y", "answer": "1"}
    tiny.write_lines(tmp_path / "data" / "passkey.jsonl", {**text, "context": "x" * 600}, text)
    flags = [f"--data_dir={tmp_path / 'data'}", "--task=passkey", f"--compress={mode}"]
    both = [*flags, "--method=full,kvzip", "--keep_ratio=0.2"]
    error = evaluate(*both, "--no_truncation", status=2)
    assert "passkey, example 1: the prompt has" in error and not (tmp_path / "out").exists()

    error = evaluate(*both)
    (fit,) = re.findall("kvzip repeats chunks of a prompt behind it, for which ([0-9]+)", error)
    fit = int(fit)
    (lengths,) = {
        tuple(row["prompt_tokens"] for row in rows(path))
        for path in (tmp_path / "out").glob("*/stats_passkey.jsonl")
    }
    assert lengths[0] < 900 < lengths[1] == fit
    assert {json.loads(path.read_text())["settings"]["max_length"]
            for path in (tmp_path / "out").glob("*/run.json")} == {fit}  # fmt: skip
    found = predictions("full")
    shutil.rmtree(tmp_path / "out")
    assert "repeats" not in evaluate(*flags, "--method=full", f"--max_length={fit}")
    assert predictions() == found
    # Whole where a chunk is no longer than that, and no shorter than has to be.
    assert "repeats" not in evaluate(*both, f"--max_length={fit}")
    assert f"which {fit} tokens" in evaluate(*both, f"--max_length={fit + 1}")


def test_a_model_without_room_for_a_chunk_is_refused(evaluate, tmp_path):
    path = tiny.write_llama(tmp_path / "short", max_position_embeddings=180)
    error = evaluate(f"--model_path={path}", "--method=kvzip", "--task=passkey", status=2)
    assert "leaves no room for one in the model's 180 positions" in error
    assert not (tmp_path / "out").exists()


def test_the_full_cache_is_the_same_in_both_modes(evaluate, predictions):
    evaluate("--task=passkey", "--model_name=prompt")
    evaluate("--task=passkey", "--model_name=context", "--compress=context")
    assert [*predictions("prompt").values()] == [*predictions("context").values()]


def test_odd_texts_and_the_shortest_prompts_run(evaluate, tmp_path):
    contexts = ["", "a", "\ud800 lone \udfff", "mixed 中文 עברית 🙂 e\u0301\u0000", "\n" * 50]
    examples = [{"context": c, "input": "\udc00?", "answer": "\ud801"} for c in contexts]
    tiny.write_lines(tmp_path / "data" / "passkey.jsonl", *examples)
    own = [f"--data_dir={tmp_path / 'data'}", "--task=passkey"]
    for mode in ("prompt", "context"):
        evaluate(*own, "--enable_nacl_evict", f"--compress={mode}", f"--model_name={mode}")
        found = rows(tmp_path / "out" / mode / "preds_passkey.jsonl")
        assert [row["id"] for row in found] == list(range(5))
        assert {row["ground_truth"] for row in found} == {"\ud801"}
    for length in (1, 2, 3):
        evaluate(*own, "--method=nacl,laprox,streamingllm,adakv,h2o", "--min_eviction_seqlen=0",
                 "--keep_ratio=0.1", f"--max_length={length}")  # fmt: skip
    assert len([*(tmp_path / "out").glob("*/stats_passkey.jsonl")]) == 2 + 3 * 5


def test_long_prompts_are_cut_in_the_middle_or_refused(evaluate, tmp_path):
    tiny.write_data(tmp_path / "data", "passkey", 2)
    with open(tmp_path / "data" / "passkey.jsonl", "a") as file:
        file.write(json.dumps({"context": "x" * 3000, "input": "y", "answer": "1"}) + "\n")
    own = [f"--data_dir={tmp_path / 'data'}", "--task=passkey"]
    error = evaluate(*own, "--no_truncation", status=2)
    assert "passkey, example 2: the prompt has 3" in error and "2042 fit" in error
    assert not (tmp_path / "out").exists(), "found out before anything else was done"
    evaluate(*own)
    evaluate(*own, "--max_length=100")
    found = [rows(f)[2]["prompt_tokens"] for f in (tmp_path / "out").glob("*/stats_*")]
    assert sorted(found) == [100, tiny.POSITIONS - 6]
    for file in (tmp_path / "out").glob("*/stats_*"):
        assert 3000 < rows(file)[2]["uncut_tokens"] < 3300


def test_cut_prompts_are_noted(flags, tmp_path, capsys):
    data = tiny.write_data(tmp_path / "data", "passkey", 2).parent
    tiny.write_data(data, "number_string", 2, length=400)
    own = [f"--data_dir={data}", "--task=passkey,number_string", "--method=nacl,full"]
    for more, note in {
        "--max_length=2000": "",
        "--max_length=100": "2 of 2 of Retrieve.PassKey to 100 tokens, "
        "2 of 2 of Retrieve.Number to 100 tokens",
        "--max_length=1000": "2 of 2 of Retrieve.Number to 1000 tokens",
    }.items():
        capsys.readouterr()
        assert eval_llama3.main([*flags, *own, more]) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
        whole = f"note: prompts were cut in the middle: {note} (--no_truncation refuses them)"
        assert notes == [whole] * bool(note)


@pytest.mark.parametrize("batch", ["3", "auto"])
def test_answers_of_a_batch_are_those_of_one_by_one(evaluate, predictions, tmp_path, batch) -> None:
    sweep = ["--method=full,snapkv,h2o", "--keep_ratio=0.3", "--task=passkey,number_string"]
    evaluate(*sweep)
    alone = predictions()
    shutil.rmtree(tmp_path / "out")
    evaluate(*sweep, f"--batch={batch}", "--stop_idx=3")
    evaluate(*sweep, f"--batch={batch}")  # goes on
    together = predictions()
    assert sorted(alone.values()) == sorted(together.values())
    stats = [
        json.loads(line)
        for file in (tmp_path / "out").glob("*/stats_passkey.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert len(stats) == 3 * 8 and max(row["decoded_together"] for row in stats) >= 3


def test_a_batch_that_cannot_be_is_refused(evaluate) -> None:
    assert "--batch: takes a number or auto, not '0'" in evaluate("--batch=0", status=2)
    assert "leave out --decode_together" in evaluate("--batch=2", "--decode_together", status=2)
