"""What a model reads when it is to repeat a context."""

from __future__ import annotations

import pytest

from kvevict import backends
from kvevict.models.chat import ChatTemplate
from kvevict.models.source import load_tokenizer
from kvevict.repetition import Repetition
from tests.evaluation import tiny

TEMPLATE = (
    "<s>Be brief.\n{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
FIRST = "\n\nRepeat the previous context exactly."
LATER = "\n\nRepeat the part of the previous context exactly, starting with"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token is one byte."""
    return load_tokenizer(tiny.write_llama(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_context_in_chunks(tokenizer, template) -> None:
    chat = template and ChatTemplate(template, {}, "here")
    repetition = Repetition.of(tokenizer, chat)
    before = chat.before if chat else ""
    header = "[end]\n[assistant]" if chat else "\n"
    ids = tokenizer.encode(before + "0123456789" * 3)
    assert repetition.prefix(ids) == len(before)
    chunks = repetition.chunks(ids, 12)
    assert [tokenizer.decode(chunk.ids) for chunk in chunks] == [
        FIRST + header + "012345678901",
        LATER + "45678901" + header + "234567890123",
        LATER + "67890123" + header + "456789",
    ]
    spans = [ids[chunk.start : chunk.stop] for chunk in chunks]
    assert sum(spans, ids[: len(before)]) == ids


def test_a_short_chunk_has_no_more_before_it_than_there_is(tokenizer) -> None:
    repetition = Repetition.of(tokenizer, None)
    chunks = repetition.chunks(tokenizer.encode("abcdef"), 3)
    assert tokenizer.decode(chunks[1].ids) == LATER + "abc" + "\n" + "def"
    assert repetition.chunks([], 3) == []


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("positions", [200, 501, 1000, 1500])
@pytest.mark.parametrize("size", [1, 9, 300, 700])
def test_the_longest_prompt_fits_with_any_of_its_chunks(tokenizer, template, positions, size):
    repetition = Repetition.of(tokenizer, template and ChatTemplate(template, {}, "here"))
    most = repetition.longest_prompt(size, positions)

    def reach(tokens: int) -> int:
        ids = tokenizer.encode("x" * tokens)
        return tokens + max(len(chunk.ids) for chunk in repetition.chunks(ids, size))

    assert reach(most) <= positions
    if most - size >= size:  # of which a whole chunk is not the first
        assert reach(most) == positions if size >= 8 else reach(most + 9) > positions


def test_a_prompt_that_begins_otherwise_has_a_shorter_prefix(tokenizer) -> None:
    repetition = Repetition.of(tokenizer, ChatTemplate(TEMPLATE, {}, "here"))
    assert repetition.prefix(tokenizer.encode("<s>Be kind.\n")) == len("<s>Be ")
    assert repetition.prefix(tokenizer.encode("else")) == 0


def test_a_loaded_model_has_its_own(builtin_model: backends.LoadedModel) -> None:
    tokenizer, repetition = builtin_model.tokenizer, builtin_model.repetition
    assert tokenizer.backend.decode(repetition.before, skip_special_tokens=False).endswith(
        "<|im_start|>user\n"
    )
    header = tokenizer.backend.decode(repetition.header, skip_special_tokens=False)
    assert header == "<|im_end|>\n<|im_start|>assistant\n"
