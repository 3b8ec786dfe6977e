"""ask.py as a process: answers on standard output, one sentence for what is wrong."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from asking import kept
from asking.policies import METHOD, policy
from asking.prompt import reading
from kvevict import Document, InputError, backends
from tests.evaluation import tiny
from tests.interpreters import ROOT
from tests.test_ask_files import PAGE, pdf

FRAMEWORK = "paddle" if find_spec("paddle") else "pytorch"
TEXT = "The river runs to the sea, and the key is 4711 under the stone. " * 8
LIMIT = 120  # seconds; a process that hangs fails the test


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return tiny.write_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(model_path) -> backends.LoadedModel:
    return backends.load(model_path, framework=FRAMEWORK, device="cpu")


def command(model_path: Path, *flags: object) -> list[str]:
    named = [f"--model_path={model_path}", f"--framework={FRAMEWORK}", "--device=cpu"]
    return [sys.executable, "ask.py", *named, "--max_new_tokens=12", *map(str, flags)]


def start(model_path: Path, *flags: object) -> subprocess.Popen:
    return subprocess.Popen(
        command(model_path, *flags),
        cwd=ROOT / "src",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def finish(process: subprocess.Popen, typed: str = "", status: int = 0) -> tuple[str, str]:
    """What a process printed to stdout and stderr."""
    out, error = process.communicate(typed, timeout=LIMIT)
    assert process.returncode == status, error
    assert "Traceback" not in error
    return out, error


def file(path: Path, content: str | bytes = TEXT) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_questions_are_answered_on_standard_output_alone(model, model_path, tmp_path):
    names = {"a.txt": TEXT, "b.html": PAGE, "c.pdf": pdf("the key is 4711")}
    paths = [file(tmp_path / name, content) for name, content in names.items()]
    questions = ("Where is the key?", "k" * 700)
    asked = [f"--question={question}" for question in questions]
    saved = tmp_path / "book.kv"
    out, error = finish(
        start(model_path, "--document", *paths, f"--save={saved}", "--show", *asked)
    )

    text = f"{TEXT}\n\nThe key\nIt is 4711 & under the stone.\none\ntwo\n\nthe key is 4711"
    document = Document.read(model, text, policy(METHOD))
    answers = [document.ask(question, 12) for question in questions]
    assert out == printed(answers)
    assert f"{len(document.prompt.ids):,} tokens" in error and f"({METHOD}, 19.9%)" in error
    assert "⟦" in error and "\033" not in error
    talks = [(document.conversation(), question) for question in questions]
    cut = ["".join(talk.ask(question, 12)) and talk.cut for talk, question in talks]
    assert error.count("was cut there (--max_new_tokens 12") == sum(cut) > 0

    # Two processes on one file, at once.
    both = [start(model_path, f"--load={saved}", *asked) for _ in range(2)]
    assert [finish(process)[0] for process in both] == [out, out]
    other = tiny.write_llama(tmp_path / "other", scale=0.2)
    _, error = finish(start(other, f"--load={saved}", *asked), status=2)
    assert "another model" in error


def test_a_prompt_remembers_until_it_is_told_to_forget(model, model_path, tmp_path):
    path = file(tmp_path / "a.txt")
    typed = (
        "one?\n\ntwo?\n/fresh\ntwo?\n/method keynorm 0.5\none?\n/method keynorm 90\n"
        "/method nothing\n/nonsense\n/method\n" + "x" * 3000 + "\none?\n/method kvzip 0.3\none?\n"
        "/method expected_attention 70\none?\n/help\n/quit\nnot read\n"
    )
    out, error = finish(start(model_path, "--document", path), typed)
    document = Document.read(model, TEXT, policy(METHOD))
    talk = document.conversation()
    answers = ["".join(talk.ask(question, 12)) for question in ("one?", "two?")]
    answers.append(document.ask("two?", 12))
    document = document.reread(policy("keynorm", "0.5"))
    answers.append(document.ask("one?", 12))
    document = document.reread(policy("keynorm", budget="90"))
    answers.append(document.ask("one?", 12))
    document = document.reread(policy("kvzip", "0.3"))
    answers.append(document.ask("one?", 12))
    document = document.reread(policy("expected_attention", budget="70"))
    answers.append(document.ask("one?", 12))
    assert out == printed(answers)
    assert answers[1] != answers[2]  # the first question was seen by the second
    for sentence in ("unknown method", "no command /nonsense", "/method takes", "leave room for"):
        assert sentence in error


def test_a_quantised_cache_is_saved_and_asked(model, model_path, tmp_path):
    path, saved = file(tmp_path / "a.txt"), tmp_path / "book.kv"
    chosen = ("--kv_dtype=int8", "--method=snapkv", "--keep_ratio=0.5")
    out, error = finish(
        start(model_path, "--document", path, *chosen, f"--save={saved}"),
    )
    assert "(snapkv, int8, " in error
    out, error = finish(start(model_path, f"--load={saved}", "--question=one?"))
    assert "(snapkv, int8, " in error
    document = Document.read(model, TEXT, policy("snapkv", "0.5", kv_dtype="int8"))
    assert out == printed([document.ask("one?", 12)])
    _, error = finish(start(model_path, f"--load={saved}"), "/method keynorm 0.5\n/quit\n")
    assert "(keynorm, int8, " in error


def printed(answers: list[str]) -> str:
    """Answers as a pipe in text mode gives them: a random model's may hold any line end."""
    return io.StringIO("".join(answer + "\n" for answer in answers), newline=None).read()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        ((), "--document"),
        (("--document", "{a}", "--load", "{a}"), "--document"),
        (("--load", "{a}", "--method", "nacl"), "--load brings"),
        (("--load", "{a}", "--kv_dtype", "int8"), "--load brings"),
        (("--document", "{a}", "--kv_dtype", "int3"), "invalid choice: 'int3'"),
        (("--document", "{a}", "--kv_dtype", "fp8", "--method", "tova"), "are not evicted from"),
        (("--load", "{a}"), "not a saved cache"),
        (("--document", "{a}", "--question", " "), "a question is empty"),
        (("--document", "{a}", "--save", "{a}/b"), "no such directory"),
        (("--document", "{a}", "--save", "{a}.kv", "--method", "h2o"), "evicts while"),
        (("--document", "{a}", "--budget", "many"), "whole number"),
        (("--document", "{a}", "--method", "full", "--keep_ratio", "0.5"), "keeps everything"),
        (("--document", "{long}"), "with what kvzip repeats behind them"),
        (("--document", "{long}", "--method", "snapkv"), "and answers: at most 2047 fit"),
        (("--document", "{half}"), "at most 987 fit in the model's 2048 positions with what kvzip"),
        (("--document", "{half}"), "behind them; a method that repeats nothing takes 2047"),
    ],
)
def test_one_sentence_for_what_is_wrong(model_path, tmp_path, flags, sentence, capsys):
    import ask

    texts = {"a": TEXT, "half": TEXT * 2, "long": TEXT * 9}
    paths = {name: file(tmp_path / f"{name}.txt", text) for name, text in texts.items()}
    given = [flag.format(**paths) for flag in flags]
    assert ask.main([*command(model_path)[2:], *given]) == 2
    error = capsys.readouterr().err
    assert sentence in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("method", ["kvzip", "expected_attention", "layerdefensivekv"])
def test_what_was_read_for_any_question_is_saved(model, tmp_path, method):
    document = Document.read(model, TEXT, policy(method, "0.3"))
    (session, path), questions = (document.prompt.session, tmp_path / "book.kv"), ("one?", "two?")
    kept = 0.3 * len(document.prompt.ids)
    heads = document.decoder.layers * document.decoder.kv_heads
    assert session.cache.entries == int(kept) * heads
    document.save(path)
    again = Document.load(path, model)
    assert [again.ask(q, 12) for q in questions] == [document.ask(q, 12) for q in questions]


def test_ctrl_c_stops_an_answer_and_not_the_program(model_path, tmp_path):
    controller, terminal = pty.openpty()
    flags = ("--max_new_tokens=1400", "--document", file(tmp_path / "a.txt"))
    process = subprocess.Popen(
        command(model_path, *flags),
        cwd=ROOT / "src",
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(terminal)
    try:
        until(controller, lambda shown: b"> " in shown)
        os.write(controller, b"Where is the key?\n")
        until(controller, lambda shown: len(shown.partition(b"key?\r\n")[2]) > 20)
        process.send_signal(signal.SIGINT)
        until(controller, lambda shown: b"\r\n> " in shown)
        os.write(controller, b"/quit\n")
        assert process.wait(LIMIT) == 0
    finally:
        process.kill()
        os.close(controller)


def until(descriptor: int, fulfilled) -> None:
    """Read from a terminal until what it showed is enough."""
    shown, end = b"", time.monotonic() + LIMIT
    while not fulfilled(shown):
        ready, _, _ = select.select([descriptor], [], [], max(0, end - time.monotonic()))
        assert ready, f"nothing came after {shown!r}"
        shown += os.read(descriptor, 4096)


def test_passages_are_the_document_and_mark_what_was_kept(model):
    document = Document.read(model, "Grüße, 你好! " * 40, policy("streamingllm", "0.2"))
    passages = list(kept.passages(document))
    assert "".join(text for text, _ in passages).strip() == ("Grüße, 你好! " * 40).strip()
    assert [marked for _, marked in passages] == [True, False, True]  # sinks and the last tokens
    assert kept.kept_tokens(document).sum() == len(document.prompt.ids) // 5


def test_marks_are_colours_on_a_terminal_that_has_them(monkeypatch):
    controller, terminal = pty.openpty()
    with open(terminal, "w") as stream:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert kept.marks(stream) == kept.COLOURED
        monkeypatch.setenv("NO_COLOR", "1")
        assert kept.marks(stream) == kept.BRACKETED
    os.close(controller)


def test_the_longest_document_that_is_named_does_fit(model):
    with pytest.raises(InputError, match="has 988 tokens, and at most 987 fit"):
        Document.read(model, "x" * 986, policy("kvzip"))
    assert Document.read(model, "x" * 985, policy("kvzip")).prompt.session.cache.seen == 987


def test_an_answer_is_cut_where_it_could_have_gone_on(model):
    document = Document.read(model, TEXT, policy("snapkv"))
    talk = document.conversation()
    assert not talk.cut
    list(talk.ask("one?", 5))
    assert talk.cut
    next(talk.ask("two?", 5))
    assert not talk.cut  # it was left


def test_a_document_without_text_is_refused(model):
    with pytest.raises(InputError, match="empty"):
        Document.read(model, " \n", policy("snapkv"))


def test_it_is_told_how_many_layers_have_read_the_document(model, monkeypatch):
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows, columns
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        Document.read(model, TEXT, policy("kvzip"), reading("reading a.txt"))
        layers = f"0/{model.decoder().layers}".encode()
        until(controller, lambda shown: b"reading a.txt" in shown and layers in shown)
    os.close(controller)
