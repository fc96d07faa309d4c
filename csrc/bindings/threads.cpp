#include "bindings/threads.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "cpu/team.h"
#include "cpu/thread_pool.h"

#if defined(__unix__) || defined(__APPLE__)
#define MTLKIT_POSIX
#include <dlfcn.h>
#include <pthread.h>
#endif
#if defined(__APPLE__)
#include <mach-o/dyld.h>
#endif

namespace mtlkit {
namespace {

// The functions of libgomp that compiled code calls. The OpenMP libraries of LLVM and Intel export these names too.
struct OpenMP {
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*num_threads)() = nullptr;
  int (*in_parallel)() = nullptr;
  std::string file;

  bool complete() const { return parallel && thread_num && num_threads && in_parallel; }
};

#if defined(MTLKIT_POSIX)
// PyTorch's library of operators, if it is loaded.
void* loaded_torch() {
#if defined(__APPLE__)
  const std::string name = "/libtorch_cpu.dylib";
  for (uint32_t i = 0; i < _dyld_image_count(); ++i) {
    const std::string path = _dyld_get_image_name(i);
    if (path.size() >= name.size() && path.compare(path.size() - name.size(), name.size(), name) == 0) {
      return dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD);
    }
  }
  return nullptr;
#else
  return dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
#endif
}

template <typename F>
void look_up(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
}
#endif

// The OpenMP that PyTorch is linked with: dlsym searches a library and its dependencies.
OpenMP find_openmp() {
  OpenMP found;
#if defined(MTLKIT_POSIX)
  if (void* const torch = loaded_torch()) {
    look_up(torch, "GOMP_parallel", found.parallel);
    look_up(torch, "omp_get_thread_num", found.thread_num);
    look_up(torch, "omp_get_num_threads", found.num_threads);
    look_up(torch, "omp_in_parallel", found.in_parallel);
    Dl_info place{};
    if (found.complete() && dladdr(reinterpret_cast<void*>(found.parallel), &place)) found.file = place.dli_fname;
  }
#endif
  return found;
}

std::atomic<bool> use_openmp{true};

// Looked up at the first call: it passes tensors, so PyTorch is loaded by then.
const OpenMP* openmp() {
  static const OpenMP found = find_openmp();
  return found.complete() && use_openmp ? &found : nullptr;
}

bool forked = false;  // written in a child before fork returns, when it has one thread

#if defined(MTLKIT_POSIX)
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

// Whether a call starts its own threads: in a forked process, where libgomp and a pool would wait for the parent's
// threads, and under ThreadSanitizer, which does not see how libgomp's threads synchronise.
bool own_threads() {
#if defined(__SANITIZE_THREAD__)
  return true;
#else
  return forked;
#endif
}

// Runs the work on threads that exist only for this call. If the system cannot start enough threads, the calling thread
// does the remaining work.
void run_on_own_threads(int threads, TeamWork work) {
  std::vector<std::thread> others;
  others.reserve(threads);
  int next = 1;
  try {
    for (; next < threads; ++next) others.emplace_back(work.call, work.data, next, threads);
  } catch (const std::system_error&) {
    for (int rest = next; rest < threads; ++rest) work.call(work.data, rest, threads);
  }
  work.call(work.data, 0, threads);
  for (std::thread& other : others) other.join();
}

void run_on_openmp(const OpenMP& library, int threads, TeamWork work) {
  if (library.in_parallel()) return work.call(work.data, 0, 1);
  struct Team {
    const OpenMP& library;
    TeamWork work;
  } team{library, work};
  library.parallel(
      [](void* data) {
        const Team& team = *static_cast<Team*>(data);
        team.work.call(team.work.data, team.library.thread_num(), team.library.num_threads());
      },
      &team, static_cast<unsigned>(threads), 0);
}

class ProcessPool : public HostPool {
 public:
  void run(int threads, TeamWork work) override {
    if (own_threads()) return run_on_own_threads(threads, work);
    if (const OpenMP* const library = openmp()) return run_on_openmp(*library, threads, work);
    // Never destroyed: the destructor would join its threads in a forked child, too, which does not have them.
    static ThreadPool& pool = *new ThreadPool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    pool.run(threads, work);
  }
};

}  // namespace

void bind_threads(pybind11::module_& m) {
  set_process_pool(*new ProcessPool);
  m.def(
      "openmp",
      [] {
        const OpenMP* const library = openmp();
        return library ? library->file : std::string();
      },
      "The file of the OpenMP whose threads the kernels use, PyTorch's; \"\" where they use a pool of their own. To be "
      "asked after the import of torch.");
  m.def(
      "use_openmp", [](bool use) { use_openmp = use; }, pybind11::arg("use"),
      "Takes the kernels' threads from PyTorch's OpenMP, as by default, or from a pool of their own.");
}

}  // namespace mtlkit
