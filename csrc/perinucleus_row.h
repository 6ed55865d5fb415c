// A row of logits as float32 and what the passes over all of it find. Compiled once per instruction set: plain loops
// that compilers vectorise.
#pragma once

#include "half.h"
#include "perinucleus_masses.h"

namespace oml_fast::OML_FAST_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int kBlock = 256;

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

std::uint64_t total_mass(const float* x, std::int64_t n, const Masses& m) {
    std::uint64_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += biased_mass(x[i], m);
    return sum - static_cast<std::uint64_t>(n) * m.magic_bits;
}

}  // namespace
}  // namespace oml_fast::OML_FAST_ISA
