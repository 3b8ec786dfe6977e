"""Which entries kvpress keeps, and which we do: the methods that both have, on one model.

    pip install --target DIR --no-deps kvpress==0.5.5
    PYTHONPATH=DIR .venv-torch/bin/python scripts/bench/compare_kvpress.py \\
        [--model_path qwen2.5-coder-0.5b-instruct] [--text FILE …] [--device gpu --dtype bfloat16]

Both run on the same model of transformers, one prompt after the other, each of ``--length`` tokens
of a text behind the chat template's beginning; by default of Python's own documentation. The table
says how many of the entries that kvpress keeps are kept here. In float32 on a CPU all should be,
but for scores that are equal to rounding.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from presses import press_of

from kvevict import InputError, build, load
from kvevict.backends import DTYPES, LoadedModel
from kvevict.command import command, user_path
from kvevict.engine import Session, prefill
from kvevict.methods import Policy

Entries = set  # of (layer, kv head, position)
WINDOW, KERNEL, CHUNK = 32, 7, 2000


def theirs(model: Any, press: Any, ids: list[int]) -> Entries:
    """What kvpress keeps: the highest of the scores it makes, or all that it does not mask."""
    import torch
    from kvpress.utils import compute_n_kept
    from transformers import DynamicCache

    scored: list[Any] = []
    of_scores = hasattr(press, "score")
    if of_scores:
        score = press.score

        def remembered(*args: Any, **kwargs: Any) -> Any:
            scored.append(score(*args, **kwargs))
            return scored[-1]

        press.score = remembered
    with torch.no_grad(), press(model):
        tokens = torch.tensor([ids], device=model.device)
        model.model(input_ids=tokens, past_key_values=DynamicCache())
    if of_scores:
        count = compute_n_kept(len(ids), press.compression_ratio)
        return {
            (layer, head, position)
            for layer, (scores,) in enumerate(scored)
            for head, own in enumerate(scores.topk(count, dim=-1).indices.tolist())
            for position in own
        }
    heads = model.config.num_key_value_heads
    kept = set()
    for layer, block in enumerate(model.model.layers):
        _, masked, positions = block.self_attn.masked_key_indices
        gone = set(zip(masked.tolist(), positions.tolist()))
        every = ((head, position) for head in range(heads) for position in range(len(ids)))
        kept |= {(layer, *entry) for entry in every if entry not in gone}
    return kept


def ours(session: Session) -> Entries:
    """What a session holds, positions recorded."""
    kept = set()
    for layer, cache in enumerate(session.cache.layers):
        positions = iter(cache.positions.tolist())
        for head, length in enumerate(cache.lengths):
            kept |= {(layer, head, next(positions)) for _ in range(length)}
    return kept


def prompts(model: LoadedModel, text: str, length: int, count: int) -> list[list[int]]:
    """Consecutive parts of a text, each behind what comes before a context."""
    before = model.repetition.before
    ids, size = model.tokenizer.encode(text, special_tokens=False), length - len(before)
    if len(ids) < size * count:
        raise InputError(f"the text has {len(ids)} tokens, and {count} times {size} are asked for")
    return [before + ids[i * size : (i + 1) * size] for i in range(count)]


def policies(keep_ratio: float) -> list[Policy]:
    """Ours, of the methods that kvpress has too."""
    window = {"window_size": WINDOW, "kernel_size": KERNEL}
    own: dict[str, dict[str, Any]] = {
        "snapkv": window,
        "adakv": window,
        "tova": {},
        "streamingllm": {},
        "keynorm": {},
        "keydiff": {},
        "expected_attention": {},
        "kvzip": {"chunk_size": CHUNK},
    }
    common = {"keep_ratio": keep_ratio, "min_eviction_seqlen": 0}
    return [build(method, **common, **settings) for method, settings in own.items()]


@command()
def main() -> None:
    """Compare, and print a row for each method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=user_path, nargs="+", help="files to read")
    parser.add_argument("--length", type=int, default=1000, help="tokens of a prompt")
    parser.add_argument("--examples", type=int, default=3)
    parser.add_argument("--keep_ratio", type=float, default=0.2)
    parser.add_argument("--device")
    parser.add_argument("--dtype", choices=DTYPES)
    args = parser.parse_args()
    text = "\n\n".join(path.read_text("utf-8") for path in args.text or [])
    if not text:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
    loaded = load(args.model_path, args.dtype, args.device, "pytorch")
    model = loaded.model
    model.config.name_or_path = loaded.source  # where KVzip's press looks for a tokenizer
    chosen = policies(args.keep_ratio)
    same: dict[str, list[tuple[int, int, int]]] = {}
    for ids in prompts(loaded, text, args.length, args.examples):
        sessions = prefill(
            loaded.decoder(),
            ids,
            chosen,
            record=True,
            repetition=loaded.repetition,
        )
        prefix = loaded.repetition.prefix(ids)
        for session, policy in zip(sessions, chosen):
            mine, other = ours(session), theirs(model, press_of(policy, len(ids), prefix), ids)
            same.setdefault(policy.name, []).append((len(mine & other), len(other), len(mine)))
    print(f"{loaded.name}, {loaded.dtype}, {args.examples} prompts of {args.length} tokens")
    print("| method | kept here | by kvpress | by both | share |\n|---|---:|---:|---:|---:|")
    for method, counts in same.items():
        both, other, mine = map(sum, zip(*counts))
        print(f"| {method} | {mine:,} | {other:,} | {both:,} | {both / other:.4%} |")


if __name__ == "__main__":
    sys.exit(main())
