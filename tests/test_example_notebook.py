"""The notebook in ``examples``: its cells run, and do what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch has an environment of its own")

from tests.evaluation import tiny

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "ask_a_document.ipynb"
MODEL = "qwen2.5-coder-0.5b-instruct"  # the notebook's; here a random one of a few kilobytes
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[end]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def cells() -> list[str]:
    """The code, in order."""
    found = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One token is one byte, and positions are many."""
    path = tiny.write_llama(tmp_path / "model", max_position_embeddings=16384, model_type="llama")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def test_the_cells_run_one_after_the_other(model, tmp_path, monkeypatch, capsys) -> None:
    for name in ("docs", "src"):  # as they lie beside the notebook's directory
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    first, *others = cells()
    assert first.count(MODEL) == 1
    names: dict[str, object] = {}
    exec(first.replace(MODEL, str(model)), names)
    printed = []
    for code in others:
        exec(code, names)
        printed.append(capsys.readouterr().out)

    answers, sizes, theirs = printed
    for question in names["QUESTIONS"]:
        assert question in answers
    ids, kept = names["book"].prompt.ids, names["book"].prompt.session.cache
    heads = len(kept.layers) * len(kept.layers[0].lengths)
    assert kept.entries == len(ids) // 2 * heads
    assert sizes.startswith(f"{len(ids):,} tokens: ")
    assert (tmp_path / "examples" / "book.kv").stat().st_size >= kept.nbytes
    (session,) = names["sessions"]
    evicted = names["prompt_tokens"] // 2 * heads
    new = names["output"].shape[1] - names["prompt_tokens"] - 1
    assert new > 0 and session.cache.entries == evicted + new * heads
    assert theirs.endswith(" MiB\n")
