// The only file that knows Python. Pointers come as integers; the callers in oml_fast/ops have validated everything.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "anchored_adamw.h"
#include "cpu_dispatch.h"
#include "perinucleus.h"
#include "perinucleus_cuda.h"

namespace py = pybind11;
using namespace oml_fast;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

// An empty name is the best level of this CPU.
Isa isa_from_name(const std::string& name) {
    const auto usable = usable_isas();
    if (name.empty()) return usable.back();
    for (const Isa isa : usable)
        if (name == isa_name(isa)) return isa;
    throw std::invalid_argument("instruction set '" + name + "' is not usable on this CPU or not in this build");
}

py::tuple isa_names() {
    const auto usable = usable_isas();
    py::tuple names(usable.size());
    for (std::size_t i = 0; i < usable.size(); ++i) names[i] = isa_name(usable[i]);
    return names;
}

PerinucleusArgs perinucleus_args(std::uintptr_t logits, int dtype, std::int64_t rows, std::int64_t vocab,
                                 std::int64_t row_stride, std::uintptr_t admissible, double threshold,
                                 std::int64_t width, std::uintptr_t token_ids, std::uintptr_t probs,
                                 std::uintptr_t nucleus_size, std::uintptr_t nucleus_mass, std::uintptr_t status) {
    return {pointer<const void>(logits),
            static_cast<Dtype>(dtype),
            rows,
            vocab,
            row_stride,
            pointer<const std::uint8_t>(admissible),
            threshold,
            width,
            pointer<std::int64_t>(token_ids),
            pointer<double>(probs),
            pointer<std::int64_t>(nucleus_size),
            pointer<double>(nucleus_mass),
            pointer<std::uint8_t>(status)};
}

void call_perinucleus(std::uintptr_t logits, int dtype, std::int64_t rows, std::int64_t vocab, std::int64_t row_stride,
                      std::uintptr_t admissible, double threshold, std::int64_t width, std::uintptr_t token_ids,
                      std::uintptr_t probs, std::uintptr_t nucleus_size, std::uintptr_t nucleus_mass,
                      std::uintptr_t status, int threads, const std::string& isa) {
    const PerinucleusArgs args =
        perinucleus_args(logits, dtype, rows, vocab, row_stride, admissible, threshold, width, token_ids, probs,
                         nucleus_size, nucleus_mass, status);
    const Isa chosen = isa_from_name(isa);
    const py::gil_scoped_release release;
    perinucleus(args, threads, chosen);
}

#if defined(OML_FAST_HAS_CUDA)
void call_perinucleus_cuda(std::uintptr_t logits, int dtype, std::int64_t rows, std::int64_t vocab,
                           std::int64_t row_stride, std::uintptr_t admissible, double threshold, std::int64_t width,
                           std::uintptr_t token_ids, std::uintptr_t probs, std::uintptr_t nucleus_size,
                           std::uintptr_t nucleus_mass, std::uintptr_t status, std::uintptr_t workspace, int device,
                           std::uintptr_t stream) {
    const PerinucleusArgs args =
        perinucleus_args(logits, dtype, rows, vocab, row_stride, admissible, threshold, width, token_ids, probs,
                         nucleus_size, nucleus_mass, status);
    const py::gil_scoped_release release;
    const char* problem = perinucleus_cuda(args, pointer<void>(workspace), device, pointer<void>(stream));
    if (problem) throw std::runtime_error(std::string("perinucleus on CUDA: ") + problem);
}
#endif

void call_anchored_adamw(std::int64_t n, std::uintptr_t gradient, int gradient_dtype, std::uintptr_t change,
                         std::uintptr_t first_moment, std::uintptr_t second_moment, std::uintptr_t base,
                         std::uintptr_t weight, int weight_dtype, float beta1, float gain1, float beta2, float gain2,
                         float step_size, float root_factor, float eps, float keep, std::uint64_t seed,
                         std::uint64_t step, std::uint64_t offset, int threads, const std::string& isa) {
    const AnchoredAdamWArgs args{n,
                                 pointer<const void>(gradient),
                                 static_cast<Dtype>(gradient_dtype),
                                 pointer<float>(change),
                                 pointer<void>(first_moment),
                                 pointer<void>(second_moment),
                                 pointer<const void>(base),
                                 pointer<void>(weight),
                                 static_cast<Dtype>(weight_dtype),
                                 {beta1, gain1, beta2, gain2, step_size, root_factor, eps, keep},
                                 seed,
                                 step,
                                 offset};
    const Isa chosen = isa_from_name(isa);
    const py::gil_scoped_release release;
    anchored_adamw(args, threads, chosen);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native code of oml_fast. Private: call oml_fast.ops.";
    m.attr("MAX_VOCAB") = kMaxVocab;
    m.def("isas", &isa_names, "Instruction sets usable here, ascending; the last is the default.");
    m.def("perinucleus", &call_perinucleus, py::arg("logits"), py::arg("dtype"), py::arg("rows"), py::arg("vocab"),
          py::arg("row_stride"), py::arg("admissible"), py::arg("threshold"), py::arg("width"), py::arg("token_ids"),
          py::arg("probs"), py::arg("nucleus_size"), py::arg("nucleus_mass"), py::arg("status"), py::arg("threads"),
          py::arg("isa"));
#if defined(OML_FAST_HAS_CUDA)
    m.attr("HAS_CUDA") = true;
    m.def("perinucleus_cuda", &call_perinucleus_cuda, py::arg("logits"), py::arg("dtype"), py::arg("rows"),
          py::arg("vocab"), py::arg("row_stride"), py::arg("admissible"), py::arg("threshold"), py::arg("width"),
          py::arg("token_ids"), py::arg("probs"), py::arg("nucleus_size"), py::arg("nucleus_mass"), py::arg("status"),
          py::arg("workspace"), py::arg("device"), py::arg("stream"));
    m.def("perinucleus_cuda_workspace", &perinucleus_cuda_workspace, py::arg("rows"), py::arg("width"),
          "Bytes of device memory that perinucleus_cuda needs.");
#else
    m.attr("HAS_CUDA") = false;
#endif
    m.def("anchored_adamw", &call_anchored_adamw, py::arg("n"), py::arg("gradient"), py::arg("gradient_dtype"),
          py::arg("change"), py::arg("first_moment"), py::arg("second_moment"), py::arg("base"), py::arg("weight"),
          py::arg("weight_dtype"), py::arg("beta1"), py::arg("gain1"), py::arg("beta2"), py::arg("gain2"),
          py::arg("step_size"), py::arg("root_factor"), py::arg("eps"), py::arg("keep"), py::arg("seed"),
          py::arg("step"), py::arg("offset"), py::arg("threads"), py::arg("isa"));
}
