// Runs body(i) for i in [0, count) on a few threads. Plain std::thread: OpenMP's barriers stall on busy cores, and a second
// OpenMP runtime beside torch's brings trouble of its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace oml_fast {

// make_body() is called once on each thread, so that a body may own scratch memory. The first exception is rethrown here.
template <typename MakeBody>
void parallel_for(std::int64_t count, int threads, const MakeBody& make_body) {
    std::atomic<std::int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_mutex;

    const auto work = [&] {
        try {
            auto body = make_body();
            for (std::int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) body(i);
        } catch (...) {
            next.store(count);
            const std::lock_guard<std::mutex> lock(error_mutex);
            if (!error) error = std::current_exception();
        }
    };

    std::vector<std::thread> helpers;
    const std::int64_t wanted = threads < count ? threads : count;
    helpers.reserve(static_cast<std::size_t>(wanted > 1 ? wanted - 1 : 0));
    try {
        while (static_cast<std::int64_t>(helpers.size()) + 1 < wanted) helpers.emplace_back(work);
    } catch (const std::system_error&) {
        // The system gives no more threads: those that there are share the work.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace oml_fast
