"""A model for lm-evaluation-harness (``lm_eval``): its tasks, asked of an evicted prompt.

    python -m kvevict.lm_eval --model kvevict \
        --model_args pretrained=DIR,method=nacl,keep_ratio=0.2 --tasks piqa --num_fewshot 5

Imported where the harness is installed, it registers the model ``kvevict`` there.
"""

from __future__ import annotations

from importlib.util import find_spec

if find_spec("lm_eval"):
    from . import model  # noqa: F401
