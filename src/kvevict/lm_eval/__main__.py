"""The harness's own command line, with the model ``kvevict`` among its models."""

from __future__ import annotations

import sys
import traceback
from importlib.util import find_spec

from kvevict import environment
from kvevict.command import command
from kvevict.errors import InputError

# Where the harness raises what it finds wrong with its arguments, such as an unknown task.
ARGUMENTS = ("lm_eval._cli", "lm_eval.config", "lm_eval.api.registry")


@command()
def main() -> None:
    """Runs the command."""
    if find_spec("lm_eval") is None:
        raise InputError(
            f"lm-evaluation-harness is missing: {sys.executable} -m pip install lm_eval==0.4.13"
        )
    environment.configure()  # before the harness imports a framework
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except (KeyError, ValueError) as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith(ARGUMENTS):
            raise
        raise InputError(error.args[0]) from None


if __name__ == "__main__":
    sys.exit(main())
