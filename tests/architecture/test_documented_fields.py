"""What docs/rollouts.md says of a recipe's fields is what they are."""

import re

import pytest
from pydantic import BaseModel

from pipeline.contracts.rollout import Autoscale, Rollout, Shadow
from pipeline.settings import ROOT

TABLE = (ROOT / "docs" / "rollouts.md").read_text().partition("## Every field")[2]


def defaults(contract: type[BaseModel]) -> dict[str, object]:
    """Those that have one beside none."""
    found = {name: field.default for name, field in contract.model_fields.items() if not field.is_required()}
    return {name: value for name, value in found.items() if value is not None}


def test_every_field_of_a_rollout_has_a_row() -> None:
    """And no row is of a field that is not there."""
    rows = re.findall(r"^\| (`.*?) \|", TABLE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(Rollout.model_fields)


@pytest.mark.parametrize(("name", "value"), defaults(Rollout).items())
def test_a_row_has_the_fields_default(name: str, value: object) -> None:
    """As people write it."""
    written = (
        ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
    )
    assert re.search(rf"^\| `{name}` \| {written} \|", TABLE, re.MULTILINE)


@pytest.mark.parametrize(("name", "value"), [*defaults(Shadow).items(), *defaults(Autoscale).items()])
def test_what_a_field_is_made_of_is_in_its_row(name: str, value: float) -> None:
    """With its default in brackets."""
    assert re.search(rf"`{name}` \({value:g}\)", TABLE)
