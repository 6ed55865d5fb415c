// Threads, scratch memory and the choice of instruction set; the work itself is in perinucleus_isa.cpp.
#include "perinucleus.h"

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

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

}  // namespace

void perinucleus(const PerinucleusArgs& args, int threads, Isa isa) {
    parallel_for(args.rows, threads, [&] {
        // Kept between calls on the caller's thread: fresh pages cost more than the work of a row.
        thread_local WorkspaceMemory memory;
        memory.reserve(args.vocab);
        return [&](std::int64_t row) { OML_FAST_DISPATCH(isa, perinucleus_row, args, row, memory.arrays()); };
    });
}

}  // namespace oml_fast
