// Perinucleus sampling's candidates, for rows of logits on the CPU. Semantics: oml_fast/ops/reference.py.
#pragma once

#include <cstdint>

#include "cpu_dispatch.h"

namespace oml_fast {

enum class Dtype : int { float32 = 0, bfloat16 = 1, float16 = 2 };

// What became of a row; the same numbers as in oml_fast/ops/reference.py.
enum RowStatus : std::uint8_t {
    kRowOk = 0,
    kRowShort = 1,         // fewer than `width` candidates
    kRowNan = 2,           // the rest are errors: no candidates, a nucleus of size and mass 0
    kRowNoFinite = 3,      // every logit is -inf
    kRowPlusInfinity = 4,
};

struct PerinucleusArgs {
    const void* logits;              // [rows, vocab], rows `row_stride` elements apart
    Dtype dtype;
    std::int64_t rows;
    std::int64_t vocab;              // 1 .. kMaxVocab
    std::int64_t row_stride;
    const std::uint8_t* admissible;  // [vocab] of 0 and 1, or null: all are
    double threshold;                // [0, 1)
    std::int64_t width;              // 1 .. vocab
    std::int64_t* token_ids;         // [rows, width]
    double* probs;                   // [rows, width]
    std::int64_t* nucleus_size;      // [rows]
    double* nucleus_mass;            // [rows]
    std::uint8_t* status;            // [rows]
};

// Masses are 64-bit integers that must hold the sum over a row.
constexpr std::int64_t kMaxVocab = std::int64_t{1} << 20;

// Scratch memory of one thread, for rows of `vocab` tokens.
struct PerinucleusWorkspace {
    float* row;               // the row as float32, where it is not so already
    float* lane_max;          // pass 1's maxima
    float* value;             // a list of tokens: logits
    std::int32_t* id;         //   and ids
    std::uint16_t* bucket;    //   and in which bucket of the histogram they fall
    float* sub_value;         // the tokens of one bucket
    std::int32_t* sub_id;
    std::uint16_t* sub_bucket;
    std::uint64_t* keys;      // what is sorted
};

// Rows are independent: results depend on neither threads, nor batch, nor instruction set.
void perinucleus(const PerinucleusArgs& args, int threads, Isa isa);

namespace baseline {
void perinucleus_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws);
}
namespace v2 {
void perinucleus_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws);
}
namespace v3 {
void perinucleus_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws);
}
namespace v4 {
void perinucleus_row(const PerinucleusArgs& args, std::int64_t row, const PerinucleusWorkspace& ws);
}

}  // namespace oml_fast
