"""What a model reads when it is to repeat its context, as tokens (KVzip, arXiv 2505.23416)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .models.chat import ChatTemplate
    from .models.tokenizer import Tokenizer

# The input texts of KVzip's authors.
FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"
LAST_TOKENS = 8  # of the chunk before, behind LATER
PLAIN_HEADER = "\n"  # where a model has no chat template


class Chunk(NamedTuple):
    """A part of a context, and what is read when it is repeated.

    Attributes:
        start, stop: its first token in the prompt, and one past its last.
        ids: the instruction, the header of the answer, and the chunk.
    """

    start: int
    stop: int
    ids: list[int]


@dataclass(frozen=True)
class Repetition:
    """How one model is made to repeat a context.

    Attributes:
        before: what stands before every context: a system prompt, the header of a message.
        first, later: the instruction, for the first chunk and for the others.
        header: what stands between a message and its answer.
    """

    before: list[int]
    first: list[int]
    later: list[int]
    header: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, chat: ChatTemplate | None) -> Repetition:
        """That of a model's tokenizer and chat template.

        Raises:
            InputError: the template does not work.
        """
        from .models.tokenizer import added_tokens  # late: the engine needs no tokenizer

        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, special_tokens=False)

        before = encode(chat.before) if chat else added_tokens(tokenizer)[0]
        header = encode(chat.after if chat else PLAIN_HEADER)
        return cls(before, encode(FIRST), encode(LATER), header)

    def prefix(self, ids: list[int]) -> int:
        """How many of a prompt's first tokens are none of its context."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, self.before)))

    def longest_prompt(self, size: int, positions: int) -> int:
        """The most tokens of a prompt that leave positions for any of its chunks.

        Args:
            size: tokens of a chunk.
            positions: of the model.
        """
        asked = max(len(self.first), len(self.later) + LAST_TOKENS) + len(self.header)
        left = positions - asked
        return max(left - size, left // 2)  # half, where the prompt is one short chunk

    def chunks(self, ids: list[int], size: int) -> list[Chunk]:
        """A prompt's context in chunks of ``size`` tokens, the last one shorter."""
        begin, found = self.prefix(ids), []
        for start in range(begin, len(ids), size):
            chunk = ids[start : start + size]
            last = ids[max(begin, start - LAST_TOKENS) : start]
            asked = self.later + last if start > begin else self.first
            found.append(Chunk(start, start + len(chunk), asked + self.header + chunk))
        return found
