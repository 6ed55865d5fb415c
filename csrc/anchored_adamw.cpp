// Threads and the choice of instruction set; the work itself is in anchored_adamw_isa.cpp.
#include "anchored_adamw.h"

#include <algorithm>

#include "parallel_for.h"

namespace oml_fast {

// Tens of microseconds of work: below that, starting a thread costs more than it brings.
constexpr std::int64_t kPart = std::int64_t{1} << 16;

void anchored_adamw(const AnchoredAdamWArgs& args, int threads, Isa isa) {
    parallel_for((args.n + kPart - 1) / kPart, threads, [&] {
        return [&](std::int64_t part) {
            const std::int64_t begin = part * kPart, end = std::min(begin + kPart, args.n);
            OML_FAST_DISPATCH(isa, anchored_adamw_part, args, begin, end);
        };
    });
}

}  // namespace oml_fast
