#include "cpu/dispatch.h"

#include <atomic>
#include <cstdlib>

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

std::vector<const CpuKernels*> tables() {
  std::vector<const CpuKernels*> found = {&baseline::kernels};
#if defined(MTLKIT_X86_64)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&avx2::kernels);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      found.push_back(&avx512::kernels);
    }
  }
#endif
  return found;
}

const CpuKernels* find(const std::string& level) {
  for (const CpuKernels* table : tables()) {
    if (level == table->isa) return table;
  }
  return nullptr;
}

// A level that the environment asks for and the machine lacks is passed over; the information command shows it.
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
