// Perinucleus sampling's candidates on a GPU: the bits of perinucleus_isa.cpp.
//
// A row is split over several blocks. Pass 1 finds its maximum; the blocks of a row wait for each other; pass 2, which
// finds the logits in the L2 cache, sums the normaliser and lists the tokens near the maximum. The last block to be
// done goes on alone: it sorts the list, and takes from it the nucleus and the candidates. Where the list does not hold
// these, a radix walk over the row's ordered logits, then ids, narrows down the last token of the nucleus, and another
// one the last candidate. All that blocks share is integers, so neither their order nor their number changes a result.
#define OML_FAST_ISA gpu

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "perinucleus_block.cuh"
#include "perinucleus_cuda.h"

namespace oml_fast {
namespace gpu {
namespace {

constexpr int kBlocksPerMultiprocessor = 2;
constexpr int kLaunchesAtOnce = 16;       // of this kernel on one GPU, that cannot take all its room while they wait
constexpr int kUnroll = 4;               // vectors of 16 bytes that a thread has under way in passes 1 and 2
constexpr float kReach = 8.0f;           // tokens so near the maximum are listed
constexpr std::int64_t kPart = 16384;    // tokens of a block, few enough that all rows under way stay in the L2 cache
constexpr std::int64_t kLeastPart = 2048;
constexpr std::int64_t kKeysAtOnce = std::int64_t{1} << 22;  // of the workspace

// What the blocks of a row share; zeros at first.
struct RowState {
    unsigned long long total;  // mass
    std::uint32_t maximum;     // as rising_of has it
    std::uint32_t nan;
    std::uint32_t arrived, finished;  // blocks
    std::uint32_t listed;             // tokens near the maximum
    std::uint32_t unused;
};

struct Launch {
    PerinucleusArgs args;
    std::int64_t first_row;
    std::uint32_t parts;     // blocks of a row
    std::uint32_t capacity;  // keys that a row has in `keys`
    std::uint32_t* ticket;
    RowState* states;
    std::uint64_t* keys;
};

struct Float32 {
    using Stored = float;
    static __device__ float load(float stored) { return stored; }
};
struct Bfloat16 {
    using Stored = std::uint16_t;
    static __device__ float load(std::uint16_t stored) { return float_of(std::uint32_t{stored} << 16); }
};
struct Float16 {
    using Stored = std::uint16_t;
    static __device__ float load(std::uint16_t stored) { return __half2float(__ushort_as_half(stored)); }
};

// A read past the L1 cache, which does not see what other blocks write.
template <typename T>
__device__ T fresh(const T* address) {
    return *static_cast<const volatile T*>(address);
}

// Calls use(logit, id) for the tokens begin .. end of a row, in no order.
template <typename Type, int unroll, typename Use>
__device__ void for_each_token(const typename Type::Stored* row, std::int32_t begin, std::int32_t end, const Use& use) {
    using Stored = typename Type::Stored;
    constexpr int kVector = sizeof(uint4) / sizeof(Stored);
    const int thread = threadIdx.x;
    const auto misaligned = reinterpret_cast<std::uintptr_t>(row + begin) % sizeof(uint4);
    const int head = min(static_cast<int>((sizeof(uint4) - misaligned) % sizeof(uint4) / sizeof(Stored)), end - begin);
    if (thread < head) use(Type::load(row[begin + thread]), begin + thread);
    begin += head;
    const int vectors = (end - begin) / kVector;
    const uint4* from = reinterpret_cast<const uint4*>(row + begin);
    for (int v = thread; v < vectors; v += kThreads * unroll) {
        uint4 loaded[unroll];
#pragma unroll
        for (int u = 0; u < unroll; ++u)
            if (v + u * kThreads < vectors) loaded[u] = from[v + u * kThreads];
#pragma unroll
        for (int u = 0; u < unroll; ++u) {
            if (v + u * kThreads >= vectors) break;
            Stored values[kVector];
            std::memcpy(values, &loaded[u], sizeof values);
#pragma unroll
            for (int i = 0; i < kVector; ++i) use(Type::load(values[i]), begin + (v + u * kThreads) * kVector + i);
        }
    }
    const int tail = begin + vectors * kVector + thread;
    if (tail < end) use(Type::load(row[tail]), tail);
}

// Adds a key to a list of `capacity` keys; shared.listed tells when there were more.
__device__ void add_to_list(std::uint64_t key, std::uint64_t* keys, std::uint32_t capacity, Shared& shared) {
    if (fresh(&shared.listed) > capacity) return;
    const std::uint32_t at = atomicAdd(&shared.listed, 1u);
    if (at < capacity) keys[at] = key;
}

// One row, for the block that goes on alone.
template <typename Type>
struct RowTask {
    const PerinucleusArgs& args;
    const typename Type::Stored* row;
    std::int64_t index;
    Masses m;
    std::uint64_t total;
    Shared& shared;

    __device__ double goal() const { return args.threshold * static_cast<double>(total); }

    // Beyond, e^(logit - max) is 0 in float64.
    __device__ bool possible(float logit) const {
        return static_cast<double>(logit) - static_cast<double>(m.max) > -746.0;
    }
    __device__ bool admitted(std::int32_t id) const { return !args.admissible || args.admissible[id]; }

    // Where the nucleus ends in the sorted list; at is -1 if it goes on.
    __device__ Crossing end_in_list(std::uint32_t n, Tokens before) const {
        return first_crossing(n, before, goal(), shared, [&](std::uint32_t i) {
            return Tokens{mass_of(logit_of(shared.keys[i]), m), 1};
        });
    }

    // Of the sorted keys first .. n, writes the admissible ones, up to `width`. Returns how many there were.
    __device__ std::uint64_t write_candidates(const std::uint64_t* keys, std::uint32_t first, std::uint32_t n) const {
        const std::uint32_t each = (n - first + kThreads - 1) / kThreads;
        const std::uint32_t begin = min(first + threadIdx.x * each, n), end = min(begin + each, n);
        const std::uint64_t width = static_cast<std::uint64_t>(args.width);
        const double normaliser = normaliser_of(total, m);
        std::uint64_t own = 0;
        for (std::uint32_t i = begin; i < end; ++i) own += admitted(id_of(keys[i]));
        std::uint64_t rank = sum_before(own, shared);
        if (threadIdx.x == kThreads - 1) shared.size = rank + own;
        if (threadIdx.x == 0) shared.mass = 0;  // how many are written
        __syncthreads();
        std::uint32_t written = 0;
        for (std::uint32_t i = begin; i < end && rank < width; ++i) {
            if (!admitted(id_of(keys[i]))) continue;
            const double p = probability_of(logit_of(keys[i]), normaliser, m);
            put(rank++, p > 0 ? id_of(keys[i]) : -1, p);
            written += p > 0;
        }
        const std::uint64_t found = shared.size;
        for (std::uint64_t i = found + threadIdx.x; i < width; i += kThreads) put(i, -1, 0.0);
        atomicAdd(reinterpret_cast<unsigned long long*>(&shared.mass), static_cast<unsigned long long>(written));
        __syncthreads();
        if (threadIdx.x == 0) args.status[index] = shared.mass < width ? kRowShort : kRowOk;
        return found;
    }

    __device__ void put(std::uint64_t i, std::int64_t id, double p) const {
        args.token_ids[index * args.width + i] = id;
        args.probs[index * args.width + i] = p;
    }

    __device__ void write_nucleus(std::uint64_t size, double mass) const {
        if (threadIdx.x) return;
        args.nucleus_size[index] = static_cast<std::int64_t>(size);
        args.nucleus_mass[index] = mass;
    }

    // Narrows down the key at which the sum over the eligible tokens, in order, reaches `target`: of their masses, or
    // of their number. Digit by digit of the keys, until the tokens in question fit into a list: those of the last bin,
    // or, for a number, those before it as well.
    struct Range {
        std::uint64_t low, last;  // keys
        Tokens before;
    };
    template <bool by_mass, typename Eligible>
    __device__ Range narrow(double target, std::uint32_t capacity, const Eligible& eligible) const {
        Range range{0, ~std::uint64_t{0}, {0, 0}};
        for (int level = 0; level < 5; ++level) {
            // 11, 11 and 10 bits of the logit, then 10 and 10 of the id, whose upper 12 are zeros.
            const int shift = level < 3 ? max(53 - 11 * level, 32) : 10 * (4 - level);
            const std::uint32_t used = level < 2 ? 2048 : 1024;
            __syncthreads();
            for (std::uint32_t i = threadIdx.x; i < kBins; i += kThreads)
                shared.bins.count[i] = shared.bins.mass_low[i] = shared.bins.mass_high[i] = 0;
            __syncthreads();
            for_each_token<Type, 1>(row, 0, static_cast<std::int32_t>(args.vocab), [&](float logit, std::int32_t id) {
                const std::uint64_t key = key_of(logit, id), bin = (key - range.low) >> shift;
                if (bin >= used || !eligible(logit, key)) return;
                atomicAdd(&shared.bins.count[bin], 1u);
                if (!by_mass) return;
                const std::uint64_t mass = mass_of(logit, m);
                const std::uint32_t low = static_cast<std::uint32_t>(mass);
                const std::uint32_t carry = atomicAdd(&shared.bins.mass_low[bin], low) + low < low;
                atomicAdd(&shared.bins.mass_high[bin], static_cast<std::uint32_t>(mass >> 32) + carry);
            });
            __syncthreads();
            const Crossing found = first_crossing(used, range.before, target, shared, [&](std::uint32_t i) {
                const std::uint64_t count = shared.bins.count[i];
                const std::uint64_t mass = std::uint64_t{shared.bins.mass_high[i]} << 32 | shared.bins.mass_low[i];
                return Tokens{by_mass ? mass : count, count};
            });
            if (found.at < 0) return range;  // all of them are fewer than wanted
            range.before = found.before;
            range.low += static_cast<std::uint64_t>(found.at) << shift;
            range.last = range.low + ((std::uint64_t{1} << shift) - 1);
            const std::uint64_t in_question = shared.bins.count[found.at] + (by_mass ? 0 : found.before.size);
            if (in_question <= capacity) return range;
        }
        return range;
    }

    // Lists the eligible tokens with keys low .. last, sorted. Returns how many there are.
    template <typename Eligible>
    __device__ std::uint32_t gather(std::uint64_t low, std::uint64_t last, std::uint64_t* keys, std::uint32_t capacity,
                                    const Eligible& eligible) const {
        __syncthreads();
        if (threadIdx.x == 0) shared.listed = 0;
        __syncthreads();
        for_each_token<Type, 1>(row, 0, static_cast<std::int32_t>(args.vocab), [&](float logit, std::int32_t id) {
            const std::uint64_t key = key_of(logit, id);
            if (key >= low && key <= last && eligible(logit, key)) add_to_list(key, keys, capacity, shared);
        });
        __syncthreads();
        const std::uint32_t n = shared.listed;
        sort_list(keys, n);
        return n;
    }

    // The nucleus of a row whose list does not hold it. Returns the key of its last token.
    __device__ std::uint64_t find_nucleus() const {
        const float least = m.max - 40.0f;  // below, masses are 0
        const auto counts = [&](float logit, std::uint64_t) { return logit >= least; };
        const Range range = narrow<true>(goal(), kList, counts);
        const std::uint32_t n = gather(range.low, range.last, shared.keys, kList, counts);
        return end_nucleus(end_in_list(n, range.before));
    }

    __device__ std::uint64_t end_nucleus(const Crossing& end) const {
        const std::uint64_t key = shared.keys[end.at];
        const std::uint64_t mass = end.before.mass + mass_of(logit_of(key), m);
        write_nucleus(end.before.size + 1, static_cast<double>(mass) / static_cast<double>(total));
        return key;
    }

    // The candidates of a row whose list does not hold them. `spare` holds as many keys as `capacity` says.
    __device__ void find_candidates(std::uint64_t boundary, std::uint64_t* spare, std::uint32_t capacity) const {
        const auto counts = [&](float logit, std::uint64_t key) {
            return key > boundary && possible(logit) && admitted(id_of(key));
        };
        const Range range = narrow<false>(static_cast<double>(args.width), capacity, counts);
        std::uint64_t* keys = capacity > kList ? spare : shared.keys;
        const std::uint32_t n = gather(0, range.last, keys, capacity, counts);
        write_candidates(keys, 0, n);
    }

    // `near` holds the `listed` tokens near the maximum, or too few where these are more than a list takes.
    __device__ void finish(std::uint64_t* near, std::uint32_t listed, std::uint32_t capacity) const {
        std::uint64_t boundary = 0;
        if (listed <= kList) {
            for (std::uint32_t i = threadIdx.x; i < listed; i += kThreads) shared.keys[i] = fresh(near + i);
            sort_list(shared.keys, listed);
            const Crossing end = end_in_list(listed, {0, 0});
            if (end.at >= 0) {
                boundary = end_nucleus(end);
                const std::uint64_t found = write_candidates(shared.keys, end.at + 1, listed);
                if (found >= static_cast<std::uint64_t>(args.width)) return;
            }
        }
        if (!boundary) boundary = find_nucleus();
        find_candidates(boundary, near, capacity);
    }

    __device__ void refuse(RowStatus status) const {
        for (std::int64_t i = threadIdx.x; i < args.width; i += kThreads) put(i, -1, 0.0);
        write_nucleus(0, 0.0);
        if (threadIdx.x == 0) args.status[index] = status;
    }
};

// Pass 1 over a part of a row.
template <typename Type>
__device__ void add_maximum(const typename Type::Stored* row, std::int32_t begin, std::int32_t end, RowState& state) {
    float largest = -kInfinity;
    bool nan = false;
    for_each_token<Type, kUnroll>(row, begin, end, [&](float logit, std::int32_t) {
        largest = fmaxf(largest, logit);
        nan |= logit != logit;
    });
    std::uint32_t rising = rising_of(largest);
    for (int by = kWarp / 2; by > 0; by /= 2) rising = max(rising, __shfl_xor_sync(kAllLanes, rising, by));
    nan = __any_sync(kAllLanes, nan);
    if (threadIdx.x % kWarp) return;
    atomicMax(&state.maximum, rising);
    if (nan) atomicOr(&state.nan, 1u);
}

// Until all blocks of the row are here. Blocks take rows in the order in which they start, so those of the oldest row
// under way are all running: they wait for nobody who is not.
__device__ void wait_for_row(RowState& state, std::uint32_t parts) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicAdd(&state.arrived, 1u);
        while (fresh(&state.arrived) < parts) __nanosleep(64);
        __threadfence();
    }
    __syncthreads();
}

// Pass 2 over a part of a row.
template <typename Type>
__device__ void add_masses(const typename Type::Stored* row, std::int32_t begin, std::int32_t end, const Masses& m,
                           RowState& state, std::uint64_t* near, Shared& shared) {
    if (threadIdx.x == 0) shared.listed = 0;
    __syncthreads();
    const float least = m.max - kReach;
    // Every mass comes with m.magic_bits, which the first thread takes off for all.
    std::uint64_t sum = threadIdx.x ? 0 : -(static_cast<std::uint64_t>(end - begin) * m.magic_bits);
    for_each_token<Type, kUnroll>(row, begin, end, [&](float logit, std::int32_t id) {
        sum += biased_mass(logit, m);
        if (logit >= least) add_to_list(key_of(logit, id), shared.keys, kList, shared);
    });
    const std::uint64_t before = sum_before(sum, shared);
    if (threadIdx.x == kThreads - 1) atomicAdd(&state.total, static_cast<unsigned long long>(before + sum));
    if (threadIdx.x == 0 && shared.listed) shared.at = atomicAdd(&state.listed, shared.listed);
    __syncthreads();
    const std::uint32_t n = shared.listed;
    if (n > kList) return;
    for (std::uint32_t i = threadIdx.x; i < n && shared.at + i < kList; i += kThreads)
        near[shared.at + i] = shared.keys[i];
}

template <typename Type>
__global__ void __launch_bounds__(kThreads) perinucleus_kernel(const Launch launch) {
    __shared__ Shared shared;
    if (threadIdx.x == 0) shared.at = atomicAdd(launch.ticket, 1u);
    __syncthreads();
    const std::uint32_t ticket = shared.at;
    const std::uint32_t row_here = ticket / launch.parts, part = ticket % launch.parts;
    const PerinucleusArgs& args = launch.args;
    const std::int64_t index = launch.first_row + row_here;
    const auto* row = static_cast<const typename Type::Stored*>(args.logits) + index * args.row_stride;
    const std::int32_t begin = static_cast<std::int32_t>(args.vocab * part / launch.parts);
    const std::int32_t end = static_cast<std::int32_t>(args.vocab * (part + 1) / launch.parts);
    RowState& state = launch.states[row_here];
    std::uint64_t* near = launch.keys + static_cast<std::int64_t>(row_here) * launch.capacity;

    add_maximum<Type>(row, begin, end, state);
    wait_for_row(state, launch.parts);
    const float max = value_of_rising(fresh(&state.maximum));
    const RowStatus status = status_of_maximum(fresh(&state.nan), max);
    const Masses m = masses_for(max, args.vocab);
    if (status == kRowOk) add_masses<Type>(row, begin, end, m, state, near, shared);

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.at = atomicAdd(&state.finished, 1u);
        __threadfence();
    }
    __syncthreads();
    if (shared.at + 1 < launch.parts) return;
    const RowTask<Type> task{args, row, index, m, fresh(&state.total), shared};
    if (status == kRowOk)
        task.finish(near, fresh(&state.listed), launch.capacity);
    else
        task.refuse(status);
}

std::int64_t capacity_for(std::int64_t width) {
    return std::max<std::int64_t>(kList, next_power_of_2(static_cast<std::uint32_t>(width)));
}

std::int64_t rows_at_once(std::int64_t rows, std::int64_t width) {
    return std::min(rows, std::max<std::int64_t>(1, kKeysAtOnce / capacity_for(width)));
}

// The ticket has as much room as a row's state.
std::int64_t state_bytes(std::int64_t rows) { return (rows + 1) * static_cast<std::int64_t>(sizeof(RowState)); }

cudaError_t launch_rows(const Launch& launch, std::int64_t rows, cudaStream_t stream) {
    const auto zeros = cudaMemsetAsync(launch.ticket, 0, static_cast<std::size_t>(state_bytes(rows)), stream);
    if (zeros != cudaSuccess) return zeros;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(rows * launch.parts));
    config.blockDim = dim3(kThreads);
    config.stream = stream;
    switch (launch.args.dtype) {
        case Dtype::float32: return cudaLaunchKernelEx(&config, perinucleus_kernel<Float32>, launch);
        case Dtype::bfloat16: return cudaLaunchKernelEx(&config, perinucleus_kernel<Bfloat16>, launch);
        case Dtype::float16: return cudaLaunchKernelEx(&config, perinucleus_kernel<Float16>, launch);
    }
    return cudaErrorInvalidValue;
}

cudaError_t launch_all(const PerinucleusArgs& args, void* workspace, int device, cudaStream_t stream) {
    cudaError_t error = cudaSetDevice(device);
    int multiprocessors = 0;
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    if (error != cudaSuccess) return error;
    // The blocks of a row wait for each other, so they must all find room.
    const std::int64_t most = std::max(1, multiprocessors * kBlocksPerMultiprocessor / kLaunchesAtOnce);
    const std::int64_t running = std::int64_t{multiprocessors} * kBlocksPerMultiprocessor;
    const std::int64_t parts = std::max((args.vocab + kPart - 1) / kPart,
                                        std::min((args.vocab + kLeastPart - 1) / kLeastPart, running / args.rows));
    const std::int64_t at_once = rows_at_once(args.rows, args.width);
    Launch launch{args,
                  0,
                  static_cast<std::uint32_t>(std::min(parts, most)),
                  static_cast<std::uint32_t>(capacity_for(args.width)),
                  static_cast<std::uint32_t*>(workspace),
                  static_cast<RowState*>(workspace) + 1,
                  reinterpret_cast<std::uint64_t*>(static_cast<char*>(workspace) + state_bytes(at_once))};
    for (; launch.first_row < args.rows && error == cudaSuccess; launch.first_row += at_once)
        error = launch_rows(launch, std::min(at_once, args.rows - launch.first_row), stream);
    return error;
}

}  // namespace
}  // namespace gpu

std::int64_t perinucleus_cuda_workspace(std::int64_t rows, std::int64_t width) {
    const std::int64_t at_once = gpu::rows_at_once(rows, width);
    return gpu::state_bytes(at_once) + at_once * gpu::capacity_for(width) * 8;
}

const char* perinucleus_cuda(const PerinucleusArgs& args, void* workspace, int device, void* stream) {
    const cudaError_t error = gpu::launch_all(args, workspace, device, static_cast<cudaStream_t>(stream));
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace oml_fast
