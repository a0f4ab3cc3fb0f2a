"""What each scheme of the ladder means, and which layer shapes it can take."""

from typing import Any

from pipeline.errors import SpecError

GROUP_SIZES = (128, 64, 32)
"""Of w4a16: weights of one input row that share a scale, the first that divides every layer. The larger, the
smaller the model; 128 is what GPTQ's authors use (Frantar et al. 2022, arXiv:2210.17323)."""


def layer_inputs(model: Any, ignored: tuple[str, ...]) -> dict[str, int]:
    """Name and input size of every layer that is to be quantized."""
    import torch

    return {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in ignored
    }


def output_layers(model: Any) -> tuple[str, ...]:
    """The names of the layer that turns hidden states into tokens: it stays as it is, being (or being like) the
    embedding, where few bits cost most."""
    head = model.get_output_embeddings()
    return tuple(name for name, module in model.named_modules() if module is head)


def group_size(inputs: dict[str, int]) -> int:
    """The group size of w4a16 for layers of these input sizes.

    Raises:
        SpecError: a layer that the serving engine's 4-bit kernel cannot take.
    """
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in inputs.values()):
            return size
    name, width = next((name, width) for name, width in inputs.items() if width % GROUP_SIZES[-1])
    raise SpecError(
        f"w4a16 cannot take this model: layer {name} has {width} inputs, expected a multiple of {GROUP_SIZES[-1]};"
        " leave w4a16 out of compress.ladder, or start from a model with other sizes"
    )


def modifier(scheme: str, inputs: dict[str, int], ignored: tuple[str, ...]) -> Any:
    """llm-compressor's modifier for `scheme`: GPTQ for both.

    | scheme | weights                            | activations                                |
    |--------|------------------------------------|--------------------------------------------|
    | w8a8   | 8-bit integers, a scale a channel  | 8-bit integers, a scale a token, at serving |
    | w4a16  | 4-bit integers, a scale a group    | as they are                                |
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, QuantizationStrategy
    from llmcompressor.modifiers.gptq import GPTQModifier

    if scheme == "w8a8":
        return GPTQModifier(targets="Linear", scheme="W8A8", ignore=list(ignored))
    if scheme == "w4a16":
        weights = QuantizationArgs(
            num_bits=4, symmetric=True, strategy=QuantizationStrategy.GROUP, group_size=group_size(inputs)
        )
        groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
        return GPTQModifier(config_groups=groups, ignore=list(ignored))
    raise SpecError(f"unknown compression scheme {scheme!r}, expected w8a8 or w4a16")
