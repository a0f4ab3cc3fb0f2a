"""evaluate and evaluate_compressed with the real engine and really quantized models, on a model that knows its rows."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import artifacts, settings
from pipeline.contracts.base import ModelRef, step_key
from pipeline.contracts.recipe import Compress, Evaluate
from pipeline.contracts.specs import (
    CompressSpec,
    EvaluateCompressedResult,
    EvaluateCompressedSpec,
    EvaluateResult,
    EvaluateSpec,
)
from pipeline.evaluation.predictions import FILE, read_predictions
from tests import tiny_llama
from tests.published import publish_folder
from tests.step_runs import ROOT, run_steps

pytestmark = pytest.mark.integration

EVALUATE = Evaluate(max_new_tokens=8, bootstrap_samples=500)


class Release:
    """The artifacts that these tests start from, in a store of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = f"file://{folder}/store"
        self.environment = {"SLIPWAY_HOME": str(folder / "home"), "HOME": str(folder)}
        tiny_llama.write_data(folder / "data")
        tiny_llama.write_model(folder / "model", hidden_size=128, intermediate_size=384)
        tiny_llama.write_model(folder / "random", hidden_size=128, intermediate_size=384, steps=0)
        tiny_llama.write_adapted_model(folder / "model", folder / "adapted")
        shutil.copytree(folder / "adapted", folder / "bare", ignore=shutil.ignore_patterns("adapter"))
        self.dataset = publish_folder(self.store, "validate", folder / "data")
        self.model = ModelRef(artifact=publish_folder(self.store, "finetune", folder / "model"))
        self.adapted = ModelRef(artifact=publish_folder(self.store, "finetune", folder / "adapted"))
        self.bare = ModelRef(artifact=publish_folder(self.store, "finetune", folder / "bare"))
        self.random = ModelRef(artifact=publish_folder(self.store, "finetune", folder / "random"))

    def entry(self, step, spec, store=None):
        return {"step": step, "spec": spec.model_dump(mode="json"), "store": store or self.store}

    def ref(self, outcome):
        return artifacts.read_manifest(outcome["uri"]).ref(outcome["uri"])

    def compress(self):
        """Artifacts of the trained model, and of one whose 4-bit form is ruined."""
        specs = [
            CompressSpec(model=model, dataset=self.dataset, settings=Compress(calibration_rows=16), max_seq_len=64)
            for model in (self.model, self.random)
        ]
        python_path = settings.load().python_path("model")
        good, bad = run_steps(python_path, [self.entry("compress", spec) for spec in specs], self.environment)
        ruined = self.folder / "ruined"
        for source, scheme in ((bad, "w4a16"), (good, "w8a8")):
            folder = artifacts.fetch(self.ref(source), self.folder)
            subprocess.run(["mkdir", "-p", str(ruined)], check=True)
            subprocess.run(["cp", "-r", str(folder / scheme), str(ruined / scheme)], check=True)
        result = artifacts.read_manifest(good["uri"]).result
        return self.ref(good), publish_folder(self.store, "compress", ruined, result)

    def evaluate_spec(self, model, max_model_len=128):
        return EvaluateSpec(model=model, dataset=self.dataset, settings=EVALUATE, max_model_len=max_model_len)

    def compressed_spec(self, baseline, model, compressed, *ladder):
        return EvaluateCompressedSpec(
            baseline=baseline,
            model=model,
            compressed=compressed,
            dataset=self.dataset,
            settings=EVALUATE,
            ladder=ladder,
            min_recovery=0.9,
            max_model_len=128,
        )


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return Release(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def evaluated(release):
    """Outcomes of evaluate: the model, the same again in another store, a random model, and one that is too short."""
    plan = [
        release.entry("evaluate", release.evaluate_spec(release.model)),
        release.entry("evaluate", release.evaluate_spec(release.model), store=f"{release.store}-again"),
        release.entry("evaluate", release.evaluate_spec(release.random)),
        release.entry("evaluate", release.evaluate_spec(release.model, max_model_len=14)),
        release.entry("evaluate", release.evaluate_spec(release.adapted)),
        release.entry("evaluate", release.evaluate_spec(release.bare)),
    ]
    outcomes = run_steps(Path(sys.executable), plan, release.environment)
    return dict(zip(("model", "again", "random", "short", "adapted", "bare"), outcomes, strict=True))


@pytest.fixture(scope="module")
def chosen(release, evaluated):
    """Outcomes of evaluate_compressed for several ladders."""
    good, ruined = release.compress()
    baseline, nothing = release.ref(evaluated["model"]), release.ref(evaluated["random"])
    specs = {
        "first": release.compressed_spec(baseline, release.model, good, "w4a16", "w8a8", "none"),
        "second": release.compressed_spec(baseline, release.model, ruined, "w4a16", "w8a8", "none"),
        "last": release.compressed_spec(baseline, release.model, ruined, "w4a16", "none"),
        "refused": release.compressed_spec(baseline, release.model, ruined, "w4a16"),
        "nothing": release.compressed_spec(nothing, release.random, good, "w8a8", "none"),
    }
    plan = [release.entry("evaluate_compressed", spec) for spec in specs.values()]
    return dict(zip(specs, run_steps(Path(sys.executable), plan, release.environment), strict=True))


def result_of(outcome, kind):
    assert outcome["exit_code"] == 0, outcome["error"]
    return kind.model_validate(artifacts.read_manifest(outcome["uri"]).result)


def predictions_of(release, outcome):
    return read_predictions(artifacts.fetch(release.ref(outcome), release.folder) / FILE)


def test_a_model_that_knows_its_rows_scores_all_of_them(release, evaluated):
    """48 rows, every answer right, and the references all but certain."""
    scores = result_of(evaluated["model"], EvaluateResult).scores
    assert (scores.rows, scores.exact_match.value, scores.token_f1.low) == (48, 1, 1)
    assert 0 < scores.loss < 0.1
    first = predictions_of(release, evaluated["model"])[0]
    assert (first.prompt, first.prediction) == ("tell me about refund status", "refund_status")


def test_the_loss_is_that_of_the_weights(release, evaluated):
    """The engine's mean over the references' tokens against transformers in fp32, for a model of random weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = release.folder / "random"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total = tokens = 0
    for row in tiny_llama.rows():
        whole = tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False), add_special_tokens=False)
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
        first = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        ids = torch.tensor([whole["input_ids"]])
        logprobs = model(input_ids=ids).logits[0, first - 1 : -1].log_softmax(-1)
        total -= logprobs.gather(1, ids[0, first:, None]).sum().item()
        tokens += ids.shape[1] - first
    assert result_of(evaluated["random"], EvaluateResult).scores.loss == pytest.approx(total / tokens, abs=0.01)


def test_evaluating_twice_gives_the_same_artifact(evaluated):
    """Every prediction and every loss, by digest."""
    digests = [artifacts.read_manifest(evaluated[name]["uri"]).digest for name in ("model", "again")]
    assert digests[0] == digests[1]


def test_an_adapter_beside_a_model_is_applied_to_it(evaluated):
    """Without it the same weights know next to nothing."""
    adapted, bare = (result_of(evaluated[name], EvaluateResult).scores for name in ("adapted", "bare"))
    assert adapted.exact_match.value == 1
    assert bare.exact_match.value < 0.5


def test_the_manifest_keeps_what_was_measured(evaluated):
    """Start, throughput and memory, outside the result."""
    figures = artifacts.read_manifest(evaluated["model"]["uri"]).figures["baseline"]
    assert figures["generated_tokens_per_s"] > 0
    assert figures["peak_memory_mib"] > 100


def test_rows_that_do_not_fit_score_nothing_and_are_counted(release, evaluated):
    """The longest prompts leave no room for their answers in 14 tokens."""
    scores = result_of(evaluated["short"], EvaluateResult).scores
    missing = [row for row in predictions_of(release, evaluated["short"]) if row.loss is None]
    assert 0 < scores.too_long_rows == len(missing) < scores.rows
    assert all((row.prediction, row.exact_match) == ("", 0) for row in missing)
    assert scores.exact_match.value == pytest.approx(1 - len(missing) / scores.rows, abs=1e-6)


def test_the_first_rung_that_keeps_enough_is_chosen(release, chosen):
    """The 4-bit form answers as the model does, so the 8-bit one is not tried."""
    result = result_of(chosen["first"], EvaluateCompressedResult)
    assert (result.scheme, result.path, len(result.trials)) == ("w4a16", "w4a16", 1)
    assert result.trials[0].recovery.low >= 0.9
    assert "reaches min_recovery 0.9" in result.reason
    assert len(predictions_of(release, chosen["first"])) == 48


def test_a_rung_that_keeps_too_little_gives_way_to_the_next(chosen):
    """The ruined 4-bit form fails with its figures, the 8-bit form is chosen."""
    result = result_of(chosen["second"], EvaluateCompressedResult)
    assert [(trial.scheme, trial.passed) for trial in result.trials] == [("w4a16", False), ("w8a8", True)]
    assert (result.scheme, result.scores.exact_match.value) == ("w8a8", 1)
    assert "does not reach min_recovery 0.9" in result.trials[0].reason


def test_the_unquantized_model_is_the_last_resort(release, evaluated, chosen):
    """Its predictions are those of evaluate, byte for byte."""
    result = result_of(chosen["last"], EvaluateCompressedResult)
    assert (result.scheme, result.path, result.scores) == ("none", ".", result.baseline)
    assert predictions_of(release, chosen["last"]) == predictions_of(release, evaluated["model"])


def test_a_ladder_on_which_nothing_passes_is_refused(chosen):
    """Exit code 65, with the figures of every rung."""
    assert chosen["refused"]["exit_code"] == 65
    assert "w4a16 has exact_match 0.0000" in chosen["refused"]["error"]


def test_a_baseline_that_scores_nothing_releases_no_quantized_form(chosen):
    """Recovery is undefined, which the reason says."""
    result = result_of(chosen["nothing"], EvaluateCompressedResult)
    assert (result.scheme, result.trials[0].recovery) == ("none", None)
    assert "no recovery can be shown" in result.reason


def test_a_step_that_is_ended_leaves_no_process_behind(release, tmp_path):
    """SIGTERM while the engine starts or runs: its whole process group is gone."""
    spec = release.evaluate_spec(release.model, max_model_len=64)
    path = tmp_path / "spec.json"
    path.write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "pipeline", "evaluate", "--spec", str(path)]
    command += ["--out", f"{release.store}/evaluate/{step_key('evaluate', 1, spec)}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **release.environment},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if "the engine is up" in line:
            break
    process.send_signal(signal.SIGTERM)
    process.stdout.read()
    process.stdout.close()
    assert process.wait(timeout=60) != 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
