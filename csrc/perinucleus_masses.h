// A row of logits as float32, the mass of each token, and the order of tokens. Compiled once per instruction set.
//
// Plain loops that compilers vectorise. Every rounding is fixed by the source (no contraction, no reassociation of floats),
// so all instruction sets give identical results.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "half.h"
#include "perinucleus.h"

namespace oml_fast::OML_FAST_ISA {
namespace {

// Only types of this namespace may be template arguments here: the linker merges equal instantiations, and would hand code
// compiled for a newer CPU to an older one.

constexpr int kLanes = 16;
constexpr int kBlock = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Row {
    const float* x;     // [n]
    const float* tail;  // the last, partial block, filled up with -inf
    std::int64_t n;
    const float* block(std::int64_t b) const { return (b + 1) * kBlock <= n ? x + b * kBlock : tail; }
    std::int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
};

Row load_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws) {
    const std::int64_t n = args.vocab, whole = n / kBlock * kBlock, offset = row * args.row_stride;
    if (args.dtype == Dtype::float32) {
        const float* x = static_cast<const float*>(args.logits) + offset;
        for (std::int64_t i = 0; i < kBlock; ++i) ws.row[i] = whole + i < n ? x[whole + i] : -kInfinity;
        return {x, ws.row, n};
    }
    const std::uint16_t* x = static_cast<const std::uint16_t*>(args.logits) + offset;
    if (args.dtype == Dtype::bfloat16)
        for (std::int64_t i = 0; i < n; ++i) ws.row[i] = from_bfloat16(x[i]);
    else
        for (std::int64_t i = 0; i < n; ++i) ws.row[i] = from_float16(x[i]);
    if (whole < n)
        for (std::int64_t i = n; i < whole + kBlock; ++i) ws.row[i] = -kInfinity;
    return {ws.row, ws.row + whole, n};
}

// lane_max[b * kLanes + j] is the maximum over the tokens b * kBlock + i * kLanes + j. Returns whether there is a NaN.
bool lane_maxima(const Row& row, float* lane_max) {
    std::int32_t magnitude[kLanes] = {};
    for (std::int64_t b = 0; b < row.blocks(); ++b) {
        const float* x = row.block(b);
        for (int j = 0; j < kLanes; ++j) {
            float largest = x[j];
            std::int32_t m = magnitude[j];
            for (int i = 0; i < kBlock; i += kLanes) {
                const float value = x[i + j];
                const std::int32_t abs_bits = bits_as<std::int32_t>(value) & 0x7fffffff;
                largest = value > largest ? value : largest;
                m = abs_bits > m ? abs_bits : m;
            }
            lane_max[b * kLanes + j] = largest;
            magnitude[j] = m;
        }
    }
    bool nan = false;
    for (const std::int32_t m : magnitude) nan |= m > 0x7f800000;
    return nan;
}

float maximum(const float* x, std::int64_t n) {
    float largest = -kInfinity;
    for (std::int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

// A token's mass is exp(logit) in float32, scaled by a power of two that the row's maximum sets, then rounded to a multiple
// of 2^-fraction_bits and kept as an integer. The maximum itself is not subtracted: that difference would round, by up to
// 4.8e-7 and alike for all tied tokens, while the reduction by multiples of log(2) is exact. (Beyond 512 the differences
// that matter are exact, so there the maximum is taken off first.)
struct Masses {
    float max, shift, floor, max_exponent;
    double magic;  // added to a double in [0, 2), it leaves the rounded integer in the low bits
    std::uint64_t magic_bits;
};

constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
constexpr float kRound = 0x1.8p+23f;  // adding and taking it off rounds to an integer

inline float exponent_of(float x) { return (x * kLog2E + kRound) - kRound; }

// exp(x) * 2^-max_exponent, for x >= floor; below, what floor gives, which rounds to a mass of 0. Relative error 1e-7.
inline float scaled_exp(float logit, const Masses& m) {
    float x = logit - m.shift;
    x = x > m.floor ? x : m.floor;
    const float k = exponent_of(x);
    const float r = (x - k * kLn2High) - k * kLn2Low;
    float p = 0x1.6a204ep-10f;  // minimax on |r| <= 0.348, relative error 4.5e-9
    p = p * r + 0x1.123c4ap-7f;
    p = p * r + 0x1.5559p-5f;
    p = p * r + 0x1.55548ep-3f;
    p = p * r + 0x1.fffffcp-2f;
    const float e = 1.0f + (r + (r * r) * p);
    const std::int32_t exponent = static_cast<std::int32_t>(k - m.max_exponent);
    return e * bits_as<float>((exponent + 127) << 23);
}

inline std::uint64_t biased_mass(float logit, const Masses& m) {
    return bits_as<std::uint64_t>(static_cast<double>(scaled_exp(logit, m)) + m.magic);
}

inline std::uint64_t mass_of(float logit, const Masses& m) { return biased_mass(logit, m) - m.magic_bits; }

Masses masses_for(float max, std::int64_t vocab) {
    int vocab_bits = 0;
    while ((std::int64_t{1} << vocab_bits) < vocab) ++vocab_bits;
    const int fraction_bits = std::min(44, 62 - vocab_bits);
    Masses m;
    m.max = max;
    m.shift = std::fabs(max) <= 512.0f ? 0.0f : max;
    m.floor = (max - m.shift) - 80.0f;
    m.max_exponent = exponent_of(max - m.shift);
    m.magic = std::ldexp(1.0, 52 - fraction_bits);
    m.magic_bits = bits_as<std::uint64_t>(m.magic);
    return m;
}

std::uint64_t total_mass(const float* x, std::int64_t n, const Masses& m) {
    std::uint64_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += biased_mass(x[i], m);
    return sum - static_cast<std::uint64_t>(n) * m.magic_bits;
}

// Ascending keys are falling logits, and rising ids where logits tie. -0 and +0 tie.
inline std::uint64_t key_of(float logit, std::int32_t id) {
    const std::uint32_t bits = bits_as<std::uint32_t>(logit + 0.0f);
    const std::uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return std::uint64_t{~rising} << 32 | static_cast<std::uint32_t>(id);
}

inline float logit_of(std::uint64_t key) {
    const std::uint32_t rising = ~static_cast<std::uint32_t>(key >> 32);
    return bits_as<float>(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

struct KeyLess {
    bool operator()(std::uint64_t a, std::uint64_t b) const { return a < b; }
};

}  // namespace
}  // namespace oml_fast::OML_FAST_ISA
