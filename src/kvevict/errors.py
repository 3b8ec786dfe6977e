"""The one exception that a user can cause."""


class InputError(ValueError):
    """Something the user gave is wrong: a flag, a file, a model, a ratio.

    The message is one sentence that names the culprit. Command-line tools print it and exit with
    status 2; library callers catch it as a ``ValueError``.
    """
