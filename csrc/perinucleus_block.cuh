// What the threads of one block do together: sums, sorting, and finding where a running sum reaches a goal.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "perinucleus_masses.h"

#ifndef OML_FAST_THREADS  // tests on a CPU take fewer threads and shorter lists
#define OML_FAST_THREADS 512
#define OML_FAST_LIST 4096
#endif

namespace oml_fast::OML_FAST_ISA {
namespace {

constexpr int kThreads = OML_FAST_THREADS;
constexpr int kList = OML_FAST_LIST;  // keys that are sorted in shared memory
constexpr int kBins = 2048;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kThreads % kWarp == 0 && kWarps <= kWarp && kBins % kThreads == 0 && (kList & (kList - 1)) == 0);

// A histogram of tokens. A mass is in two halves: GPUs have no 64-bit addition in shared memory.
struct Bins {
    std::uint32_t count[kBins];
    std::uint32_t mass_low[kBins];
    std::uint32_t mass_high[kBins];
};

struct Shared {
    union {
        std::uint64_t keys[kList];
        Bins bins;
    };
    std::uint64_t warp_sums[kWarps];
    std::uint32_t listed;  // keys offered to a list; above its capacity some are missing
    std::uint32_t at;
    std::uint64_t mass;
    std::uint64_t size;
};

__device__ inline std::uint64_t shuffled_up(std::uint64_t value, int by) {
    return __shfl_up_sync(kAllLanes, static_cast<unsigned long long>(value), by);
}

// The sum of `value` over the threads before this one.
__device__ std::uint64_t sum_before(std::uint64_t value, Shared& shared) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    std::uint64_t sum = value;
    for (int by = 1; by < kWarp; by *= 2) {
        const std::uint64_t other = shuffled_up(sum, by);
        if (lane >= by) sum += other;
    }
    __syncthreads();  // an earlier call may still be reading
    if (lane == kWarp - 1) shared.warp_sums[warp] = sum;
    __syncthreads();
    for (int w = 0; w < warp; ++w) sum += shared.warp_sums[w];
    return sum - value;
}

// Sorts n keys, n a power of two.
__device__ void sort_keys(std::uint64_t* keys, std::uint32_t n) {
    for (std::uint32_t run = 2; run <= n; run *= 2)
        for (std::uint32_t gap = run / 2; gap > 0; gap /= 2) {
            __syncthreads();
            for (std::uint32_t i = threadIdx.x; i < n / 2; i += kThreads) {
                const std::uint32_t low = (i & ~(gap - 1)) * 2 + (i & (gap - 1)), high = low + gap;
                const std::uint64_t a = keys[low], b = keys[high];
                if ((a > b) == ((low & run) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    __syncthreads();
}

OML_FAST_ANYWHERE inline std::uint32_t next_power_of_2(std::uint32_t n) {
    std::uint32_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// Fills a list of n keys up to a power of two, and sorts it.
__device__ void sort_list(std::uint64_t* keys, std::uint32_t n) {
    const std::uint32_t padded = next_power_of_2(n);
    for (std::uint32_t i = n + threadIdx.x; i < padded; i += kThreads) keys[i] = ~std::uint64_t{0};
    sort_keys(keys, padded);
}

struct Tokens {
    std::uint64_t mass;
    std::uint64_t size;
};

struct Crossing {
    std::int32_t at;  // of n items; -1: the goal is not reached
    Tokens before;    // what came before it
};

// The first item that is not empty and with which the mass, from `before` on, reaches the goal. Its order is that of
// one thread adding up: integers.
template <typename Items>
__device__ Crossing first_crossing(std::uint32_t n, Tokens before, double goal, Shared& shared, const Items& items) {
    const std::uint32_t each = (n + kThreads - 1) / kThreads;
    const std::uint32_t begin = min(threadIdx.x * each, n), end = min(begin + each, n);
    Tokens own{0, 0};
    for (std::uint32_t i = begin; i < end; ++i) {
        const Tokens item = items(i);
        own.mass += item.mass;
        own.size += item.size;
    }
    Tokens sum{before.mass + sum_before(own.mass, shared), before.size + sum_before(own.size, shared)};
    if (threadIdx.x == 0) shared.at = n;
    __syncthreads();
    std::uint32_t at = n;
    for (std::uint32_t i = begin; i < end; ++i) {
        const Tokens item = items(i);
        if (item.size && reaches(sum.mass + item.mass, goal)) {
            at = i;
            atomicMin(&shared.at, at);
            break;
        }
        sum.mass += item.mass;
        sum.size += item.size;
    }
    __syncthreads();
    if (at < n && at == shared.at) {
        shared.mass = sum.mass;
        shared.size = sum.size;
    }
    __syncthreads();
    if (shared.at == n) return {-1, before};
    return {static_cast<std::int32_t>(shared.at), {shared.mass, shared.size}};
}

}  // namespace
}  // namespace oml_fast::OML_FAST_ISA
