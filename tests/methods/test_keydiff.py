from __future__ import annotations

import numpy as np

from kvevict.methods.keydiff import KeyDiff
from tests.methods.brute import Prompt, choose, kept, run


def test_keeps_the_keys_unlike_their_mean() -> None:
    prompt = Prompt(4, 77, kv_heads=3)
    for layer, heads in enumerate(kept(run(KeyDiff(0.3, min_eviction_seqlen=0), prompt), prompt)):
        for keys, positions in zip(prompt.k[layer].astype(np.float64), heads):
            unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
            anchor = unit.mean(0)
            cosine = keys @ anchor / np.linalg.norm(keys, axis=-1) / np.linalg.norm(anchor)
            assert positions == choose(-cosine, 23, 0, 0)
