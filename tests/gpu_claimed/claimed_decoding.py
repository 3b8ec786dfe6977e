"""A decoding step as a CUDA graph, on tensors that claim a GPU, with our kernels interpreted.

Run by pytest in a process of its own: see test_paddle_claimed.py.
"""

from __future__ import annotations

import claimed
import numpy as np
import pytest
from recording import Graph

from kvevict import backends, build
from kvevict.engine import Batch, cuda_graph, prefill
from tests.evaluation import tiny

claimed.claim()
claimed.interpret()
tiny.HEAD_DIM = 64  # that the kernels take
METHODS = ("full", "nacl", "adakv")
LIMIT = 0.01  # of logits in float16


def load(folder):
    path = tiny.write_llama(folder / "tiny", scale=0.1)
    return backends.load(path, dtype="float16", device="gpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(tmp_path_factory.mktemp("model"))


@pytest.fixture()
def graphs(monkeypatch):
    """The graphs that a test captures; whether they are right is not known yet."""
    monkeypatch.setattr(cuda_graph, "_right", {})
    Graph.captured.clear()
    return Graph.captured


def prefilled(model, *methods, tokens=40):
    ids = np.random.default_rng(3).integers(0, 250, tokens).tolist()
    policies = [
        build(m, min_eviction_seqlen=0, **({} if m == "full" else {"keep_ratio": 0.3}))
        for m in methods
    ]
    return prefill(model.decoder(), ids, policies)


def steps(sessions, count, worth):
    """Logits after each of ``count`` tokens, all sessions side by side; these stay as they are."""
    batch = Batch([session.fork() for session in sessions], worth)
    tokens = np.random.default_rng(4).integers(0, 250, count).tolist()
    return [batch.step([token] * len(sessions)).numpy().copy() for token in tokens]


def distance(got, expected) -> float:
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def assert_close(got, expected) -> None:
    assert len(got) == len(expected)
    assert max(map(distance, got, expected)) < LIMIT


def test_a_recorded_step_is_the_step(model, graphs, capfd):
    """Replays see the new token, position and lengths, which no host tells them."""
    sessions = prefilled(model, *METHODS)
    got = steps(sessions, 5, cuda_graph.WORTH)
    assert [graph.replays for graph in graphs] == [5]  # one of them to check it, none at first
    assert_close(got, steps(sessions, 5, 0))
    assert len(graphs) == 1 and capfd.readouterr().err == ""


def test_a_graph_is_captured_anew_where_the_tables_of_positions_have_grown(tmp_path, graphs):
    sessions = prefilled(load(tmp_path), "nacl", tokens=61)
    got = steps(sessions, 6, cuda_graph.WORTH)
    assert [graph.replays for graph in graphs] == [3, 2]  # positions up to 63, and from there
    assert_close(got, steps(sessions, 6, 0))


@pytest.mark.parametrize("fault", ["begin", "end", "host", "replay"])
def test_decoding_goes_on_without_a_graph_that_fails(model, graphs, monkeypatch, capfd, fault):
    """It cannot be captured, the step waits for the device, or a replay does nothing."""
    sessions = prefilled(model, "nacl")
    expected = steps(sessions, 3, 0)
    if fault == "host":
        decoder = type(model.decoder())
        logits = decoder.logits
        waits = lambda self, hidden: logits(self, hidden) + 0.0 * float(hidden.sum())  # noqa: E731
        monkeypatch.setattr(decoder, "logits", waits)
    elif fault == "replay":
        monkeypatch.setattr(Graph, "replay", lambda self: None)
    else:
        name = {"begin": "begin_capture_with_pool_id", "end": "end_capture"}[fault]
        monkeypatch.setattr(Graph, name, classmethod(fails))
    for _ in range(2):
        assert_close(steps(sessions, 3, cuda_graph.WORTH), expected)
    told = capfd.readouterr().err
    assert told.startswith("decoding goes on without a CUDA graph, slower: ")
    assert told.count("\n") == 1
    assert len(graphs) <= 1


def fails(cls, *args):
    cls._capturing = None
    raise OSError("(External) CUDA error(900)\n  [Hint: 'cudaErrorStreamCaptureUnsupported']")


def test_what_a_token_launches(model, graphs):
    """A layer: two norms, five products and the last two's sum, the gate, RoPE, and attention."""
    steps(prefilled(model, "nacl"), 3, cuda_graph.WORTH)
    (graph,) = graphs
    layers, names = tiny.LAYERS, graph.launches
    assert names.count("kernel") == 6 * layers + 1
    assert names.count("linear") == 7 * layers
    assert len(names) <= 14 * layers + 10
