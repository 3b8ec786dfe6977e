"""What is installed, and whether it fits the card: the first part of scripts/check_gpu.sh.

Exit status 1 where nothing can run on the GPU; what only makes it slower is said and no more.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec

# Of the check itself and of the library, beside the framework; by what pip calls them.
NEEDED = {
    "numpy": "numpy",
    "pytest": "pytest",
    "safetensors": "safetensors",
    "threadpoolctl": "threadpoolctl",
    "tokenizers": "tokenizers",
    "tqdm": "tqdm",
    "yaml": "PyYAML",
}
if missing := [package for module, package in NEEDED.items() if not find_spec(module)]:
    print(f"MISSING    what the check needs beside a framework: pip install {' '.join(missing)}")
    sys.exit(1)

from common import DRY, FRAMEWORK, framework  # noqa: E402

from kvevict import ops  # noqa: E402
from kvevict.backends import backend, versions  # noqa: E402
from kvevict.errors import InputError  # noqa: E402


def main() -> int:
    """Print a line a thing."""
    print(f"machine    {platform.platform()}, {os.cpu_count()} cores")
    print(f"python     {sys.version.split()[0]}, {sys.executable}")
    if FRAMEWORK is None:
        print("MISSING    neither paddle and paddlenlp nor torch and transformers")
        return 1
    print("packages   " + ", ".join(f"{k} {v}" for k, v in versions(FRAMEWORK).items()))
    with suppress(OSError, subprocess.SubprocessError):
        query = "--query-gpu=name,driver_version,memory.total,compute_cap"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30)
        print("nvidia-smi " + (found.stdout or found.stderr).strip().replace("\n", "; "))
    try:
        ns = framework()
    except InputError as error:
        print(f"MISSING    {error}")
        return 1
    if DRY:
        print("device     the CPU: a trial of this check, which says nothing of a GPU")
        return 0
    return _card(ns)


def _card(ns) -> int:
    name = ns.__name__
    own = backend(FRAMEWORK)
    capability = ops.compute_capability(name)
    built = ns.version.cuda() if name == "paddle" else ns.version.cuda
    print(f"device     {own.device_name(own.use_device('gpu'))}, compute capability {capability}")
    print(f"built for  CUDA {built}")
    try:
        ones = ns.ones((256, 256), dtype=ns.float16)
        ones = ones if name == "paddle" else ones.to("cuda")
        works = float((ones @ ones)[0, 0]) == 256.0
    except Exception as error:  # each framework has kinds of its own
        works, said = False, str(error).strip().splitlines()
        print(f"           {said[-1] if said else type(error).__name__}")
    if not works:
        print(f"MISSING    {name} cannot multiply two matrices here: does its build fit the card?")
        return 1
    if capability < (8, 0):
        print("SLOWER     flash attention and the kernels need compute capability 8.0")
    elif not ops.has_triton():
        print("SLOWER     without Triton 3.4 or newer there are no kernels")
    if name == "paddle":
        _fused()
    return 0


def _fused() -> None:
    """Which of Paddle's fused operations are right here, in the shapes of Llama-3.1-8B."""
    from kvevict.backends.paddle import arithmetic

    for dtype in ("bfloat16", "float16"):
        weight = framework().ones([4096], dtype=dtype)
        chosen = arithmetic.choose([weight], 4096, (32, 8), 128)
        used = [
            name
            for part, name in arithmetic.NAMES.items()
            if getattr(chosen, part) in arithmetic.FUSED
        ]
        print(f"fused      in {dtype}: {', '.join(used) or 'nothing'}")


if __name__ == "__main__":
    sys.exit(main())
