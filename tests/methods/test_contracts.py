"""Parts of one's own: what the contracts ask for is enough, and what breaks them is named."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Optional

import numpy as np
import paddle
import pytest

from kvevict import InputError, SnapKV, build
from kvevict.engine.prompt_eviction import Eviction
from kvevict.methods import (
    Allocator,
    ColumnStatistic,
    Composition,
    LayerView,
    Policy,
    PromptShape,
    QueryMoments,
    RepeatedChunks,
    Scorer,
    Selector,
)
from kvevict.methods.parts import Equal, LayerShared, ModelWide, TopK
from tests.methods.brute import Prompt, choose, kept, run

N = 60


@dataclass(frozen=True)
class ValueNorm(Scorer):
    """‖v_j‖₂, as a stranger would write it."""

    def __call__(self, view: LayerView):
        values = view.values.float()
        return (values * values).sum(dim=-1).sqrt()


@dataclass(frozen=True)
class ByValue(Policy):
    """A stranger's method."""

    name: ClassVar[str] = "byvalue"

    recent: int = 3

    @property
    def scorer(self) -> Scorer:
        return ValueNorm()

    @property
    def selector(self) -> Selector:
        return TopK(recent=self.recent)


def compose(**parts) -> Composition:
    parts = {"scorer": ValueNorm(), **parts}
    return Composition(name="mine", keep_ratio=0.25, min_eviction_seqlen=0, **parts)


def test_a_method_of_ones_own() -> None:
    prompt = Prompt(1, N)
    policy = ByValue(0.25, min_eviction_seqlen=0)
    for layer, heads in enumerate(kept(run(policy, prompt), prompt)):
        norms = np.linalg.norm(prompt.v[layer].astype(np.float64), axis=-1)
        assert heads == [choose(norm, 15, 0, 3) for norm in norms]


def test_a_part_of_ones_own_in_a_method_of_others() -> None:
    policy = build("snapkv", scorer=ValueNorm(), keep_ratio=0.25, min_eviction_seqlen=0)
    assert policy.name == "snapkv-value_norm"
    assert policy == Composition.of(
        SnapKV(0.25, min_eviction_seqlen=0), "snapkv-value_norm", scorer=ValueNorm()
    )
    run(policy, Prompt(1, N))


@dataclass(frozen=True)
class Returns(Scorer):
    """A scorer that returns what the test says, made of the view's keys."""

    what: str = ""
    asks: tuple = ()

    def statistics(self, prompt: PromptShape):
        return self.asks

    def __call__(self, view: LayerView):
        scores = ValueNorm()(view)
        return {
            "narrow": lambda: scores[:, :-1],
            "flat": lambda: scores.sum(dim=0),
            "double": lambda: scores.astype("float64"),
            "half": lambda: scores.astype("bfloat16"),
            "array": lambda: scores.numpy(),
            "nothing": lambda: None,
        }[self.what]()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("narrow", r"as float32 \[2, 60\], not as float32 \[2, 59\]"),
        ("flat", r"as float32 \[2, 60\], not as float32 \[60\]"),
        ("double", r"as float32 \[2, 60\], not as float64 \[2, 60\]"),
        ("half", r"as float32 \[2, 60\], not as bfloat16 \[2, 60\]"),
        ("array", r"as float32 \[2, 60\], not a ndarray"),
        ("nothing", r"as float32 \[2, 60\], not a NoneType"),
    ],
)
def test_scores_of_another_shape_or_type(what: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^mine: Returns must return scores {message}$"):
        run(compose(scorer=Returns(what)), Prompt(1, N))


@pytest.mark.parametrize("asks", [None, (1,), "sum", ColumnStatistic("sum")])
def test_statistics_that_nobody_knows(asks) -> None:
    @dataclass(frozen=True)
    class Asks(ValueNorm):
        def statistics(self, prompt: PromptShape):
            return asks

    with pytest.raises(InputError, match=r"^mine: Asks\.statistics must return a tuple of"):
        run(compose(scorer=Asks()), Prompt(1, N))


@pytest.mark.parametrize("asked", [QueryMoments(), RepeatedChunks()])
def test_what_is_of_prompts_alone_is_for_scorers_that_say_so(asked) -> None:
    message = rf"^mine: Returns asks for {type(asked).__name__} and must say prompt_only = True$"
    with pytest.raises(InputError, match=message):
        run(compose(scorer=Returns("flat", (asked,))), Prompt(1, N))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QueryMoments(-1), "the tokens that moments skip are a number from 0, not -1"),
        (lambda: QueryMoments(1.5), "the tokens that moments skip are a number from 0, not 1.5"),
        (lambda: RepeatedChunks(0), "a number above 0, not 0"),
    ],
)
def test_statistics_of_prompts_that_are_none(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@dataclass(frozen=True)
class Gives(Allocator):
    """Counts by layer, written out."""

    counts_of: tuple = field(default=(), hash=False)

    def counts(self, scores, base: int, layer: int, layers: int):
        return self.counts_of[layer]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (([15], [15]), r"list of 2 whole numbers, one for each kv head, not \[15\]"),
        (([15, 15.0], [15, 15]), "list of 2 whole numbers"),
        (([15, True], [15, 15]), "list of 2 whole numbers"),
        (((15, 15), [15, 15]), r"list of 2 whole numbers, .* not \(15, 15\)"),
        ((None, [15, 15]), "list of 2 whole numbers"),
        (([-1, 31], [15, 15]), r"between 0 and the 60 candidates, not \[-1, 31\]"),
        (([0, 61], [0, 0]), r"between 0 and the 60 candidates, not \[0, 61\]"),
    ],
)
def test_counts_that_no_head_can_have(counts, message: str) -> None:
    with pytest.raises(InputError, match=rf"^mine: Gives\.counts must .*{message}"):
        run(compose(allocator=Gives(counts)), Prompt(1, N))


@pytest.mark.parametrize("last", [15, 17])
def test_counts_that_do_not_add_up(last: int) -> None:
    run(compose(allocator=Gives(([20, 20], [10, 10]))), Prompt(1, N))
    message = f"^mine: Gives gave {44 + last} entries to all layers together, where 60 were"
    with pytest.raises(InputError, match=message):
        run(compose(allocator=Gives(([15, 15], [14, last]))), Prompt(1, N))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[21, 9], [14, 17]], "did not split 30 entries among the heads of layer 1, at most 60"),
        ([[-1, 31], [15, 15]], "did not split 30 entries among the heads of layer 0"),
        ([[15, 15], [90, -60]], "did not split 30 entries among the heads of layer 1"),
        (
            [[10, 10, 10], [15, 15]],
            r"must return counts .* as int64 \[2\], not as int64 \[3\]",
        ),
    ],
)
def test_counts_on_the_device_that_do_not_fit(counts, message: str) -> None:
    right = tuple(paddle.to_tensor(own) for own in ([20, 10], [3, 27]))
    positions = kept(run(compose(allocator=Gives(right)), Prompt(1, N)), Prompt(1, N))
    assert [[len(head) for head in layer] for layer in positions] == [[20, 10], [3, 27]]
    wrong = tuple(paddle.to_tensor(own) for own in counts)
    with pytest.raises(InputError, match=rf"^mine: Gives(\.counts)? {message}"):
        run(compose(allocator=Gives(wrong)), Prompt(1, N))


@dataclass(frozen=True)
class Marks(Selector):
    """A selector whose mask or spans are not those that it was asked for."""

    what: str = ""
    spans: Optional[tuple] = (0, 0)

    def protected(self, prompt: PromptShape, entries: int):
        return self.spans

    def __call__(self, scores, counts, view, prompt):
        more = TopK()(scores, [count + (self.what == "more") for count in counts], view, prompt)
        return {
            "narrow": lambda: more[:, :-1],
            "float": lambda: more.astype("float32"),
            "none": lambda: None,
            "fewer": lambda: more & (scores > scores.max()),
            # As many in all, but of other heads.
            "swapped": lambda: TopK()(scores, [counts[0] + 1, counts[1] - 1], view, prompt),
        }.get(self.what, lambda: more)()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("narrow", r"must return its choice as bool \[2, 60\], not as bool \[2, 59\]"),
        ("float", r"must return its choice as bool \[2, 60\], not as float32 \[2, 60\]"),
        ("none", r"must return its choice as bool \[2, 60\], not a NoneType"),
        ("more", "marked other numbers of entries than it was told to in layer 0"),
        ("fewer", "marked other numbers of entries than it was told to in layer 0"),
        ("swapped", "marked other numbers of entries than it was told to in layer 0"),
    ],
)
def test_choices_that_are_not_those_asked_for(what: str, message: str) -> None:
    run(compose(selector=Marks()), Prompt(1, N))
    with pytest.raises(InputError, match=f"^mine: Marks {message}$"):
        run(compose(selector=Marks(what)), Prompt(1, N))


@pytest.mark.parametrize("spans", [(-1, 2), (10, 6), (1,), (1.0, 2), [1, 2], None])
def test_spans_that_no_budget_holds(spans) -> None:
    @dataclass(frozen=True)
    class Spans(Marks):
        def protected(self, prompt: PromptShape, entries: int):
            return spans

    with pytest.raises(InputError, match=r"^mine: Spans\.protected must return two .* at most 15"):
        run(compose(selector=Spans()), Prompt(1, N))


def test_no_check_waits_for_a_value() -> None:
    """A wrong mask is stored, and told at the end: until then nobody has looked at a tensor."""
    prompt = Prompt(1, N)
    policy = compose(selector=Marks("fewer"))
    eviction = Eviction(policy, N, 2, 2)
    for layer in range(2):
        _, k, v = prompt.project(layer, paddle.zeros([1, N, 1]), 0)
        w_o = prompt.output_projection(layer)
        keys = eviction.noise_keys(layer)
        eviction.add_layer(LayerView((), k.squeeze(0), v.squeeze(0), w_o, keys))
    with pytest.raises(InputError, match="marked other numbers of entries"):
        eviction.finish()


@dataclass(frozen=True)
class Looks(TopK):
    """Notes the shapes of what it is shown."""

    seen: list = field(default_factory=list, hash=False, compare=False)

    def __call__(self, scores, counts, view, prompt):
        tensors = (scores, *view.statistics, view.keys, view.values)
        self.seen.append([list(tensor.shape) for tensor in tensors])
        return super().__call__(scores, counts, view, prompt)


@dataclass(frozen=True)
class Asks(ValueNorm):
    """Two statistics that it does not look at."""

    def statistics(self, prompt: PromptShape):
        return ColumnStatistic("sum"), ColumnStatistic("sum", 4, per_kv_head=False)


def test_a_selector_sees_the_candidates_in_every_field() -> None:
    selector = Looks(n_sink=2, recent=5)
    run(compose(scorer=Asks(), selector=selector), Prompt(1, N, layers=1))
    candidates = N - 7
    expected = [[2, candidates], [2, candidates], [2, 2, candidates]]
    assert selector.seen == [[*expected, [2, candidates, 8], [2, candidates, 8]]]


@dataclass(frozen=True)
class Silent(Scorer):
    """Does not say how it scores."""


@dataclass
class Thawed(Scorer):
    """Not frozen."""


class Bare(ValueNorm):
    """Not decorated."""


class Stranger:
    """No part at all."""


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"scorer": Stranger()}, "scorer must be a Scorer, not <"),
        ({"scorer": TopK()}, "scorer must be a Scorer, not TopK"),
        ({"scorer": None}, "the scorer of mine must be a kvevict.methods.Scorer, not a NoneType"),
        ({"allocator": TopK()}, "allocator must be an Allocator, not TopK"),
        ({"selector": Equal()}, "selector must be a Selector, not Equal"),
        ({"allocator": ModelWide(), "selector": Marks()}, "a model-wide allocation .* a Marks"),
        ({"name": ""}, "Composition must have a name"),
    ],
)
def test_parts_that_do_not_fit(parts: dict, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Composition(**{"name": "mine", "scorer": ValueNorm(), **parts})


@pytest.mark.parametrize("part", [Thawed, Bare])
def test_parts_that_are_no_frozen_dataclass(part: type) -> None:
    with pytest.raises(InputError, match=f"^{part.__name__} must be a frozen dataclass"):
        compose(scorer=part())


def test_a_method_that_returns_no_part() -> None:
    @dataclass(frozen=True)
    class Wrong(ByValue):
        @property
        def scorer(self):
            return Stranger()

    with pytest.raises(InputError, match=r"scorer of byvalue must be a kvevict\.methods\.Scorer"):
        Wrong()


def test_what_a_part_leaves_out_is_named() -> None:
    @dataclass(frozen=True)
    class Tight(Allocator):
        pass

    @dataclass(frozen=True)
    class Choosy(Selector):
        pass

    for role, part, message in (
        ("scorer", Silent(), r"Silent must define __call__\(view\)"),
        ("allocator", Tight(), r"Tight must define counts\(scores, base, layer, layers\)"),
        ("selector", Choosy(), r"Choosy must define __call__\(scores, counts, view, prompt\)"),
    ):
        with pytest.raises(InputError, match=f"^{message}$"):
            run(compose(**{role: part}), Prompt(1, N))


def test_a_scope_of_ones_own_is_declared() -> None:
    """Any allocator may say that its budget is the model's; none is asked for counts then."""

    @dataclass(frozen=True)
    class Wide(LayerShared):
        scope: ClassVar[str] = "model"

        def counts(self, scores, base: int, layer: int, layers: int):
            raise AssertionError

    prompt = Prompt(3, N, layers=3)
    wide = kept(run(compose(allocator=Wide()), prompt), prompt)
    assert wide == kept(run(compose(allocator=ModelWide()), prompt), prompt)
    assert sum(len(head) for layer in wide for head in layer) == 15 * 2 * 3


def test_policies_are_equal_by_their_settings() -> None:
    assert compose() == compose()
    assert hash(compose()) == hash(compose())
    assert compose() != replace(compose(), scorer=Returns("flat"))
    assert len({compose(), compose(allocator=LayerShared()), compose()}) == 2
