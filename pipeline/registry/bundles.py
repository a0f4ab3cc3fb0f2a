"""What may stand in a model bundle: weights as safetensors, and text. Nothing that runs code when it is loaded."""

from pathlib import Path

from pipeline.artifacts.digests import entries_digest, file_entries
from pipeline.contracts.manifest import FileEntry
from pipeline.errors import GateRefused
from pipeline.registry import file_kinds

ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".jsonl", ".txt", ".jinja", ".model", ".md", ".yaml", ".png"})
"""`.model` is a SentencePiece tokenizer; `.jsonl` and `.png` are the training's records beside an unquantized model."""
ALLOWED_NAMES = frozenset({"LICENSE", "NOTICE", "README"})


def inspect_bundle(folder: Path) -> tuple[tuple[FileEntry, ...], str]:
    """The files of a model folder and the digest over them: what a replica must load.

    Raises:
        GateRefused: a file of a kind that may hold code (a pickle, say), one whose bytes are of another kind than its
            name says, or no weights at all.
    """
    entries = file_entries(folder)
    for entry in entries:
        if not _allowed(Path(entry.path)):
            raise GateRefused(
                f"{folder}: {entry.path} may not stand in a model bundle, since loading it can run code; expected only"
                f" {', '.join(sorted(ALLOWED_SUFFIXES))}; save the weights as safetensors and release again"
            )
        if wrong := file_kinds.problem(folder / entry.path):
            raise GateRefused(
                f"{folder}: {entry.path} {wrong}; in a model bundle it may hide code; expected what its name says:"
                " save the weights as safetensors and release again"
            )
    if not any(entry.path.endswith(".safetensors") for entry in entries):
        raise GateRefused(f"{folder} holds no weights: expected at least one .safetensors file; finetune again")
    return entries, entries_digest(entries)


def _allowed(path: Path) -> bool:
    return path.suffix in ALLOWED_SUFFIXES or path.name in ALLOWED_NAMES
