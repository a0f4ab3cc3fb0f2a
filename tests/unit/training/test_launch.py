"""What the step asks of the machine before it starts ranks."""

import pytest

from pipeline.contracts.finetune import Finetune
from pipeline.errors import SpecError
from pipeline.steps.finetune import check_overlap


def test_overlap_needs_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by name where torch sees none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    check_overlap(Finetune())
    with pytest.raises(SpecError, match=r"communication.overlap is true, which needs an accelerator"):
        check_overlap(Finetune.model_validate({"communication": {"overlap": True}}))
