"""vLLM's own metrics, as much of them as dashboards and rules ask for, counted by the stand-in replica.

`test_vllm_replica.py` holds the names to what a real engine says.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

BUCKETS_S = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0)
TTFT, ITL, WHOLE = "time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"
STARTED_AT = time.time()


@dataclass
class Metrics:
    """Of one replica."""

    running: int = 0
    tokens: int = 0
    finished: int = 0
    times_s: dict[str, list[float]] = field(default_factory=lambda: {TTFT: [], ITL: [], WHOLE: []})

    def text(self) -> str:
        """In Prometheus's form."""
        figures = {
            "num_requests_running": self.running,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": min(1.0, self.running / 10),
            "prompt_tokens_total": 3 * self.finished,
            "generation_tokens_total": self.tokens,
            "num_preemptions_total": 0,
            "prefix_cache_queries_total": 3 * self.finished,
            "prefix_cache_hits_total": self.finished,
        }
        lines = [f'vllm:{name}{{engine="0",model_name="tiny"}} {value}' for name, value in figures.items()]
        lines.append(
            f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="tiny"}} {self.finished}'
        )
        lines.append(f"process_start_time_seconds {STARTED_AT}")
        lines.append(f"process_cpu_seconds_total {time.process_time()}")
        for name, values in self.times_s.items():
            lines += _histogram(f"vllm:{name}", values)
        return "\n".join([*lines, ""])


def _histogram(name: str, values: list[float]) -> list[str]:
    below = Counter({bound: sum(value <= bound for value in values) for bound in BUCKETS_S})
    buckets = [f'{name}_bucket{{model_name="tiny",le="{bound}"}} {below[bound]}' for bound in BUCKETS_S]
    whole = f'{name}_bucket{{model_name="tiny",le="+Inf"}} {len(values)}'
    labels = '{model_name="tiny"}'
    return [*buckets, whole, f"{name}_count{labels} {len(values)}", f"{name}_sum{labels} {sum(values)}"]
