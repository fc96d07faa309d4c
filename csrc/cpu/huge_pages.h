// New memory causes one fault per page at its first use; for a large block, these faults can take longer than the
// computation.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mtlkit {

// Asks the system to back the aligned part of a block with pages of 2 MiB. The system may ignore this; pages that
// already exist stay as they are.
inline void prefer_large_pages([[maybe_unused]] uintptr_t address, [[maybe_unused]] uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t first = (address + kPage - 1) / kPage * kPage, last = (address + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace mtlkit
