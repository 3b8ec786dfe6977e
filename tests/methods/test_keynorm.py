from __future__ import annotations

import numpy as np

from kvevict.methods.keynorm import KeyNorm
from tests.methods.brute import Prompt, choose, kept, run


def test_keeps_the_smallest_keys() -> None:
    prompt = Prompt(1, 77)
    for layer, heads in enumerate(kept(run(KeyNorm(0.3, min_eviction_seqlen=0), prompt), prompt)):
        norms = np.linalg.norm(prompt.k[layer].astype(np.float64), axis=-1)
        assert heads == [choose(-norm, 23, 0, 0) for norm in norms]
