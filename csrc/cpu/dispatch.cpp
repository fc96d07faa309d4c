#include "cpu/dispatch.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>

#if defined(MTLKIT_X86_64)
#include <cpuid.h>
#endif

namespace mtlkit {

namespace baseline {
extern const CpuKernels kernels;
}
#if defined(MTLKIT_X86_64)
namespace avx2 {
extern const CpuKernels kernels;
}
namespace avx512 {
extern const CpuKernels kernels;
}
#endif

namespace {

#if defined(MTLKIT_X86_64)
// The features of the processor by cpuid, restricted to registers that the system saves. The compiler's
// __builtin_cpu_supports needs runtime support that some Windows toolchains lack.
struct Processor {
  bool avx2 = false, avx512 = false;

  Processor() {
    constexpr unsigned kFma = 1u << 12, kOsxsave = 1u << 27, kF16c = 1u << 29, kFirst = kFma | kOsxsave | kF16c;
    constexpr unsigned kAvx2 = 1u << 5, kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
    constexpr unsigned kYmm = 0x6, kZmm = 0xe6;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kFirst) != kFirst) return;
    unsigned kept, high;
    __asm__("xgetbv" : "=a"(kept), "=d"(high) : "c"(0));
    if ((kept & kYmm) != kYmm || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    avx2 = ebx & kAvx2;
    avx512 = avx2 && (ebx & kAvx512) == kAvx512 && (kept & kZmm) == kZmm;
  }
};
#endif

std::vector<const CpuKernels*> tables() {
  std::vector<const CpuKernels*> found = {&baseline::kernels};
#if defined(MTLKIT_X86_64)
  static const Processor processor;
  if (processor.avx2) found.push_back(&avx2::kernels);
  if (processor.avx512) found.push_back(&avx512::kernels);
#endif
  return found;
}

const CpuKernels* find(const std::string& level) {
  for (const CpuKernels* table : tables()) {
    if (level == table->isa) return table;
  }
  return nullptr;
}

// Ignores a level in the environment that the machine cannot run; `mtlkit info` reports it.
const CpuKernels* initial() {
  const char* wanted = std::getenv("MTLKIT_CPU_ISA");
  const CpuKernels* named = wanted ? find(wanted) : nullptr;
  return named ? named : tables().back();
}

std::atomic<const CpuKernels*> active{nullptr};

}  // namespace

std::vector<std::string> cpu_levels() {
  std::vector<std::string> names;
  for (const CpuKernels* table : tables()) names.emplace_back(table->isa);
  return names;
}

const CpuKernels& cpu_kernels() {
  const CpuKernels* table = active.load();
  if (!table) active.store(table = initial());
  return *table;
}

bool set_cpu_level(const std::string& level) {
  const CpuKernels* table = find(level);
  if (table) active.store(table);
  return table != nullptr;
}

}  // namespace mtlkit
