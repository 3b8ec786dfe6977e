"""The model ``kvevict`` of lm-evaluation-harness."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from .. import backends
from ..engine import Session, prefill
from ..errors import InputError
from ..methods import build
from ..methods.registry import describe
from ..models.source import read_checkpoint
from .kept import Kept
from .scoring import generate, log_likelihood

# A text, its context's tokens, its continuation's: as the harness hands them on.
TokenRequest = tuple[Any, list[int], list[int]]


@register_model("kvevict")
class KVEvict(TemplateLM):
    """A model whose prompts are evicted from before anything is asked of them.

    The context is the prompt; the continuation is scored, or the answer decoded, on what is left
    of its cache. Requests with the same context share its prefill and its cache. Prompts are taken
    one by one, whatever ``batch_size`` says; contexts that the model has no positions for lose
    their first tokens, as in the harness's own models.

    Args:
        pretrained: what :func:`kvevict.load` takes.
        method: a key of ``kvevict.METHODS``.
        framework: ``paddle`` or ``pytorch``; by default Paddle where it is installed.
        dtype: as for :func:`kvevict.load`.
        device: likewise, and "cuda:1" is "gpu:1".
        batch_size, max_batch_size: the harness passes them.
        settings: of the method: ``keep_ratio``, ``budget``, …. ``min_eviction_seqlen`` is 0 unless
            given: the harness's prompts are short.

    Raises:
        InputError: with one sentence on what is wrong with any of these.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "full",
        framework: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise InputError("--model_args names no model: pretrained=…")
        self.policy = build(method, **{"min_eviction_seqlen": 0, **settings})
        self._checkpoint = read_checkpoint(str(pretrained))
        self._loaded = backends.load(
            self._checkpoint, dtype, _device(device), framework or _installed_framework()
        )
        self._decoder = self._loaded.decoder()
        self._kept = Kept()

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not self._checkpoint.eos_ids:
            raise InputError(f"{self._checkpoint.source} names no token that ends a text")
        return self._checkpoint.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """The context of a text that has none: the token that begins a text, or ends one."""
        begin = self._checkpoint.config.get("bos_token_id")
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of prompts knows the tokenizer by."""
        return self._checkpoint.source.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokens of a text; ``None`` adds special ones but not a second that begins the text."""
        ids = self._loaded.tokenizer.encode(string, add_special_tokens is not False)
        twice = add_special_tokens is None and ids[:2] == [self.prefix_token_id] * 2
        return ids[1:] if twice else ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the record."""
        return self._chat.source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages in the model's template; the last is open unless a prompt is added."""
        text = self._chat.render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"]
        last = last if last in text else last.strip()
        return text[: text.rindex(last) + len(last)]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probabilities of whole texts, in windows as long as the model has positions.

        Of a text's first window only the beginning token is prompt, and of the others what they
        repeat: there is next to nothing to evict, but for policies that evict while decoding.
        """
        windows = [list(self._windows(*request.args)) for request in requests]
        flat = [(None, *pair) for pairs in windows for pair in pairs]
        scores = iter(self._loglikelihood_tokens(flat, disable_tqdm))
        totals = []
        for request, pairs in zip(requests, windows):
            totals.append(sum(next(scores)[0] for _ in pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers, each up to a text that ends it.

        Raises:
            InputError: sampling is asked for, or more tokens than the model has positions.
        """
        asked, prompts = [], []
        for request in requests:
            context, given = request.args
            options = normalize_gen_kwargs(given)
            if options["do_sample"]:
                raise InputError("kvevict decodes greedily: leave do_sample and temperature out")
            most = options["max_gen_toks"]
            asked.append((most, [stop for stop in options["until"] if stop]))
            prompts.append(self._fit(self.tok_encode(context), most))
        answers = [""] * len(requests)
        for index, session in self._sessions(prompts, disable_tqdm):
            most, until = asked[index]
            eos, decode = self._loaded.eos_ids, self._loaded.tokenizer.decode
            answers[index] = generate(session, most, eos, until, decode)
            self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to its results, once all is done; the kept share is said, too."""
        print(self._kept, file=sys.stderr)
        return {
            "model_dtype": self._loaded.dtype,
            "kvevict": {
                "policy": describe(self.policy),
                "kept": self._kept.record(),
                "framework": self._loaded.framework,
                "device": self._loaded.device,
                "versions": backends.versions(self._loaded.framework),
            },
        }

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prompts = [self._fit(context, len(ids) - 1) for _, context, ids in requests]
        answers = [(0.0, True)] * len(requests)
        for index, session in self._sessions(prompts, disable_tqdm):
            text, _, ids = requests[index]
            answers[index] = log_likelihood(session, ids)
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answers[index])
        return answers

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """A text as contexts and the continuations that are scored after them."""
        ids, most = self.tok_encode(text), self._loaded.max_positions
        return map(
            make_disjoint_window,
            get_rolling_token_windows(ids, self.prefix_token_id, most, context_len=1),
        )

    def _sessions(self, prompts: list[list[int]], quiet: bool) -> Iterator[tuple[int, Session]]:
        """A prefilled session for each prompt, with its index; equal prompts come together."""
        places: dict[tuple[int, ...], list[int]] = {}
        for index, prompt in enumerate(prompts):
            places.setdefault(tuple(prompt), []).append(index)
        for prompt, indices in tqdm(places.items(), desc="Prompts", disable=quiet):
            # The same prompt draws the same, whatever else is asked in which order.
            example = zlib.crc32(np.array(prompt, dtype="<i4").tobytes())
            (session,) = prefill(
                self._decoder,
                list(prompt),
                [self.policy],
                example,
                repetition=self._loaded.repetition,
            )
            self._kept.add(len(prompt), session)
            for index in indices:
                yield index, session.fork()

    def _fit(self, context: list[int], after: int) -> list[int]:
        """The last tokens of a context that leave positions for ``after`` more."""
        most = self._loaded.max_positions - after
        if most < 1:
            raise InputError(
                f"{after} tokens after a prompt leave no room for it in the model's "
                f"{self._loaded.max_positions} positions"
            )
        return context[-most:]

    @property
    def _chat(self) -> Any:
        if self._checkpoint.chat is None:
            raise InputError(f"{self._checkpoint.source} has no chat template")
        return self._checkpoint.chat


def _device(harness: str | None) -> str | None:
    """A device by our name. The harness says "cuda:0" where nobody chose, GPU or not."""
    return None if harness in (None, "cuda", "cuda:0") else harness.replace("cuda", "gpu")


def _installed_framework() -> str:
    """The first that this Python has; Paddle, so that its error is seen, where it has none."""
    found = (name for name, own in backends.FRAMEWORKS.items() if all(map(find_spec, own)))
    return next(found, "paddle")
