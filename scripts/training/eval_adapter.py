"""Score the built-in model, with or without its adapter, on fresh examples of the synthetic tasks.

    python ../scripts/training/eval_adapter.py --base MODEL_DIR \
        --adapter ../assets/smollm2-135m-longctx

Full cache, greedy decoding, ``eval`` split: haystack text and words that training never saw.
Prints a table of tasks × lengths and the answers to ordinary questions; ``--json`` keeps both.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch_llama import Llama, check_directories, generate, load
from train_retrieval_adapter import END_OF_TURN, MIXTURE, SELF_TALK, encode, read_tokenizer

import benchmarks
from benchmarks.infinitebench import TASKS
from benchmarks.synthetic import make_example
from kvevict import files
from kvevict.command import Parser, command, user_path
from kvevict.errors import InputError

#: Question → what a right answer contains. Asked as plain text to go on from.
COMPLETIONS = {
    "The capital of France is": "Paris",
    "The capital of Japan is": "Tokyo",
    "The capital of Italy is": "Rome",
    "The opposite of hot is": "cold",
    "Two plus two equals": "four",
    "The first month of the year is": "January",
    "The largest planet in the solar system is": "Jupiter",
    "Romeo and Juliet was written by": "Shakespeare",
    "The chemical formula of water is": "H2O",
    "A baby cat is called a": "kitten",
}
#: The same, asked in the chat format.
CHAT = {
    "What is the capital of Germany?": "Berlin",
    "What colour is the sky on a clear day?": "blue",
    "How many days are there in a week?": "seven|7",
    "Which animal says 'moo'?": "cow",
    "Who painted the Mona Lisa?": "Leonardo",
    "What language is mainly spoken in Brazil?": "Portuguese",
    "What do bees make?": "honey",
    "Which ocean lies between Europe and America?": "Atlantic",
    "Which season comes after winter?": "spring",
    "Name the star at the centre of our solar system.": "Sun",
}


def build(job: tuple[str, int, int], base: Path, seed: int) -> tuple[list[int], object]:
    """Prompt ids and label of one example: (task, length, index)."""
    name, length, index = job
    tokenizer = read_tokenizer(base)
    fields = make_example(
        name,
        index,
        length,
        seed=seed,
        split="eval",
        count_tokens=lambda text: len(encode(tokenizer, text)),
        **MIXTURE[name][2],
    )
    task = TASKS[name]
    return encode(tokenizer, task.prompt(fields).text), task.reference(fields)


def batched(rows: Iterator, size: int) -> Iterator[list]:
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def evaluate(model: Llama, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Mean score of each task at each length."""
    tokenizer = read_tokenizer(args.base)
    stop = tokenizer.token_to_id(END_OF_TURN)
    found: dict[str, dict[str, float]] = {task.name: {} for task in args.tasks}
    with ProcessPoolExecutor(args.workers) as pool:
        for length in args.lengths:
            for task in args.tasks:
                jobs = [(task.name, length, index) for index in range(args.examples)]
                rows = pool.map(partial(build, base=args.base, seed=args.seed), jobs)
                scores = []
                for batch in batched(rows, max(1, args.batch_tokens // length)):
                    prompts, labels = zip(*batch)
                    replies = generate(model, list(prompts), task.max_new_tokens, stop)
                    for reply, wanted in zip(replies, labels):
                        scores.append(task.score(tokenizer.decode(reply), wanted))
                found[task.name][str(length)] = sum(scores) / len(scores)
    return found


def ask(model: Llama, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """Short ordinary questions, each with the model's reply and whether it holds the answer."""
    chat = SELF_TALK[1] + "{}" + END_OF_TURN + "\n<|im_start|>assistant\n"
    asked = [(text, text, right) for text, right in COMPLETIONS.items()]
    asked += [(text, chat.format(text), right) for text, right in CHAT.items()]
    prompts = [encode(tokenizer, text) for _, text, _ in asked]
    replies = generate(model, prompts, 24, tokenizer.token_to_id(END_OF_TURN))
    found = []
    for (question, _, right), ids in zip(asked, replies):
        reply = tokenizer.decode(ids).strip()
        holds = any(option.lower() in reply.lower() for option in right.split("|"))
        found.append({"question": question, "reply": reply, "right": holds})
    return found


def table(scores: dict[str, dict[str, float]]) -> str:
    lengths = list(next(iter(scores.values())))
    lines = ["| task | " + " | ".join(lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for task, row in scores.items():
        lines.append(f"| {task} | " + " | ".join(f"{100 * v:.0f}" for v in row.values()) + " |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=user_path, required=True, help="Hugging Face directory")
    parser.add_argument("--adapter", type=user_path, help="PEFT directory; by default none")
    parser.add_argument("--tasks", default=",".join(MIXTURE), help="task names joined by commas")
    parser.add_argument("--lengths", default="1024,2048,4096,8192", help="prompt tokens")
    parser.add_argument("--examples", type=int, default=100, help="examples of each cell")
    parser.add_argument("--batch-tokens", type=int, default=262_144, help="prompt tokens at once")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 (slower)")
    parser.add_argument("--workers", type=int, default=14, help="processes that make the data")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--json", type=user_path, help="file for scores and replies")
    args = parser.parse_args()
    check_directories(args.base, args.adapter)
    args.tasks = benchmarks.get().resolve(args.tasks)
    unknown = [task.name for task in args.tasks if task.name not in MIXTURE]
    if unknown:
        raise InputError(f"--tasks: {unknown[0]} is not one of {', '.join(MIXTURE)}")
    try:
        args.lengths = [int(part) for part in args.lengths.split(",")]
    except ValueError:
        raise InputError(f"--lengths: {args.lengths!r} is not a list of whole numbers") from None
    return args


@command()
def main() -> None:
    """The command."""
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(args.base, args.adapter).to(device).merge_()
    started = time.time()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda" and not args.float32):
        replies = ask(model, read_tokenizer(args.base))
        scores = evaluate(model, args)
    print(table(scores))
    for reply in replies:
        print("right" if reply["right"] else "WRONG", reply["question"], "→", repr(reply["reply"]))
    print(f"{sum(r['right'] for r in replies)} of {len(replies)} ordinary questions right")
    print(f"{time.time() - started:.0f} s on {device}")
    if args.json:
        result = {"examples": args.examples, "seed": args.seed, "scores": scores, "asked": replies}
        files.write(args.json, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
