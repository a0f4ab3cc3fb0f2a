"""A model's sizes: how many parameters it has, where they are, and which of them tensor parallelism slices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.contracts.recipe import InitModel
from pipeline.errors import SpecError

KINDS = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the models whose layers are counted here: grouped-query attention, a gated MLP, RMSNorm."""

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""By the name of torch's type."""


class UnknownShape(SpecError):
    """A model whose parameters cannot be counted from its config.json."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder of Llama's kind (Touvron et al. 2023)."""

    kind: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    tied: bool
    """The output layer is the embedding."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """A norm over each head of queries and keys (Qwen3)."""
    attention_dropout: float = 0.0
    has_windows: bool = False
    """Some layers attend to a sliding window only."""
    stored: str | None = None
    """The precision of its weights' files, as config.json gives it; None: unknown, or there are no files."""

    @property
    def query_size(self) -> int:
        """Of all heads together."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Of all key heads together; of all value heads, too."""
        return self.num_kv_heads * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a layer's linear maps, by the name that transformers gives them."""
        return {
            "q_proj": (self.hidden_size, self.query_size),
            "k_proj": (self.hidden_size, self.kv_size),
            "v_proj": (self.hidden_size, self.kv_size),
            "o_proj": (self.query_size, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }

    @property
    def layer_linear(self) -> int:
        """Weights of one layer's linear maps, without biases: what multiplies matrices, and what LoRA stands beside."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def layer_sliced(self) -> int:
        """Parameters of one layer that tensor parallelism spreads over ranks."""
        biases = self.qkv_bias * (self.query_size + 2 * self.kv_size) + self.mlp_bias * 2 * self.intermediate_size
        return self.layer_linear + biases

    @property
    def layer_whole(self) -> int:
        """Parameters of one layer that every slice has: norms, and biases that are added once."""
        biases = (self.output_bias + self.mlp_bias) * self.hidden_size
        return 2 * self.hidden_size + biases + self.qk_norm * 2 * self.head_size

    @property
    def layer(self) -> int:
        return self.layer_sliced + self.layer_whole

    @property
    def embedding(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def head(self) -> int:
        """Parameters of the output layer that are not the embedding's."""
        return 0 if self.tied else self.embedding

    @property
    def parameters(self) -> int:
        return self.embedding + self.num_layers * self.layer + self.hidden_size + self.head

    @property
    def undecayed(self) -> int:
        """Parameters that get no weight decay: the embedding, norms and biases (see `engine.parameter_groups`)."""
        return self.parameters - self.num_layers * self.layer_linear - self.head


def from_init(init: InitModel) -> ModelShape:
    """Of the recipe's new model (see `base_model.write_new_model`)."""
    return ModelShape(
        kind="llama",
        hidden_size=init.hidden_size,
        intermediate_size=init.intermediate_size,
        num_layers=init.num_layers,
        num_heads=init.num_heads,
        num_kv_heads=init.num_kv_heads,
        head_size=init.hidden_size // init.num_heads,
        vocab_size=init.vocab_size,
        tied=init.tie_word_embeddings,
        attention_dropout=init.attention_dropout,
    )


def from_config(config: Mapping[str, Any], source: str) -> ModelShape:
    """Of a config.json.

    Args:
        source: where it is from, for messages.

    Raises:
        UnknownShape: a kind of model that is not counted here, or a config without its sizes.
    """
    kind = str(config.get("model_type"))
    if kind not in KINDS:
        raise UnknownShape(
            f"{source}: model_type is {kind!r}, whose memory cannot be planned; expected one of {', '.join(KINDS)}"
        )
    try:
        hidden_size, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelShape(
            kind=kind,
            hidden_size=hidden_size,
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or (128 if kind == "qwen3" else hidden_size // heads)),
            vocab_size=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=kind == "qwen2" or bool(config.get("attention_bias", False)),
            output_bias=kind != "qwen2" and bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=kind == "qwen3",
            attention_dropout=float(config.get("attention_dropout") or 0.0),
            has_windows=_has_windows(config),
            stored=PRECISIONS.get(str(config.get("dtype") or config.get("torch_dtype"))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownShape(f"{source}: no sizes of a {kind} model can be read in it ({error!r})") from error


def _has_windows(config: Mapping[str, Any]) -> bool:
    """As transformers understands Qwen2's and Qwen3's config.json; older ones have no `layer_types`."""
    if types := config.get("layer_types"):
        return "sliding_attention" in types
    layers = int(config["num_hidden_layers"])
    return bool(config.get("use_sliding_window")) and int(config.get("max_window_layers", layers)) < layers
