// What a launcher answers. CUDA launchers answer with a cudaError_t instead, which has texts of its own.
#pragma once

namespace mtlkit {

enum Status : int { kOk = 0, kOutOfMemory = 1 };

}  // namespace mtlkit
