"""Read a document once, keep a compressed cache of it, and ask.

    python ask.py --document book.pdf
    python ask.py --document a.md b.html --method laprox --keep_ratio 0.05 --save both.kv
    python ask.py --load both.kv --question "Who wrote it?" --question "When?"

Answers go to standard output; all else, such as sizes and errors, to standard error.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from asking import kept
from asking.files import read_text
from asking.policies import KEEP_RATIO, METHOD, policy, summary
from asking.prompt import Prompt, reading, say
from kvevict import METHODS, Document, InputError, load
from kvevict.backends import DTYPES, FRAMEWORKS
from kvevict.command import Parser, command, user_path
from kvevict.document import ANSWER_TOKENS
from kvevict.methods import Policy
from kvevict.models import BUILTINS
from kvevict.quantised import KV_DTYPES

MODEL = "qwen2.5-coder-0.5b-instruct"


@command("a file that was being saved is as it was")
def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    args = parse(argv)
    document = _loaded(args) if args.load else _read(args)
    print(summary(document), file=sys.stderr)
    if args.save:
        document.save(args.save)
        print(f"saved as {args.save}", file=sys.stderr)
    if args.show:
        kept.show(document, sys.stderr)
    for question in args.question:
        say(document.conversation(), question, args.max_new_tokens)
    if not (args.question or args.save or args.show):
        Prompt(document, args.max_new_tokens).run()


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line.

    Raises:
        InputError: an unknown flag, a value that it cannot have, or flags that exclude each other.
    """
    p = Parser(description="Ask a document that is read once.", allow_abbrev=False)
    p.add_argument(
        "--document", type=user_path, nargs="+", metavar="FILE", help="text, Markdown, HTML or PDF"
    )
    p.add_argument("--load", type=user_path, metavar="FILE", help="what --save has written")
    p.add_argument("--save", type=user_path, metavar="FILE", help="write the compressed cache")
    p.add_argument(
        "--question",
        action="append",
        default=[],
        help="answer this and end; may be repeated, and each is asked by itself "
        "(default: a prompt, where questions follow one another)",
    )
    p.add_argument("--show", action="store_true", help="print the document, what was kept marked")
    p.add_argument("--method", help=f"{', '.join(METHODS)} (default: {METHOD})")
    size = p.add_mutually_exclusive_group()
    size.add_argument(
        "--keep_ratio", help=f"share of the cache to keep, up to 1 (default: {KEEP_RATIO})"
    )
    size.add_argument("--budget", help="entries of each kv head to keep, on average")
    p.add_argument("--kv_dtype", choices=KV_DTYPES, help="quantise what is kept")
    p.add_argument(
        "--model_path",
        default=MODEL,
        help=f"a hub id, a directory, a .gguf file, or built-in: {', '.join(BUILTINS)} "
        "(default: %(default)s)",
    )
    p.add_argument("--framework", choices=tuple(FRAMEWORKS), default="paddle")
    p.add_argument("--device", help="cpu, gpu or gpu:<n>, by default what there is")
    p.add_argument("--dtype", choices=DTYPES, help="by default float32 on a CPU")
    p.add_argument(
        "--max_new_tokens", type=int, default=ANSWER_TOKENS, help="of an answer (default: 512)"
    )
    args = p.parse_args(argv)
    if (args.document is None) == (args.load is None):
        raise InputError("give the files to ask as --document, or a saved cache as --load")
    if args.load and (args.method or args.keep_ratio or args.budget or args.kv_dtype):
        raise InputError("--load brings what was kept; a method is chosen when a document is read")
    if args.max_new_tokens < 1:
        raise InputError(f"--max_new_tokens must be at least 1, not {args.max_new_tokens}")
    if args.save and not args.save.absolute().parent.is_dir():
        raise InputError(f"cannot write {args.save}: there is no such directory")
    if any(not question.strip() for question in args.question):
        raise InputError("a question is empty")
    return args


def _loaded(args: argparse.Namespace) -> Document:
    return Document.load(args.load, _model(args))


def _read(args: argparse.Namespace) -> Document:
    chosen = _policy(args)
    text = "\n\n".join(read_text(path) for path in args.document)
    model = _model(args)
    names = ", ".join(map(str, args.document))
    return Document.read(model, text, chosen, reading(f"reading {names}"))


def _policy(args: argparse.Namespace) -> Policy:
    chosen = policy(args.method or METHOD, args.keep_ratio, args.budget, args.kv_dtype)
    if args.save and chosen.decode_slack is not None:
        raise InputError(f"{chosen.name} evicts while it decodes, and such a cache is not saved")
    return chosen


def _model(args: argparse.Namespace):
    return load(args.model_path, args.dtype, args.device, args.framework)


if __name__ == "__main__":
    sys.exit(main())
