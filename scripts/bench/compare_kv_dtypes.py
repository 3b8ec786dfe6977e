"""How near a quantised cache comes to the one that it was made of, on a built-in model.

    .venv/bin/python scripts/bench/compare_kv_dtypes.py --examples 2

RULER's prompts are made with the model's tokenizer, and the context is compressed before the
question is known, so that every number below is of attention to quantised entries. Each type reads
the question and then the answer of the unquantised cache, token by token: how often its best next
token is the same, and the mean divergence of its next-token distribution. Its own answer is scored
as RULER scores it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
from ruler_prompts import ruler_prompts  # noqa: E402

from kvevict import build, decode, environment, load, prefill  # noqa: E402
from kvevict.quantised import KV_DTYPES  # noqa: E402

KINDS = (None, *KV_DTYPES)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model_path", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--framework", default="paddle")
    parser.add_argument("--task", default="niah_single_2,niah_multikey_2,qa_2")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--examples", type=int, default=2, help="of each task")
    parser.add_argument("--method", default="full,snapkv")
    parser.add_argument("--keep_ratio", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=24, help="tokens of an answer at most")
    args = parser.parse_args()
    if args.framework == "paddle":
        environment.configure()
    model = load(args.model_path, framework=args.framework)
    rows = defaultdict(list)
    for task, example, tokens in ruler_prompts(
        model, args.task, args.length, args.examples, "context"
    ):
        for method in args.method.split(","):
            ratio = {} if method == "full" else {"keep_ratio": args.keep_ratio}
            policies = [
                build(method, kv_dtype=kind, decode_slack=None, min_eviction_seqlen=0, **ratio)
                for kind in KINDS
            ]
            sessions = prefill(model.decoder(), tokens.compressed, policies, example.id)
            first = [read(session, tokens.after) for session in sessions]
            answer = decode(first[0], args.steps, set(model.eos_ids))
            expected = distributions(sessions[0], tokens.after, answer)
            for kind, session, own in zip(KINDS, sessions, first):
                text = answer if kind is None else decode(own, args.steps, set(model.eos_ids))
                text = model.tokenizer.decode(text)
                got = distributions(session, tokens.after, answer)
                rows[method, kind].append(
                    {
                        "bytes": session.cache.nbytes,
                        "same": mean(map(same_best, expected, got)),
                        "divergence": mean(map(divergence, expected, got)),
                        "score": task.score(text, task.reference(example.fields)),
                    }
                )
                print(task.name, example.id, method, kind, repr(text), file=sys.stderr, flush=True)
    print_table(rows)


def read(session, question: list[int]):
    """A fork that has read the question."""
    fork = session.fork()
    fork.extend(question)
    return fork


def distributions(session, question: list[int], answer: list[int]) -> list[np.ndarray]:
    """Log-probabilities of what follows the question and each token of the answer."""
    fork, found = read(session, question), []
    for token in [*answer, None]:
        logits = fork.logits.cpu().numpy().astype(np.float64).reshape(-1)
        found.append(logits - np.logaddexp.reduce(logits))
        if token is not None:
            fork.extend([token])
    return found


def same_best(one: np.ndarray, other: np.ndarray) -> float:
    return float(one.argmax() == other.argmax())


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Kullback and Leibler's, of ``other`` from ``one``, in nats."""
    return float((np.exp(one) * (one - other)).sum())


def print_table(rows: dict) -> None:
    print("| method | kv_dtype | cache MiB | same next token | divergence, nats | score |")
    print("|---|---|---:|---:|---:|---:|")
    for (method, kind), own in rows.items():
        values = {name: mean(row[name] for row in own) for name in own[0]}
        print(
            f"| {method} | {kind or 'as it is'} | {values['bytes'] / 2**20:.2f} "
            f"| {values['same']:.1%} | {values['divergence']:.4f} | {values['score']:.2f} |"
        )


if __name__ == "__main__":
    main()
