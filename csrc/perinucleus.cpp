// Threads, scratch memory and the choice of instruction set; the work itself is in perinucleus_isa.cpp.
#include "perinucleus.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "parallel_for.h"

namespace oml_fast {
namespace {

// One uninitialised allocation, cut into the workspace's arrays.
class WorkspaceMemory {
   public:
    void reserve(std::int64_t vocab) {
        if (vocab <= vocab_) return;
        vocab_ = 0;
        const std::size_t padded = (static_cast<std::size_t>(vocab) + kPadding - 1) / kPadding * kPadding;
        memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, padded * kBytesPerToken)));
        if (!memory_) throw std::bad_alloc();
        std::byte* at = memory_.get();
        const auto cut = [&](auto*& array) {
            array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
            at += padded * sizeof(*array);
        };
        cut(ws_.keys), cut(ws_.row), cut(ws_.value), cut(ws_.id), cut(ws_.sub_value), cut(ws_.sub_id);
        cut(ws_.lane_max), cut(ws_.bucket), cut(ws_.sub_bucket);
        vocab_ = vocab;
    }
    const PerinucleusWorkspace& arrays() const { return ws_; }

   private:
    static constexpr std::size_t kAlignment = 64;
    static constexpr std::size_t kPadding = 256;  // whole blocks of perinucleus_isa.cpp
    static constexpr std::size_t kBytesPerToken = 8 + 4 * 6 + 2 * 2;
    static_assert(kPadding * kBytesPerToken % kAlignment == 0);

    struct Free {
        void operator()(std::byte* memory) const { std::free(memory); }
    };
    std::unique_ptr<std::byte, Free> memory_;
    PerinucleusWorkspace ws_{};
    std::int64_t vocab_ = 0;
};

// Memory that no thread uses now, kept for the next call: fresh pages cost more than the work of a row. It never waits:
// where another thread is at the list, new memory is made, or this one dropped.
class Kept {
   public:
    Kept() { list_.reserve(kMost); }  // so that putting never fails
    std::unique_ptr<WorkspaceMemory> take() {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (!lock || list_.empty()) return std::make_unique<WorkspaceMemory>();
        std::unique_ptr<WorkspaceMemory> last = std::move(list_.back());
        list_.pop_back();
        return last;
    }
    void put(std::unique_ptr<WorkspaceMemory> memory) {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (lock && list_.size() < kMost) list_.push_back(std::move(memory));
    }

   private:
    static constexpr std::size_t kMost = 256;
    std::mutex mutex_;
    std::vector<std::unique_ptr<WorkspaceMemory>> list_;
};

// One thread's memory, for the length of a call.
class Borrowed {
   public:
    Borrowed(Kept& kept, std::int64_t vocab) : kept_(kept), memory_(kept.take()) { memory_->reserve(vocab); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    ~Borrowed() { kept_.put(std::move(memory_)); }
    const PerinucleusWorkspace& arrays() const { return memory_->arrays(); }

   private:
    Kept& kept_;
    std::unique_ptr<WorkspaceMemory> memory_;
};

// That a thread must have to do, or starting it takes longer: 15 microseconds of work, and more with flat logits.
constexpr std::int64_t kTokensAThread = std::int64_t{1} << 15;

}  // namespace

void perinucleus(const PerinucleusArgs& args, int threads, Isa isa) {
    static Kept& kept = *new Kept;  // never destroyed: a thread may outlive main
    const std::int64_t busy = std::max<std::int64_t>(1, args.rows * args.vocab / kTokensAThread);
    parallel_for(args.rows, static_cast<int>(std::min<std::int64_t>(threads, busy)), [&] {
        return [&args, isa, memory = std::make_unique<Borrowed>(kept, args.vocab)](std::int64_t row) {
            OML_FAST_DISPATCH(isa, perinucleus_row, args, row, memory->arrays());
        };
    });
}

}  // namespace oml_fast
