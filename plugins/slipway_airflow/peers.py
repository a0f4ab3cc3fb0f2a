"""What the trials of a search know of each other: their records, which they keep in XCom, and their tasks' states."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pipeline.contracts.study import TrialRecord

RECORD = "record"
"""The XCom in which a trial keeps its record: references to what it has made so far."""
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


@dataclass(frozen=True)
class Peers:
    """The instances of one mapped task in one run; the map index of each is its trial's number.

    Usable in a task and in a trigger alike, where it must be called through `asgiref.sync.sync_to_async`.
    """

    dag_id: str
    run_id: str
    task_id: str

    def records(self, numbers: Iterable[int]) -> dict[int, TrialRecord]:
        """Of the trials that have one."""
        found = {number: self._pull(number) for number in numbers}
        return {number: TrialRecord.model_validate(value) for number, value in found.items() if value}

    def states(self) -> dict[int, str | None]:
        """Airflow's state of each trial's task."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = RuntimeTaskInstance.get_task_states(self.dag_id, task_ids=[self.task_id], run_ids=[self.run_id])
        # Airflow names an instance of a mapped task TASK_INDEX here.
        return {int(name.rpartition("_")[2]): state for name, state in states.get(self.run_id, {}).items()}

    def look(self, numbers: Iterable[int], rungs: int | None) -> tuple[list[int], dict[int, TrialRecord]]:
        """The trials that have neither ended nor trained at so many rungs (None: that have not ended), and the records.

        What is not awaited can be relied on in the records: states are asked for first, and a trial that is tried
        again, whose record begins anew, is awaited again.
        """
        numbers = list(numbers)
        states = self.states() if numbers else {}
        records = self.records(numbers)
        running = [number for number in numbers if states.get(number) not in ENDED]
        if rungs is None:
            return running, records
        return [n for n in running if n not in records or len(records[n].rungs) < rungs], records

    def _pull(self, number: int) -> Any:
        from airflow.sdk.execution_time.xcom import XCom

        return XCom.get_one(key=RECORD, dag_id=self.dag_id, task_id=self.task_id, run_id=self.run_id, map_index=number)
