"""The built-in models: what there is, and putting them into the cache or out of it.

python -m kvevict.models                 name, weights, disk, licence, where it is cached
python -m kvevict.models fetch [NAME]    fetch and convert it unless it is there; print where
python -m kvevict.models remove NAME     delete it, and what an interrupted fetch has left
"""

from __future__ import annotations

import argparse
import sys

from kvevict.command import Parser, command
from kvevict.errors import InputError
from kvevict.models.builtin import (
    BUILTINS,
    INSTRUCT,
    builtin_dir,
    cache_pattern,
    cached_dirs,
)
from kvevict.models.disk_cache import cache_dir, disk_bytes, remove


@command("what has come is kept for the next time")
def main() -> None:
    """Runs the command."""
    parser = Parser(
        prog="python -m kvevict.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="fetch|remove")
    fetch = commands.add_parser("fetch")
    fetch.add_argument("name", nargs="?", default=INSTRUCT)
    commands.add_parser("remove").add_argument("name")
    arguments = parser.parse_args()
    if arguments.command is None:
        print(_table())
    elif arguments.name not in BUILTINS:
        raise InputError(
            f"there is no built-in model {arguments.name!r}: known are {', '.join(BUILTINS)}"
        )
    elif arguments.command == "fetch":
        print(builtin_dir(arguments.name))
    else:
        _remove(arguments.name)


def _table() -> str:
    rows = [("name", "weights", "disk", "licence", "cached")]
    for name, model in BUILTINS.items():
        found = cached_dirs(name)
        size = sum(map(disk_bytes, found)) or model.disk_bytes
        rows.append(
            (
                name,
                f"{model.parameters / 1e6:,.0f}M",
                f"{size / 1e9:.1f} GB",
                model.licence,
                " ".join(map(str, found)) or "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _remove(name: str) -> None:
    freed = remove(cache_pattern(name))
    if not freed:
        raise InputError(f"{name} is not in {cache_dir()}")
    print(f"{name} removed, {freed / 1e9:.1f} GB freed")


if __name__ == "__main__":
    sys.exit(main())
