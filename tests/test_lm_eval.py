"""The model for lm-evaluation-harness, against the harness's own on a random Llama."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip("lm_eval is optional", allow_module_level=True)

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from kvevict.engine import log_likelihood, prefill
from kvevict.errors import InputError
from kvevict.lm_eval.model import KVEvict
from kvevict.methods import build
from kvevict.repetition import Repetition
from tests.backends.torch_model import tiny

FACTS = [
    ("A banana is", ["yellow", "made of glass"]),
    ("Snow is", ["cold", "louder than thunder"]),
    ("A triangle has", ["three sides", "a beard"]),
    ("Bread is baked in", ["an oven", "the letter box"]),
    ("At night one sees", ["stars", "the inside of stones"]),
    ("A week has", ["seven days", "forty wheels"]),
    ("Cows give", ["milk", "speeches on tax law"]),
    ("A clock shows", ["the time", "what fish dream of"]),
    ("Rain falls from", ["clouds", "bookshelves, in summer"]),
    ("A bicycle has", ["two wheels", "gills"]),
]
CHAT = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
COMMON = {"dataset_path": "json", "fewshot_split": "train", "test_split": "test"}
TASKS = {
    "facts": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 512 positions whose tokens are bytes."""
    path = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:254]  # the rest is not in the texts
    words = {word: i for i, word in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer.save(str(path / "tokenizer.json"))
    texts = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT}
    texts["tokenizer_class"] = "PreTrainedTokenizerFast"
    (path / "tokenizer_config.json").write_text(json.dumps(texts))
    tiny(bos_token_id=0, eos_token_id=1).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tasks' files, in the harness's own format."""
    path = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": question,
            "choices": choices[::-1] if i % 3 else choices,
            "label": int(i % 3 > 0),
            "text": f"{question} {choices[0]}. " * (i * 3),  # the longest: three windows
        }
        for i, (question, choices) in enumerate(FACTS)
    ]
    files = {}
    for split, part in {"train": rows[:6], "test": rows[6:]}.items():
        files[split] = str(path / f"{split}.json")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in part))
    kwargs = {"data_files": files, "cache_dir": str(path / "cache")}
    for name, task in TASKS.items():
        whole = {"task": name, **COMMON, "dataset_kwargs": kwargs, **task}
        (path / f"{name}.yaml").write_text(json.dumps(whole))  # which is YAML, too
    return path


def evaluate(model: str, model_dir: Path, task_dir: Path, more: str = "", **options) -> dict:
    return simple_evaluate(
        model,
        f"pretrained={model_dir},dtype=float32{more}",
        tasks=list(TASKS),
        task_manager=TaskManager(include_path=str(task_dir), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
        **options,
    )


def responses(results: dict, task: str) -> list:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("chat", [False, True])
def test_the_full_cache_is_the_harness_own_model(model_dir, task_dir, chat: bool) -> None:
    options = {"num_fewshot": 5, "apply_chat_template": chat, "fewshot_as_multiturn": chat}
    own = evaluate("hf", model_dir, task_dir, **options)
    ours = evaluate("kvevict", model_dir, task_dir, ",framework=pytorch", **options)
    assert ours["results"]["facts"]["acc,none"] == own["results"]["facts"]["acc,none"]
    assert ours["results"]["facts"]["acc_norm,none"] == own["results"]["facts"]["acc_norm,none"]
    for task in ("facts", "texts"):
        found, wanted = (np.array(responses(x, task), float) for x in (ours, own))
        np.testing.assert_allclose(found, wanted, atol=1e-4, rtol=1e-6)
    assert responses(ours, "answers") == responses(own, "answers")
    kept = ours["config"]["kvevict"]["kept"]
    assert kept["share"] == 1.0
    assert kept["left_whole"] == kept["prompts"]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "nacl", "keep_ratio": 0.2},
        {"method": "h2o", "keep_ratio": 0.2},
        {"method": "tova", "keep_ratio": 0.2},
        {"method": "tova", "budget": 16},
        {"method": "h2o", "budget": 16, "decode_slack": 4},
        {"method": "nacl", "keep_ratio": 0.2, "proxy_tokens": "question"},
    ],
    ids=str,
)
def test_a_continuation_is_scored_after_the_evicted_prompt(model_dir, settings: dict) -> None:
    model = KVEvict(str(model_dir), framework="pytorch", device="cpu", **settings)
    prompt = "\n\n".join(f"{question} {choices[0]}." for question, choices in FACTS)
    pairs = [(prompt, " A dog barks at"), (prompt, " x"), (prompt[:99], " A dog barks at")]
    found = model.loglikelihood([ask("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    backwards = [ask("loglikelihood", *pair) for pair in pairs[::-1]]
    assert found == model.loglikelihood(backwards, disable_tqdm=True)[::-1]
    kept = model.get_model_info()["kvevict"]["kept"]
    assert kept["prompts"] == 4  # two in each order; continuations share one
    lengths = [len(model.tok_encode(text)) for text in (prompt, prompt[:99])]
    assert kept["tokens"] == 2 * sum(lengths)
    asked = [len(text.rpartition("\n\n")[2]) for text in (prompt, prompt[:99])]
    assert kept["question_tokens"] == 2 * sum(asked)  # a token is a byte
    assert kept["kept"] == 2 * 3 * 2 * sum(map(model.policy.entries, lengths))
    for pair, (total, greedy) in zip(pairs, found):
        wanted, best = one_by_one(model, *pair)
        assert total == pytest.approx(wanted, abs=1e-4)
        assert greedy == best


def ask(kind: str, *arguments) -> Instance:
    return Instance(kind, {}, arguments, 0)


def one_by_one(model: KVEvict, prompt: str, text: str) -> tuple[float, bool]:
    """The log-probability of a text that is read token by token, in float64."""
    ids = model.tok_encode(prompt)
    example = zlib.crc32(np.array(ids, dtype="<i4").tobytes())
    asked = len(prompt.rpartition("\n\n")[2])
    (session,) = prefill(
        model._loaded.decoder(), ids, [model.policy], example, question_tokens=asked
    )
    total, greedy, logits = 0.0, True, session.logits
    for token in model.tok_encode(text, add_special_tokens=False):
        logits = logits.double()
        total += float(logits[token] - logits.logsumexp(-1))
        greedy &= int(logits.argmax()) == token
        logits = session.extend([token])
    return total, greedy


def test_policies_beside_each_other_answer_as_alone_and_share_their_prefills(model_dir) -> None:
    policies = [
        build(method, keep_ratio=0.2, min_eviction_seqlen=0, **settings)
        for method, settings in (
            ("nacl", {}),
            ("nacl", {"proxy_tokens": "question"}),
            ("h2o", {"decode_slack": None}),
        )
    ]
    prompts = ["\n\n".join(facts for facts, _ in FACTS[:count]) for count in (3, 9)]
    scored = [ask("loglikelihood", text, f" {end}") for text in prompts for end in ("one", "all")]
    told = [ask("generate_until", text, {"until": ["e"], "max_gen_toks": 9}) for text in prompts]
    alone = []
    for policy in policies:
        model = KVEvict(str(model_dir), framework="pytorch", device="cpu")
        (model,) = model.under([policy])
        alone.append([model.loglikelihood(scored, True), model.generate_until(told, True)])
    models = KVEvict(str(model_dir), framework="pytorch", device="cpu").under(policies)
    assert [model.policy for model in models] == policies
    for one, (scores, texts) in zip(models, alone):
        found = one.loglikelihood(scored, True)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in scores]
        np.testing.assert_allclose(np.array(found), np.array(scores), atol=1e-4)
        assert one.generate_until(told, True) == texts
    counts = [model.get_model_info()["kvevict"]["kept"] for model in models]
    assert [count["prompts"] for count in counts] == [4, 4, 4]  # two of each kind of request
    assert counts[0]["kept"] == counts[1]["kept"]


def test_a_text_without_a_question_has_no_proxies_of_it(model_dir) -> None:
    model = KVEvict(str(model_dir), "nacl", "pytorch", proxy_tokens="question")
    with pytest.raises(InputError, match="nobody said how many these are"):
        model.loglikelihood_rolling([ask("loglikelihood_rolling", FACTS[0][0] * 50)], True)


@pytest.mark.parametrize("chat", [False, True])
def test_a_prompt_is_repeated_in_the_template_that_it_is_in(model_dir, chat: bool) -> None:
    model = KVEvict(str(model_dir), "kvzip", "pytorch", keep_ratio=0.5)
    text = " ".join(facts for facts, _ in FACTS[:4])
    prompt = model.apply_chat_template([{"role": "user", "content": text}]) if chat else text
    prompt = prompt.rstrip()  # what the harness would count into the answer
    ((found, _),) = model.loglikelihood([ask("loglikelihood", prompt, " yes")], True)
    template = model._checkpoint.chat if chat else None
    ids = model.tok_encode(prompt)
    (session,) = prefill(
        model._loaded.decoder(),
        ids,
        [model.policy],
        repetition=Repetition.of(model._loaded.tokenizer, template),
    )
    wanted, _ = log_likelihood(session, model.tok_encode(" yes", add_special_tokens=False))
    assert found == pytest.approx(wanted, abs=1e-4)
    assert model.kept.kept == 3 * 2 * model.policy.entries(len(ids))


def test_the_most_likely_text_is_greedy_and_what_is_generated(model_dir) -> None:
    model = KVEvict(str(model_dir), "tova", "pytorch", keep_ratio=0.2)
    prompt = FACTS[0][0] * 9
    asked = [ask("generate_until", prompt, {"until": [], "max_gen_toks": n}) for n in (8, 3)]
    long, short = model.generate_until(asked, disable_tqdm=True)
    assert long.startswith(short.rstrip("�"))
    stop = long[2:4]
    (cut,) = model.generate_until([ask("generate_until", prompt, {"until": stop})], True)
    assert cut == long[: long.index(stop)]
    with pytest.raises(InputError, match="greedily"):
        model.generate_until([ask("generate_until", prompt, {"temperature": 0.7})], True)


def test_a_message_that_is_to_be_continued_is_left_open(model_dir) -> None:
    model = KVEvict(str(model_dir), framework="pytorch")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": " As "}]
    assert model.apply_chat_template(turns[:1]) == "<s>[user] Why?\n[assistant] "
    text = model.apply_chat_template(turns, add_generation_prompt=False)
    assert text == "<s>[user] Why?\n[assistant]  As "
    assert model.tok_encode(text).count(model.prefix_token_id) == 1


def run(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join(filter(None, ["src", os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "kvevict.lm_eval", "--model", "kvevict", *arguments],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
    )


def test_the_command_is_the_harness_own(model_dir, task_dir, tmp_path) -> None:
    given = f"pretrained={model_dir},method=nacl,keep_ratio=0.2,framework=pytorch"
    options = ["--tasks", "facts", "--num_fewshot", "5", "--include_path", str(task_dir)]
    done = run("--model_args", given, *options, "--output_path", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "acc_norm" in done.stdout
    assert "of 4 prompts" in done.stderr
    (file,) = tmp_path.rglob("results_*.json")
    record = json.loads(file.read_text())["config"]["kvevict"]
    assert record["policy"]["keep_ratio"] == 0.2
    assert 0.18 < record["kept"]["share"] <= 0.2
    assert record["kept"]["left_whole"] == 0


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("facts", "method=h2o,keep_ratios=0.2", "has no setting 'keep_ratios'"),
        ("fact", "method=h2o", "Tasks not found: fact"),
    ],
)
def test_bad_arguments_are_told_in_a_sentence(model_dir, task_dir, task, settings, message) -> None:
    options = ["--tasks", task, "--include_path", str(task_dir)]
    done = run("--model_args", f"pretrained={model_dir},{settings}", *options)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
