"""The codes of the whole training set as last seen: what a batch is compared with."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robret_lib.fields import check_count
from robret_lib.hashing.batch import Known


class KnownCodes(nn.Module):
    """Relaxed codes U ``[N, bits]`` of a training set, in buffers, so that a checkpoint has them.

    Rows that no batch has held yet are left out, since a code of zeros would be taken for that of an image that has a
    product of 0 with all others; the published codes (CgAT, SAAT) take it so for the whole of the first epoch.

    Args:
        labels: Of the training set, int ``[N]`` or multi-hot ``[N, C]``.
        bits: Of a code.
        unseen: "left out", or "zeros" as in the published codes, labels and all, which are multi-hot then.

    Raises:
        ValueError: No bit, another word for the unseen, or "zeros" with int labels, of which none says "no label".
    """

    codes: Tensor
    labels: Tensor
    seen: Tensor

    def __init__(self, labels: Tensor, bits: int, unseen: str = "left out") -> None:
        super().__init__()
        check_count("bits", bits)
        if unseen not in ("left out", "zeros"):
            raise ValueError(f"unseen={unseen!r}: expected 'left out' or 'zeros'")
        if unseen == "zeros" and labels.ndim == 1:
            raise ValueError("unseen='zeros' with labels int [N]: expected multi-hot [N, C], which can be zeros too")
        self.unseen = unseen
        self.register_buffer("labels", labels.clone())
        self.register_buffer("codes", torch.zeros(len(labels), bits))
        self.register_buffer("seen", torch.zeros(len(labels), dtype=torch.bool))

    def fill(self, codes: Tensor) -> None:
        """All codes ``[N, bits]`` at once, as of a network that is trained already.

        Raises:
            ValueError: Codes of another shape, or with other values than from -1 to 1.
        """
        if codes.shape != self.codes.shape:
            raise ValueError(f"codes of shape {tuple(codes.shape)}: expected {tuple(self.codes.shape)}")
        if not (codes.abs() <= 1).all():
            raise ValueError("codes with other values than from -1 to 1: expected relaxed or binary ones, not outputs")
        self.codes.copy_(codes)
        self.seen.fill_(True)

    def all(self) -> Known:
        """Those that have been seen, or all with zeros; see ``unseen``. To be looked at before the next batch."""
        return self._kept(self.codes, self.seen)

    def with_batch(self, rows: Tensor, codes: Tensor) -> Known:
        """The training set with the codes ``[n, bits]`` of a batch filled in; outside training, nothing is kept.

        Args:
            rows: Which images of the training set they are, int64 ``[n]``.
            codes: Relaxed.
        """
        rows, codes = (_of_all_processes(part) for part in (rows, codes.detach()))
        kept, seen = self.codes.clone(), self.seen.clone()
        kept[rows], seen[rows] = codes.to(kept), True
        if self.training:
            self.codes[rows], self.seen[rows] = kept[rows], True
        return self._kept(kept, seen)

    def _kept(self, codes: Tensor, seen: Tensor) -> Known:
        if seen.all():
            return Known(codes, self.labels)
        if self.unseen == "left out":
            return Known(codes[seen], self.labels[seen])
        return Known(codes, self.labels * seen[:, None])


def _of_all_processes(part: Tensor) -> Tensor:
    if not dist.is_initialized():
        return part
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)
