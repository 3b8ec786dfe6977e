"""A document that is read once, kept compressed, and asked as often as one likes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import saved
from .backends import LoadedModel
from .engine import longest_prompt, prefill, stream
from .engine.prefilling import Progress
from .engine.session import Decoder
from .errors import InputError
from .methods import Policy, describe
from .models.tokenizer import added_tokens
from .saved import SavedPrompt

ANSWER_TOKENS = 512  # the most of an answer, unless said otherwise
# Around questions where a model has no chat template.
PLAIN_QUESTION, PLAIN_ANSWER = "Question: ", "\nAnswer:"
GAP = "\n\n"


@dataclass(frozen=True)
class Document:
    """What a model has kept of a document.

    Attributes:
        model: that has read it.
        decoder: the same, taken apart.
        prompt: its tokens and cache; what the chat template puts before it is part of both.
    """

    model: LoadedModel
    decoder: Decoder
    prompt: SavedPrompt

    @classmethod
    def read(
        cls, model: LoadedModel, text: str, policy: Policy, progress: Progress = iter
    ) -> Document:
        """Read a text, and keep of it what ``policy`` keeps, before any question is known.

        Args:
            progress: see :func:`kvevict.engine.prefill`.

        Raises:
            InputError: there is no text, or more of it than the model has positions for.
        """
        if not text.strip():
            raise InputError("the document is empty")
        text = text.strip() + GAP
        if model.chat:
            before, (text, _) = [], model.chat.wrap(text, "x")
        else:
            before, _ = added_tokens(model.tokenizer)
        ids = before + model.tokenizer.encode(text, special_tokens=False)
        return cls._of_tokens(model, model.decoder(), ids, policy, progress)

    @classmethod
    def load(cls, path: str | Path, model: LoadedModel) -> Document:
        """A document that :meth:`save` wrote; see :func:`kvevict.saved.load`."""
        decoder = model.decoder()
        return cls(model, decoder, saved.load(path, decoder, model.identity))

    def save(self, path: str | Path) -> None:
        """Write what was kept into a file; see :func:`kvevict.saved.save`."""
        saved.save(path, self.prompt)

    def reread(self, policy: Policy, progress: Progress = iter) -> Document:
        """The same document under another policy.

        It is read anew: importance is told from the queries of its tokens, which no cache holds.
        """
        return self._of_tokens(self.model, self.decoder, self.prompt.ids, policy, progress)

    def conversation(self) -> Conversation:
        """Questions that follow one another; several conversations do not see each other."""
        return Conversation(self)

    def ask(self, question: str, max_new_tokens: int = ANSWER_TOKENS) -> str:
        """The answer to one question by itself; see :meth:`Conversation.ask`."""
        return "".join(self.conversation().ask(question, max_new_tokens))

    @property
    def full_bytes(self) -> int:
        """What the cache would take, had nothing been evicted."""
        keys = self.prompt.session.cache.layers[0].keys
        entries = len(self.prompt.ids) * self.decoder.kv_heads * self.decoder.layers
        return 2 * entries * keys.shape[-1] * keys.element_size()

    @classmethod
    def _of_tokens(
        cls,
        model: LoadedModel,
        decoder: Decoder,
        ids: list[int],
        policy: Policy,
        progress: Progress,
    ) -> Document:
        _check_length(model, len(ids), policy)
        (session,) = prefill(
            decoder, ids, [policy], record=True, repetition=model.repetition, progress=progress
        )
        return cls(model, decoder, SavedPrompt(session, ids, describe(policy), model.identity))


def _check_length(model: LoadedModel, tokens: int, policy: Policy) -> None:
    """Refuse a document that leaves no positions for a question, or for what ``policy`` repeats."""
    positions = model.max_positions
    most = positions - 1
    fit = min(most, longest_prompt([policy], model.repetition, positions))
    if tokens <= fit:
        return
    if fit == most:
        room = f"the model has {positions} positions for document, questions and answers"
        raise InputError(f"the document has {tokens} tokens, and {room}: at most {fit} fit")
    others = f"; a method that repeats nothing takes {most}" if tokens <= most else ""
    raise InputError(
        f"the document has {tokens} tokens, and at most {fit} fit in the model's {positions} "
        f"positions with what {policy.name} repeats behind them{others}"
    )


class Conversation:
    """Questions on a document, each after the earlier ones and their answers.

    Attributes:
        cut: whether the latest answer ended because it had all the tokens that it might have.
    """

    def __init__(self, document: Document) -> None:
        self._model = document.model
        self._session = document.prompt.session.fork()
        self._begun = self.cut = False

    def ask(self, question: str, max_new_tokens: int = ANSWER_TOKENS) -> Iterator[str]:
        """Take in a question and answer it greedily, piece by piece as tokens are decoded.

        Who stops in between leaves an answer that ends there.

        Raises:
            InputError: an empty question, or one for which the model has no positions left.
        """
        if not question.strip():
            raise InputError("the question is empty")
        ids = self._model.tokenizer.encode(self._around(question.strip()), special_tokens=False)
        free = self._model.max_positions - self._session.cache.seen
        if len(ids) >= free:
            raise InputError(
                f"the question has {len(ids)} tokens with what stands around it, and document and "
                f"earlier turns leave room for {free - 1}"
            )
        self._session.extend(ids)
        self._begun, self.cut = True, False
        eos, answer, shown = set(self._model.eos_ids), [], ""
        most = min(max_new_tokens, free - len(ids))
        for token in stream(self._session, most, eos):
            answer.append(token)
            text = self._model.tokenizer.decode(answer)
            if text.startswith(shown) and not text.endswith("\ufffd"):  # part of a character
                yield text[len(shown) :]
                shown = text
        self.cut = len(answer) == most
        yield self._model.tokenizer.decode(answer)[len(shown) :]

    def _around(self, question: str) -> str:
        """A question with what stands between it and what came before, and before its answer."""
        chat = self._model.chat
        if chat is None:
            return (GAP if self._begun else "") + PLAIN_QUESTION + question + PLAIN_ANSWER
        return (chat.between if self._begun else "") + question + chat.after
