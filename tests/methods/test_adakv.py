from __future__ import annotations

import numpy as np
import pytest

from kvevict import AdaKV, InputError
from tests.methods.brute import Prompt, best, kept, pool, run, shares


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.75, 1.0])
@pytest.mark.parametrize(("kv_heads", "group"), [(4, 2), (2, 4), (3, 1)])
def test_heads_share_the_layers_budget(kv_heads: int, group: int, alpha: float) -> None:
    n, window = 110, 8
    prompt = Prompt(kv_heads, n, kv_heads=kv_heads, group=group)
    # Queries of unequal sharpness give heads of unequal spread, and so unequal shares.
    prompt.q *= np.repeat(np.linspace(0.3, 2, kv_heads), group)[:, None, None].astype(np.float32)
    policy = AdaKV(0.3, window_size=window, alpha_safeguard=alpha, min_eviction_seqlen=0)
    base = 33 - window
    ragged = False
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        sums = prompt.weights(layer)[:, :, -window:].sum((1, 2))
        scores = np.stack([pool(s, window, 7) for s in sums])[:, : n - window]
        counts = shares(scores, base, int(base * alpha))
        ragged |= len(set(counts)) > 1
        assert sum(counts) == base * kv_heads
        for h, positions in enumerate(heads):
            chosen = best(scores[h], counts[h], range(n - window))
            assert positions == sorted(chosen | set(range(n - window, n)))
    assert ragged == (alpha < 1)


def test_alpha_out_of_range() -> None:
    with pytest.raises(InputError, match="alpha_safeguard must lie between 0 and 1"):
        AdaKV(alpha_safeguard=1.5)
