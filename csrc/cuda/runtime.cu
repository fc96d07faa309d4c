// What Python asks of the CUDA runtime itself.
#include <cuda_runtime.h>

#include "cuda/launchers.h"

namespace mtlkit::cuda {

const char* error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int toolkit_version() { return CUDART_VERSION; }

}  // namespace mtlkit::cuda
