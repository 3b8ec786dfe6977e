"""Predict a benchmark with a language model under KV-cache eviction.

    python eval_llama3.py --enable_nacl_evict --task all
    python eval_llama3.py --method nacl,laprox --keep_ratio 0.1,0.2 --task passkey
    python eval_llama3.py --benchmark longbench --task hotpotqa,qasper --method snapkv
    python -m paddle.distributed.launch --nproc_per_node 2 --log_dir ../results/log \\
        eval_llama3.py …
    torchrun --nproc_per_node 2 eval_llama3.py --framework pytorch …

Each policy gets a run directory under ``--output_dir``; a run that was stopped goes on where it
stopped when the same command is given again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from evaluation import arguments
from evaluation.evaluate import evaluate
from kvevict.command import command


@command("the same command goes on from here")
def main(argv: Sequence[str] | None = None) -> None:
    """The command; see :func:`evaluation.evaluate.evaluate`."""
    evaluate(arguments.parse(argv))


if __name__ == "__main__":
    sys.exit(main())
