"""The engine that serves, here inside this process: vLLM answers prompts greedily and scores given answers.

It runs in the serve environment. Everything happens in one process, so that no engine outlives a step that ends,
fails or is killed. The start takes about 15 s, most of it vLLM's imports; a second engine in the process, 2 s.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.adapter_files import Adapter, adapter_of
from pipeline.evaluation.rows import Row

MAX_SEQUENCES = 64
"""Answered at once, if the cache has room for them."""
KV_CACHE_BYTES = 1 << 30
"""At most, of the key-value cache, unless a single sequence needs more."""
_BLOCK_TOKENS = 128
"""Of the key-value cache on CPU; elsewhere a divisor of it."""
_BYTES_PER_NUMBER = 4
"""At most, of one number in the cache."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the model made of one row."""

    text: str
    num_tokens: int
    """Generated, with the end of turn."""
    reference_logprobs: list[float]
    """Natural logarithm of the probability of each token of the row's reference answer, given those before it."""


class Engine:
    """A loaded model. See `open_engine`."""

    def __init__(self, llm: Any, max_model_len: int, adapter: Adapter | None = None) -> None:
        self._llm = llm
        self._max_model_len = max_model_len
        self._adapter = adapter

    def answer(self, rows: list[Row], max_new_tokens: int) -> list[Answer]:
        """The model's own answers, and how likely it finds the references. All rows must fit the model's length."""
        from vllm import SamplingParams

        requests = [
            (row.prompt_ids, SamplingParams(temperature=0, max_tokens=min(max_new_tokens, self._room(row))))
            for row in rows
        ]
        requests += [
            (row.prompt_ids + row.answer_ids, SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0))
            for row in rows
        ]
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids, _ in requests],
            [sampling for _, sampling in requests],
            lora_request=self._lora(),
            use_tqdm=False,
        )
        return [
            Answer(
                text=own.outputs[0].text,
                num_tokens=len(own.outputs[0].token_ids),
                reference_logprobs=_reference_logprobs(row, scored),
            )
            for row, own, scored in zip(rows, outputs[: len(rows)], outputs[len(rows) :], strict=True)
        ]

    def _lora(self) -> Any:
        from vllm.lora.request import LoRARequest

        return LoRARequest("adapter", 1, str(self._adapter.path)) if self._adapter else None

    def _room(self, row: Row) -> int:
        return self._max_model_len - len(row.prompt_ids)


@contextlib.contextmanager
def open_engine(model_path: Path, *, max_model_len: int, cache_path: Path) -> Iterator[Engine]:
    """Loads the model for as long as the context lasts.

    Args:
        model_path: a folder in Hugging Face form, quantized or not; an adapter in it is applied.
        max_model_len: tokens of prompt and answer together.
        cache_path: where the engine may keep files of its own.
    """
    _prepare_environment(cache_path)
    import torch
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    torch.cpu._init_amx()  # the 4-bit kernel needs the permission, see pipeline/fleet/replica_worker.py
    sequences, cache_bytes = kv_cache(model_path, max_model_len)
    adapter = adapter_of(model_path)
    lora = {"max_lora_rank": adapter.room, "lora_target_modules": adapter.targets} if adapter else {}
    llm = LLM(
        model=str(model_path),
        max_model_len=max_model_len,
        max_num_seqs=sequences,
        kv_cache_memory_bytes=cache_bytes,
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        seed=0,
        enable_lora=adapter is not None,
        **lora,
    )
    try:
        yield Engine(llm, max_model_len, adapter)
    finally:
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def kv_cache(model_path: Path, max_model_len: int) -> tuple[int, int]:
    """How many sequences to answer at once, and the bytes that hold all of them at full length.

    With that, none is ever preempted, and the same rows always make the same batches.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_path).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    block_bytes = _BLOCK_TOKENS * 2 * _BYTES_PER_NUMBER * config.num_hidden_layers * heads * head_size
    blocks = -(-max_model_len // _BLOCK_TOKENS)
    sequences = max(1, min(MAX_SEQUENCES, KV_CACHE_BYTES // (blocks * block_bytes)))
    return sequences, (sequences * blocks + 1) * block_bytes


def _prepare_environment(cache_path: Path) -> None:
    """What vLLM reads when it is imported.

    One process, nothing compiled (its small compiled functions cost 20 s at the first request and are not covered
    by `enforce_eager`), no pinning to cores that replicas use too, threads that sleep while they wait, no network.
    """
    settings.set_for_libraries(
        {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "VLLM_CACHE_ROOT": str(cache_path / "vllm"),
            "TORCHINDUCTOR_CACHE_DIR": str(cache_path / "inductor"),
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
    )


def _reference_logprobs(row: Row, scored: Any) -> list[float]:
    """From a request whose prompt was the row's prompt and reference."""
    first = len(row.prompt_ids)
    return [scored.prompt_logprobs[first + offset][token].logprob for offset, token in enumerate(row.answer_ids)]
