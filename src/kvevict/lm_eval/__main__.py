"""The harness's own command line, with the model ``kvevict`` among its models."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from kvevict import environment
from kvevict.command import command
from kvevict.errors import InputError


@command()
def main() -> None:
    """Runs the command."""
    if find_spec("lm_eval") is None:
        raise InputError(
            f"lm-evaluation-harness is missing: {sys.executable} -m pip install lm_eval==0.4.13"
        )
    environment.configure()  # before the harness imports a framework
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    sys.exit(main())
