// Memory that the system has not handed out yet comes page by page, with a fault for each; for a large block the faults
// can take longer than what is computed.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mtlkit {

// Asks the system to back a block with pages of 2 MiB, as far as it has such an alignment. It need not comply, and what
// is there already stays.
inline void prefer_large_pages([[maybe_unused]] uintptr_t address, [[maybe_unused]] uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t{2} << 20;
  const uintptr_t first = (address + kPage - 1) / kPage * kPage, last = (address + bytes) / kPage * kPage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace mtlkit
