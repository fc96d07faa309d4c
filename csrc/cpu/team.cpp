#include "cpu/team.h"

namespace mtlkit {
namespace {

thread_local HostPool* host_pool = nullptr;
HostPool* process_pool = nullptr;

}  // namespace

UsePool::UsePool(HostPool& pool) { host_pool = &pool; }
UsePool::~UsePool() { host_pool = nullptr; }

void set_process_pool(HostPool& pool) { process_pool = &pool; }

void run_team(int threads, TeamWork work) {
  HostPool* const pool = host_pool ? host_pool : process_pool;
  if (pool) return pool->run(threads, work);
  work.call(work.data, 0, 1);
}

}  // namespace mtlkit
