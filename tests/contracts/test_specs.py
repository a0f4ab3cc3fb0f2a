"""The contract between steps: keys that stay the same, and specs that say what they mean."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.contracts import release
from pipeline.contracts.base import Content, ModelRef, canonical_json, step_key
from pipeline.contracts.manifest import FileEntry, Manifest
from pipeline.contracts.recipe import BaseModelSource
from pipeline.contracts.specs import STEPS, GenerateSpec, TokensSpec
from tests.contracts.spec_samples import KEYS, SPECS, plan, ref, release_specs


def example(step: str) -> dict[str, Any]:
    """A frozen spec of `step`, as an earlier version of the code wrote it."""
    spec: dict[str, Any] = json.loads(SPECS.read_text())[step]
    return spec


@pytest.mark.parametrize("step", sorted(STEPS))
def test_an_example_of_every_spec_survives_the_round_trip(step: str) -> None:
    """Through JSON and back, with nothing added and nothing lost."""
    spec = STEPS[step].spec.model_validate(example(step))

    assert STEPS[step].spec.model_validate_json(spec.model_dump_json()) == spec
    assert json.loads(spec.model_dump_json()) == example(step)


@pytest.mark.parametrize("step", sorted(STEPS))
def test_the_key_of_a_frozen_spec_stays_the_same(step: str) -> None:
    """A changed key makes every user's next release run its steps again. If that is meant: see spec_samples.py."""
    spec = STEPS[step].spec.model_validate(example(step))

    assert step_key(step, STEPS[step].version, spec) == json.loads(KEYS.read_text())[step]


@pytest.mark.parametrize("step", sorted(STEPS))
def test_a_field_that_no_spec_knows_is_refused(step: str) -> None:
    """Misspelt fields must not be dropped silently."""
    with pytest.raises(ValidationError, match="surprise"):
        STEPS[step].spec.model_validate({**example(step), "surprise": 1})


@pytest.mark.parametrize("step", sorted(release_specs("file:///store")))
def test_moving_the_store_and_the_inputs_changes_no_key(step: str) -> None:
    """The same bytes on a laptop's disk and in a bucket are the same input."""
    here, there = release_specs("file:///store")[step], release_specs("s3://bucket/elsewhere")[step]

    assert here != there
    assert step_key(step, 1, here) == step_key(step, 1, there)


def test_other_bytes_another_step_and_another_version_change_the_key() -> None:
    """Everything that can change the result is in it."""
    spec = release_specs("file:///store")["evaluate"]
    other = spec.model_copy(update={"dataset": ref("other")})
    keys = {
        step_key("evaluate", 1, spec),
        step_key("evaluate", 1, other),
        step_key("evaluate", 2, spec),
        step_key("compress", 1, spec),
    }

    assert len(keys) == 4


def test_a_generated_data_set_is_found_again_by_its_settings() -> None:
    """And another seed is another data set."""
    specs = [GenerateSpec.model_validate({"settings": {"kind": "support-intents", "seed": seed}}) for seed in (7, 7, 8)]

    assert len({step_key("generate", 1, spec) for spec in specs}) == 2


def test_tokens_are_found_again_wherever_the_rows_lie() -> None:
    """And other rows, another tokenizer, length or kind of row are other tokens."""
    rows = {"uri": "file:///store/a", "digest": "1" * 64, "size_bytes": 9}
    given = {"rows": rows, "tokenizer": "2" * 64, "max_seq_len": 32, "pairs": False}
    moved = {**given, "rows": {**rows, "uri": "s3://bucket/b"}}
    others = [
        {**given, "rows": {**rows, "digest": "3" * 64}},
        {**given, "tokenizer": "3" * 64},
        {**given, "max_seq_len": 64},
        {**given, "pairs": True},
    ]
    keys = [step_key("tokens", 1, TokensSpec.model_validate(spec)) for spec in (given, moved, *others)]

    assert keys[0] == keys[1]
    assert len(set(keys)) == 5


def test_canonical_json_has_one_form() -> None:
    """Sorted, dense, in UTF-8, and without the numbers that JSON does not have."""
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@pytest.mark.parametrize("digest", ["", "xyz", "AB" * 32, "ab" * 31])
def test_a_digest_is_a_sha256_in_lower_case(digest: str) -> None:
    """Anything else is a mistake."""
    with pytest.raises(ValidationError):
        Content(uri="file:///x", digest=digest)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "a//b", "", "a\\b", "./a", "a\0b"])
def test_a_path_in_a_manifest_cannot_leave_its_folder(path: str) -> None:
    """A manifest from elsewhere must not write where it likes."""
    with pytest.raises(ValidationError, match="plain relative path"):
        FileEntry(path=path, size_bytes=0, sha256="0" * 64)
    with pytest.raises(ValidationError, match="plain relative path"):
        ModelRef(artifact=ref("compress"), path=path)


def test_a_manifests_root_is_a_plain_name() -> None:
    """For the same reason."""
    with pytest.raises(ValidationError, match="root"):
        Manifest.model_validate({"root": "../../elsewhere"})


def test_a_pinned_folder_keeps_its_place_out_of_the_spec_and_a_hub_id_stays() -> None:
    """The hub's id and commit say which model it is; a path does not."""
    pinned = release.finetune_spec(plan(), ref("validate"))
    hub = plan().model_copy(update={"base_model": None})
    hub = hub.model_copy(
        update={"recipe": hub.recipe.model_copy(update={"base_model": BaseModelSource(uri="org/name")})}
    )

    assert pinned.base_model.uri == f"sha256:{'3' * 64}"
    assert release.finetune_spec(hub, ref("validate")).base_model.uri == "org/name"
