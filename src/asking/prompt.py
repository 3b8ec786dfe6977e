"""A prompt on which a document is asked."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from asking import kept
from asking.policies import policy, summary
from kvevict import Document, InputError
from kvevict.document import Conversation
from kvevict.engine.prefilling import Progress
from kvevict.progress import bar

HELP = """\
a question      is answered with the earlier ones in mind; Ctrl-C stops the answer
/fresh          forget the earlier questions
/method M [B]   read the document again under another method: /method snapkv 0.05 keeps
                a twentieth, /method snapkv 512 that many entries of each head
/show           print the document with what was kept marked
/help, /quit    this; leave (as Ctrl-D does)"""


class Prompt:
    """Questions and commands from standard input, until it ends.

    Args:
        document: to ask.
        max_new_tokens: of an answer.
    """

    def __init__(self, document: Document, max_new_tokens: int) -> None:
        self._document, self._max_new_tokens = document, max_new_tokens
        self._conversation = document.conversation()
        self._commands = {
            "/fresh": self._fresh,
            "/method": self._method,
            "/show": self._show,
            "/help": self._help,
        }

    def run(self) -> None:
        """Answer until ``/quit`` or the end of the input."""
        with suppress(ImportError):  # Pythons without it still read lines
            import readline  # noqa: F401
        for line in _lines():
            if line.split() == ["/quit"]:
                return
            try:
                self._take(line)
            except (InputError, FloatingPointError) as error:
                print("error:", error, file=sys.stderr)
            except KeyboardInterrupt:
                print("stopped", file=sys.stderr)

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            self._answer(line)
            return
        name, *words = line.split()
        if name not in self._commands:
            raise InputError(f"there is no command {name}; /help lists them")
        self._commands[name](*words)

    def _answer(self, question: str) -> None:
        with _interrupts() as pressed:
            say(self._conversation, question, self._max_new_tokens, lambda: bool(pressed))

    def _fresh(self, *_: str) -> None:
        self._conversation = self._document.conversation()

    def _method(self, *words: str) -> None:
        if len(words) not in (1, 2):
            raise InputError("/method takes a method and how much it keeps: /method snapkv 0.05")
        method, *size = words
        whole = size and size[0].isdigit() and int(size[0]) > 1
        size = size[0] if size else None
        keep, budget = (None, size) if whole else (size, None)
        chosen = policy(method, keep, budget, self._document.prompt.method.get("kv_dtype"))
        self._document = self._document.reread(chosen, reading("reading the document again"))
        print(summary(self._document), file=sys.stderr)
        self._fresh()

    def _show(self, *_: str) -> None:
        kept.show(self._document, sys.stderr)

    def _help(self, *_: str) -> None:
        print(HELP, file=sys.stderr)


def reading(what: str) -> Progress:
    """Say that a document is read, and then how many of the model's layers have done so."""
    print(what, file=sys.stderr, flush=True)
    line = "{desc}: {n_fmt} of {total_fmt}"
    return lambda layers: bar(line, iterable=layers, desc="layers", unit="layer", leave=False)


def say(
    conversation: Conversation,
    question: str,
    max_new_tokens: int,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Print an answer as it comes, until ``stopped``; and on stderr, that it is not whole."""
    for piece in conversation.ask(question, max_new_tokens):
        print(piece, end="", flush=True)
        if stopped():
            break
    print(flush=True)
    if conversation.cut:
        reason = f"--max_new_tokens {max_new_tokens}, or the model's last position"
        print(f"note: the answer was cut there ({reason})", file=sys.stderr)


def _lines() -> Iterator[str]:
    """Lines of standard input that are not empty; Ctrl-C drops the one that is being typed."""
    if sys.stdin is None:
        return
    sys.stdin.reconfigure(errors="replace")
    asks = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            if sys.stdout.isatty():  # what is edited is shown there
                line = input(asks)
            else:
                print(asks, end="", file=sys.stderr, flush=True)
                line = input()
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            return
        else:
            if line.strip():
                yield line.strip()


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """What Ctrl-C adds to, in place of breaking off what is being computed."""
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
