"""A step's scalars, read while the device takes the next step."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


class ScalarCopy:
    """Scalars on their way from the device to the host, in one copy.

    Parameters
    ----------
    scalars : mapping of str to () float tensor, all on one device

    Notes
    -----
    Whoever reads them at once waits for the whole step, and the device then
    waits for the next one. Read one step later, they cost no time.
    """

    def __init__(self, scalars: Mapping[str, torch.Tensor]) -> None:
        self._names = list(scalars)
        values = torch.stack([*scalars.values()])
        self._values = values.to("cpu", non_blocking=True)  # in pinned memory
        self._copied = torch.cuda.Event() if values.is_cuda else None
        if self._copied:
            self._copied.record()

    def read(self) -> dict[str, float]:
        """Wait for these scalars, and for nothing that the device got to do after them."""
        if self._copied:
            self._copied.synchronize()
        return dict(zip(self._names, self._values.tolist(), strict=True))


@dataclass(frozen=True)
class Step:
    """What the device was told to do with a batch."""

    scalars: ScalarCopy
    number: int  # of the batch in its epoch, from 1
    subject_ids: list[str]  # of this process
    count: int  # of the subjects of all processes
