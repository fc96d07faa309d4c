// The Python module of the CUDA kernels run on the host, with the same functions and names as in mtlkit._C.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "cuda/launchers.h"
#include "cuda_on_host.h"

namespace mtlkit::cuda {

const char* error_string(int code) {
  if (code == cuda_on_host::kSuccess) return "no error";
  return code == cuda_on_host::kInvalidValue ? "invalid argument" : cuda_on_host::last_error();
}

int toolkit_version() { return 0; }

}  // namespace mtlkit::cuda

PYBIND11_MODULE(mtlkit_cuda_on_host, m) {
  mtlkit::bind_cuda(m);
  m.def("launches", &cuda_on_host::launches, "How many kernels have been launched.");
  m.def("seed", &cuda_on_host::seed, "Fixes the order of blocks, warps and lanes from here on.");
  m.def("limit_shared", &cuda_on_host::limit_shared, "The bytes of shared memory that a block may have.");
  m.def("leave_out", &cuda_on_host::leave_out, "Leaves out the barriers and waits in this line of a source; 0: none.");
}
