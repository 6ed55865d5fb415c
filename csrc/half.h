// 16-bit floats and float32. Plain integer arithmetic that compilers vectorise, the same on every instruction set.
#pragma once

#include <cstdint>
#include <cstring>

namespace oml_fast::OML_FAST_ISA {
namespace {

template <typename To, typename From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float from_bfloat16(std::uint16_t half) { return bits_as<float>(std::uint32_t{half} << 16); }

inline float from_float16(std::uint16_t half) {
    constexpr std::uint32_t kRebias = 112u << 23;
    const std::uint32_t magnitude = half & 0x7fffu;
    const std::uint32_t normal = (magnitude << 13) + kRebias;
    const std::uint32_t special = normal + kRebias;  // infinity and NaN keep the highest exponent
    const float subnormal =
        bits_as<float>((magnitude << 13) + kRebias + (1u << 23)) - bits_as<float>(kRebias + (1u << 23));
    std::uint32_t bits = magnitude >= 0x7c00u ? special : normal;
    bits = magnitude < 0x0400u ? bits_as<std::uint32_t>(subnormal) : bits;
    return bits_as<float>(bits | (std::uint32_t{half} & 0x8000u) << 16);
}

inline bool is_nan(std::uint32_t bits) { return static_cast<std::int32_t>(bits & 0x7fffffffu) > 0x7f800000; }

// `noise` in [0, 65535] is added below the last bit that stays: uniform noise makes the rounding unbiased.
inline std::uint16_t to_bfloat16(float value, std::uint32_t noise) {
    const std::uint32_t bits = bits_as<std::uint32_t>(value);
    return static_cast<std::uint16_t>(is_nan(bits) ? 0x7fc0u : (bits + noise) >> 16);
}

// To nearest, ties to even.
inline std::uint16_t to_bfloat16(float value) {
    return to_bfloat16(value, 0x7fffu + ((bits_as<std::uint32_t>(value) >> 16) & 1u));
}

// To nearest, ties to even.
inline std::uint16_t to_float16(float value) {
    constexpr std::uint32_t kRebias = 112u << 23, kHalf = 126u << 23;
    const std::uint32_t bits = bits_as<std::uint32_t>(value);
    const std::int32_t magnitude = static_cast<std::int32_t>(bits & 0x7fffffffu);
    // Below 2^-14, adding 1/2 leaves a multiple of 2^-24, which is float16's subnormal step, in the low bits.
    const float shifted = bits_as<float>(magnitude) + bits_as<float>(kHalf);
    const std::uint32_t subnormal = bits_as<std::uint32_t>(shifted) - kHalf;
    const std::uint32_t odd = (static_cast<std::uint32_t>(magnitude) >> 13) & 1u;
    std::uint32_t half = (static_cast<std::uint32_t>(magnitude) - kRebias + 0xfffu + odd) >> 13;
    half = magnitude < (113 << 23) ? subnormal : half;
    half = magnitude >= (143 << 23) ? 0x7c00u : half;
    half = is_nan(bits) ? 0x7e00u : half | (bits >> 16 & 0x8000u);
    return static_cast<std::uint16_t>(half);
}

}  // namespace
}  // namespace oml_fast::OML_FAST_ISA
