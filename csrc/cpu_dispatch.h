// Which instruction sets this build carries and this CPU runs. Kernels are compiled once per level, each in a namespace of
// that name (OML_FAST_ISA), and chosen at run time; all levels give identical results.
#pragma once

#include <vector>

namespace oml_fast {

enum class Isa { baseline = 0, v2 = 1, v3 = 2, v4 = 3 };

inline const char* isa_name(Isa isa) {
    constexpr const char* names[] = {"baseline", "v2", "v3", "v4"};
    return names[static_cast<int>(isa)];
}

// Levels as in the x86-64 psABI. The features asked for here imply the rest of their level on every CPU that exists.
inline bool cpu_runs(Isa isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    switch (isa) {
        case Isa::baseline: return true;
        case Isa::v2: return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
        case Isa::v3:
            return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2");
        case Isa::v4:
            return cpu_runs(Isa::v3) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                   __builtin_cpu_supports("avx512vl");
    }
    return false;
#else
    return isa == Isa::baseline;
#endif
}

// Ascending; the last is the default.
inline std::vector<Isa> usable_isas() {
    std::vector<Isa> usable{Isa::baseline};
#if defined(OML_FAST_HAS_v4)
    for (const Isa isa : {Isa::v2, Isa::v3, Isa::v4})
        if (cpu_runs(isa)) usable.push_back(isa);
#endif
    return usable;
}

}  // namespace oml_fast

// Calls FUNCTION(...) as compiled for `isa`, which must be one of usable_isas().
#if defined(OML_FAST_HAS_v4)
#define OML_FAST_DISPATCH(isa, FUNCTION, ...)                                \
    switch (isa) {                                                           \
        case ::oml_fast::Isa::v4: ::oml_fast::v4::FUNCTION(__VA_ARGS__); break; \
        case ::oml_fast::Isa::v3: ::oml_fast::v3::FUNCTION(__VA_ARGS__); break; \
        case ::oml_fast::Isa::v2: ::oml_fast::v2::FUNCTION(__VA_ARGS__); break; \
        default: ::oml_fast::baseline::FUNCTION(__VA_ARGS__); break;         \
    }
#else
#define OML_FAST_DISPATCH(isa, FUNCTION, ...) (static_cast<void>(isa), ::oml_fast::baseline::FUNCTION(__VA_ARGS__))
#endif
