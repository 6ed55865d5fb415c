// Perinucleus sampling's candidates, for rows of logits on an NVIDIA GPU.
#pragma once

#include <cstdint>

#include "perinucleus.h"

namespace oml_fast {

// Bytes of device memory that `perinucleus_cuda` needs.
std::int64_t perinucleus_cuda_workspace(std::int64_t rows, std::int64_t width);

// What `perinucleus` computes, bit for bit, from pointers into the memory of `device`. It only queues work on `stream`
// (a cudaStream_t): nothing is allocated, nothing waits. Returns null, or what CUDA says is wrong.
const char* perinucleus_cuda(const PerinucleusArgs& args, void* workspace, int device, void* stream);

}  // namespace oml_fast
