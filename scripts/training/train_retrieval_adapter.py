"""Fine-tune the built-in model's low-rank adapter for retrieval from long contexts.

    python ../scripts/training/train_retrieval_adapter.py --base MODEL_DIR --out ADAPTER_DIR

The data are the project's own synthetic tasks, ``train`` split, at lengths drawn evenly on a log
scale, and depths drawn evenly; only the answer bears loss. A second loss, the Kullback-Leibler
divergence to the base model on texts that the base model wrote itself, keeps its other abilities.
One GPU; a CPU does for a trial with ``--steps 2 --max-length 256 --tokens-per-step 512``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch_llama import Llama, check_directories, generate, load, save_adapter

from benchmarks.infinitebench import TASKS
from benchmarks.synthetic import make_example
from kvevict.command import Parser, command, user_path
from kvevict.errors import InputError

#: Task → (share of the examples, haystacks, the generator's own options).
MIXTURE = {
    "passkey": (1.0, ("noise", "prose"), {}),
    "number_string": (1.0, ("noise", "prose"), {}),
    "needle": (1.5, ("noise", "prose", "prose"), {}),
    "multi_needle": (1.5, ("noise", "prose", "prose"), {}),
    "variable_tracking": (2.0, ("noise", "prose", "prose"), {}),
    "kv_retrieval": (2.0, (None,), {}),
    "kv_confusable": (2.0, (None,), {}),
    "math_find": (1.5, (None,), {"kinds": ("largest", "smallest")}),
}
SHORTEST = 512
END_OF_TURN = "<|im_end|>"
#: What the base model continues when it writes the texts that it must go on agreeing with.
SELF_TALK = (
    "<|endoftext|>",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n",
)


@lru_cache
def read_tokenizer(base: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base / "tokenizer.json"))


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


class Batches(Dataset):
    """Batch i is a pure function of (seed, i): examples of all tasks, alike in length.

    An item is (ids [examples, tokens], answer mask of the same shape, task names).
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def __len__(self) -> int:
        return self.args.steps

    def longest(self, step: int) -> int:
        """The upper end of the lengths: it grows for the first third of the steps, unless
        training goes on from an adapter that has seen them."""
        share = 1.0 if self.args.init else min(1.0, 3 * step / self.args.steps)
        first = min(2048, self.args.max_length)
        return round(first * (self.args.max_length / first) ** share)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        args, tokenizer = self.args, read_tokenizer(self.args.base)
        rng = random.Random(f"{args.seed}/{step}")
        bounds = min(SHORTEST, args.max_length), self.longest(step)
        length = round(math.exp(rng.uniform(*map(math.log, bounds))))
        names = rng.choices(
            list(MIXTURE),
            [args.shares.get(name, share) for name, (share, _, _) in MIXTURE.items()],
            k=max(1, args.tokens_per_step // length),
        )
        rows = [self.example(tokenizer, rng, name, length) for name in names]
        width = max(len(question) + len(answer) for question, answer in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for row, (question, answer) in enumerate(rows):
            end = len(question) + len(answer)
            ids[row, :end] = torch.tensor(question + answer)
            mask[row, len(question) : end] = True
        return ids, mask, names

    def example(self, tokenizer, rng, name, length) -> tuple[list[int], list[int]]:
        _, haystacks, options = MIXTURE[name]
        fields = make_example(
            name,
            rng.randrange(2**31),
            length,
            seed=self.args.seed,
            split="train",
            depth="random",
            haystack=rng.choice(haystacks),
            count_tokens=lambda text: len(encode(tokenizer, text)),
            **options,
        )
        text = TASKS[name].prompt(fields).text
        space = "" if text.endswith(" ") else " "
        return encode(tokenizer, text), encode(tokenizer, f"{space}{fields['answer']}{END_OF_TURN}")


def write_self_talk(teacher: Llama, args: argparse.Namespace, device: str) -> Tensor:
    """Texts sampled from the base model, half prose, half conversations: [texts, tokens]."""
    tokenizer = read_tokenizer(args.base)
    texts = []
    for opening in SELF_TALK:
        start = encode(tokenizer, opening)
        length = args.self_talk_tokens - len(start)
        written = generate(teacher, [start] * (args.self_talk // 2), length, temperature=1.0)
        texts += [start + text for text in written]
    return torch.tensor(texts, device=device)[torch.randperm(len(texts), device=device)]


def answer_loss(model: Llama, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of every answer token, in reading order: [answer tokens]."""
    hidden = model(ids)[:, :-1][mask[:, 1:]]
    return F.cross_entropy(model.logits(hidden).float(), ids[mask], reduction="none")


def divergence(model: Llama, teacher: Llama, ids: Tensor) -> Tensor:
    """KL(teacher ‖ model), mean over the positions of ids [texts, tokens]."""
    with torch.no_grad():
        wanted = teacher.logits(teacher(ids)).float().log_softmax(-1)
    found = model.logits(model(ids)).float().log_softmax(-1)
    return F.kl_div(found, wanted, log_target=True, reduction="sum") / ids.numel()


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up over 20 steps, then a cosine to a twentieth."""
    share = step / args.steps
    return args.lr * min((step + 1) / 20, 0.05 + 0.95 * (1 + math.cos(math.pi * share)) / 2)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    overrides = {"rope_theta": args.rope_theta, "max_position_embeddings": args.max_positions}
    model = load(args.base, args.init, args.rank, overrides).to(device)
    teacher = load(args.base).to(device).merge_()
    started = time.time()
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        texts = write_self_talk(teacher, args, device)
    print(f"{len(texts)} texts by the base model in {time.time() - started:.0f} s", flush=True)
    if device == "cuda":
        for layer in [*model.model.layers, *teacher.model.layers]:
            layer.compile(dynamic=True)
    parameters = list(model.lora().values())
    optimizer = torch.optim.AdamW(parameters, args.lr, betas=(0.9, 0.98), weight_decay=0.0)
    batches = DataLoader(
        Batches(args), batch_size=None, num_workers=args.workers, pin_memory=device == "cuda"
    )
    args.out.mkdir(parents=True, exist_ok=True)
    seen = 0
    saved = started = time.time()
    with (args.out / "train_log.jsonl").open("w") as log:
        for step, (ids, mask, names) in enumerate(batches):
            ids, mask = ids.to(device), mask.to(device)
            talk = texts.roll(-step * args.self_talk_batch, 0)[: args.self_talk_batch]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, args)
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                losses = answer_loss(model, ids, mask)
                losses.mean().backward()
                kept = divergence(model, teacher, talk)
                (args.kl * kept).backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            seen += ids.numel()
            record = {
                "step": step,
                "tokens": seen,
                "length": ids.shape[1],
                "loss": losses.mean().item(),
                "kl": kept.item(),
                "norm": norm.item(),
                "seconds": round(time.time() - started, 1),
                "tasks": mean_by_task(losses, mask, names),
            }
            log.write(json.dumps(record) + "\n")
            if step % 20 == 0 or step == args.steps - 1:
                print(json.dumps(record), flush=True)
            if time.time() - saved > 60 or step == args.steps - 1:
                log.flush()
                save_adapter(model, overrides, args.out)
                saved = time.time()


def mean_by_task(losses: Tensor, mask: Tensor, names: list[str]) -> dict[str, float]:
    found = defaultdict(list)
    for name, part in zip(names, losses.detach().split(mask.sum(1).tolist())):
        found[name].append(part.mean())
    return {name: round(torch.stack(parts).mean().item(), 4) for name, parts in found.items()}


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=user_path, required=True, help="Hugging Face directory")
    parser.add_argument("--out", type=user_path, required=True, help="where the adapter is written")
    parser.add_argument("--init", type=user_path, help="adapter to go on from")
    parser.add_argument("--shares", default="", help="other shares of tasks: math_find=5,needle=1")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--tokens-per-step", type=int, default=65536)
    parser.add_argument("--max-length", type=int, default=32768, help="longest prompt, in tokens")
    parser.add_argument("--max-positions", type=int, default=32768)
    parser.add_argument("--rope-theta", type=float, default=500_000.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--kl", type=float, default=1.0, help="weight of the divergence")
    parser.add_argument("--self-talk", type=int, default=2048, help="texts the base model writes")
    parser.add_argument("--self-talk-tokens", type=int, default=192, help="tokens of each")
    parser.add_argument("--self-talk-batch", type=int, default=32, help="texts a step")
    parser.add_argument("--workers", type=int, default=14, help="processes that make the data")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_directories(args.base, args.init)
    args.shares = parse_shares(args.shares)
    return args


def parse_shares(text: str) -> dict[str, float]:
    try:
        pairs = [part.split("=") for part in text.split(",") if part]
        shares = {name: float(share) for name, share in pairs}
    except ValueError:
        raise InputError(f"--shares: {text!r} is not a list like math_find=5,needle=1") from None
    for name, share in shares.items():
        if name not in MIXTURE or share < 0:
            raise InputError(f"--shares: {name}={share:g} is no task's share of at least 0")
    return shares


@command("the adapter of a minute ago is in --out, and --init goes on from one")
def main() -> None:
    """The command."""
    train(parse_args())


if __name__ == "__main__":
    sys.exit(main())
