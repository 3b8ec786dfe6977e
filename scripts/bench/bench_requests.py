"""Real prompts on a real model: requests a second, ours side by side and transformers' one by one.

    .venv-torch/bin/python scripts/bench/bench_requests.py --model_path qwen2.5-coder-1.5b-instruct

Prompts are RULER's, each with its question; every answer ends where the model ends it. The table
has requests a second, how many answers are those of transformers to the token, and RULER's score.
In 16 bits answers may differ where two tokens are nearly tied: a batch rounds otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from ruler_prompts import ruler_prompts  # noqa: E402

from benchmarks import Example, Task  # noqa: E402
from kvevict import build, generate, load  # noqa: E402
from kvevict.backends import LoadedModel  # noqa: E402
from kvevict.command import command, user_path  # noqa: E402
from kvevict.engine import cuda_graph  # noqa: E402

Run = Callable[[list[list[int]], int], list[list[int]]]  # prompts and new tokens to answers


@command()
def main() -> None:
    """Measure, and print a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", default="qwen2.5-coder-1.5b-instruct")
    parser.add_argument("--task", default="niah_multivalue,niah_multiquery,cwe,fwe")
    parser.add_argument("--length", type=int, default=8192, help="tokens of prompt and answer")
    parser.add_argument("--examples", type=int, default=4, help="of each task")
    parser.add_argument("--new_tokens", type=int, default=128, help="of an answer at most")
    parser.add_argument("--method", default="snapkv")
    parser.add_argument("--keep_ratio", type=float, default=0.2)
    parser.add_argument("--data_dir", type=user_path, help="where prompts are, or are to be made")
    parser.add_argument("--device")
    parser.add_argument("--out", type=user_path, help="JSON file to write")
    args = parser.parse_args()
    model = load(args.model_path, device=args.device, framework="pytorch")
    found = ruler_prompts(model, args.task, args.length, args.examples, "prompt", args.data_dir)
    asked = [(task, example, tokens.compressed) for task, example, tokens in found]
    policy = build(args.method, keep_ratio=args.keep_ratio, min_eviction_seqlen=0)
    ways = {
        "transformers, one by one": lambda ids, new: [theirs(model, one, new) for one in ids],
        "ours, full cache": lambda ids, new: generate(model, ids, build("full"), new),
        f"ours, {args.method} {args.keep_ratio:.0%}": (
            lambda ids, new: generate(model, ids, policy, new)
        ),
    }
    print(
        f"{model.name} in {model.dtype} on {model.device}, PyTorch {torch.__version__}: "
        f"{len(asked)} prompts of {mean(len(ids) for *_, ids in asked):,.0f} tokens on average"
    )
    print("| | seconds | requests a second | times as many | same answers | score |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    rows: list[dict] = []
    for label, way in ways.items():
        rows.append({"label": label, **measured(model, asked, way, args.new_tokens)})
        print(line(rows), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def theirs(model: LoadedModel, ids: list[int], new: int) -> list[int]:
    """The answer of transformers' own ``generate``."""
    inputs = torch.tensor([ids], device=model.model.device)
    eos = list(model.eos_ids)
    found = model.model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=eos[0],
    )
    answer = found[0, len(ids) :].tolist()
    return answer[:-1] if answer and answer[-1] in eos else answer


def measured(
    model: LoadedModel, asked: list[tuple[Task, Example, list[int]]], run: Run, new: int
) -> dict:
    """Seconds of all requests, once what is compiled has been, and what became of them."""
    ids = [own for *_, own in asked]
    run(ids[:2], min(new, 2 * cuda_graph.WORTH))
    start = time.perf_counter()
    answers = run(ids, new)
    seconds = time.perf_counter() - start
    texts = map(model.tokenizer.decode, answers)
    scores = [
        task.score(text, task.reference(one.fields)) for text, (task, one, _) in zip(texts, asked)
    ]
    return {"seconds": seconds, "score": mean(scores), "answers": answers}


def line(rows: list[dict]) -> str:
    """The last row, beside the first."""
    first, last = rows[0], rows[-1]
    count = len(last["answers"])
    same = sum(own == other for own, other in zip(last["answers"], first["answers"]))
    return (
        f"| {last['label']} | {last['seconds']:.2f} | {count / last['seconds']:.2f} "
        f"| {first['seconds'] / last['seconds']:.2f} | {same} of {count} | {last['score']:.2f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
