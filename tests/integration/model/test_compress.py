"""compress with the real quantizer, on a tiny model with the layer sizes of new models."""

import json
import sys
from pathlib import Path

import pytest

from pipeline import artifacts
from pipeline.contracts.base import ModelRef
from pipeline.contracts.recipe import Compress
from pipeline.contracts.specs import CompressResult, CompressSpec
from tests import tiny_llama
from tests.published import publish_folder
from tests.step_runs import run_steps

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The outcome of: both forms, both forms again in another store, no form, and a model of an impossible shape."""
    folder = tmp_path_factory.mktemp("compress")
    store, other_store = f"file://{folder}/store", f"file://{folder}/other-store"
    tiny_llama.write_data(folder / "data")
    tiny_llama.write_model(folder / "model", hidden_size=128, intermediate_size=384, steps=0)
    tiny_llama.write_model(folder / "odd-model", hidden_size=128, intermediate_size=344, steps=0)
    dataset = publish_folder(store, "validate", folder / "data")
    model, odd_model = (
        ModelRef(artifact=publish_folder(store, "finetune", folder / name)) for name in ("model", "odd-model")
    )

    def entry(store, model, *ladder):
        settings = Compress(ladder=ladder, calibration_rows=16)
        spec = CompressSpec(model=model, dataset=dataset, settings=settings, max_seq_len=64)
        return {"step": "compress", "spec": spec.model_dump(mode="json"), "store": store}

    plan = [
        entry(store, model, "w4a16", "w8a8", "none"),
        entry(other_store, model, "w4a16", "w8a8", "none"),
        entry(store, model, "none"),
        entry(store, odd_model, "w4a16", "none"),
    ]
    names = ("both", "again", "no_form", "impossible")
    results = run_steps(Path(sys.executable), plan, {"SLIPWAY_HOME": str(folder / "home"), "HOME": str(folder)})
    return {"model_path": folder / "model"} | dict(zip(names, results, strict=True))


def result_and_folder(outcome):
    assert outcome["exit_code"] == 0, outcome["error"]
    manifest = artifacts.read_manifest(outcome["uri"])
    folder = artifacts.fetch(manifest.ref(outcome["uri"]), Path("/nonexistent"))
    return CompressResult.model_validate(manifest.result), folder


def test_each_rung_is_smaller_than_the_model_and_in_compressed_tensors_form(outcomes):
    """4 bits take less than 8, and 8 less than 32."""
    result, folder = result_and_folder(outcomes["both"])
    sizes = {rung.scheme: rung.size_bytes for rung in result.rungs}
    assert sizes["w4a16"] < sizes["w8a8"] < result.baseline_size_bytes
    for rung in result.rungs:
        config = json.loads((folder / rung.path / "config.json").read_text())
        assert config["quantization_config"]["quant_method"] == "compressed-tensors"
        assert config["quantization_config"]["ignore"] == ["lm_head"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_rung_keeps_the_tokenizer_and_the_chat_template_byte_for_byte(outcomes, name):
    """A client's prompt becomes the same tokens whatever form is served."""
    result, folder = result_and_folder(outcomes["both"])
    for rung in result.rungs:
        assert (folder / rung.path / name).read_bytes() == (outcomes["model_path"] / name).read_bytes()


def test_the_same_spec_gives_the_same_bytes(outcomes):
    """Run twice, in two stores."""
    digests = [artifacts.read_manifest(outcomes[name]["uri"]).digest for name in ("both", "again")]
    assert digests[0] == digests[1]


def test_a_ladder_of_the_unquantized_model_alone_makes_nothing(outcomes):
    """And still says how large that model is."""
    result, _ = result_and_folder(outcomes["no_form"])
    assert result.rungs == ()
    assert result.baseline_size_bytes > 0


def test_a_shape_that_the_serving_engine_cannot_take_is_refused(outcomes):
    """Before an hour of evaluation, naming the layer."""
    assert outcomes["impossible"]["exit_code"] == 64
    assert "mlp.down_proj has 344 inputs, expected a multiple of 32" in outcomes["impossible"]["error"]
