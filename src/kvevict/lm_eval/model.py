"""The model ``kvevict`` of lm-evaluation-harness."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterator, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from .. import backends
from ..engine import Session, log_likelihoods
from ..errors import InputError
from ..methods import Policy, build
from ..methods.registry import describe
from ..models.source import read_checkpoint
from ..repetition import Repetition
from .kept import Kept
from .loading import load
from .question import question, templated
from .scoring import generate
from .shared import Asked, Prompts, packed

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
        fewshot_delimiter: what the tasks have between examples. What stands behind the last is the
            question, whose tokens ``proxy_tokens=question`` takes as proxies.
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
        fewshot_delimiter: str = "\n\n",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise InputError("--model_args names no model: pretrained=…")
        policy = build(method, **{"min_eviction_seqlen": 0, **settings})
        self._checkpoint = read_checkpoint(str(pretrained))
        self._loaded = load(self._checkpoint, dtype, device, framework)
        # All choices have one context, and all policies the same ones.
        self._encode = lru_cache(maxsize=64)(self._loaded.tokenizer.encode)
        self._delimiter = fewshot_delimiter
        self._prompts, self._number = self._under([policy]), 0

    @property
    def policy(self) -> Policy:
        """What is evicted by."""
        return self._prompts.policies[self._number]

    @property
    def kept(self) -> Kept:
        """What of the prompts' caches was kept so far."""
        return self._prompts.kept[self._number]

    def under(self, policies: Sequence[Policy]) -> list[KVEvict]:
        """This model under each of several policies, for one evaluation after the other.

        What the first is asked, all are, and answer of the same prefill: the others have only to be
        asked the same.
        """
        models = [copy(self) for _ in policies]
        prompts = self._under(policies)
        for number, model in enumerate(models):
            model._prompts, model._number = prompts, number
        return models

    def _under(self, policies: Sequence[Policy]) -> Prompts:
        plain = Repetition.of(self._loaded.tokenizer, None)
        return Prompts(self._loaded.decoder(), policies, plain)

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
        ids = list(self._encode(string, add_special_tokens is not False))
        twice = add_special_tokens is None and ids[:2] == [self.prefix_token_id] * 2
        return ids[1:] if twice else ids

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for the record."""
        return self._chat.source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages in the model's template; the last is open unless a prompt is added."""
        self._prompts.repetition = self._loaded.repetition  # all prompts then are in the template
        return templated(self._chat, chat_history, add_generation_prompt, self._delimiter)

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
        asked = []
        for request in requests:
            context, given = request.args
            options = normalize_gen_kwargs(given)
            if options["do_sample"]:
                raise InputError("kvevict decodes greedily: leave do_sample and temperature out")
            most, until = options["max_gen_toks"], tuple(filter(None, options["until"]))
            of_context = question(context, self._delimiter)
            asked.append(self._asked(self.tok_encode(context), most, of_context, (most, until)))

        def answer(pairs: list[tuple[Session, tuple[int, tuple[str, ...]]]]) -> list[str]:
            eos, decode = self._loaded.eos_ids, self._loaded.tokenizer.decode
            return [generate(one, most, eos, until, decode) for one, (most, until) in pairs]

        answers = [""] * len(requests)
        decoded = self._prompts.answers(self._number, asked, answer, disable_tqdm)
        for index, answers[index] in decoded:
            self.cache_hook.add_partial("generate_until", requests[index].args, answers[index])
        return answers

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to its results, once all is done; the kept share is said, too."""
        print(self.kept, file=sys.stderr)
        return {
            "model_dtype": self._loaded.dtype,
            "kvevict": {
                "policy": describe(self.policy),
                "kept": self.kept.record(),
                "framework": self._loaded.framework,
                "device": self._loaded.device,
                "versions": backends.versions(self._loaded.framework),
            },
        }

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        asked = []
        for text, context, ids in requests:
            of_context = question(text[0], self._delimiter) if text else None
            # White space at a context's end is the continuation's.
            of_context = of_context and of_context.rstrip()
            asked.append(self._asked(context, len(ids) - 1, of_context, tuple(ids)))
        answers = [(0.0, True)] * len(requests)
        scored = self._prompts.answers(self._number, asked, log_likelihoods, disable_tqdm)
        for index, answers[index] in scored:
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], answers[index])
        return answers

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """A text as contexts and the continuations that are scored after them."""
        ids, most = self.tok_encode(text), self._loaded.max_positions
        return map(
            make_disjoint_window,
            get_rolling_token_windows(ids, self.prefix_token_id, most, context_len=1),
        )

    def _asked(
        self, context: list[int], after: int, of_context: str | None, request: Hashable
    ) -> Asked:
        """A request of a context that may have to be cut, which ends in the question."""
        prompt = self._fit(context, after)
        tokens = None
        if of_context is not None:
            tokens = len(self.tok_encode(of_context, add_special_tokens=False))
            tokens = min(max(1, tokens), len(prompt))
        return Asked(packed(prompt), tokens, request)

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
