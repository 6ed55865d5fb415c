"""The mass of a token, the order of tokens, and probabilities: csrc/perinucleus_masses.h in Triton, the same bits.

A token's key is one integer, 32 bits of logit above 20 of id: ascending keys are falling logits, rising ids for ties.
Every operation on floats is rounded on its own: kernels that use this are compiled without fusion.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import ordered_bits

ID_BITS, ID_MASK = tl.constexpr(20), tl.constexpr(2**20 - 1)
KEY_BITS = tl.constexpr(52)
NO_TOKEN = tl.constexpr(0xFF800000 << 20)  # the key of -inf and id 0: such tokens are none

LOG2_E = tl.constexpr(float.fromhex("0x1.715476p+0"))
LN2_HIGH = tl.constexpr(float.fromhex("0x1.63p-1"))
LN2_LOW = tl.constexpr(float.fromhex("-0x1.bd0106p-13"))
ROUND = tl.constexpr(float.fromhex("0x1.8p+23"))  # adding it rounds to an integer, which the low bits then hold
EXP_2 = tl.constexpr(float.fromhex("0x1.fffffcp-2"))
EXP_3 = tl.constexpr(float.fromhex("0x1.55548ep-3"))
EXP_4 = tl.constexpr(float.fromhex("0x1.5559p-5"))
EXP_5 = tl.constexpr(float.fromhex("0x1.123c4ap-7"))
EXP_6 = tl.constexpr(float.fromhex("0x1.6a204ep-10"))

# The same in float64.
LOG2_E_64 = tl.constexpr(float.fromhex("0x1.71547652b82fep+0"))
LN2_64 = tl.constexpr(float.fromhex("0x1.62e42fefa39efp-1"))
LN2_HIGH_64 = tl.constexpr(float.fromhex("0x1.62e42feep-1"))
LN2_LOW_64 = tl.constexpr(float.fromhex("0x1.a39ef35793c76p-33"))
ROUND_64 = tl.constexpr(float.fromhex("0x1.8p+52"))


@triton.jit
def shift_of(top):
    """What is taken off logits before exp, see csrc/perinucleus_masses.h."""
    return tl.where(tl.abs(top) <= 512.0, 0.0, top)


@triton.jit
def masses_of(x, top, FRACTION: tl.constexpr):
    """exp(x) 2^-k in units of 2^-FRACTION as int64; the row's maximum sets k. csrc/perinucleus_masses.h, to the bit."""
    shift = shift_of(top)
    z = x - shift
    lowest = (top - shift) - 80.0
    z = tl.where(z > lowest, z, lowest)
    rounded = z * LOG2_E + ROUND
    k = rounded - ROUND
    r = (z - k * LN2_HIGH) - k * LN2_LOW
    p = EXP_6 * r + EXP_5
    p = p * r + EXP_4
    p = p * r + EXP_3
    p = p * r + EXP_2
    e = 1.0 + (r + (r * r) * p)
    exponent = rounded.to(tl.int32, bitcast=True) - ((top - shift) * LOG2_E + ROUND).to(tl.int32, bitcast=True)
    scaled = (e.to(tl.int32, bitcast=True) + (exponent << 23)).to(tl.float32, bitcast=True)
    # Adding 2^(52 - FRACTION) to a double in [0, 2) leaves the rounded integer in its low bits.
    biased = scaled.to(tl.float64) + 2.0 ** (52 - FRACTION)
    return biased.to(tl.int64, bitcast=True) - ((1075 - FRACTION) << 52)


@triton.jit
def power_of_2(exponent):
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def exact_exp(x):
    """exp(x) in float64 for x <= 1, with a relative error of 3e-16; 0 below -746."""
    z = tl.where(x > -746.0, x, 0.0)
    k = (z * LOG2_E_64 + ROUND_64) - ROUND_64
    r = (z - k * LN2_HIGH_64) - k * LN2_LOW_64
    p = (1 / 6227020800) * r + 1 / 479001600  # the series, to r^13 / 13!
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    e = 1.0 + (r + (r * r) * p)
    exponent = k.to(tl.int64)
    half = exponent >> 1
    return tl.where(x > -746.0, e * power_of_2(half) * power_of_2(exponent - half), 0.0)


@triton.jit
def normaliser_of(total, top, FRACTION: tl.constexpr):
    """The sum of exp(logit - maximum) over a row, from its mass."""
    shift = shift_of(top)
    k = ((top - shift) * LOG2_E + ROUND) - ROUND
    largest = exact_exp(top.to(tl.float64) - shift.to(tl.float64) - k.to(tl.float64) * LN2_64)
    return total.to(tl.float64) / (largest * 2.0**FRACTION)


@triton.jit
def probabilities_of(x, top, normaliser):
    return exact_exp(x.to(tl.float64) - top.to(tl.float64)) / normaliser


@triton.jit
def keys_of(x, ids):
    return ((0xFFFFFFFF - ordered_bits(x)) << ID_BITS) | ids


@triton.jit
def logits_of(keys):
    falling = keys >> ID_BITS
    bits = tl.where(falling >= 0x80000000, falling, 0x7FFFFFFF - falling)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def ids_of(keys):
    return keys & ID_MASK
