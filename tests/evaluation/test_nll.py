"""How unlikely the reference answer is: against float64, and beside predictions as they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import benchmarks
import report
from benchmarks.examples import read_file
from evaluation.prompting import Prompting
from kvevict import load, prefill
from kvevict.methods import build
from kvevict.models import read_checkpoint
from kvevict.models.chat import ChatTemplate
from kvevict.models.rope import inverse_frequencies
from tests import reference_llama


def stats(out: Path, part: str) -> list[dict]:
    (file,) = out.glob(f"*{part}*/stats_passkey.jsonl")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def asked(llama: Path, data: Path, **settings) -> list[tuple[list[int], list[int]]]:
    """The tokens of each prompt and of its answer."""
    checkpoint = read_checkpoint(str(llama))
    benchmark = benchmarks.get()
    prompting = Prompting(
        benchmark, checkpoint.tokenizer, None, False, 2048, 2048, True, "prompt", **settings
    )
    task = benchmark.tasks["passkey"]
    examples = list(read_file(data / "passkey.jsonl", task))[:3]
    return [
        (prompting.tokens(task, one).compressed, prompting.reference(task, one)) for one in examples
    ]


def float64_nll(llama: Path, prompt: list[int], answer: list[int]) -> float:
    config = json.loads((llama / "config.json").read_text())
    frequencies = inverse_frequencies({**config, "rope_scaling": None, "head_dim": 16})
    weights = load_file(llama / "model.safetensors")
    logits = reference_llama.logits(weights, prompt + answer, frequencies, dims=config)
    rows = logits[len(prompt) - 1 : -1]
    rows = rows - rows.max(-1, keepdims=True)
    log_probs = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return -log_probs[np.arange(len(answer)), answer].mean()


@pytest.mark.parametrize("more", [[], ["--decode_together"], ["--batch=3"]], ids=str)
@pytest.mark.parametrize("compress", ["prompt", "context"])
def test_it_is_that_of_the_reference_and_changes_no_prediction(
    evaluate, predictions, llama, data, tmp_path, compress, more
) -> None:
    flags = ["--task=passkey", "--method=full,snapkv", "--keep_ratio=0.3", "--stop_idx=3", *more]
    flags.append(f"--compress={compress}")
    evaluate(*flags, f"--output_dir={tmp_path / 'without'}")
    evaluate(*flags, "--nll")
    without = [file.read_bytes() for file in sorted((tmp_path / "without").rglob("preds_*.jsonl"))]
    assert list(predictions().values()) == without
    pairs = asked(llama, data)
    full = [row["nll"] for row in stats(tmp_path / "out", "full")]
    np.testing.assert_allclose(full, [float64_nll(llama, *pair) for pair in pairs], rtol=1e-4)
    own = [row["nll"] for row in stats(tmp_path / "out", "snapkv")]
    assert all(abs(a - b) > 1e-3 for a, b in zip(own, full))
    if compress == "prompt":
        decoder = load(str(llama)).decoder()
        policy = build("snapkv", keep_ratio=0.3, min_eviction_seqlen=32)
        for nll, (prompt, answer) in zip(own, pairs):
            (session,) = prefill(decoder, prompt, [policy])
            total, logits = 0.0, session.logits
            for token in answer:
                row = logits.numpy().astype(np.float64)
                total += row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
                logits = session.extend([token])
            assert nll == pytest.approx(-total / len(answer), rel=1e-4)


def test_it_reaches_the_scores_with_what_made_them(evaluate, tmp_path) -> None:
    evaluate("--task=passkey,number_string", "--stop_idx=2", "--nll")
    file = tmp_path / "scores.jsonl.gz"
    report.main(["scores", "--output_dir", str(tmp_path / "out"), "--out", str(file)])
    for result in report.load.read_scores(file):
        assert len(result.nll) == 2 and min(result.nll) > 0
        assert (
            result.made["versions"]["paddle"] and "model.safetensors" in result.made["model_files"]
        )


def test_the_first_answer_of_each_benchmark() -> None:
    of_longbench = {"answers": ["a", "b"], "all_classes": None, "length": 1}
    tasks = {name: benchmarks.get(name).tasks for name in ("longbench", "ruler", "infinitebench")}
    assert tasks["longbench"]["qasper"].first_answer(of_longbench) == "a"
    assert tasks["longbench"]["qasper"].first_answer({**of_longbench, "answers": []}) is None
    assert tasks["ruler"]["vt"].first_answer({"outputs": ["XYZ", "ABC"]}) == "XYZ"
    passkey, summary = (tasks["infinitebench"][one] for one in ("passkey", "longbook_sum_eng"))
    assert passkey.first_answer({"answer": ["71432"]}) == "71432"
    assert summary.first_answer({"answer": "a text"}) == "a text"
    assert summary.first_answer({"answer": " "}) is None
    assert passkey.first_answer({"answer": [7]}) is None


def test_an_answer_follows_its_prompt_as_text_does(llama) -> None:
    tokenizer = read_checkpoint(str(llama)).tokenizer
    benchmark = benchmarks.get("ruler")
    task = benchmark.tasks["niah_single_1"]
    fields = {"context": "c", "question": "\nq?", "answer_prefix": " It is", "outputs": ["7", "8"]}
    example = benchmarks.Example(0, fields)

    def text(**changes) -> tuple[str, str]:
        usual = dict(chat=None, chat_everywhere=False, max_length=99, positions=999, truncate=True)
        made = Prompting(benchmark, tokenizer, compress="prompt", **{**usual, **changes})
        return (
            tokenizer.decode(made.tokens(task, example).compressed),
            tokenizer.decode(made.reference(task, example)),
        )

    assert text() == ("c\nq? It is", " 7")
    assert text(answer_prefix=False) == ("c\nq?", " 7")
    fields["answer_prefix"] = "\n"
    assert text() == ("c\nq?\n", "7")
    chat = ChatTemplate("<{{ messages[0].content }}>", {}, "x")
    assert text(chat=chat) == ("<c\nq?>\n", "7")
    fields["answer_prefix"] = ""
    assert text(chat=chat) == ("<c\nq?>", "7"), "the answer's header is open"
    assert text() == ("c\nq?", " 7")
    fields["outputs"] = ["7" * 200]
    assert text(chat=chat)[1] == "7" * task.max_new_tokens
