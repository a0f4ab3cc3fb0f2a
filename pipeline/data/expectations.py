"""Runs rules with Great Expectations: in memory, with nothing sent and nothing written.

Each table is checked twice at most. The first pass only counts. The second takes the rules that failed and asks which
rows broke them, by the table's index; asking that of every rule, or for values with it, makes Great Expectations build
a Python object for each broken row, which takes half a minute for a million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.rules import Rule
from pipeline.errors import SpecError

if TYPE_CHECKING:
    import polars as pl

FIRST_ROWS = 5
"""How many offending rows are named."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one rule."""

    rule: Rule
    passed: bool
    checked: int | None = None
    """Rows that the rule looked at, for a rule about rows."""
    broken: int | None = None
    """Rows that broke it."""
    observed: Any = None
    """For a rule about the file as a whole."""
    error: str | None = None
    """Why the rule could not be evaluated; it has then failed."""
    lines: tuple[int, ...] = ()
    """The first rows that broke it."""


class Engine:
    """Great Expectations with its rules compiled once."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        """
        Raises:
            SpecError: an expectation that Great Expectations does not know, or does not accept.
        """
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        )
        self._context = gx.get_context(project_config=config, mode="ephemeral")
        self._source = self._context.data_sources.add_pandas("slipway")
        self._expectations = {id(rule): _compiled(rule) for rule in rules}

    def check(self, table: pl.DataFrame, rules: Sequence[Rule]) -> list[Outcome]:
        """One outcome a rule, in order.

        Args:
            table: has `line` and every column that the rules name.
        """
        if not rules:
            return []
        frame = table.to_pandas().set_index("line", drop=False)
        counted = self._validate(frame, rules, {"result_format": "BASIC", "partial_unexpected_count": 0})
        outcomes = [_outcome(rule, result) for rule, result in zip(rules, counted, strict=True)]
        return [self._located(outcome, frame) for outcome in outcomes]

    def _located(self, outcome: Outcome, frame: Any) -> Outcome:
        """`outcome` with the lines of the first rows that broke the rule, if rows did."""
        if outcome.passed or not outcome.broken:
            return outcome
        wanted = {"result_format": "SUMMARY", "partial_unexpected_count": FIRST_ROWS, "exclude_unexpected_values": True}
        (result,) = self._validate(frame, [outcome.rule], wanted)
        found = result.result.get("partial_unexpected_index_list") or []
        lines = [line for entry in found for line in entry.get("line", ())]
        return Outcome(**{**outcome.__dict__, "lines": tuple(int(line) for line in lines[:FIRST_ROWS])})

    def _validate(self, frame: Any, rules: Sequence[Rule], result_format: dict[str, Any]) -> list[Any]:
        """The results in the order of `rules`: Great Expectations puts those that raised first."""
        import great_expectations as gx

        suite = gx.ExpectationSuite(name="rules")
        for number, rule in enumerate(rules):
            expectation = self._expectations[id(rule)].copy(update={"meta": {"number": number}, "id": None})
            suite.expectations.append(expectation)
        name = f"rows-{len(self._source.assets)}"
        batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        try:
            report = batch.get_batch({"dataframe": frame}).validate(suite, result_format=result_format)
        finally:
            self._source.delete_asset(name)
        by_number = {result.expectation_config.meta["number"]: result for result in report.results}
        return [by_number[number] for number in range(len(rules))]


def _compiled(rule: Rule) -> Any:
    from great_expectations.exceptions import ExpectationNotFoundError, InvalidExpectationConfigurationError
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    try:
        return ExpectationConfiguration(type=rule.type, kwargs=rule.kwargs).to_domain_obj()
    except ExpectationNotFoundError as error:
        raise SpecError(f"{rule.name}: Great Expectations knows no {rule.type}") from error
    except (ValueError, TypeError, InvalidExpectationConfigurationError) as error:
        raise SpecError(f"{rule.name}: Great Expectations does not accept {rule.kwargs}: {error}") from error


def _outcome(rule: Rule, result: Any) -> Outcome:
    error = _error(result.exception_info)
    if error:
        return Outcome(rule=rule, passed=False, error=error)
    found = result.result
    if "unexpected_count" not in found:
        return Outcome(rule=rule, passed=bool(result.success), observed=found.get("observed_value"))
    return Outcome(
        rule=rule,
        passed=bool(result.success),
        checked=int(found["element_count"] - (found.get("missing_count") or 0)),
        broken=int(found["unexpected_count"] or 0),
    )


def _error(exception_info: dict[str, Any]) -> str | None:
    """The first message of what Great Expectations caught, which it keeps flat or by metric."""
    infos = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    for info in infos:
        if isinstance(info, dict) and info.get("raised_exception"):
            return str(info.get("exception_message") or "an error without a message").strip()
    return None
