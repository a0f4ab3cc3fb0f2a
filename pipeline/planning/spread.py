"""What a model's layers must be like to be spread over ranks."""

from pipeline.contracts.finetune import Parallelism

STAGED_KINDS = ("llama", "qwen2", "qwen3")
"""`model_type` of the models that can be cut into the stages of a pipeline."""


def misfit(
    parallelism: Parallelism, *, kind: str, num_heads: int, num_kv_heads: int, num_layers: int, has_windows: bool
) -> str:
    """Why a model cannot be spread so; empty if it can.

    Args:
        kind: its `model_type`.
        has_windows: some layers attend to a sliding window.
    """
    tensor, sequence, pipeline = parallelism.tensor, parallelism.sequence, parallelism.pipeline
    for name, degree in (("tensor", tensor), ("sequence", sequence)):
        if num_heads % degree:
            return f"{name} ({degree}) must divide the model's attention heads ({num_heads})"
    if num_kv_heads % tensor:
        return f"tensor ({tensor}) must divide the model's key-value heads ({num_kv_heads})"
    if max(num_kv_heads, sequence) % min(num_kv_heads, sequence):
        return (
            f"sequence ({sequence}) must divide the model's key-value heads ({num_kv_heads}), or be a multiple of them"
        )
    return "" if pipeline == 1 else _no_stages(pipeline, kind, num_layers, has_windows=has_windows)


def _no_stages(pipeline: int, kind: str, num_layers: int, *, has_windows: bool) -> str:
    if num_layers < pipeline:
        return f"pipeline ({pipeline}) must not exceed the model's layers ({num_layers})"
    if kind not in STAGED_KINDS:
        return f"the base model is a {kind}; pipeline is for {', '.join(STAGED_KINDS)}: use zero 3 instead"
    if has_windows:
        return (
            "the base model has layers with sliding-window attention, which the stages of a pipeline do not compute:"
            " use zero 3 instead of pipeline"
        )
    return ""
