// csrc/perinucleus.cu with small blocks and short lists, as a library for ctypes.
#define OML_FAST_THREADS 64
#define OML_FAST_LIST 256

#include "perinucleus.cu"

extern "C" {

std::int64_t workspace_bytes(std::int64_t rows, std::int64_t width) {
    return oml_fast::perinucleus_cuda_workspace(rows, width);
}

void run(const void* logits, int dtype, std::int64_t rows, std::int64_t vocab, std::int64_t row_stride,
         const std::uint8_t* admissible, double threshold, std::int64_t width, std::int64_t* token_ids, double* probs,
         std::int64_t* nucleus_size, double* nucleus_mass, std::uint8_t* status, void* workspace) {
    using namespace oml_fast;
    const PerinucleusArgs args{logits, static_cast<Dtype>(dtype), rows,  vocab,        row_stride,   admissible, threshold,
                               width,  token_ids,                 probs, nucleus_size, nucleus_mass, status};
    perinucleus_cuda(args, workspace, 0, nullptr);
}
}
