"""A saved cache beside reading the document anew: seconds until the first answer token, and bytes.

.venv/bin/python scripts/bench/bench_saved.py --length 8000
python3 scripts/bench/bench_saved.py --framework pytorch --model_path qwen2.5-coder-1.5b-instruct
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

from kvevict import build, load, prefill, saved  # noqa: E402
from kvevict.command import Parser, command  # noqa: E402
from kvevict.methods import describe  # noqa: E402

REPEATS = 3  # the fastest counts
NOBODY = {"model": "of this benchmark"}


@command()
def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", default="qwen2.5-coder-0.5b-instruct")
    parser.add_argument("--framework", default="paddle")
    parser.add_argument("--length", type=int, default=32000, help="tokens of the document")
    parser.add_argument("--method", default="snapkv")
    parser.add_argument("--keep_ratio", type=float, default=0.05)
    args = parser.parse_args()
    decoder = load(args.model_path, framework=args.framework).decoder()
    ids = [(i * 7919) % 40000 + 100 for i in range(args.length)]
    policy = build(args.method, keep_ratio=args.keep_ratio, min_eviction_seqlen=0)

    def read() -> saved.SavedPrompt:
        session = prefill(decoder, ids, [policy])[0]
        return saved.SavedPrompt(session, ids, describe(policy), NOBODY)

    prefill(decoder, ids[:300], [policy])  # kernels are built, libraries loaded
    reading, prompt = _fastest(read)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "document.kv")
        saving, _ = _fastest(lambda: saved.save(path, prompt))
        loading, _ = _fastest(lambda: saved.load(path, decoder, NOBODY))
        size = path.stat().st_size
    print("| tokens | kept | read anew s | save s | load s | file MiB |")
    print("|---:|---:|---:|---:|---:|---:|")
    print(
        f"| {args.length:,} | {args.keep_ratio:.0%} by {args.method} | {reading:.2f} "
        f"| {saving:.3f} | {loading:.3f} | {size / 2**20:.1f} |"
    )


def _fastest(run: Callable[[], object]) -> tuple[float, object]:
    """Seconds of the fastest of some runs, with their first new token, and the last's result."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = run()
        if isinstance(result, saved.SavedPrompt):
            session = result.session.fork()
            float(session.extend([100]).sum())
        seconds.append(time.perf_counter() - began)
    return min(seconds), result


if __name__ == "__main__":
    sys.exit(main())
