// Of CUDA's header of this name, what csrc/perinucleus.cu uses.
#pragma once

#include <cstdint>
#include <cstring>

inline _Float16 __ushort_as_half(std::uint16_t bits) {
    _Float16 half;
    std::memcpy(&half, &bits, sizeof half);
    return half;
}

inline float __half2float(_Float16 half) { return static_cast<float>(half); }
