"""Whether bytes are what a file's name says."""

import collections
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest

from pipeline.registry import file_kinds

PNG = file_kinds.PNG_BEGIN + b"data" + file_kinds.PNG_END


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(json.dumps))
    return data.getvalue()


def safetensors(spans: list[list[int]], data: bytes) -> bytes:
    tensors = {f"t{n}": {"dtype": "U8", "shape": [1], "data_offsets": span} for n, span in enumerate(spans)}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    return len(header).to_bytes(8, "little") + header + data


GOOD = {
    "config.json": b'{"a": [1, 2]}',
    "merges.txt": "#version: 0.2\nĠ t\n".encode(),
    "chat_template.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
    "LICENSE": b"Permission is hereby granted",
    "loss.png": PNG,
    "tokenizer.model": b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "tiktoken.model": b"IQ== 0\nIg== 1\n",
    "model.safetensors": safetensors([[0, 4], [4, 6]], b"123456"),
    "empty.safetensors": safetensors([], b""),
}
BAD = {
    "vocab.json": (pickle.dumps({"a": 1}), "is a pickle"),
    "merges.txt": (pickle.dumps(collections.OrderedDict(a=1), protocol=0), "is a pickle that calls code"),
    "notes.md": (zipped(), "is no text"),
    "config.json": (b'{"a": 1', "is no JSON"),
    "added_tokens.json": (b'{"a": 1}' + zipped(), "is no text"),
    "tokenizer.model": (pickle.dumps({"a": 1}), "is a pickle"),
    "spiece.model": (b"\x0a" + zipped(), "is a zip archive"),
    "loss.png": (PNG + zipped(), "has bytes after its end"),
    "chat_template.jinja": (b"a\0b", "byte 1 is 0x00"),
    "pytorch.safetensors": (zipped(), "is no safetensors file"),
    "pickled.safetensors": (pickle.dumps({"a": 1}), "is no safetensors file"),
    "short.safetensors": (b"\x01", "is no safetensors file"),
    "list.safetensors": (b"\x02\0\0\0\0\0\0\0[]", "its header is not that of tensors"),
    "trailing.safetensors": (safetensors([[0, 4]], b"1234") + zipped(), "bytes that belong to no tensor"),
    "cut.safetensors": (safetensors([[0, 4]], b"12"), "bytes that belong to no tensor"),
    "hole.safetensors": (safetensors([[0, 2], [4, 6]], b"123456"), "holes or overlaps"),
    "overlap.safetensors": (safetensors([[0, 4], [2, 6]], b"123456"), "holes or overlaps"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_of_its_kind_is_let_through(tmp_path: Path, name: str) -> None:
    """Every kind that a bundle may hold."""
    (tmp_path / name).write_bytes(GOOD[name])
    assert file_kinds.problem(tmp_path / name) is None


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    """A pickle or an archive under a harmless name, at the end of a harmless file, or between tensors."""
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    assert reason in str(file_kinds.problem(tmp_path / name))
