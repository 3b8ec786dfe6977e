from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.dense import DEVICE, kernels, torch

CASES = [  # rows, n, back, ahead, since, until, tail, plateau, highest
    (3, 200, 3, 3, 0, 192, 0.0, 1.0, False),
    (2, 1500, 7, 31, 4, 1492, 1.0, 4.0, True),
    (1, 1025, 0, 63, 4, 1025, 1.5, 2.0, False),
    (4, 5, 7, 31, 4, 5, 1.0, 4.0, False),
    (2, 40, 15, 0, 0, 0, 2.0, 8.0, True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_positions_lend(case) -> None:
    rows, n, back, ahead, since, until, tail, plateau, highest = case
    scores = torch.rand(rows, n, device=DEVICE)
    got = kernels.neighbours(scores, back, ahead, since, until, tail, plateau, highest)

    dense = scores.double().cpu().numpy()
    distance = np.arange(n)[None, :] - np.arange(n)[:, None]  # from row to column
    lends = (distance >= -back) & (distance <= ahead)
    lends[:since] = lends[until:] = False
    lends[:, until:] = False
    lent = dense[:, :, None] * (lends * (1 + np.abs(distance) / plateau) ** -tail)
    expected = lent.max(1) if highest else lent.sum(1)
    assert np.abs(got.double().cpu().numpy() - expected).max() <= 1e-5 * max(1.0, expected.max())
