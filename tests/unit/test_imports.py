"""Packages that a process keeps out."""

import importlib
import json
import sys

import pytest

from pipeline.imports import hide


def test_a_hidden_package_is_as_good_as_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it fails, as libraries that can do without it expect."""
    monkeypatch.setitem(sys.modules, "colorsys", None)  # so that it is put back as it was
    del sys.modules["colorsys"]
    hide("colorsys")
    with pytest.raises(ImportError):
        importlib.import_module("colorsys")


def test_a_package_that_is_imported_already_stays() -> None:
    """Others hold it by then."""
    hide("json")
    assert sys.modules["json"] is json
