"""Bytes that a forward pass keeps for the backward pass, per token.

After Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", section 4, which counts
every tensor that an operation keeps; here for the layers that transformers computes for Llama and Qwen, whose norms
work in fp32, whose MLP is gated, and whose attention keeps no matrix of scores (Dao et al. 2022, "FlashAttention").
"""

from pipeline.planning.amounts import NOTHING, Amount
from pipeline.planning.workload import Stage, Workload

NORM_BYTES = 4
"""RMSNorm computes in fp32 whatever the training's precision, and keeps what it normalises so."""
LOSS_COPIES = 3
"""Of the logits in fp32, at the moment when most are alive: the log-softmax, its gradient, and the gradient of the
loss with respect to it."""
DISTILLED_LOSS_COPIES = 6
"""With a teacher also its probabilities, the student's at the same temperature, and their divergence."""


def layer_bytes(work: Workload) -> float:
    """Of one decoder layer, for each token.

    Korthikanti et al. give sbh(10 + 24/t) bytes for GPT's layer with t-way tensor parallelism and 16-bit values:
    what is outside of attention and MLP is whole on every rank, what is inside is divided by t. The same here.
    """
    shape, value, tensor = work.shape, work.value_bytes, work.settings.parallelism.tensor
    hidden = shape.hidden_size
    adapted = work.adapted
    trains_all = work.settings.method != "lora"

    def reads(*names: str) -> bool:
        """Whether the maps called so keep their input: for the gradient of their weights, or of an adapter's."""
        return trains_all or any(name in adapted for name in names)

    norm = NORM_BYTES * hidden + (value * hidden if trains_all else 0)  # its input, and what its weight multiplies
    whole = 2 * norm + value * hidden * (reads("q_proj", "k_proj", "v_proj") + reads("gate_proj", "up_proj"))
    mlp = value * shape.intermediate_size * (3 + reads("down_proj"))  # gate, its SiLU, up; and their product
    adapters = value * work.adapter_rank * len(adapted)
    return whole + (attention_bytes(work) + mlp) / tensor + adapters


def attention_bytes(work: Workload) -> float:
    """Of one layer's attention between its maps, for each token: queries, keys, values, the result and the log-sum of
    each row of scores. A mask for packed rows and dropout on cores cost their part of sequence length more."""
    shape, value = work.shape, work.value_bytes
    packed = work.settings.batching == "packing"
    # With a mask every query head gets its own copy of the keys and values.
    keys_and_values = 2 * (shape.query_size if packed else shape.kv_size)
    total = value * (2 * shape.query_size + keys_and_values) + 4 * shape.num_heads
    if shape.qk_norm:
        total += (NORM_BYTES + value) * (shape.query_size + shape.kv_size)
    if packed:
        total += value * work.sequence_tokens
    if shape.attention_dropout and not work.accelerated:
        # Without a kernel that drops scores: the softmax, the noise, and their product.
        total += 3 * value * shape.num_heads * work.sequence_tokens
    return total


def passing(work: Workload, stage: Stage) -> Amount:
    """What a forward pass makes between the tensors that it keeps, and frees again: counted in the code of transformers
    and peft that computes a layer.

    On cores it leaves holes. glibc before 2.38 takes a block for an aligned tensor only where the tensor and its
    alignment fit, so one of the same size does not fit into the hole of the last (sourceware bug 14581), and each
    layer adds its own. With activation checkpointing all of a layer is freed together, and the next fits there.

        norms       a square in fp32; in 16 bits the result in fp32, too; beside frozen weights also the result
        rotation    queries and keys before it; the queries' product with the cosines, and in three steps that with the
                    sines. These lie side by side: the keys' and the outputs of attention and MLP find their place there
        adapters    of each adapted map the layer's own result, and the adapter's before and after its factor, of which
                    two lie side by side and can be used again: two of three stay
    """
    shape, value = work.shape, work.value_bytes
    hidden, rotated = shape.hidden_size, shape.query_size + shape.kv_size
    trains_all = work.settings.method != "lora"
    norm = NORM_BYTES * (1 if value == NORM_BYTES else 2) + (0 if trains_all else value)
    turned = value * (rotated + 3.5 * shape.query_size) / work.settings.parallelism.tensor
    others = 2 * norm * hidden + turned
    if shape.qk_norm:
        others += norm * rotated
    outputs = [2 * value * size for _, size in work.adapted.values()]
    tokens, layers = work.micro_batch_tokens, 1 if work.settings.activation_checkpointing else stage.num_layers
    sizes = [(others, NORM_BYTES * hidden), *((output, output / 2) for output in outputs)]
    return Amount.of(*((layers * tokens * size, tokens * block) for size, block in sizes))


def kept(work: Workload, stage: Stage) -> Amount:
    """Of all of a stage's layers, for one micro-batch. With activation checkpointing each layer keeps its input alone
    (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""
    hidden = work.shape.hidden_size
    layer = work.value_bytes * hidden if work.settings.activation_checkpointing else layer_bytes(work)
    norm = (NORM_BYTES + 2 * work.value_bytes) * hidden if stage.answers else 0
    return Amount.of((work.micro_batch_tokens * (stage.num_layers * layer + norm), widest_block(work)))


def logits(work: Workload, stage: Stage) -> Amount:
    """Of the loss, when most is alive: logits are one value for each token that counts and each word, in fp32."""
    if not stage.answers:
        return NOTHING
    block = 4.0 * work.counted_tokens * work.shape.vocab_size
    copies = DISTILLED_LOSS_COPIES if work.teacher is not None else LOSS_COPIES
    return Amount.of((copies * block, block))


def backward(work: Workload) -> Amount:
    """Of the layer whose backward pass is under way: gradients of its MLP's tensors; with activation checkpointing
    also the activations, computed again."""
    working = 3 * work.value_bytes * work.shape.intermediate_size / work.settings.parallelism.tensor
    again = layer_bytes(work) if work.settings.activation_checkpointing else 0.0
    return Amount.of((work.micro_batch_tokens * (working + again), widest_block(work)))


def widest_block(work: Workload) -> float:
    """Bytes of the largest tensor that a layer keeps."""
    sliced = work.value_bytes * work.shape.intermediate_size / work.settings.parallelism.tensor
    return work.micro_batch_tokens * max(sliced, NORM_BYTES * work.shape.hidden_size)
