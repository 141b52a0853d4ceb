"""GGUF blocks -> MLX affine quantisation. numpy only; every function is vectorised over blocks.

MLX's affine mode says `w = scale * q + bias` for each group of 32 weights along a row, with q an unsigned
integer of `bits` bits; the q of a row are one little-endian bit stream, least significant bit first.

    exact       Q4_0 Q4_1 Q4_K -> 4 bits, Q5_0 Q5_1 Q5_K -> 5 bits, Q8_0 -> 8 bits
    requantised Q6_K -> 8 bits, Q3_K -> 5 bits, Q2_K -> 4 bits

The last three keep a scale for every 16 weights, which affine groups of 32 cannot hold, so they are decoded
and rounded to a finer grid. On normally distributed weights that adds an error of 0.5, 3.7 and 6.8 % of the
weights' RMS to the 1.9, 15 and 33 % that these types have lost already: 3 % more, as errors add in squares.

Scales and biases are float32: a K-type's scale is a product of a float16 and a 6-bit integer, 17 significant
bits, so float32 is the smallest type that keeps the weights exactly as they were. It is also the only fast
type on a CPU. A loader that computes in half precision casts them to config.json's `torch_dtype`.

Block layouts are those of ggml (ggml-common.h); d and m are float16, the last axis of every array is bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlxo.core.errors import Corrupt
from mlxo.store.gguf import TensorType

GROUP = 32

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# A uint8 operand keeps the array uint8.
_FOUR, _LOW, _ONE, _TOP = np.uint8(4), np.uint8(15), np.uint8(1), np.uint8(128)


class Decoded(NamedTuple):
    """q is [blocks, weights of a block]; scales and biases are [blocks, groups of 32 of a block]."""

    q: Bytes
    scales: Floats
    biases: Floats


class Packed(NamedTuple):
    """What MLX stores. weight: [rows, columns * bits / 32]; scales, biases: [rows, columns / 32]."""

    weight: NDArray[np.uint32]
    scales: Floats
    biases: Floats


def bits_of(kind: TensorType) -> int | None:
    """Bits a weight after conversion, or None for a floating-point type, which stays as it is."""
    entry = _DECODERS.get(kind.name)
    return entry[0] if entry else None


def repack(kind: TensorType, raw: Bytes) -> Packed:
    """`raw` is [rows, bytes of a row], of a type that bits_of knows. Raises Corrupt for infinite scales."""
    bits, decode = _DECODERS[kind.name]
    rows = raw.shape[0]
    with np.errstate(all="ignore"):  # what is not finite is refused below
        q, scales, biases = decode(raw.reshape(-1, kind.size))
    if not (np.isfinite(scales).all() and np.isfinite(biases).all()):
        raise Corrupt("the GGUF file holds weights that are not finite numbers", "fetch the file again")
    return Packed(
        pack(q.reshape(rows, -1), bits),
        scales.reshape(rows, -1).astype(np.float32, copy=False),
        biases.reshape(rows, -1).astype(np.float32, copy=False),
    )


def pack(q: Bytes, bits: int) -> NDArray[np.uint32]:
    """[rows, columns] of values below 2**bits, columns a multiple of 32 -> [rows, columns * bits / 32]."""
    rows = q.shape[0]
    if bits == 8:
        stream = np.ascontiguousarray(q)
    elif bits == 4:
        stream = q[:, 0::2] | (q[:, 1::2] << _FOUR)
    else:  # eight values make `bits` whole bytes
        octets = q.reshape(-1, 8)
        word = np.zeros(len(octets), dtype="<u8")
        for i in range(8):
            word |= octets[:, i].astype(np.uint64) << np.uint64(bits * i)
        stream = np.ascontiguousarray(word.view(np.uint8).reshape(-1, 8)[:, :bits])
    return stream.reshape(rows, -1).view("<u4").astype(np.uint32, copy=False)


def requantise(weights: Floats, bits: int) -> Decoded:
    """Round [blocks, weights] to the affine grid from minimum to maximum of each group of 32."""
    groups = weights.reshape(len(weights), -1, GROUP)
    low = groups.min(axis=2)
    step = (groups.max(axis=2) - low) / np.float32(2**bits - 1)
    safe = np.where(step > 0, step, np.float32(1))  # a constant group is all bias
    q = np.rint((groups - low[..., None]) / safe[..., None])
    return Decoded(q.astype(np.uint8).reshape(weights.shape), safe, low)


def bfloat16(values: Floats) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; the result is its bits."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    return rounded.astype(np.uint16)


# ---------------------------------------------------------------- blocks of 32


def _half(block: Bytes, at: int) -> Floats:
    """The float16 that starts at byte `at`: [blocks, 1]."""
    return np.ascontiguousarray(block[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(qs: Bytes) -> Bytes:
    """Of a block of 32: the low nibbles are weights 0-15, the high ones 16-31."""
    return np.concatenate([qs & _LOW, qs >> _FOUR], axis=1)


def _fifth_bits(qh: Bytes) -> Bytes:
    """Bit i of a little-endian u32 belongs to weight i: [blocks, 32], 0 or 16."""
    return np.unpackbits(qh, axis=1, bitorder="little") << _FOUR


def _q4_0(block: Bytes) -> Decoded:  # d, 16 bytes
    d = _half(block, 0)
    return Decoded(_nibbles(block[:, 2:]), d, d * -8)


def _q4_1(block: Bytes) -> Decoded:  # d, m, 16 bytes
    return Decoded(_nibbles(block[:, 4:]), _half(block, 0), _half(block, 2))


def _q5_0(block: Bytes) -> Decoded:  # d, 4 bytes of fifth bits, 16 bytes
    d = _half(block, 0)
    return Decoded(_nibbles(block[:, 6:]) | _fifth_bits(block[:, 2:6]), d, d * -16)


def _q5_1(block: Bytes) -> Decoded:  # d, m, 4 bytes of fifth bits, 16 bytes
    q = _nibbles(block[:, 8:]) | _fifth_bits(block[:, 4:8])
    return Decoded(q, _half(block, 0), _half(block, 2))


def _q8_0(block: Bytes) -> Decoded:  # d, 32 signed bytes
    d = _half(block, 0)
    return Decoded(block[:, 2:] ^ _TOP, d, d * -128)  # two's complement: flipping the top bit adds 128


# ---------------------------------------------------------------- super-blocks of 256


def _k_scales(packed: Bytes) -> tuple[Floats, Floats]:
    """12 bytes -> eight 6-bit scales and eight 6-bit minimums, each [blocks, 8].

    Bytes 0-3 and 4-7 hold the first four of each in their low six bits; bytes 8-11 hold the low nibbles
    of the last four, whose upper two bits are the upper two bits of bytes 0-3 and 4-7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate(
        [first & np.uint8(63), (third & _LOW) | ((first >> np.uint8(6)) << _FOUR)], axis=1
    )
    minimums = np.concatenate(
        [second & np.uint8(63), (third >> _FOUR) | ((second >> np.uint8(6)) << _FOUR)], axis=1
    )
    return scales.astype(np.float32), minimums.astype(np.float32)


def _k_nibbles(qs: Bytes) -> Bytes:
    """Each run of 32 bytes: its low nibbles are one sub-block of 32 weights, its high nibbles the next."""
    runs = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([runs & _LOW, runs >> _FOUR], axis=2).reshape(-1, 256)


def _q4_k(block: Bytes) -> Decoded:  # d, dmin, 12 bytes of scales, 128 bytes
    scales, minimums = _k_scales(block[:, 4:16])
    return Decoded(_k_nibbles(block[:, 16:]), _half(block, 0) * scales, -_half(block, 2) * minimums)


def _q5_k(block: Bytes) -> Decoded:  # d, dmin, 12 bytes of scales, 32 of fifth bits, 128 bytes
    scales, minimums = _k_scales(block[:, 4:16])
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)  # bit j of byte i: weight i of sub-block j
    fifth = ((block[:, None, 16:48] >> shifts) & _ONE) << _FOUR
    q = _k_nibbles(block[:, 48:]) | fifth.reshape(-1, 256)
    return Decoded(q, _half(block, 0) * scales, -_half(block, 2) * minimums)


def _crumbs(packed: Bytes) -> Bytes:
    """Two-bit values: each run of 32 bytes holds 128 weights, bits 0-1 the first 32 of them."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 1, 4, 1)
    return ((packed.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)).reshape(-1, 256)


def _sixteenths(q: NDArray[np.float32], scales: Floats) -> Floats:
    """Multiply [blocks, 256] by the [blocks, 16] scales of its sub-blocks of 16."""
    return (q.reshape(-1, 16, 16) * scales[..., None]).reshape(-1, 256)


def _q6_k(block: Bytes) -> Decoded:  # 128 low nibbles, 64 upper crumbs, 16 signed scales, d
    low = block[:, :128].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate([low & _LOW, low >> _FOUR], axis=2).reshape(-1, 256)
    q = (nibbles | (_crumbs(block[:, 128:192]) << _FOUR)).astype(np.float32) - 32
    scales = _half(block, 208) * np.ascontiguousarray(block[:, 192:208]).view(np.int8)
    return requantise(_sixteenths(q, scales), 8)


def _q3_k(block: Bytes) -> Decoded:  # 32 bytes of third bits, 64 crumbs, 12 bytes of scales, d
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    third = ((block[:, None, :32] >> shifts) & _ONE).reshape(-1, 256)
    q = (_crumbs(block[:, 32:96]) | (third << 2)).astype(np.float32) - 4
    packed = block[:, 96:108]
    lower = np.concatenate([packed[:, :8] & _LOW, packed[:, :8] >> _FOUR], axis=1)
    upper = (packed[:, None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8).reshape(1, 4, 1)) & 3
    scales = (lower | (upper.reshape(-1, 16) << _FOUR)).astype(np.float32) - 32
    return requantise(_sixteenths(q, _half(block, 108) * scales), 5)


def _q2_k(block: Bytes) -> Decoded:  # 16 scales and minimums as nibbles, 64 crumbs, d, dmin
    scales = _half(block, 80) * (block[:, :16] & _LOW)
    minimums = _half(block, 82) * (block[:, :16] >> _FOUR)
    weights = _sixteenths(_crumbs(block[:, 16:80]).astype(np.float32), scales)
    weights -= np.repeat(minimums, 16, axis=1)
    return requantise(weights, 4)


_DECODERS: dict[str, tuple[int, Callable[[Bytes], Decoded]]] = {
    "Q4_0": (4, _q4_0),
    "Q4_1": (4, _q4_1),
    "Q5_0": (5, _q5_0),
    "Q5_1": (5, _q5_1),
    "Q8_0": (8, _q8_0),
    "Q2_K": (4, _q2_k),
    "Q3_K": (5, _q3_k),
    "Q4_K": (4, _q4_k),
    "Q5_K": (5, _q5_k),
    "Q6_K": (8, _q6_k),
}
