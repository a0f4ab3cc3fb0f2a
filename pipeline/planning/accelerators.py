"""Accelerators that a plan knows by name, with the figures of their makers' data sheets."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """Peaks, dense, as NVIDIA's data sheet of the product gives them; a training reaches a part of them."""

    memory_gb: float
    tflops: float
    """In bf16 and fp16."""
    tflops_fp32: float
    memory_gbytes_per_s: float
    link_gbps: float
    """To the other accelerators of its machine, in gigabits per second and direction."""


ACCELERATORS = {
    "a10-24gb": Accelerator(
        memory_gb=24, tflops=125, tflops_fp32=31.2, memory_gbytes_per_s=600, link_gbps=256
    ),  # PCIe 4.0 × 16
    "l4-24gb": Accelerator(memory_gb=24, tflops=121, tflops_fp32=30.3, memory_gbytes_per_s=300, link_gbps=256),
    "l40s-48gb": Accelerator(memory_gb=48, tflops=362, tflops_fp32=91.6, memory_gbytes_per_s=864, link_gbps=256),
    "a100-40gb": Accelerator(memory_gb=40, tflops=312, tflops_fp32=19.5, memory_gbytes_per_s=1555, link_gbps=2400),
    "a100-80gb": Accelerator(memory_gb=80, tflops=312, tflops_fp32=19.5, memory_gbytes_per_s=2039, link_gbps=2400),
    "h100-80gb": Accelerator(memory_gb=80, tflops=989, tflops_fp32=67, memory_gbytes_per_s=3350, link_gbps=3600),
    "h200-141gb": Accelerator(memory_gb=141, tflops=989, tflops_fp32=67, memory_gbytes_per_s=4800, link_gbps=3600),
}
"""SXM modules where there are several kinds; NVLink has two directions, each half of what the sheet says."""
OTHER = "other"
"""An accelerator whose memory and speed the user gives."""
