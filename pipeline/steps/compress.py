"""compress: quantizes the fine-tuned model into every form that the ladder names; which one is released, the next
step finds out.

Reads the model folder of finetune and train.jsonl of validate. Writes a model folder for each scheme. Runs in the
model environment.
"""

from pathlib import Path

from pipeline.compression.calibration import choose_rows, tokenize
from pipeline.compression.export import prepare_libraries, quantize, weights_size_bytes
from pipeline.contracts.specs import CompressResult, CompressSpec, Rung
from pipeline.job import Job


def run(spec: CompressSpec, job: Job) -> CompressResult:
    model_path = job.fetch_model(spec.model)
    schemes = [scheme for scheme in spec.settings.ladder if scheme != "none"]
    baseline_size_bytes = weights_size_bytes(model_path)
    if not schemes:
        job.say("the ladder names no quantized form: nothing to do")
        return CompressResult(rungs=(), baseline_size_bytes=baseline_size_bytes)
    calibration_ids = calibration(spec, model_path, job)
    rungs = []
    for done, scheme in enumerate(schemes, start=1):
        target = job.staging_path / scheme
        what = quantize(model_path, target, scheme=scheme, calibration_ids=calibration_ids)
        rung = Rung(scheme=scheme, path=scheme, size_bytes=weights_size_bytes(target))
        job.say(f"{scheme}: {what}; {baseline_size_bytes} → {rung.size_bytes} bytes")
        job.progress(done, len(schemes), scheme=scheme)
        rungs.append(rung)
    return CompressResult(rungs=tuple(rungs), baseline_size_bytes=baseline_size_bytes)


def calibration(spec: CompressSpec, model_path: Path, job: Job) -> list[list[int]]:
    """Tokens of the calibration rows."""
    prepare_libraries()
    from transformers import AutoTokenizer

    job.seeds["calibration"] = spec.settings.seed
    rows = choose_rows(job.fetch(spec.dataset), rows=spec.settings.calibration_rows, seed=spec.settings.seed)
    return tokenize(rows, AutoTokenizer.from_pretrained(model_path), spec.max_seq_len)
