"""`python -m kvevict.models fetch`: put the built-in model into the cache."""

from __future__ import annotations

import argparse
import sys

from kvevict.errors import InputError
from kvevict.models.builtin import INSTRUCT, builtin_dir


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kvevict.models", description=__doc__)
    parser.add_argument("command", choices=["fetch"])
    parser.parse_args()
    try:
        print(builtin_dir(INSTRUCT))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
