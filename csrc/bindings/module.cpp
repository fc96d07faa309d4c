// mtlkit._C.
#include "bindings/bindings.h"
#include "bindings/threads.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "mtlkit's compiled kernels. Addresses in, a status out; use mtlkit.ops.";

  m.attr("compiler") = MTLKIT_COMPILER;
#if defined(MTLKIT_WITH_CUDA)
  m.attr("cuda") = true;
  m.attr("cuda_archs") = MTLKIT_CUDA_ARCHS;
  mtlkit::bind_cuda(m);
#else
  m.attr("cuda") = false;
  m.attr("cuda_archs") = "";
#endif
  mtlkit::bind_threads(m);
  mtlkit::bind_cpu(m);
}
