"""Directories of models, and the line with which one is refused."""

from __future__ import annotations

import json

import pytest

import eap
from models.tiny import tiny_tokenizer


def save(model, path, tokenizer=None):
    """A Hugging Face directory."""
    model.save_pretrained(path)
    (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path


def refusal(name, **arguments):
    """The one line with which a model is refused."""
    with pytest.raises(eap.UserError) as error:
        eap.load_model(str(name), **{"device": "cpu", **arguments})
    message = str(error.value)
    assert "\n" not in message
    return message


def edit_config(path, **changes):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
