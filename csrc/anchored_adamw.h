// One step of AdamW with a pull toward the base weights, on the CPU. Semantics: oml_fast/ops/reference.py.
#pragma once

#include <cstdint>

#include "cpu_dispatch.h"
#include "perinucleus.h"

namespace oml_fast {

// As float32, so that every backend computes with the same numbers.
struct AdamWScalars {
    float beta1, gain1;  // gain: 1 - beta
    float beta2, gain2;
    float step_size;     // learning rate / (1 - beta1^t)
    float root_factor;   // 1 / sqrt(1 - beta2^t)
    float eps;
    float keep;          // 1 - pull
};

struct AnchoredAdamWArgs {
    std::int64_t n;
    const void* gradient;    // [n]
    Dtype gradient_dtype;
    float* change;           // [n], or null: compact, where the moments, base and weight are bfloat16
    void* first_moment;      // [n] float32
    void* second_moment;     // [n] float32
    const void* base;        // [n]; null with a change: no weight is written
    void* weight;            // [n]
    Dtype weight_dtype;      // of base and weight
    AdamWScalars scalars;
    std::uint64_t seed, step, offset;  // of compact's roundings; offset: the index of element 0
};

// Elements are independent: results depend on neither threads nor instruction set.
void anchored_adamw(const AnchoredAdamWArgs& args, int threads, Isa isa);

// Elements begin .. end.
namespace baseline {
void anchored_adamw_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end);
}
namespace v2 {
void anchored_adamw_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end);
}
namespace v3 {
void anchored_adamw_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end);
}
namespace v4 {
void anchored_adamw_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end);
}

}  // namespace oml_fast
