// Threads of a call's own, where OpenMP's cannot be used.
#pragma once

#include <functional>

namespace mtlkit {

// Whether a call starts threads of its own: in a process that was forked, because libgomp would wait there for the
// threads of its parent, and under ThreadSanitizer, which does not see how libgomp's threads wait for each other.
bool own_threads();

// Calls work(thread, threads) once for each thread of a team that is there for this call alone. Where the system has no
// more threads, the calling one does the work of the rest.
void on_own_threads(int threads, const std::function<void(int, int)>& work);

}  // namespace mtlkit
