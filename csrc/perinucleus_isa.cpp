// One row of perinucleus sampling, compiled once per instruction set.
//
// Pass 1 finds the maximum, and the maximum of every group of 16 tokens. Pass 2 sums the normaliser. Then only tokens
// near the maximum are looked at: a histogram over their logits finds the bucket in which the nucleus ends, and only
// tokens of that bucket and of the next ones are ever sorted. Where the tokens near the maximum do not hold the nucleus
// and the candidates, the same is done with more tokens, at last with the whole row.
#include <algorithm>

#include "perinucleus_row.h"

namespace oml_fast::OML_FAST_ISA {
namespace {

constexpr int kMaxBuckets = 2048;
constexpr std::int64_t kSortAtOnce = 256;

struct KeyLess {
    bool operator()(std::uint64_t a, std::uint64_t b) const { return a < b; }
};

struct List {
    const float* value;
    const std::int32_t* id;  // null: token i is i
    std::int64_t n;
    float high, low;         // of the logits; what lies below `low` shares the last bucket
    std::int32_t id_at(std::int64_t i) const { return id ? id[i] : static_cast<std::int32_t>(i); }
};

struct Histogram {
    int buckets;
    std::uint16_t* bucket;  // [n] of each token
    std::uint64_t mass[kMaxBuckets];
    std::uint32_t count[kMaxBuckets];
};

// Buckets are a falling function of the logit, so the order of buckets is the order of tokens.
void fill_histogram(const List& list, const Masses& m, std::uint16_t* bucket, Histogram& h) {
    h.buckets = 64;
    while (h.buckets < kMaxBuckets && h.buckets * 4 < list.n) h.buckets *= 2;
    h.bucket = bucket;
    std::fill_n(h.mass, h.buckets, 0);
    std::fill_n(h.count, h.buckets, 0);
    const float range = list.high - list.low;
    const float scale = range > 0 ? std::min(static_cast<float>(h.buckets) / range, 1e30f) : 0.0f;
    const float last = static_cast<float>(h.buckets - 1);
    std::uint64_t mass[kBlock];
    for (std::int64_t start = 0; start < list.n; start += kBlock) {
        const int count = static_cast<int>(std::min<std::int64_t>(kBlock, list.n - start));
        const float* x = list.value + start;
        std::uint16_t* to = bucket + start;
        for (int i = 0; i < count; ++i) {
            const float at = (list.high - x[i]) * scale;
            to[i] = static_cast<std::uint16_t>(static_cast<std::int32_t>(at < last ? at : last));
        }
        for (int i = 0; i < count; ++i) mass[i] = mass_of(x[i], m);
        for (int i = 0; i < count; ++i) {
            h.mass[to[i]] += mass[i];
            h.count[to[i]] += 1;
        }
    }
}

// Calls take(i) for every token of the list in buckets first .. last.
template <typename Take>
inline void for_each_in_buckets(const List& list, const Histogram& h, int first, int last, const Take& take) {
    const std::uint16_t span = static_cast<std::uint16_t>(last - first);
    std::int64_t i = 0;
    for (; i + 64 <= list.n; i += 64) {
        std::uint16_t any = 0;
        for (int j = 0; j < 64; ++j) any |= static_cast<std::uint16_t>(h.bucket[i + j] - first) <= span;
        if (!any) continue;
        for (int j = 0; j < 64; ++j)
            if (static_cast<std::uint16_t>(h.bucket[i + j] - first) <= span) take(i + j);
    }
    for (; i < list.n; ++i)
        if (static_cast<std::uint16_t>(h.bucket[i] - first) <= span) take(i);
}

// The tokens whose logit is at least `low`; none where these are in more than a quarter of all groups, because then the
// whole row is faster.
List gather_near_maximum(const Row& row, const PerinucleusWorkspace& ws, float max, float low) {
    const std::int64_t groups = row.blocks() * kLanes;
    std::int32_t* group = ws.sub_id;  // not yet in use
    std::int64_t chosen = 0;
    for (std::int64_t g = 0; g < groups; ++g) {
        group[chosen] = static_cast<std::int32_t>(g);
        chosen += ws.lane_max[g] >= low;
    }
    if (chosen * 4 > groups) return {ws.value, ws.id, 0, max, low};
    std::int64_t n = 0;
    for (std::int64_t c = 0; c < chosen; ++c) {
        const std::int64_t b = group[c] / kLanes;
        const int lane = group[c] % kLanes;
        const float* x = row.block(b);
        for (int i = lane; i < kBlock; i += kLanes) {
            ws.value[n] = x[i];
            ws.id[n] = static_cast<std::int32_t>(b * kBlock + i);
            n += x[i] >= low;
        }
    }
    return {ws.value, ws.id, n, max, low};
}

List whole_row(const Row& row, float max) {
    float low = max;
    const float floor = max - 40.0f;  // below, masses are 0
    for (std::int64_t i = 0; i < row.n; ++i) low = row.x[i] < low ? row.x[i] : low;
    return {row.x, nullptr, row.n, max, low > floor ? low : floor};
}

struct Boundary {
    std::uint64_t key;   // the last token of the nucleus
    std::int64_t size;   // of the nucleus; 0: the list does not reach the goal
    std::uint64_t mass;  // of the nucleus
    int bucket;          // of the list's histogram
};

// All tokens of the list have one logit: the nucleus takes as many as it needs, by id.
void end_among_ties(const List& list, const Masses& m, double goal, std::uint64_t* keys, Boundary& b) {
    const std::uint64_t each = mass_of(list.value[0], m);
    const double missing = goal - static_cast<double>(b.mass);
    std::int64_t taken = each ? static_cast<std::int64_t>(missing / static_cast<double>(each)) - 1 : 1;
    taken = std::min(std::max<std::int64_t>(taken, 1), list.n);
    while (taken < list.n && !reaches(b.mass + taken * each, goal)) ++taken;
    for (std::int64_t i = 0; i < list.n; ++i) keys[i] = key_of(list.value[i], list.id_at(i));
    std::nth_element(keys, keys + (taken - 1), keys + list.n, KeyLess{});
    b.key = keys[taken - 1];
    b.size += taken;
    b.mass += taken * each;
}

void end_by_sorting(const List& list, const Masses& m, double goal, std::uint64_t* keys, Boundary& b) {
    for (std::int64_t i = 0; i < list.n; ++i) keys[i] = key_of(list.value[i], list.id_at(i));
    std::sort(keys, keys + list.n, KeyLess{});
    for (std::int64_t i = 0; i < list.n; ++i) {
        b.key = keys[i];
        b.size += 1;
        b.mass += mass_of(logit_of(keys[i]), m);
        if (reaches(b.mass, goal)) return;
    }
}

// The first bucket in which the mass reaches the goal, or -1; what lies before it is added to `b`.
int bucket_of_goal(const Histogram& h, double goal, Boundary& b) {
    for (int bucket = 0; bucket < h.buckets; ++bucket) {
        if (h.count[bucket] && reaches(b.mass + h.mass[bucket], goal)) return bucket;
        b.mass += h.mass[bucket];
        b.size += h.count[bucket];
    }
    return -1;
}

List bucket_members(const List& list, const Histogram& h, int bucket, const PerinucleusWorkspace& ws) {
    List members{ws.sub_value, ws.sub_id, 0, -kInfinity, kInfinity};
    for_each_in_buckets(list, h, bucket, bucket, [&](std::int64_t i) {
        const float value = list.value[i];
        ws.sub_id[members.n] = list.id_at(i);
        ws.sub_value[members.n++] = value;
        members.high = value > members.high ? value : members.high;
        members.low = value < members.low ? value : members.low;
    });
    return members;
}

Boundary find_boundary(const List& list, const Masses& m, double goal, const PerinucleusWorkspace& ws, Histogram& top) {
    Boundary b{0, 0, 0, -1};
    fill_histogram(list, m, ws.bucket, top);
    b.bucket = bucket_of_goal(top, goal, b);
    if (b.bucket < 0) return {0, 0, 0, -1};
    List members = bucket_members(list, top, b.bucket, ws);
    Histogram h;
    while (members.n > kSortAtOnce && members.low < members.high) {
        fill_histogram(members, m, ws.sub_bucket, h);
        const int bucket = bucket_of_goal(h, goal, b);
        if (h.count[bucket] == members.n) break;
        members = bucket_members(members, h, bucket, ws);
    }
    if (members.low < members.high)
        end_by_sorting(members, m, goal, ws.keys, b);
    else
        end_among_ties(members, m, goal, ws.keys, b);
    return b;
}

// Puts up to `width` sort keys of the list's admissible tokens after the boundary, in order, into ws.keys.
std::int64_t first_after(const List& list, const Histogram& h, const Boundary& b, const PerinucleusArgs& args,
                         const PerinucleusWorkspace& ws) {
    std::int64_t n = 0;
    for (std::int64_t wanted = args.width;; wanted *= 4) {
        int last = b.bucket;
        for (std::int64_t after = 0; last + 1 < h.buckets && after < wanted;) after += h.count[++last];
        n = 0;
        for_each_in_buckets(list, h, b.bucket, last, [&](std::int64_t i) {
            const std::int32_t id = list.id_at(i);
            const std::uint64_t key = key_of(list.value[i], id);
            ws.keys[n] = key;
            n += key > b.key && (!args.admissible || args.admissible[id]);
        });
        if (n >= args.width || last + 1 == h.buckets) break;
    }
    const std::int64_t kept = std::min(n, args.width);
    std::partial_sort(ws.keys, ws.keys + kept, ws.keys + n, KeyLess{});
    return kept;
}

// Writes the candidates whose probability is above 0 in float64, and returns how many these are.
std::int64_t write_candidates(const PerinucleusArgs& args, std::int64_t row, const Masses& m, double normaliser,
                              const std::uint64_t* keys, std::int64_t n) {
    std::int64_t* ids = args.token_ids + row * args.width;
    double* probs = args.probs + row * args.width;
    std::int64_t written = 0;
    for (; written < n; ++written) {
        const double p = probability_of(logit_of(keys[written]), normaliser, m);
        if (!(p > 0)) break;
        ids[written] = id_of(keys[written]);
        probs[written] = p;
    }
    for (std::int64_t i = written; i < args.width; ++i) {
        ids[i] = -1;
        probs[i] = 0;
    }
    return written;
}

// False: the list does not reach the goal, or does not hold all candidates.
bool try_list(const List& list, const PerinucleusArgs& args, const Masses& m, double goal,
              const PerinucleusWorkspace& ws, Boundary& b, std::int64_t& candidates) {
    Histogram h;
    b = find_boundary(list, m, goal, ws, h);
    if (!b.size) return false;
    candidates = first_after(list, h, b, args, ws);
    return candidates == args.width;
}

}  // namespace

void perinucleus_row(const PerinucleusArgs& args, std::int64_t row_index, const PerinucleusWorkspace& ws) {
    const Row row = load_row(args, row_index, ws);
    const bool nan = lane_maxima(row, ws.lane_max);
    const float max = maximum(ws.lane_max, row.blocks() * kLanes);
    const Masses m = masses_for(max, row.n);
    const RowStatus bad = status_of_maximum(nan, max);
    if (bad != kRowOk) {
        write_candidates(args, row_index, m, 1, nullptr, 0);
        args.nucleus_size[row_index] = 0;
        args.nucleus_mass[row_index] = 0;
        args.status[row_index] = bad;
        return;
    }

    const std::uint64_t total = total_mass(row.x, row.n, m);
    const double goal = args.threshold * static_cast<double>(total);
    Boundary b{};
    std::int64_t candidates = 0;
    bool done = false;
    for (const float reach : {6.0f, 8.5f, 11.0f}) {
        const List near = gather_near_maximum(row, ws, max, max - reach);
        if (!near.n) break;
        done = try_list(near, args, m, goal, ws, b, candidates);
        if (done) break;
    }
    if (!done) try_list(whole_row(row, max), args, m, goal, ws, b, candidates);

    const std::int64_t written =
        write_candidates(args, row_index, m, normaliser_of(total, m), ws.keys, candidates);
    args.nucleus_size[row_index] = b.size;
    args.nucleus_mass[row_index] = static_cast<double>(b.mass) / static_cast<double>(total);
    args.status[row_index] = written < args.width ? kRowShort : kRowOk;
}

}  // namespace oml_fast::OML_FAST_ISA
