"""Bytes, and how many of them a process on cores does not give back."""

from dataclasses import dataclass

MMAP_THRESHOLD = 32 * 1024 * 1024
"""glibc's malloc returns blocks as large as this to the system when they are freed; of smaller ones it keeps the
memory, for blocks to come (mallopt(3), M_MMAP_THRESHOLD: the threshold moves up to it by itself)."""


@dataclass(frozen=True)
class Amount:
    """Bytes in tensors."""

    total: float = 0.0
    small: float = 0.0
    """Those in tensors below MMAP_THRESHOLD."""

    @classmethod
    def of(cls, *parts: tuple[float, float]) -> "Amount":
        """From pairs: bytes, and bytes of each of the tensors that they are in."""
        return cls(
            total=sum(size for size, _ in parts), small=sum(size for size, block in parts if block < MMAP_THRESHOLD)
        )

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.total + other.total, self.small + other.small)

    def __mul__(self, factor: float) -> "Amount":
        return Amount(self.total * factor, self.small * factor)


NOTHING = Amount()
