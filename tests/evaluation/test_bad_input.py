"""What a user may get wrong ends in one sentence, before anything is predicted."""

from __future__ import annotations

import shutil
from pathlib import Path

import paddle
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from tests import tiny_families


def test_more_new_tokens_than_positions_are_refused(evaluate, tmp_path):
    tiny.write_lines(tmp_path / "data" / "math_calc.jsonl", {"context": "1 + 1", "answer": [1, 2]})
    error = evaluate(f"--data_dir={tmp_path / 'data'}", "--task=math_calc", status=2)
    assert "math_calc asks for 30000 new tokens" in error and "2048 positions" in error


@pytest.mark.parametrize("method", ["full", "nacl", "laprox"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_an_error(evaluate, tmp_path, poison, method):
    model = tiny.write_llama(tmp_path / "bad", poison)
    error = evaluate(f"--model_path={model}", "--task=passkey", f"--method={method}", status=2)
    assert "finite" in error.splitlines()[-1] and "Traceback" not in error
    assert not [*tmp_path.glob("out/*/preds_*")]


def _no_weights(path):
    (path / "model.safetensors").unlink()


def _pickle(path):
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def _one_tensor_short(path):
    weights = load_file(path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, path / "model.safetensors")


def _cut_off(path):
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("spoil", "config", "message"),
    [
        (_no_weights, {}, "has no weights"),
        (_pickle, {}, "pytorch_model.bin holds pickled weights"),
        (_cut_off, {}, "model.safetensors is not a whole safetensors file"),
        (_one_tensor_short, {}, "lacks the tensor model.layers.1.mlp.up_proj.weight"),
        (lambda path: None, {"architectures": ["GPT2LMHeadModel"]}, "this one is GPT2LMHeadModel"),
        (lambda path: None, {"intermediate_size": 97}, "where the configuration asks for [97, 64]"),
        (lambda path: None, {"hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        (lambda path: None, {"rope_scaling": {"type": "dynamic"}}, "'dynamic' is not supported"),
        (lambda path: (path / "tokenizer.json").write_text("{"), {}, "tokenizer.json"),
        (lambda path: (path / "config.json").write_text("{"), {}, "config.json"),
        (shutil.rmtree, {}, "there is no model"),
    ],
)
def test_a_bad_model_is_named_and_leaves_no_run(evaluate, tmp_path, spoil, config, message):
    model = tiny.write_llama(tmp_path / "bad", **config)
    spoil(model)
    error = evaluate(f"--model_path={model}", "--task=passkey", status=2)
    assert message in error and str(model) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_command_refused_for_its_model_may_be_corrected(evaluate, predictions, tmp_path):
    own = ["--task=passkey", "--model_name=mine", "--stop_idx=1"]
    qwen3 = tiny_families.write_family(tmp_path / "qwen3", "qwen3")
    error = evaluate(*own, f"--model_path={qwen3}", status=2)
    assert error == (f"error: {qwen3}: PaddleNLP has no Qwen3 models; framework pytorch runs it\n")
    assert not (tmp_path / "out").exists()
    evaluate(*own)
    assert predictions()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"context": "a", ', "line 2: malformed JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"context": "a", "input": "b"}', 'line 2: this passkey example has no "answer"'),
        ('{"input": "b", "answer": "1"}', 'line 2: this passkey example has no "context"'),
        ('{"context": 3, "input": "b", "answer": "1"}', 'line 2: this passkey example has a "con'),
    ],
)
def test_bad_data_is_named_by_file_and_line(evaluate, tmp_path, line, message):
    file = tiny.write_data(tmp_path / "data", "passkey", 1)
    with open(file, "a") as out:
        out.write(line + "\n")
    error = evaluate(f"--data_dir={file.parent}", "--task=passkey", "--stop_idx=1", status=2)
    assert f"{file}, {message}" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_other_bad_input_is_named(evaluate, tmp_path):
    assert "unknown task 'pass_key'" in evaluate("--task=passkey,pass_key", status=2)
    error = evaluate("--task=passkey", "--start_idx=8", status=2)
    assert "passkey.jsonl has 8 examples, none from --start_idx 8" in error
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "passkey.jsonl").touch()
    error = evaluate("--task=passkey", f"--data_dir={tmp_path / 'empty'}", status=2)
    assert "passkey.jsonl has 0 examples" in error
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        error = evaluate("--task=passkey", f"--output_dir={tmp_path / place}", status=2)
        assert f"cannot write to {tmp_path / place}" in error
    assert "unrecognized arguments: --taks" in evaluate("--taks=passkey", status=2)


def test_a_missing_dataset_comes_with_the_next_step(evaluate, tmp_path):
    own = [f"--data_dir={tmp_path}", "--task=kv_retrieval"]
    file = tmp_path / "kv_retrieval.jsonl"
    assert evaluate(*own, status=2) == (
        f"error: there is no {file}; scripts/download_dataset.sh fetches ∞Bench, "
        "data/construct_synthetic_dataset.py builds synthetic examples\n"
    )
    file.with_name("kv_retrieval.jsonl.part").touch()
    assert evaluate(*own, status=2) == (
        f"error: there is no {file}; its download is unfinished: run "
        "scripts/download_dataset.sh again\n"
    )
    for script in ("scripts/download_dataset.sh", "data/construct_synthetic_dataset.py"):
        assert (Path(__file__).parents[2] / script).exists()


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="Paddle can use a GPU")
def test_a_device_that_cannot_be_had_is_said_to_be_so(evaluate):
    error = evaluate("--task=passkey", "--device=gpu", status=2)
    assert error == (
        "error: Paddle cannot use device 'gpu': this is its CPU build; setup.sh takes the "
        "GPU build where nvidia-smi works\n"
    )
    error = evaluate("--task=passkey", "--device=cuda", status=2)
    assert error == "error: there is no device 'cuda': devices are cpu, gpu, gpu:<n>\n"


def test_a_run_is_not_continued_with_other_settings_or_data(evaluate, predictions, tmp_path):
    own = ["--task=passkey", "--model_name=mine", "--stop_idx=2", "--enable_nacl_evict"]
    evaluate(*own)
    before = predictions()
    for change, message in {
        "--seed=1": "(policy)",
        "--max_length=100": "(max_length)",
        "--compress=context": "(compress)",
        f"--model_path={tiny.write_llama(tmp_path / 'elsewhere' / 'tiny')}": "(model_path)",
        f"--data_dir={tiny.write_data(tmp_path / 'data', 'passkey', 2).parent}": "data of passkey",
    }.items():
        error = evaluate(*own, change, status=2)
        assert message in error and "give another --model_name or --output_dir" in error
    assert predictions() == before


def test_a_run_is_not_continued_with_other_weights_of_the_same_name(
    evaluate, predictions, tmp_path
):
    own = [f"--model_path={tmp_path / 'mine'}", "--task=passkey", "--stop_idx=2"]
    tiny.write_llama(tmp_path / "mine")
    evaluate(*own)
    before = predictions()
    shutil.rmtree(tmp_path / "mine")
    tiny.write_llama(tmp_path / "mine", poison=0.5)
    error = evaluate(*own[:2], status=2)
    assert "was begun with another model (model.safetensors); give another --model_name" in error
    assert predictions() == before
    shutil.rmtree(tmp_path / "mine")
    tiny.write_llama(tmp_path / "mine")
    evaluate(*own[:2])
    assert [text.count(b"\n") for text in predictions().values()] == [8]
