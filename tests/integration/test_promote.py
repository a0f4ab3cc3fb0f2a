"""The promote step against a real MLflow server."""

import json
import multiprocessing
from pathlib import Path

import pytest

from pipeline import artifacts, audit
from pipeline.contracts.base import ArtifactRef
from pipeline.errors import DataError, SpecError
from pipeline.fleet.rollout import OUTCOME_TAG
from pipeline.registry import models, promotion
from pipeline.registry.models import CHAMPION, Registry
from tests.integration.finished_release import FinishedRelease
from tests.integration.mlflow_server import MlflowServer

pytestmark = pytest.mark.integration

ROWS = 200


def correct(share: float, rows: int = ROWS) -> list[bool]:
    return [number < share * rows for number in range(rows)]


def registered(release: FinishedRelease, share: float, **build: object) -> ArtifactRef:
    """The registration of a new version that answers `share` of its rows right."""
    spec = release.build(correct(share), **build)  # type: ignore[arg-type]
    assert release.register(spec) == 0
    return release.registration(spec)


@pytest.fixture
def championed(finished_release: FinishedRelease) -> FinishedRelease:
    """Version 1, right in 80 % of the rows, is the champion."""
    spec = finished_release.promote_spec(registered(finished_release, 0.8))
    assert finished_release.promote(spec) == 0
    return finished_release


def test_the_first_version_becomes_champion_without_a_comparison(
    finished_release: FinishedRelease, registry: Registry
) -> None:
    """There is nothing to compare with, and the decision says so."""
    spec = finished_release.promote_spec(registered(finished_release, 0.8))
    assert finished_release.promote(spec) == 0
    decision = finished_release.decision(spec)
    assert decision.promoted
    assert decision.champion_before is None
    assert decision.comparison is None
    assert "no champion to compare with" in decision.reason
    assert registry.alias(finished_release.recipe.name, CHAMPION) == "1"
    tags = registry.summary(finished_release.recipe.name, "1").tags
    assert tags[promotion.PROMOTED_BY_TAG] == "policy auto"
    assert promotion.PROMOTED_AT_TAG in tags


def test_a_better_challenger_replaces_the_champion(championed: FinishedRelease, registry: Registry) -> None:
    """With the paired difference on the same rows, and the former champion on record."""
    spec = championed.promote_spec(registered(championed, 0.9, seed=1))
    assert championed.promote(spec) == 0
    decision = championed.decision(spec)
    assert decision.promoted
    assert decision.champion_before == "1"
    assert decision.comparison is not None
    assert decision.comparison.value == pytest.approx(0.1)
    assert registry.alias(championed.recipe.name, CHAMPION) == "2"
    assert promotion.previous_champion(registry, championed.recipe.name) == "1"
    assert [version for _, version, _ in promotion.history(registry, championed.recipe.name)][:1] == ["2"]


def test_a_worse_challenger_is_refused_with_the_figures(
    championed: FinishedRelease, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 65; the champion stays; the version's tag says why."""
    assert championed.promote(championed.promote_spec(registered(championed, 0.7, seed=1))) == 65
    assert "challenger − champion in exact_match is -0.1000" in capsys.readouterr().err
    assert registry.alias(championed.recipe.name, CHAMPION) == "1"
    assert "champion_margin" in registry.summary(championed.recipe.name, "2").tags[promotion.REFUSED_TAG]


GATES = {
    "min_score": ({"min_score": 0.9}, "exact_match is 0.8000 [0.7500, 0.8500] on 200 rows, but gates.min_score is 0.9"),
    "max_loss": ({"max_loss": 0.1}, "the loss is 0.5000 nats on 200 rows, but gates.max_loss is 0.1"),
}


@pytest.mark.parametrize(("gates", "message"), GATES.values(), ids=GATES)
def test_a_gate_refuses_with_its_figures(
    gates: dict[str, float],
    message: str,
    finished_release: FinishedRelease,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 65, and no champion."""
    registration = registered(finished_release, 0.8)
    spec = finished_release.promote_spec(registration, gates=finished_release.recipe.gates.model_copy(update=gates))
    assert finished_release.promote(spec) == 65
    assert message in capsys.readouterr().err
    assert registry.alias(finished_release.recipe.name, CHAMPION) is None


def test_a_partly_changed_evaluation_set_is_compared_on_the_shared_rows(
    championed: FinishedRelease, registry: Registry
) -> None:
    """More held-out rows than before: the comparison looks at those that both versions answered."""
    spec = championed.build(correct(0.8, rows=300), seed=1)
    assert championed.register(spec) == 0
    promote = championed.promote_spec(championed.registration(spec))
    assert championed.promote(promote) == 0
    assert "on the 200 rows that both answered" in championed.decision(promote).reason
    assert registry.alias(championed.recipe.name, CHAMPION) == "2"


def test_a_wholly_changed_evaluation_set_is_left_to_a_person(
    championed: FinishedRelease, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 65, and the message says how to go on."""
    registration = registered(championed, 0.9, seed=1, prompts="another question")
    assert championed.promote(championed.promote_spec(registration)) == 65
    assert f"slipway promote {championed.recipe.name} 2" in capsys.readouterr().err
    assert registry.alias(championed.recipe.name, CHAMPION) == "1"


def test_the_manual_policy_waits_for_a_name(finished_release: FinishedRelease, registry: Registry) -> None:
    """Without one nothing moves; with one the version is promoted in that name."""
    registration = registered(finished_release, 0.8)
    waiting = finished_release.promote_spec(registration, policy="manual")
    assert finished_release.promote(waiting) == 0
    assert not finished_release.decision(waiting).promoted
    assert finished_release.decision(waiting).reason.startswith("waits for approval")
    assert registry.alias(finished_release.recipe.name, CHAMPION) is None
    approved = finished_release.promote_spec(registration, policy="manual", approved_by="ada")
    assert finished_release.promote(approved) == 0
    assert registry.alias(finished_release.recipe.name, CHAMPION) == "1"
    assert registry.summary(finished_release.recipe.name, "1").tags[promotion.PROMOTED_BY_TAG] == "ada"


def test_promoting_the_champion_again_changes_nothing(championed: FinishedRelease, registry: Registry) -> None:
    """Another run that comes to the same version finds it promoted."""
    before = registry.summary(championed.recipe.name, "1")
    again = championed.promote_spec(registered(championed, 0.8), request_id="run-2")
    assert championed.promote(again) == 0
    assert championed.decision(again).reason == "version 1 is the champion already"
    assert registry.summary(championed.recipe.name, "1") == before


def test_a_crash_after_the_alias_moved_is_finished_by_the_next_attempt(
    championed: FinishedRelease, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt reports the same former champion and records the time."""
    spec = championed.promote_spec(registered(championed, 0.9, seed=1))
    compare_and_set = Registry.compare_and_set_alias

    def move_and_die(*arguments: object) -> None:
        compare_and_set(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(models.Registry, "compare_and_set_alias", move_and_die)
        with pytest.raises(KeyboardInterrupt):
            championed.promote(spec)
    assert championed.promote(spec) == 0
    assert championed.decision(spec).champion_before == "1"
    assert promotion.PROMOTED_AT_TAG in registry.summary(championed.recipe.name, "2").tags


def test_a_late_older_release_does_not_replace_a_newer_champion(
    finished_release: FinishedRelease, registry: Registry
) -> None:
    """Going back is a person's decision."""
    older = registered(finished_release, 0.9)
    newer = registered(finished_release, 0.9, seed=1)
    assert finished_release.promote(finished_release.promote_spec(newer)) == 0
    late = finished_release.promote_spec(older, request_id="run-0")
    assert finished_release.promote(late) == 0
    assert not finished_release.decision(late).promoted
    assert "version 2, is newer" in finished_release.decision(late).reason
    assert registry.alias(finished_release.recipe.name, CHAMPION) == "2"


def test_a_version_that_failed_its_rollout_is_not_promoted_again_by_itself(
    finished_release: FinishedRelease, registry: Registry
) -> None:
    """The same recipe released again finds the version that was rolled back; a person may still want it."""
    registration, name = registered(finished_release, 0.8), finished_release.recipe.name
    registry.tag(name, "1", OUTCOME_TAG, "failed")
    spec = finished_release.promote_spec(registration)
    assert finished_release.promote(spec) == 0
    assert not finished_release.decision(spec).promoted
    assert "failed its rollout" in finished_release.decision(spec).reason
    assert promotion.promote_by_hand(registry, name=name, version="1", promoted_by="ada").changed


def test_a_champion_from_elsewhere_is_not_replaced_blindly(
    finished_release: FinishedRelease,
    registry: Registry,
    mlflow_server: MlflowServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A version that somebody made in MLflow itself has no predictions to compare with."""
    from mlflow import MlflowClient

    client, name = MlflowClient(mlflow_server.uri, mlflow_server.uri), finished_release.recipe.name
    client.create_registered_model(name)
    client.create_model_version(name, "s3://elsewhere/model")
    registry.set_alias(name, CHAMPION, "1")
    assert finished_release.promote(finished_release.promote_spec(registered(finished_release, 0.9))) == 65
    assert "was not registered by Slipway" in capsys.readouterr().err
    with pytest.raises(DataError, match="was not registered by Slipway"):
        promotion.promote_by_hand(registry, name=name, version="1", promoted_by="ada")


def test_a_champion_moved_meanwhile_is_compared_with_on_the_next_attempt(
    championed: FinishedRelease,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 75; the retry compares with the new champion."""
    name, rival = championed.recipe.name, registered(championed, 0.85, seed=1)
    spec = championed.promote_spec(registered(championed, 0.9, seed=2))
    move = promotion.move_champion

    def rival_first(*arguments: object, **named: object) -> None:
        registry.set_alias(name, CHAMPION, "2")
        move(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(promotion, "move_champion", rival_first)
        assert championed.promote(spec) == 75
    assert "is version 2 now" in capsys.readouterr().err
    assert registry.alias(name, CHAMPION) == "2"
    assert championed.promote(spec) == 0
    assert championed.decision(spec).champion_before == "2"
    told = [(entry.action, entry.version) for entry in audit.read_entries(registry.home_path)]
    assert told == [("promote", "1"), ("promote", "3"), ("refused", "3"), ("promote", "3")]
    assert artifacts.read_manifest(rival).step == "register"


def _race(uri: str, home: Path, name: str, version: str) -> bool:
    return Registry(uri, home).compare_and_set_alias(name, CHAMPION, "1", version)


def test_of_two_racing_promoters_one_wins(
    championed: FinishedRelease, registry: Registry, mlflow_server: MlflowServer
) -> None:
    """Both saw version 1; exactly one moves the alias, and the other one is told."""
    for seed in (1, 2):
        registered(championed, 0.9, seed=seed)
    name, home = championed.recipe.name, championed.settings.home_path
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        won = pool.starmap(_race, [(mlflow_server.uri, home, name, version) for version in ("2", "3")], chunksize=1)
    assert sorted(won) == [False, True]
    assert registry.alias(name, CHAMPION) == ("2" if won[0] else "3")


def test_a_person_promotes_any_version_that_exists(championed: FinishedRelease, registry: Registry) -> None:
    """No gate asks; what was champion is told; a version that is none is refused with those that are."""
    registered(championed, 0.1, seed=1)
    name = championed.recipe.name
    done = promotion.promote_by_hand(registry, name=name, version="2", promoted_by="ada")
    assert (done.champion_before, done.changed) == ("1", True)
    again = promotion.promote_by_hand(registry, name=name, version="2", promoted_by="ada")
    assert (again.champion_before, again.changed) == ("2", False)
    told = [(entry.action, entry.actor, entry.details["from"]) for entry in audit.read_entries(registry.home_path)]
    assert told == [("promote", "policy auto", None), ("promote", "ada", "1"), ("promote", "ada", "2")]
    with pytest.raises(SpecError, match=r"has no version 9 .* it has: 1, 2"):
        promotion.promote_by_hand(registry, name=name, version="9", promoted_by="ada")


def test_an_altered_registration_is_refused(
    championed: FinishedRelease, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    """A manifest that names another bundle does not match what the registry recorded."""
    registration = registered(championed, 0.9, seed=1)
    path = Path(registration.uri.removeprefix("file://")) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["result"]["bundle_digest"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert championed.promote(championed.promote_spec(registration)) == 65
    assert "was altered" in capsys.readouterr().err
    assert registry.alias(championed.recipe.name, CHAMPION) == "1"
