"""Binary codes in {-1, +1}, and packed into words, in which a distance is two operations on 64 bits at once."""

import numpy as np
import torch
from torch import Tensor

WORD = 64
OF_BITS = "codes of zeros and ones become codes in {-1, +1} by 2 * codes - 1"


def codes_of(outputs: Tensor) -> Tensor:
    """The codes, int8 in {-1, +1}, of real outputs of any shape; an output of exactly 0 is +1.

    Raises:
        ValueError: NaN, which has no sign; or truth values, which all are +1.
    """
    if outputs.dtype == torch.bool:
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} of type bool: {OF_BITS}")
    if outputs.isnan().any():
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} with NaN: they have no code")
    return 1 - 2 * (outputs < 0).to(torch.int8)


def hamming_distance(queries: Tensor, gallery: Tensor) -> Tensor:
    """In how many bits codes differ: int16 ``[A, B]`` for codes in {-1, +1} ``[A, bits]`` and ``[B, bits]``.

    Raises:
        ValueError: Anything but such codes.
    """
    check_codes(queries, gallery)
    items = words_of(gallery > 0)
    rows = [differing_bits(query, items, gallery.shape[1]) for query in words_of(queries > 0).T]
    return torch.from_numpy(np.stack(rows).astype(np.int16)).to(queries.device)


def check_codes(queries: Tensor, gallery: Tensor) -> None:
    """Check that both are codes in {-1, +1} ``[N, bits]``, in any dtype, of as many bits and at least one code each.

    Raises:
        ValueError: if not.
    """
    check_binary("query", queries)
    check_binary("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"query codes of {queries.shape[1]} bits, gallery codes of {gallery.shape[1]}")


def check_binary(what: str, codes: Tensor) -> None:
    """Check that codes, of what a message calls them, are in {-1, +1} ``[N, bits]``, in any dtype, and at least one.

    Raises:
        ValueError: if not.
    """
    if codes.ndim != 2 or 0 in codes.shape:
        raise ValueError(f"{what} codes of shape {tuple(codes.shape)}: expected [N, bits]")
    if not ((codes == 1) | (codes == -1)).all():
        bits = ((codes == 0) | (codes == 1)).all()
        hint = OF_BITS if bits else "see hamming.codes_of"  # which takes a 0 for +1
        raise ValueError(f"{what} codes with other values than -1 and +1: {hint}")


def words_of(bits: Tensor) -> np.ndarray:
    """Bits ``[N, K]`` in uint64 ``[ceil(K / 64), N]``: a gallery is gone through word by word."""
    packed = np.packbits(bits.cpu().numpy().astype(bool), axis=1)
    missing = -packed.shape[1] % (WORD // 8)
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, missing))).view(np.uint64).T)


def differing_bits(query: np.ndarray, items: np.ndarray, bits: int) -> np.ndarray:
    """In how many of so many bits ``[N]`` items differ from a query, given in words ``[words]`` and ``[words, N]``.

    Unsigned, with room for twice as many and two more (see `lists.Lists`).
    """
    counts = np.bitwise_count(items[0] ^ query[0])
    if 2 * bits + 2 > np.iinfo(counts.dtype).max:
        counts = counts.astype(np.uint16)
    for word, own in zip(items[1:], query[1:], strict=True):
        counts += np.bitwise_count(word ^ own)
    return counts
