// Of CUDA's header of this name, what csrc/perinucleus.cu uses, on a CPU: its kernels can be tested without a GPU.
//
// A block runs on one thread of the operating system, its CUDA threads as contexts that take turns at barriers: in a
// random order, and one warp far more seldom than the others. Several blocks run at a time, and start in order, as on a
// GPU. It is no model of a GPU's memory.
#pragma once

#include <sched.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define threadIdx (::on_cpu::block->index())

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned x = 1) : x(x) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    cudaStream_t stream;
};

namespace on_cpu {

constexpr unsigned kWarp = 32;
constexpr unsigned kRunning = 6;            // blocks
constexpr std::size_t kStack = 64 * 1024;  // bytes of a CUDA thread

class Block {
   public:
    explicit Block(unsigned threads)
        : contexts_(threads),
          stacks_(new char[threads * kStack]),
          done_(threads),
          slots_(threads),
          warps_(threads / kWarp),
          waits_(threads) {}

    template <typename Body>
    void run(const Body& body, unsigned seed) {
        body_ = [](const void* of) { (*static_cast<const Body*>(of))(); };
        of_ = &body;
        std::minstd_rand random(seed);
        std::vector<unsigned> order(contexts_.size());
        std::iota(order.begin(), order.end(), 0u);
        std::fill(done_.begin(), done_.end(), 0);
        std::fill(waits_.begin(), waits_.end(), Wait{});
        for (unsigned t : order) {
            getcontext(&contexts_[t]);
            contexts_[t].uc_stack.ss_sp = stacks_.get() + t * kStack;
            contexts_[t].uc_stack.ss_size = kStack;
            contexts_[t].uc_link = &scheduler_;
            makecontext(&contexts_[t], &Block::start, 0);
        }
        const unsigned slow_warp = random() % warps_.size();
        for (bool running = true; running;) {
            running = false;
            std::shuffle(order.begin(), order.end(), random);
            for (unsigned t : order) {
                if (done_[t]) continue;
                running = true;
                if (waits_[t].barrier && waits_[t].barrier->round == waits_[t].round) continue;
                if (t / kWarp == slow_warp && random() % 4) continue;
                waits_[t].barrier = nullptr;
                index_.x = t;
                swapcontext(&scheduler_, &contexts_[t]);
            }
        }
    }

    struct Index {
        unsigned x;
    };
    const Index& index() const { return index_; }

    void yield() {
        const unsigned own = index_.x;
        swapcontext(&contexts_[own], &scheduler_);
    }

    void wait_for_block() { wait(whole_, static_cast<unsigned>(contexts_.size())); }

    // The values that all lanes of the warp pass; `use` gets them as an array of 32.
    template <typename T, typename Use>
    T exchange(T value, const Use& use) {
        const unsigned warp = index_.x / kWarp;
        std::memcpy(&slots_[index_.x], &value, sizeof value);
        wait(warps_[warp], kWarp);
        T values[kWarp];
        for (unsigned i = 0; i < kWarp; ++i) std::memcpy(&values[i], &slots_[warp * kWarp + i], sizeof(T));
        wait(warps_[warp], kWarp);
        return use(values, index_.x % kWarp);
    }

   private:
    struct Barrier {
        unsigned arrived = 0, round = 0;
    };
    struct Wait {
        const Barrier* barrier = nullptr;
        unsigned round = 0;
    };
    void wait(Barrier& barrier, unsigned members) {
        const unsigned round = barrier.round;
        if (++barrier.arrived == members) {
            barrier.arrived = 0;
            ++barrier.round;
        }
        if (barrier.round != round) return;
        waits_[index_.x] = {&barrier, round};
        yield();
    }
    static void start();

    std::vector<ucontext_t> contexts_;
    std::unique_ptr<char[]> stacks_;
    std::vector<char> done_;
    std::vector<std::uint64_t> slots_;
    std::vector<Barrier> warps_;
    std::vector<Wait> waits_;  // of each thread
    Barrier whole_;
    ucontext_t scheduler_;
    Index index_{};
    void (*body_)(const void*) = nullptr;
    const void* of_ = nullptr;
};

inline thread_local Block* block = nullptr;

inline void Block::start() {
    Block& own = *block;
    own.body_(own.of_);
    own.done_[own.index_.x] = 1;
}

}  // namespace on_cpu

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    std::atomic<unsigned> next{0};
    const auto work = [&] {
        on_cpu::Block block(config->blockDim.x);
        on_cpu::block = &block;
        for (unsigned b = next++; b < config->gridDim.x; b = next++) block.run([&] { kernel(arguments...); }, b + 1);
    };
    std::vector<std::thread> running;
    for (unsigned i = 0; i < std::min(on_cpu::kRunning, config->gridDim.x); ++i) running.emplace_back(work);
    for (std::thread& thread : running) thread.join();
    return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 32;
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
    std::memset(to, value, bytes);
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return "wrong"; }

template <typename T>
T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
    return a < b ? b : a;
}

inline void __syncthreads() { on_cpu::block->wait_for_block(); }
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __nanosleep(unsigned) {
    sched_yield();
    on_cpu::block->yield();
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned by) {
    return on_cpu::block->exchange(
        value, [&](const T* all, unsigned lane) { return all[lane < by ? lane : lane - by]; });
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned by) {
    return on_cpu::block->exchange(value, [&](const T* all, unsigned lane) { return all[lane ^ by]; });
}
inline int __any_sync(unsigned, int value) {
    return on_cpu::block->exchange(value, [](const int* all, unsigned) {
        return static_cast<int>(std::any_of(all, all + on_cpu::kWarp, [](int one) { return one != 0; }));
    });
}
template <typename T>
T atomicAdd(T* to, T value) {
    return __atomic_fetch_add(to, value, __ATOMIC_SEQ_CST);
}
template <typename T>
T atomicOr(T* to, T value) {
    return __atomic_fetch_or(to, value, __ATOMIC_SEQ_CST);
}
template <typename T, typename Better>
T exchange_if(T* to, T value, const Better& better) {
    T old = __atomic_load_n(to, __ATOMIC_SEQ_CST);
    while (better(value, old) &&
           !__atomic_compare_exchange_n(to, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        continue;
    return old;
}
template <typename T>
T atomicMax(T* to, T value) {
    return exchange_if(to, value, [](T a, T b) { return a > b; });
}
template <typename T>
T atomicMin(T* to, T value) {
    return exchange_if(to, value, [](T a, T b) { return a < b; });
}
