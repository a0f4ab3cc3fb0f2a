"""Whether a file's bytes are of the kind that its name says, so that no pickle or archive hides behind another name."""

import json
import pickletools
import zipfile
from pathlib import Path

MAX_HEADER_BYTES = 100_000_000
"""Of a safetensors file, as its own library has it."""
PNG_BEGIN, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
SENTENCEPIECE_BEGIN = b"\x0a"
"""Its first field, in protobuf: the pieces."""
CODE_OPCODES = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1"})
"""Of the pickle protocol: they import or call something."""


def problem(path: Path) -> str | None:
    """What is wrong with the bytes of `path`; None if they are what its suffix says."""
    if path.suffix == ".safetensors":
        return _safetensors(path)
    if path.suffix == ".png":
        return _png(path)
    data = path.read_bytes()
    if path.suffix == ".model" and data.startswith(SENTENCEPIECE_BEGIN):
        return "is a zip archive" if zipfile.is_zipfile(path) else None
    return _text(data) or (_json(data) if path.suffix == ".json" else None)


def _safetensors(path: Path) -> str | None:
    """A header of JSON, and tensors that fill the rest exactly: https://huggingface.co/docs/safetensors#format."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            return "is no safetensors file: its header does not fit"
        try:
            header = json.loads(file.read(header_bytes))
            spans = sorted(entry["data_offsets"] for name, entry in header.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, AttributeError):
            return "is no safetensors file: its header is not that of tensors"
    end = 0
    for span in spans:
        if len(span) != 2 or span[0] != end or span[1] < end:
            return "has holes or overlaps between its tensors, where other bytes could hide"
        end = span[1]
    if 8 + header_bytes + end != size:
        return f"has {size - 8 - header_bytes - end} bytes that belong to no tensor"
    return None


def _png(path: Path) -> str | None:
    data = path.read_bytes()
    if data.startswith(PNG_BEGIN) and data.endswith(PNG_END):
        return None
    return "is no PNG picture, or has bytes after its end"


def _text(data: bytes) -> str | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        what = "a pickle" if data[:1] == b"\x80" else "no text"
        return f"is {what}: byte {error.start} is {data[error.start]:#04x}, expected UTF-8"
    if b"\0" in data:
        return f"is no text: byte {data.index(0)} is 0x00"
    return "is a pickle that calls code, written as text" if _calls_code(data) else None


def _json(data: bytes) -> str | None:
    try:
        json.loads(data)
    except ValueError as error:
        return f"is no JSON: {error}"
    return None


def _calls_code(data: bytes) -> bool:
    """Whether the bytes are a whole pickle (protocol 0 is text) that imports or calls something."""
    calls = False
    try:
        for opcode, _, _ in pickletools.genops(data):
            calls = calls or opcode.name in CODE_OPCODES
    except (ValueError, IndexError, OverflowError):
        return False
    return calls
