"""A decoding step as a CUDA graph, beside the same step unrecorded.

That it is recorded at all is no matter of right or wrong: ``speed.py`` tells.
"""

from __future__ import annotations

import numpy as np
import pytest
from common import DRY, FRAMEWORK, NEEDS, array, error, framework

from kvevict import backends
from kvevict.engine import Batch, cuda_graph, prefill
from kvevict.methods import build
from tests.evaluation import tiny

pytestmark = [*NEEDS]
TOKENS, STEPS = 100 if DRY else 1500, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    framework()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "HEAD_DIM", 64)  # that the kernels take
        path = tiny.write_llama(tmp_path_factory.mktemp("model") / "tiny", scale=0.1)
    return backends.load(path, device="cpu" if DRY else "gpu", framework=FRAMEWORK)


def test_a_recorded_step_is_the_step(model):
    got, expected = (steps(model, worth) for worth in (cuda_graph.WORTH, 0))
    assert max(map(error, got, expected)) < 0.02


def steps(model, worth: int) -> list[np.ndarray]:
    ids = np.random.default_rng(3).integers(0, 250, TOKENS).tolist()
    policies = [build("full"), build("nacl", keep_ratio=0.3, min_eviction_seqlen=0)]
    batch = Batch(prefill(model.decoder(), ids, policies), worth)
    tokens = np.random.default_rng(4).integers(0, 250, STEPS).tolist()
    return [array(batch.step([token] * len(policies))) for token in tokens]
