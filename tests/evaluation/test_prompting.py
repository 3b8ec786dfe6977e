"""The tokens of prompts: split, cut, and in a chat template."""

from __future__ import annotations

import dataclasses

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks
from benchmarks import Example, Task
from benchmarks.infinitebench_metrics import contains_word
from evaluation import arguments
from evaluation.prompting import Prompting, prompting_for
from kvevict import KVzip, SnapKV
from kvevict.errors import InputError
from kvevict.models import load_tokenizer, read_checkpoint
from kvevict.models.chat import ChatTemplate

TASK = Task("t", "T", 10, "Read.\n{context}\nSay {input}:", contains_word, chat=True)
CHAT = ChatTemplate("<|u|>{{ messages[0].content }}<|e|>", {}, "x")


class Around:
    """A tokenizer of one token a byte that puts something before a text, and after it."""

    def __init__(self, backend) -> None:
        self.backend = backend

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        ids = self.backend.encode(text)
        return [256, *ids, 256, 256] if special_tokens else ids

    def decode(self, ids) -> str:
        return self.backend.decode([i for i in ids if i != 256])


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return load_tokenizer(str(tiny.write_llama(tmp_path_factory.mktemp("prompting") / "tiny")))


def example(context: str, question: str = "x") -> Example:
    return Example(0, {"context": context, "input": question})


def prompting(tokenizer, **changes) -> Prompting:
    usual = dict(chat=None, chat_everywhere=False, max_length=1000, positions=1000, truncate=True)
    usual.update(compress="prompt", benchmark=benchmarks.get(), tokenizer=tokenizer)
    return Prompting(**{**usual, **changes})


def text(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode([i for i in ids if i != 256])


def test_a_context_and_its_question_are_split_whatever_the_tokenizer_adds(tokenizer):
    around = Around(tokenizer)
    whole = prompting(around).tokens(TASK, example("abc"))
    assert whole.compressed == [256, *tokenizer.encode("Read.\nabc\nSay x:"), 256, 256]
    assert whole.after == [] and whole.question == len("\nSay x:") + 2
    parts = prompting(around, compress="context").tokens(TASK, example("abc"))
    assert parts.compressed == [256, *tokenizer.encode("Read.\nabc")]
    assert parts.after == [*tokenizer.encode("\nSay x:"), 256, 256]
    assert parts.total == whole.total == whole.uncut


@pytest.mark.parametrize("compress", ["prompt", "context"])
def test_a_chat_template_goes_around_both(tokenizer, compress):
    made = prompting(Around(tokenizer), chat=CHAT, compress=compress).tokens(TASK, example("abc"))
    joined = made.compressed + made.after
    assert joined == tokenizer.encode("<|u|>Read.\nabc\nSay x:<|e|>")
    if compress == "context":
        assert text(tokenizer, made.compressed) == "<|u|>Read.\nabc"


def test_the_template_is_used_where_the_benchmark_has_it_or_everywhere(tokenizer):
    bare = dataclasses.replace(TASK, chat=False)
    assert prompting(tokenizer, chat=CHAT).template(bare) is None
    assert prompting(tokenizer, chat=CHAT, chat_everywhere=True).template(bare) is CHAT
    assert prompting(tokenizer, chat=None, chat_everywhere=True).template(TASK) is None


lengths = st.integers(0, 300), st.integers(60, 200), st.booleans(), st.integers(0, 20)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*lengths))
def test_a_cut_prompt_keeps_both_ends(tokenizer, drawn):
    length, most, chat, asked = drawn
    context = "".join(chr(97 + i % 26) for i in range(length))
    bare = f"Read.\n{context}\nSay {'?' * asked}:"
    builder = prompting(tokenizer, chat=CHAT if chat else None, max_length=most)
    made = builder.tokens(TASK, example(context, "?" * asked))
    said = tokenizer.decode(made.compressed)
    if chat:
        assert said.startswith("<|u|>") and said.endswith("<|e|>")
        said = said[5:-5]
    if len(bare) <= most:
        assert said == bare
    else:  # halves of the tokens; as text they are of equal length
        assert len(said) == (most // 2 * 2 if chat else most)
        assert said == bare[: most // 2] + bare[len(bare) - (len(said) - most // 2) :]
    assert made.question == len("\nSay :") + asked + 5 * chat
    assert made.uncut == len(bare) + 10 * chat


@settings(max_examples=60, deadline=None)
@given(st.tuples(*lengths))
def test_a_cut_context_leaves_the_question_whole(tokenizer, drawn):
    length, most, chat, asked = drawn
    context = "".join(chr(97 + i % 26) for i in range(length))
    template = CHAT if chat else None
    builder = prompting(tokenizer, chat=template, max_length=most, compress="context")
    made = builder.tokens(TASK, example(context, "?" * asked))
    question = f"\nSay {'?' * asked}:"
    assert tokenizer.decode(made.after) == question + "<|e|>" * chat
    read = tokenizer.decode(made.compressed)
    assert read.startswith("<|u|>" * chat + "Read.\n"[: most // 2])
    assert read.endswith(context[-1:])
    whole = len("Read.\n") + length + len(question)
    assert made.total - 10 * chat == min(whole, most // 2 * 2 if chat else most)


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.sampled_from("ab é中😀e\u0301"), max_size=200), st.integers(60, 200), st.booleans()
)
def test_a_prompt_is_cut_as_text_where_the_benchmark_has_it_so(tokenizer, context, most, chat):
    around, whole = Around(tokenizer), f"Read.\n{context}\nSay x:"
    ids, half = around.encode(whole), most // 2
    if len(ids) > most:
        whole = around.decode(ids[:half]) + around.decode(ids[-half:])
    wanted = around.encode(f"<|u|>{whole}<|e|>" if chat else whole, special_tokens=not chat)
    benchmark = dataclasses.replace(benchmarks.get(), cut_as_text=True)
    template = CHAT if chat else None
    builder = prompting(around, benchmark=benchmark, chat=template, max_length=most)
    made = builder.tokens(TASK, example(context))
    assert made.compressed == wanted
    # Half a character becomes more tokens than it was; the model's positions are the end of it.
    tight = dataclasses.replace(builder, positions=most + TASK.max_new_tokens)
    assert tight.tokens(TASK, example(context)).total <= most


def test_what_does_not_fit_is_refused_or_cut(tokenizer):
    long = example("a" * 2000)
    with pytest.raises(InputError, match="2013 tokens where 990 fit, and truncation is off"):
        prompting(tokenizer, truncate=False, max_length=5000).tokens(TASK, long)
    with pytest.raises(InputError, match="the question alone has 1006 tokens, of 990"):
        prompting(tokenizer, compress="context").tokens(TASK, example("a" * 900, "b" * 1000))
    with pytest.raises(InputError, match="leave no room for a prompt"):
        prompting(tokenizer, positions=10).tokens(TASK, long)


@pytest.mark.parametrize("length, shorter", [(600, False), (1500, True)])
def test_prompts_are_shorter_only_where_data_may_be_too_long_for_a_policy(
    tmp_path, capsys, length, shorter
):
    checkpoint = read_checkpoint(str(tiny.write_llama(tmp_path / "tiny")))
    ruler = benchmarks.get("ruler").at_length(length)

    def made(*policies) -> tuple[int | None, int]:
        args = arguments.parse(["--benchmark=ruler", "--task=niah", "--compress=context"])
        prompts = prompting_for(args, [ruler], checkpoint, list(policies))
        return args.max_length, prompts.max_length

    usual = (None, tiny.POSITIONS)
    assert made(SnapKV(0.2)) == made(KVzip(1.0, min_eviction_seqlen=0)) == usual
    assert capsys.readouterr().err == ""
    found = made(SnapKV(0.2), KVzip(0.2, chunk_size=700, min_eviction_seqlen=0))
    assert (found != usual) == shorter == ("kvzip repeats" in capsys.readouterr().err)
    assert not shorter or found[0] == found[1] < tiny.POSITIONS - 700
