"""A small model and the whole evaluation, beside float64."""

from __future__ import annotations

import numpy as np
import pytest
from common import DRY, FRAMEWORK, NEEDS, error, framework
from safetensors.numpy import load_file

import eval_llama3
from kvevict import backends
from kvevict.engine import Batch, prefill
from kvevict.methods import build
from kvevict.models.rope import inverse_frequencies
from tests import reference_llama
from tests.evaluation import tiny

pytestmark = [*NEEDS]
METHODS = ("full", "nacl", "laprox", "snapkv", "adakv", "pyramidkv")
TOKENS, AFTER = 300 if DRY else 1500, [70, 71, 72, 73, 74]
LIMIT = 1e-3 if DRY else 0.1  # of logits: two layers in bfloat16, weights rounded too


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "HEAD_DIM", 64)  # that flash attention takes
        return tiny.write_llama(tmp_path_factory.mktemp("model") / "tiny", scale=0.1)


def test_logits_after_eviction_are_those_of_the_entries_kept(model_dir):
    framework()
    loaded = backends.load(model_dir, device="cpu" if DRY else "gpu", framework=FRAMEWORK)
    ids = np.random.default_rng().integers(0, 250, TOKENS).tolist()
    policies = [build(method, keep_ratio=0.3, min_eviction_seqlen=0) for method in METHODS[1:]]
    policies.insert(0, build("full"))
    sessions = prefill(loaded.decoder(), ids, policies, record=True)
    kept = [seen(session) for session in sessions]
    batch = Batch([session.fork() for session in sessions])
    for session in batch.sessions:
        session.extend(AFTER[:-2])
    for token in AFTER[-2:]:
        together = batch.step([token] * len(sessions))
    for method, session, visible, logits in zip(METHODS, sessions, kept, together):
        expected = reference(model_dir, loaded, ids + AFTER, visible)
        assert error(session.logits, expected[TOKENS - 1]) < LIMIT, method
        assert error(logits, expected[-1]) < LIMIT, method


def seen(session) -> list[np.ndarray]:
    """By layer, which entries each kv head's later tokens see, bool ``[kv_heads, rows, keys]``."""
    masks, n = [], TOKENS + len(AFTER)
    for layer in session.cache.layers:
        mask = np.broadcast_to(np.tri(n, dtype=bool), (len(layer.lengths), n, n)).copy()
        mask[:, TOKENS:, :TOKENS] = False
        ends = np.cumsum(layer.lengths)[:-1]
        for head, positions in enumerate(np.split(np.array(layer.positions.tolist()), ends)):
            mask[head, TOKENS:, positions] = True
        masks.append(mask)
    return masks


def reference(model_dir, loaded, ids: list[int], visible: list[np.ndarray]) -> np.ndarray:
    """Logits ``[tokens, vocabulary]`` in float64, of weights as they are in the file."""
    config = loaded.model.config.to_dict()
    frequencies = inverse_frequencies({**config, "rope_theta": 10000.0, "rope_scaling": None})
    weights = load_file(model_dir / "model.safetensors")
    return reference_llama.logits(weights, ids, frequencies, dims=config, visible=visible)


def test_the_command(model_dir, tmp_path):
    tiny.write_data(tmp_path / "data", "passkey", 2, length=80 if DRY else 400)
    paths = [f"--data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path / 'out'}"]
    flags = ["--task=passkey", f"--method={','.join(METHODS)}", "--keep_ratio=0.3"]
    flags += [f"--framework={FRAMEWORK}", f"--device={'cpu' if DRY else 'gpu'}"]
    flags += ["--min_eviction_seqlen=32", "--decode_together", f"--model_path={model_dir}"]
    assert eval_llama3.main([*paths, *flags]) == 0
    files = [*(tmp_path / "out").glob("*/preds_passkey.jsonl")]
    assert [file.read_bytes().count(b"\n") for file in files] == [2] * len(METHODS)
