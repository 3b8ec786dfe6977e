"""A model is told from another by what lies on disk."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from kvevict.models import identity
from kvevict.models.identity import model_identity

NAMES = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")


def made(path: Path) -> Path:
    path.mkdir()
    for name in NAMES:
        (path / name).write_bytes(random.Random(name).randbytes(3000))
    return path


def of(path: Path) -> dict[str, str]:
    return model_identity(str(path), str(path))


def changed(file: Path, position: int, count: int = 1) -> None:
    with open(file, "r+b") as opened:
        opened.seek(position)
        old = opened.read(count)
        opened.seek(position)
        opened.write(bytes(255 - byte for byte in old))


def test_a_copy_is_the_same_model(tmp_path):
    path = made(tmp_path / "model")
    (path / "README.md").write_text("not read")
    shutil.copytree(path, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").unlink()
    (tmp_path / "copy" / "original").mkdir()
    (tmp_path / "link").symlink_to(path)
    assert of(path) == of(tmp_path / "copy") == of(tmp_path / "link")
    assert set(of(path)) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_another_byte_in_any_file_is_another_model(tmp_path, name):
    path = made(tmp_path / "model")
    before = of(path)
    changed(path / name, random.randrange(3000))
    after = of(path)
    assert [file for file in NAMES if before[file] != after[file]] == [name]


def test_a_file_more_or_less_is_another_model(tmp_path):
    path = made(tmp_path / "model")
    before = of(path)
    (path / "adapter_model.safetensors").write_bytes(b"more")
    assert of(path) != before
    (path / "adapter_model.safetensors").unlink()
    (path / "tokenizer.json").unlink()
    assert of(path) != before


def test_a_large_file_is_known_by_its_header_and_by_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "WHOLE", 10_000)
    monkeypatch.setattr(identity, "HEAD", 5_000)
    monkeypatch.setattr(identity, "SAMPLES", 10)
    monkeypatch.setattr(identity, "SAMPLE", 100)
    file = tmp_path / "model.gguf"
    file.write_bytes(random.Random(0).randbytes(100_000))
    before = of(file)
    assert list(before) == ["model.gguf"] and before["model.gguf"].startswith("100000:")
    for position in (random.randrange(5_000), 5_000, 99_999):
        changed(file, position)
        assert of(file) != before
        changed(file, position)
    assert of(file) == before
    changed(file, random.randrange(5_000, 85_000), 11_000)  # a tensor
    assert of(file) != before


def test_a_built_in_model_is_what_its_name_says():
    path = "/home/somebody/.cache/kvevict/smollm2-135m-longctx-0123"
    assert model_identity("smollm2-135m-longctx", path) == {"smollm2-135m-longctx-0123": "built-in"}
