"""What flags come to, for the tests of flags and of YAML files."""

from __future__ import annotations

from evaluation import arguments
from evaluation.policies import chosen_policies


def policies(flags: str):
    return chosen_policies(arguments.parse(flags.split()))


def names(flags: str) -> list[str]:
    args = arguments.parse(flags.split())
    return [name for name, _ in arguments.runs(args, chosen_policies(args))]


def several(tmp_path, text: str) -> str:
    file = tmp_path / "several.yaml"
    file.write_text(text)
    return f"--config {file}"
