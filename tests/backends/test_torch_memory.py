"""What a prefill holds at most, whatever its weights' places in memory."""

from __future__ import annotations

import copy

import pytest

from kvevict import build
from kvevict.engine import prefill, prefilling
from tests.backends.torch_model import prompt, tiny, torch

TorchDecoder = pytest.importorskip("kvevict.backends.torch.decoder").TorchDecoder
from torch.multiprocessing.reductions import StorageWeakRef  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

from kvevict.backends.torch.joined import lay_out  # noqa: E402

TOKENS, CHUNK, KEPT = 1024, 16, 0.02


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors alive after an operation, but for a model's weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor):
                own = x.untyped_storage()
                if own._cdata not in self._weights:
                    self._alive[own._cdata] = StorageWeakRef(own), own.nbytes()
        self._alive = {key: own for key, own in self._alive.items() if not own[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result


@pytest.mark.parametrize("joint", [False, True])
def test_of_projections_a_prompt_holds_one_layers_and_its_queries_again(
    monkeypatch, joint: bool
) -> None:
    """While chunks of queries become one tensor; wherever the weights lie."""
    monkeypatch.setattr(prefilling, "CHUNK", CHUNK)
    model = tiny(max_position_embeddings=TOKENS)
    if joint:
        weights = copy.deepcopy(model.state_dict())
        lay_out(model, torch.float32, torch.device("cpu"))
        model.load_state_dict(weights)
    decoder, ids = TorchDecoder(model), prompt(count=TOKENS)[0].tolist()
    policy = build("streamingllm", keep_ratio=KEPT, min_eviction_seqlen=0)
    peaks = []
    for tokens in (TOKENS // 2, TOKENS):
        with Held(model) as held:
            prefill(decoder, ids[:tokens], [policy])
        peaks.append(held.peak)
    hidden = queries = 128
    entries, tables = 2 * 32, 2 * 16
    kept = KEPT * model.config.num_hidden_layers * entries
    expected = hidden + 2 * queries + entries + tables + kept
    assert (peaks[1] - peaks[0]) / (TOKENS // 2) <= 4 * expected
