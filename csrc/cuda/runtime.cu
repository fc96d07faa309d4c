// Queries to the CUDA runtime from Python.
#if defined(__HIP__)
#include <hip/hip_runtime.h>
#else
#include <cuda_runtime.h>
#endif

#include "cuda/launchers.h"

namespace mtlkit::cuda {

#if defined(__HIP__)

const char* error_string(int code) { return hipGetErrorString(static_cast<hipError_t>(code)); }

int toolkit_version() { return HIP_VERSION; }

#else

const char* error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int toolkit_version() { return CUDART_VERSION; }

#endif

}  // namespace mtlkit::cuda
