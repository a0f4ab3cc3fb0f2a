"""Runs one trial of a hyperparameter search: as many of a release's own steps as tell how good its values are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException, AirflowSkipException

from pipeline import settings
from pipeline.artifacts import read_manifest
from pipeline.contracts.base import ArtifactRef
from pipeline.contracts.specs import PlanResult
from pipeline.contracts.study import SuggestResult, TrialRecord, TrialRung
from pipeline.contracts.trials import pruned_because, rung_shares
from slipway_airflow.operators.step import JobOperator, told_apart
from slipway_airflow.peers import RECORD, Peers
from slipway_airflow.search_steps import History, TrialUpstream, rung_steps
from slipway_airflow.triggers.peers import PeersTrigger
from slipway_airflow.upstream import Upstream, Work


class TrialOperator(JobOperator):
    """Waits for the trials of earlier rounds, draws the trial's values, and trains and scores it at one rung after the
    other, until it is among the worst or was trained in full. Returns what its last rung made.

    Whenever it goes on (after a wait, a job, a killed worker), it begins with what its record and the store have
    already. A pruned trial ends as skipped.
    """

    ui_color = "#ffe3f1"

    def __init__(self, *, number: int, **kwargs: Any) -> None:
        super().__init__(step="suggest", **kwargs)
        self.number = number

    def execute(self, context: Context) -> dict[str, Any]:
        return self.go_on(context, {})

    def resume(self, context: Context, event: dict[str, Any], out_uri: str) -> dict[str, Any]:
        """Goes on when a job has ended."""
        self.step = out_uri.rsplit("/", 2)[1]
        with self._ending_is_recorded(context):
            super().resume(context, event, out_uri)
        return self.go_on(context, {})

    def go_on(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """Goes on when other trials have come as far."""
        context["title"] = f"trial {self.number}"
        with self._ending_is_recorded(context), told_apart():
            return self._go(context, TrialUpstream(Upstream(context, settings.load()), self.number))

    def _go(self, context: Context, upstream: TrialUpstream) -> dict[str, Any]:
        search, record = upstream.search, self._record(context)
        if record.suggestion is None:
            earlier = self._others(context, upstream.earlier, rungs=None)
            suggestion = self._make(context, "suggest", upstream.suggest_work(earlier))
            record = self._keep(context, record.model_copy(update={"suggestion": suggestion}))
        assert record.suggestion is not None
        upstream.values = SuggestResult.model_validate(read_manifest(record.suggestion).result).values
        context["title"] = f"{self.number}: {upstream.title}"
        for rung, share in enumerate(rung_shares(search)):
            if len(record.rungs) == rung:
                made = self._train(context, upstream, share)
                record = self._keep(context, record.model_copy(update={"rungs": (*record.rungs, made)}))
            if share < 1 and len(record.rungs) == rung + 1:
                self._stop_if_pruned(context, upstream, record)
        self._keep(context, record.model_copy(update={"state": "complete"}))
        return record.rungs[-1].model_dump()

    def _train(self, context: Context, upstream: TrialUpstream, share: float) -> TrialRung:
        """One rung: the release's own steps, with this trial's values, for a part of its epochs."""
        upstream.begin_rung(share)
        for step, work in rung_steps(upstream.search):
            upstream.made[step] = self._make(context, step, work(upstream))
        return TrialRung(
            epochs=upstream.result("plan", PlanResult).recipe.finetune.epochs,
            finetuned=upstream.made["finetune"],
            evaluated=upstream.made.get("evaluate"),
        )

    def _stop_if_pruned(self, context: Context, upstream: TrialUpstream, record: TrialRecord) -> None:
        """Looks at the trials of its round once all of them were trained at the rung, and at those before."""
        rung = len(record.rungs) - 1
        records = self._others(context, upstream.around, rungs=rung + 1)
        records |= self._others(context, upstream.earlier, rungs=None) | {self.number: record}
        reason = pruned_because(upstream.search, self.number, History(upstream.search, records).scores_at(rung))
        if reason:
            self._keep(context, record.model_copy(update={"state": "pruned", "reason": reason}))
            raise AirflowSkipException(f"pruned after {record.rungs[rung].epochs:g} epochs: {reason}")

    def _make(self, context: Context, step: str, work: Work) -> ArtifactRef:
        self.step = step
        return ArtifactRef.model_validate(self.run_step(context, work))

    def _others(self, context: Context, numbers: range, *, rungs: int | None) -> dict[int, TrialRecord]:
        """The records of other trials, once they have come as far; defers until then."""
        peers, others = self._peers(context), [number for number in numbers if number != self.number]
        awaited, records = peers.look(others, rungs)
        if awaited:
            self.log.info("waiting for the trials %s", awaited)
            who = (peers.dag_id, peers.run_id, peers.task_id)
            self.defer(trigger=PeersTrigger(peers=who, numbers=others, rungs=rungs), method_name="go_on")
        return records

    def _peers(self, context: Context) -> Peers:
        return Peers(context["ti"].dag_id, str(context["run_id"]), self.task_id)

    def _record(self, context: Context) -> TrialRecord:
        """What this try has made so far; Airflow forgets it with the try."""
        known = self._peers(context).records([self.number]).get(self.number)
        return TrialRecord(number=self.number) if known is None else known

    def _keep(self, context: Context, record: TrialRecord) -> TrialRecord:
        """Lets the other trials, and the study, see it."""
        context["ti"].xcom_push(key=RECORD, value=record.model_dump(mode="json"))
        return record

    @contextmanager
    def _ending_is_recorded(self, context: Context) -> Iterator[None]:
        """A failed trial leaves its reason for the study; another try begins a new record."""
        try:
            yield
        except AirflowSkipException:
            raise
        except AirflowException as error:
            self._keep(context, self._record(context).model_copy(update={"state": "failed", "reason": str(error)}))
            raise
