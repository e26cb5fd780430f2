from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.adapters import huggingface
from agents.adapters.huggingface import read_tokenizer

CONFIG = {
    "bos_token": "<s>",
    "eos_token": {"content": "</s>", "special": True},
    "pad_token": None,
    "chat_template": "{{ messages }}",
    "model_max_length": 2048,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_tokenizer_template_and_special_tokens_are_read(model: Path) -> None:
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    assert tokenizer.path == str((model / "tokenizer.json").resolve())
    assert tokenizer.json == '{"version": "1.0"}'
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}


def test_a_big_tokenizer_is_named_by_its_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface, "JSON_BYTES_MAX", 10)
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    assert tokenizer.json is None


def test_a_template_file_wins(model: Path) -> None:
    (model / "chat_template.jinja").write_text("from a file")
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    assert tokenizer.chat_template == "from a file"


def test_of_several_templates_the_default_is_taken(model: Path) -> None:
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    assert tokenizer.chat_template == "d"


def test_a_tokenizer_alone_will_do(model: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    tokenizer = read_tokenizer(model)
    assert tokenizer is not None
    assert (tokenizer.chat_template, tokenizer.special_tokens) == (None, {})


@pytest.mark.parametrize("bad", ["{", "[]"])
def test_without_a_readable_tokenizer_there_is_none(
    model: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "tokenizer_config.json").write_text(bad)
    assert read_tokenizer(model) is None
    assert read_tokenizer(model / "nowhere") is None
    assert caplog.text.count("no tokenizer for routing") == 2
