// The mass of a token, the order of tokens, and probabilities: the same bits on every instruction set and on GPUs.
//
// Every rounding is fixed by the source: no contraction, no reassociation of floats, no function of a mathematical
// library.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "perinucleus.h"

#if defined(__CUDACC__)
#define OML_FAST_ANYWHERE __host__ __device__
#else
#define OML_FAST_ANYWHERE
#endif

namespace oml_fast::OML_FAST_ISA {
namespace {

// Only types of this namespace may be template arguments here: the linker merges equal instantiations, and would hand
// code compiled for a newer CPU to an older one.

constexpr float kInfinity = std::numeric_limits<float>::infinity();

OML_FAST_ANYWHERE inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
OML_FAST_ANYWHERE inline std::uint64_t bits_of(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
OML_FAST_ANYWHERE inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
OML_FAST_ANYWHERE inline double double_of(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
OML_FAST_ANYWHERE inline double power_of_2(int exponent) {
    return double_of(static_cast<std::uint64_t>(1023 + exponent) << 52);
}

OML_FAST_ANYWHERE inline RowStatus status_of_maximum(bool nan, float max) {
    if (nan) return kRowNan;
    if (max == kInfinity) return kRowPlusInfinity;
    return max == -kInfinity ? kRowNoFinite : kRowOk;
}

// A token's mass is exp(logit) in float32, scaled by a power of two that the row's maximum sets, then rounded to a
// multiple of 2^-fraction_bits and kept as an integer. The maximum itself is not subtracted: that difference would
// round, by up to 4.8e-7 and alike for all tied tokens, while the reduction by multiples of log(2) is exact. (Beyond
// 512 the differences that matter are exact, so there the maximum is taken off first.)
struct Masses {
    float max, shift, floor, max_exponent;
    double magic;  // added to a double in [0, 2), it leaves the rounded integer in the low bits
    std::uint64_t magic_bits;
    std::uint32_t exponent_bits;  // of kRound + max_exponent
};

constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
constexpr float kRound = 0x1.8p+23f;  // adding it rounds to an integer, which the low bits then hold

// exp(x) * 2^-max_exponent, for x >= floor; below, what floor gives, which rounds to a mass of 0. Relative error 1e-7.
OML_FAST_ANYWHERE inline float scaled_exp(float logit, const Masses& m) {
    float x = logit - m.shift;
    x = x > m.floor ? x : m.floor;
    const float rounded = x * kLog2E + kRound;
    const float k = rounded - kRound;
    const float r = (x - k * kLn2High) - k * kLn2Low;
    float p = 0x1.6a204ep-10f;  // minimax on |r| <= 0.348, relative error 4.5e-9
    p = p * r + 0x1.123c4ap-7f;
    p = p * r + 0x1.5559p-5f;
    p = p * r + 0x1.55548ep-3f;
    p = p * r + 0x1.fffffcp-2f;
    const float e = 1.0f + (r + (r * r) * p);
    return float_of(bits_of(e) + ((bits_of(rounded) - m.exponent_bits) << 23));  // the result is never subnormal
}

OML_FAST_ANYWHERE inline std::uint64_t biased_mass(float logit, const Masses& m) {
    return bits_of(static_cast<double>(scaled_exp(logit, m)) + m.magic);
}

OML_FAST_ANYWHERE inline std::uint64_t mass_of(float logit, const Masses& m) {
    return biased_mass(logit, m) - m.magic_bits;
}

OML_FAST_ANYWHERE inline Masses masses_for(float max, std::int64_t vocab) {
    int vocab_bits = 0;
    while ((std::int64_t{1} << vocab_bits) < vocab) ++vocab_bits;
    const int fraction_bits = vocab_bits < 18 ? 44 : 62 - vocab_bits;
    Masses m;
    m.max = max;
    m.shift = max >= -512.0f && max <= 512.0f ? 0.0f : max;
    m.floor = (max - m.shift) - 80.0f;
    const float rounded = (max - m.shift) * kLog2E + kRound;
    m.max_exponent = rounded - kRound;
    m.exponent_bits = bits_of(rounded);
    m.magic = power_of_2(52 - fraction_bits);
    m.magic_bits = bits_of(m.magic);
    return m;
}

OML_FAST_ANYWHERE inline bool reaches(std::uint64_t mass, double goal) { return static_cast<double>(mass) >= goal; }

// exp(x) for x <= 1 with a relative error of 3e-16, subnormal results included; 0 below.
OML_FAST_ANYWHERE inline double exact_exp(double x) {
    if (!(x > -746.0)) return 0.0;
    const double k = (x * 0x1.71547652b82fep+0 + 0x1.8p+52) - 0x1.8p+52;
    const double r = (x - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    double p = 1.0 / 6227020800.0;  // the series, to r^13 / 13!
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    const double e = 1.0 + (r + (r * r) * p);
    const int exponent = static_cast<int>(k), half = exponent / 2;
    return e * power_of_2(half) * power_of_2(exponent - half);  // only the last product may round
}

// The sum of exp(logit - max) over the row, from its total mass.
OML_FAST_ANYWHERE inline double normaliser_of(std::uint64_t total, const Masses& m) {
    const double at_max = exact_exp(static_cast<double>(m.max) - m.shift - m.max_exponent * 0x1.62e42fefa39efp-1);
    return static_cast<double>(total) / (at_max * 0x1p+52 / m.magic);
}

OML_FAST_ANYWHERE inline double probability_of(float logit, double normaliser, const Masses& m) {
    return exact_exp(static_cast<double>(logit) - static_cast<double>(m.max)) / normaliser;
}

// Rises with the value; zeros of either sign tie.
OML_FAST_ANYWHERE inline std::uint32_t rising_of(float value) {
    const std::uint32_t bits = bits_of(value + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

OML_FAST_ANYWHERE inline float value_of_rising(std::uint32_t rising) {
    return float_of(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

// Ascending keys are falling logits, and rising ids where logits tie.
OML_FAST_ANYWHERE inline std::uint64_t key_of(float logit, std::int32_t id) {
    return std::uint64_t{~rising_of(logit)} << 32 | static_cast<std::uint32_t>(id);
}

OML_FAST_ANYWHERE inline float logit_of(std::uint64_t key) {
    return value_of_rising(~static_cast<std::uint32_t>(key >> 32));
}

OML_FAST_ANYWHERE inline std::int32_t id_of(std::uint64_t key) {
    return static_cast<std::int32_t>(key & 0xffffffffu);
}

}  // namespace
}  // namespace oml_fast::OML_FAST_ISA
