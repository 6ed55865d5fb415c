// Some elements of an anchored AdamW step, compiled once per instruction set.
//
// Every float32 operation stands in the order of oml_fast/ops/reference.py, each rounded on its own: no contraction,
// and square root and division are correctly rounded everywhere. So all instruction sets give the reference's bits.
#include "anchored_adamw.h"

#include <cmath>

#include "half.h"

namespace oml_fast::OML_FAST_ISA {
namespace {

// What an array holds. Only types of this namespace may be template arguments here: the linker merges equal
// instantiations, and would hand code compiled for a newer CPU to an older one.
struct Float32 {
    using Stored = float;
    static float load(float stored) { return stored; }
    static float store(float value) { return value; }
};
struct Bfloat16 {
    using Stored = std::uint16_t;
    static float load(std::uint16_t stored) { return from_bfloat16(stored); }
    static std::uint16_t store(float value) { return to_bfloat16(value); }
};
struct Float16 {
    using Stored = std::uint16_t;
    static float load(std::uint16_t stored) { return from_float16(stored); }
    static std::uint16_t store(float value) { return to_float16(value); }
};

// The moments in place; returns what AdamW takes off the weight.
inline float adamw_update(float g, float& m, float& v, const AdamWScalars& s) {
    m = s.beta1 * m + s.gain1 * g;
    v = s.beta2 * v + (s.gain2 * g) * g;
    return (s.step_size * m) / (std::sqrt(v) * s.root_factor + s.eps);
}

template <typename Gradient>
void update_changes(std::int64_t n, const typename Gradient::Stored* __restrict gradient, float* __restrict change,
                    float* __restrict first, float* __restrict second, const AdamWScalars s) {
    for (std::int64_t i = 0; i < n; ++i) {
        float m = first[i], v = second[i];
        const float update = adamw_update(Gradient::load(gradient[i]), m, v, s);
        first[i] = m;
        second[i] = v;
        change[i] = (change[i] - update) * s.keep;
    }
}

template <typename Gradient, typename Weight>
void update_masters(std::int64_t n, const typename Gradient::Stored* __restrict gradient, float* __restrict change,
                    float* __restrict first, float* __restrict second,
                    const typename Weight::Stored* __restrict base, typename Weight::Stored* __restrict weight,
                    const AdamWScalars s) {
    for (std::int64_t i = 0; i < n; ++i) {
        float m = first[i], v = second[i];
        const float update = adamw_update(Gradient::load(gradient[i]), m, v, s);
        first[i] = m;
        second[i] = v;
        const float changed = (change[i] - update) * s.keep;
        change[i] = changed;
        weight[i] = Weight::store(Weight::load(base[i]) + changed);
    }
}

// Compilers know this for the upper half of a product, which vectors have without the lower one.
inline std::uint32_t high_product(std::uint32_t a, std::uint32_t b) {
    return static_cast<std::uint32_t>(std::uint64_t{a} * b >> 32);
}

// Philox 4x32-7 [Salmon et al. 2011] with key `seed` and counters (pair, step), (pair + 1, step), ...: two random words
// for each of two elements. Pairs count in 32 bits, with the carry apart: vectors hold more of these.
void draw_words(std::uint64_t pair, std::uint32_t pairs, std::uint64_t step, std::uint64_t seed,
                std::uint32_t* __restrict word0, std::uint32_t* __restrict word1) {
    constexpr std::uint32_t kFactor0 = 0xD2511F53u, kFactor1 = 0xCD9E8D57u;
    const std::uint32_t low = static_cast<std::uint32_t>(pair), high = static_cast<std::uint32_t>(pair >> 32);
    for (std::uint32_t i = 0; i < pairs; ++i) {
        std::uint32_t c0 = low + i, c1 = high + (low + i < low ? 1u : 0u);
        std::uint32_t c2 = static_cast<std::uint32_t>(step), c3 = static_cast<std::uint32_t>(step >> 32);
        std::uint32_t key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
        for (int round = 0; round < 7; ++round) {
            const std::uint32_t high0 = high_product(kFactor0, c0), high1 = high_product(kFactor1, c2);
            const std::uint32_t low0 = kFactor0 * c0, low1 = kFactor1 * c2;
            c0 = high1 ^ c1 ^ key0;
            c1 = low1;
            c2 = high0 ^ c3 ^ key1;
            c3 = low0;
            key0 += 0x9E3779B9u;
            key1 += 0xBB67AE85u;
        }
        word0[2 * i] = c0;
        word1[2 * i] = c1;
        word0[2 * i + 1] = c2;
        word1[2 * i + 1] = c3;
    }
}

template <typename Gradient>
void update_compact(std::uint32_t n, const typename Gradient::Stored* __restrict gradient,
                    std::uint16_t* __restrict first, std::uint16_t* __restrict second,
                    const std::uint16_t* __restrict base, std::uint16_t* __restrict weight,
                    const std::uint32_t* __restrict word0, const std::uint32_t* __restrict word1,
                    const AdamWScalars s) {
    for (std::uint32_t i = 0; i < n; ++i) {
        float m = from_bfloat16(first[i]), v = from_bfloat16(second[i]);
        const float update = adamw_update(Gradient::load(gradient[i]), m, v, s);
        const float anchor = from_bfloat16(base[i]);
        const float moved = anchor + ((from_bfloat16(weight[i]) - update) - anchor) * s.keep;
        weight[i] = to_bfloat16(moved, word0[i] & 0xffffu);
        first[i] = to_bfloat16(m, word0[i] >> 16);
        second[i] = to_bfloat16(v, word1[i] & 0xffffu);
    }
}

// Element `i` of an array.
template <typename Type>
typename Type::Stored* at(void* array, std::int64_t i) {
    return static_cast<typename Type::Stored*>(array) + i;
}
template <typename Type>
const typename Type::Stored* at(const void* array, std::int64_t i) {
    return static_cast<const typename Type::Stored*>(array) + i;
}

template <typename Gradient>
void compact_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end) {
    constexpr std::int64_t kBlock = 1024;
    std::uint32_t word0[kBlock + 2], word1[kBlock + 2];
    for (std::int64_t i = begin; i < end; i += kBlock) {
        const std::uint32_t n = static_cast<std::uint32_t>(end - i < kBlock ? end - i : kBlock);
        const std::uint64_t index = args.offset + static_cast<std::uint64_t>(i);
        const std::uint32_t odd = index & 1u;  // the first element is the second of its pair
        draw_words(index >> 1, (odd + n + 1) / 2, args.step, args.seed, word0, word1);
        update_compact<Gradient>(n, at<Gradient>(args.gradient, i), at<Bfloat16>(args.first_moment, i),
                                 at<Bfloat16>(args.second_moment, i), at<Bfloat16>(args.base, i),
                                 at<Bfloat16>(args.weight, i), word0 + odd, word1 + odd, args.scalars);
    }
}

template <typename Gradient, typename Weight>
void masters_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end) {
    update_masters<Gradient, Weight>(end - begin, at<Gradient>(args.gradient, begin), args.change + begin,
                                     at<Float32>(args.first_moment, begin), at<Float32>(args.second_moment, begin),
                                     at<Weight>(args.base, begin), at<Weight>(args.weight, begin), args.scalars);
}

template <typename Gradient>
void part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end) {
    if (!args.change) return compact_part<Gradient>(args, begin, end);
    if (!args.base)
        return update_changes<Gradient>(end - begin, at<Gradient>(args.gradient, begin), args.change + begin,
                                        at<Float32>(args.first_moment, begin),
                                        at<Float32>(args.second_moment, begin), args.scalars);
    switch (args.weight_dtype) {
        case Dtype::float32: return masters_part<Gradient, Float32>(args, begin, end);
        case Dtype::bfloat16: return masters_part<Gradient, Bfloat16>(args, begin, end);
        case Dtype::float16: return masters_part<Gradient, Float16>(args, begin, end);
    }
}

}  // namespace

void anchored_adamw_part(const AnchoredAdamWArgs& args, std::int64_t begin, std::int64_t end) {
    switch (args.gradient_dtype) {
        case Dtype::float32: return part<Float32>(args, begin, end);
        case Dtype::bfloat16: return part<Bfloat16>(args, begin, end);
        case Dtype::float16: return part<Float16>(args, begin, end);
    }
}

}  // namespace oml_fast::OML_FAST_ISA
