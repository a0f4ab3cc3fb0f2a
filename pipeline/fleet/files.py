"""The write side of the fleet's state: changes are made under one lock, and each replaces a model's file as a whole.

What a change means for the audit log is written in the same move as the change itself, and goes to the log when the
lock is given back. Who is killed in between leaves it to the next one who takes the lock, or reads the log.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline import audit
from pipeline.errors import SpecError
from pipeline.fleet.changes import events
from pipeline.fleet.state import ModelFleet, model_paths, models_path, read_model
from pipeline.registry.locks import file_lock
from pipeline.stack.layout import Layout
from pipeline.whole_files import write_atomically


class FleetFiles:
    """The write side: every change is made under one lock, on what the files say then."""

    def __init__(self, home_path: Path) -> None:
        self.home_path = Path(home_path)
        self.folder = models_path(self.home_path)
        self.lock_path = Layout(self.home_path).fleet_path / "lock"
        self._touched: set[str] = set()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held for the length of the block; the kernel frees it when its holder dies. Not to be taken twice."""
        with file_lock(self.lock_path):
            try:
                yield
            finally:
                for name in self._touched:
                    self._record(name)
                self._touched.clear()

    def get(self, name: str) -> ModelFleet:
        """The state of `name`; an empty one if nothing has been rolled out yet."""
        path = self.folder / f"{name}.json"
        return read_model(path) if path.exists() else ModelFleet(name=name)

    def write(self, model: ModelFleet) -> None:
        """Replaces the model's file. The caller holds the lock."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._record(model.name)
        before = self.get(model.name)
        model = model.model_copy(update={"unrecorded": events(before, model)})
        self._touched.add(model.name)
        write_atomically(self.folder / f"{model.name}.json", model.model_dump_json(indent=2) + "\n")

    def update(self, name: str, change: Callable[[ModelFleet], ModelFleet]) -> ModelFleet:
        """Applies `change` to the current state under the lock and keeps the result."""
        with self.lock():
            model = change(self.get(name))
            self.write(model)
            return model

    def record_all(self) -> None:
        """Brings to the audit log what somebody who was killed left to it. Needs no lock and is harmless to repeat."""
        for path in model_paths(self.home_path):
            with suppress(SpecError):  # a damaged file is said where it is needed; the log is there without it
                self._record(path.stem)

    def _record(self, name: str) -> None:
        audit.record_events(self.home_path, name, lambda: self.get(name).unrecorded)
