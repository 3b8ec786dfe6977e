"""What a method's parts return, held to their contracts.

Shapes, types and counts are looked at where they are made. What stands in a tensor is watched and
looked at once, when the prompt or the step is done: no check makes a GPU wait.
"""

from __future__ import annotations

from typing import Any, get_args

from ..attention import Statistic, Weights
from ..errors import InputError
from ..methods import Scorer
from ..tensors import Tensor, namespace


class Checks:
    """The checks of one eviction.

    Args:
        policy: its method's name, which every message begins with.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self._watched: list[tuple[Exception, Tensor]] = []

    def refuse(self, what: str) -> InputError:
        """The error of a part that breaks its contract."""
        return InputError(f"{self.policy}: {what}")

    def watch(self, what: str, finite: Tensor) -> None:
        """Have :meth:`look` see whether bool ``finite []`` is set."""
        self._watched.append((FloatingPointError(f"{self.policy}: {what} are not finite"), finite))

    def look(self) -> None:
        """Look at all that was watched since the last time.

        Raises:
            FloatingPointError: the first of it that is not finite.
            InputError: a selector marked more or fewer entries than it was told to.
        """
        if not self._watched:
            return
        errors, flags = zip(*self._watched)
        self._watched.clear()
        for error, holds in zip(errors, namespace(flags[0]).stack(flags).tolist()):
            if not holds:
                raise error

    def statistics(self, scorer: Scorer, found: Any) -> tuple:
        """What a scorer asks the prefill for."""
        kinds = get_args(Statistic)
        if not isinstance(found, tuple) or not all(isinstance(each, kinds) for each in found):
            names = " and ".join(kind.__name__ for kind in kinds)
            raise self.refuse(
                f"{_name(scorer)}.statistics must return a tuple of {names}, not {found!r}"
            )
        of_prompts = [each for each in found if not isinstance(each, get_args(Weights))]
        if of_prompts and not scorer.prompt_only:
            raise self.refuse(
                f"{_name(scorer)} asks for {_name(of_prompts[0])} and must say prompt_only = True"
            )
        return found

    def tensor(
        self, part: object, what: str, x: Any, like: Tensor, dtype: str, shape: list
    ) -> None:
        """A tensor that a part returns: of ``like``'s framework, a type and a shape."""
        made = f"{_name(part)} must return {what} as {dtype} {shape}"
        if not isinstance(x, type(like)):
            raise self.refuse(f"{made}, not a {type(x).__name__}")
        if list(x.shape) != shape or x.dtype != getattr(namespace(like), dtype):
            raise self.refuse(f"{made}, not as {str(x.dtype).rpartition('.')[2]} {list(x.shape)}")

    def counts(self, allocator: object, counts: Any, heads: int, candidates: int) -> None:
        """Entries for each head of a layer."""
        whole = isinstance(counts, list) and all(type(count) is int for count in counts)
        if not whole or len(counts) != heads:
            raise self.refuse(
                f"{_name(allocator)}.counts must return a list of {heads} whole numbers, one for "
                f"each kv head, not {counts!r}"
            )
        if not all(0 <= count <= candidates for count in counts):
            raise self.refuse(
                f"{_name(allocator)}.counts must lie between 0 and the {candidates} candidates, "
                f"not {counts}"
            )

    def shared(
        self, allocator: object, layer: int, counts: Tensor, candidates: Tensor, total: int
    ) -> None:
        """Entries for each head of a layer that the device alone knows: ``total`` together."""
        heads, most = candidates.shape
        self.tensor(allocator, "counts on the device", counts, candidates, "int64", [heads])
        error = self.refuse(
            f"{_name(allocator)}.counts did not split {total} entries among the heads of layer "
            f"{layer}, at most {most} for each"
        )
        within = (counts >= 0).all() & (counts <= most).all()
        self._watched.append((error, within & (counts.sum() == total)))

    def protected(self, selector: object, spans: Any, entries: int) -> tuple[int, int]:
        """First and last entries that are always kept."""
        whole = isinstance(spans, tuple) and [type(span) for span in spans] == [int, int]
        if not whole or min(spans) < 0 or sum(spans) > entries:
            raise self.refuse(
                f"{_name(selector)}.protected must return two numbers of entries, together at most "
                f"{entries}, not {spans!r}"
            )
        return spans

    def marked(self, selector: object, layer: int, mask: Tensor, counts: Tensor) -> None:
        """Watch that a mask has as many entries set as each head is to keep."""
        error = self.refuse(
            f"{_name(selector)} marked other numbers of entries than it was told to in layer "
            f"{layer}"
        )
        kept = mask.to(counts.dtype).sum(dim=-1)
        self._watched.append((error, (kept == counts).all()))


def _name(part: object) -> str:
    return type(part).__name__
