// One row of perinucleus sampling, compiled once per instruction set. Plain loops that compilers vectorise; every rounding is
// fixed by the source (no contraction, no reassociation of floats), so all instruction sets give identical results.
//
// Pass 1 finds the maximum, and the maximum of every group of 16 tokens. Pass 2 sums the normaliser. Then only tokens near
// the maximum are looked at: a histogram over their logits finds the bucket in which the nucleus ends, and only tokens of
// that bucket and of the next ones are ever sorted. Where the tokens near the maximum do not hold the nucleus and the
// candidates, the same is done with more tokens, at last with the whole row.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "perinucleus.h"

namespace oml_fast::OML_FAST_ISA {
namespace {

// Only types of this namespace may be template arguments here: the linker merges equal instantiations, and would hand code
// compiled for a newer CPU to an older one.

constexpr int kLanes = 16;
constexpr int kBlock = 256;
constexpr int kMaxBuckets = 2048;
constexpr std::int64_t kSortAtOnce = 256;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename To, typename From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

// ---- loading ---------------------------------------------------------------------------------------------------------

inline float from_bfloat16(std::uint16_t half) { return bits_as<float>(std::uint32_t{half} << 16); }

inline float from_float16(std::uint16_t half) {
    constexpr std::uint32_t kRebias = 112u << 23;
    const std::uint32_t magnitude = half & 0x7fffu;
    const std::uint32_t normal = (magnitude << 13) + kRebias;
    const std::uint32_t special = normal + kRebias;  // infinity and NaN keep the highest exponent
    const float subnormal =
        bits_as<float>((magnitude << 13) + kRebias + (1u << 23)) - bits_as<float>(kRebias + (1u << 23));
    std::uint32_t bits = magnitude >= 0x7c00u ? special : normal;
    bits = magnitude < 0x0400u ? bits_as<std::uint32_t>(subnormal) : bits;
    return bits_as<float>(bits | (std::uint32_t{half} & 0x8000u) << 16);
}

struct Row {
    const float* x;     // [n]
    const float* tail;  // the last, partial block, filled up with -inf
    std::int64_t n;
    const float* block(std::int64_t b) const { return (b + 1) * kBlock <= n ? x + b * kBlock : tail; }
    std::int64_t blocks() const { return (n + kBlock - 1) / kBlock; }
};

Row load_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws) {
    const std::int64_t n = args.vocab, whole = n / kBlock * kBlock, offset = row * args.row_stride;
    if (args.dtype == Dtype::float32) {
        const float* x = static_cast<const float*>(args.logits) + offset;
        for (std::int64_t i = 0; i < kBlock; ++i) ws.row[i] = whole + i < n ? x[whole + i] : -kInfinity;
        return {x, ws.row, n};
    }
    const std::uint16_t* x = static_cast<const std::uint16_t*>(args.logits) + offset;
    if (args.dtype == Dtype::bfloat16)
        for (std::int64_t i = 0; i < n; ++i) ws.row[i] = from_bfloat16(x[i]);
    else
        for (std::int64_t i = 0; i < n; ++i) ws.row[i] = from_float16(x[i]);
    if (whole < n)
        for (std::int64_t i = n; i < whole + kBlock; ++i) ws.row[i] = -kInfinity;
    return {ws.row, ws.row + whole, n};
}

// ---- pass 1: maxima --------------------------------------------------------------------------------------------------

// lane_max[b * kLanes + j] is the maximum over the tokens b * kBlock + i * kLanes + j. Returns whether there is a NaN.
bool lane_maxima(const Row& row, float* lane_max) {
    std::int32_t magnitude[kLanes] = {};
    for (std::int64_t b = 0; b < row.blocks(); ++b) {
        const float* x = row.block(b);
        for (int j = 0; j < kLanes; ++j) {
            float largest = x[j];
            std::int32_t m = magnitude[j];
            for (int i = 0; i < kBlock; i += kLanes) {
                const float value = x[i + j];
                const std::int32_t abs_bits = bits_as<std::int32_t>(value) & 0x7fffffff;
                largest = value > largest ? value : largest;
                m = abs_bits > m ? abs_bits : m;
            }
            lane_max[b * kLanes + j] = largest;
            magnitude[j] = m;
        }
    }
    bool nan = false;
    for (const std::int32_t m : magnitude) nan |= m > 0x7f800000;
    return nan;
}

float maximum(const float* x, std::int64_t n) {
    float largest = -kInfinity;
    for (std::int64_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

// ---- pass 2: masses --------------------------------------------------------------------------------------------------

// A token's mass is exp(logit) in float32, scaled by a power of two that the row's maximum sets, then rounded to a multiple of
// 2^-fraction_bits and kept as an integer. The maximum itself is not subtracted: that difference would round, by up to 4.8e-7
// and alike for all tied tokens, while the reduction by multiples of log(2) is exact. (Beyond 512 differences that
// matter are exact, so there the maximum is taken off first.)
struct Masses {
    float max, shift, floor, max_exponent;
    double magic;  // added to a double in [0, 2), it leaves the rounded integer in the low bits
    std::uint64_t magic_bits;
};

constexpr float kLog2E = 0x1.715476p+0f, kLn2High = 0x1.63p-1f, kLn2Low = -0x1.bd0106p-13f;
constexpr float kRound = 0x1.8p+23f;  // adding and taking it off rounds to an integer

inline float exponent_of(float x) { return (x * kLog2E + kRound) - kRound; }

// exp(x) * 2^-max_exponent, for x >= floor; below, what floor gives, which rounds to a mass of 0. Relative error 1e-7.
inline float scaled_exp(float logit, const Masses& m) {
    float x = logit - m.shift;
    x = x > m.floor ? x : m.floor;
    const float k = exponent_of(x);
    const float r = (x - k * kLn2High) - k * kLn2Low;
    float p = 0x1.6a204ep-10f;  // minimax on |r| <= 0.348, relative error 4.5e-9
    p = p * r + 0x1.123c4ap-7f;
    p = p * r + 0x1.5559p-5f;
    p = p * r + 0x1.55548ep-3f;
    p = p * r + 0x1.fffffcp-2f;
    const float e = 1.0f + (r + (r * r) * p);
    const std::int32_t exponent = static_cast<std::int32_t>(k - m.max_exponent);
    return e * bits_as<float>((exponent + 127) << 23);
}

inline std::uint64_t biased_mass(float logit, const Masses& m) {
    return bits_as<std::uint64_t>(static_cast<double>(scaled_exp(logit, m)) + m.magic);
}

inline std::uint64_t mass_of(float logit, const Masses& m) { return biased_mass(logit, m) - m.magic_bits; }

Masses masses_for(float max, std::int64_t vocab) {
    int vocab_bits = 0;
    while ((std::int64_t{1} << vocab_bits) < vocab) ++vocab_bits;
    const int fraction_bits = std::min(44, 62 - vocab_bits);
    Masses m;
    m.max = max;
    m.shift = std::fabs(max) <= 512.0f ? 0.0f : max;
    m.floor = (max - m.shift) - 80.0f;
    m.max_exponent = exponent_of(max - m.shift);
    m.magic = std::ldexp(1.0, 52 - fraction_bits);
    m.magic_bits = bits_as<std::uint64_t>(m.magic);
    return m;
}

std::uint64_t total_mass(const float* x, std::int64_t n, const Masses& m) {
    std::uint64_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += biased_mass(x[i], m);
    return sum - static_cast<std::uint64_t>(n) * m.magic_bits;
}

// ---- order -----------------------------------------------------------------------------------------------------------

// Ascending keys are falling logits, and rising ids where logits tie. -0 and +0 tie.
inline std::uint64_t key_of(float logit, std::int32_t id) {
    const std::uint32_t bits = bits_as<std::uint32_t>(logit + 0.0f);
    const std::uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
    return std::uint64_t{~rising} << 32 | static_cast<std::uint32_t>(id);
}

inline float logit_of(std::uint64_t key) {
    const std::uint32_t rising = ~static_cast<std::uint32_t>(key >> 32);
    return bits_as<float>(rising >> 31 ? rising & 0x7fffffffu : ~rising);
}

struct KeyLess {
    bool operator()(std::uint64_t a, std::uint64_t b) const { return a < b; }
};

// ---- lists of tokens, and their histogram over logits ------------------------------------------------------------------

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

// The tokens whose logit is at least `low`; none if that is more than a quarter of all groups, where the whole row is faster.
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

// ---- the nucleus' last token -------------------------------------------------------------------------------------------

struct Boundary {
    std::uint64_t key;   // the last token of the nucleus
    std::int64_t size;   // of the nucleus; 0: the list does not reach the goal
    std::uint64_t mass;  // of the nucleus
    int bucket;          // of the list's histogram
};

inline bool reaches(std::uint64_t mass, double goal) { return static_cast<double>(mass) >= goal; }

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

// ---- the candidates ----------------------------------------------------------------------------------------------------

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

// Writes the candidates whose probability is above 0 in float64. `total` is the normaliser times 2^fraction_bits.
std::int64_t write_candidates(const PerinucleusArgs& args, std::int64_t row, const Masses& m, double normaliser,
                              const std::uint64_t* keys, std::int64_t n) {
    std::int64_t* ids = args.token_ids + row * args.width;
    double* probs = args.probs + row * args.width;
    std::int64_t written = 0;
    for (; written < n; ++written) {
        const double logit = logit_of(keys[written]);
        const double p = std::exp(logit - static_cast<double>(m.max)) / normaliser;
        if (!(p > 0)) break;
        ids[written] = static_cast<std::int64_t>(keys[written] & 0xffffffffu);
        probs[written] = p;
    }
    for (std::int64_t i = written; i < args.width; ++i) {
        ids[i] = -1;
        probs[i] = 0;
    }
    return written;
}

RowStatus status_of_maximum(bool nan, float max) {
    if (nan) return kRowNan;
    if (max == kInfinity) return kRowPlusInfinity;
    return max == -kInfinity ? kRowNoFinite : kRowOk;
}

// False: the list does not reach the goal, or does not hold all candidates.
bool try_list(const List& list, const PerinucleusArgs& args, const Masses& m, double goal, const PerinucleusWorkspace& ws,
              Boundary& b, std::int64_t& candidates) {
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
    const RowStatus bad = status_of_maximum(nan, max);
    args.status[row_index] = bad;
    if (bad != kRowOk) return;

    const Masses m = masses_for(max, row.n);
    const double total = static_cast<double>(total_mass(row.x, row.n, m));
    const double goal = args.threshold * total;
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

    const double at_max = std::exp(static_cast<double>(max) - m.shift - m.max_exponent * 0x1.62e42fefa39efp-1);
    const double normaliser = total / (at_max * std::ldexp(1.0, 52) / m.magic);
    const std::int64_t written = write_candidates(args, row_index, m, normaliser, ws.keys, candidates);
    args.nucleus_size[row_index] = b.size;
    args.nucleus_mass[row_index] = static_cast<double>(b.mass) / total;
    args.status[row_index] = written < args.width ? kRowShort : kRowOk;
}

}  // namespace oml_fast::OML_FAST_ISA
