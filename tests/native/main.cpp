// Runs cases on every instruction set of the machine, with and without threads:
//
//   runner cases [level]
//
// Prints errors and finally a summary. Without WITH_BACKWARD it needs only the library.
#include <cstdio>
#include <exception>
#include <string>
#include <thread>

#include "operators.h"

namespace {

int failures = 0;

void report(const std::vector<std::string>& words, const std::string& where) {
  for (const std::string& line : words) {
    ++failures;
    std::printf("%s: %s\n", where.c_str(), line.c_str());
  }
}

// A pool of the program: parts run in another order, on the calling thread and on a second one.
void run_backwards(void* calls, int shares, void (*share)(void*, int), void* work) {
  ++*static_cast<int*>(calls);
  std::thread other([=] {
    for (int i = shares - 1; i > 0; i -= 2) share(work, i);
  });
  for (int i = shares - 2; i >= 0; i -= 2) share(work, i);
  if (shares % 2) share(work, 0);
  other.join();
}

template <typename F>
void run(std::vector<Case>& cases, const std::string& where, F f) {
  for (Case& c : cases) {
    c.clear_outputs();
    try {
      f(c);
      report(c.compare(), where);
    } catch (const std::exception& error) {
      report({c.name + ": " + error.what()}, where);
    }
  }
}

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Case> cases = read_cases(argc > 1 ? argv[1] : "");
  const std::string only = argc > 2 ? argv[2] : "";
  const std::string first = mtlkit_isa();
  report(check_refusals(), "refusals");
  mtlkit_pool *own = nullptr, *host = nullptr;
  int calls = 0;
  if (mtlkit_pool_create(3, &own) || mtlkit_pool_of_host(3, run_backwards, &calls, &host)) {
    report({mtlkit_last_error()}, "pools");
  }
  std::string levels;
  int backward = 0;
  for (const char* const* level = mtlkit_isa_levels(); *level; ++level) {
    if (!only.empty() && only != *level) continue;
    if (mtlkit_set_isa(*level) || *level != std::string(mtlkit_isa())) report({"cannot be chosen"}, *level);
    levels += std::string(" ") + *level;
    run(cases, std::string(*level) + ", one thread", [](Case& c) { run_forward(c, nullptr); });
    run(cases, std::string(*level) + ", own pool", [&](Case& c) { run_forward(c, own); });
    run(cases, std::string(*level) + ", host's pool", [&](Case& c) { run_forward(c, host); });
#if defined(WITH_BACKWARD)
    run(cases, std::string(*level) + ", backward", [&](Case& c) { backward += run_backward(c, 1); });
    run(cases, std::string(*level) + ", backward, team", [&](Case& c) { run_backward(c, 3); });
#endif
  }
  if (!calls) report({"was never called"}, "host's pool");
  for (const Case& c : cases) report(c.never_compared(), "results");
  mtlkit_pool_destroy(own);
  mtlkit_pool_destroy(host);
  std::printf("starts with %s;%s: %d cases forward, %d backward in all, %d failures\n", first.c_str(), levels.c_str(),
              static_cast<int>(cases.size()), backward, failures);
  return failures ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
