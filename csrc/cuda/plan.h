// What the plans of the scans share: when a call fills a GPU, and how its tokens are cut where it does not.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mtlkit::cuda {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

struct Gpu {
  int64_t multiprocessors;
  int64_t shared_bytes;  // that a block may have

  // So many warps hide each other's waiting.
  int64_t full_warps() const { return 16 * multiprocessors; }
  bool is_full(int64_t warps) const { return warps >= full_warps(); }
};

struct Chunks {
  int64_t tiles;  // per chunk, the last may have fewer
  int64_t count;
};

// One chunk where the warps of a call give every multiprocessor 8; else as many as make 16, of at least 128 tokens
// each, or 64 where the call has not even a warp for each of the four schedulers of a multiprocessor. Only if that
// makes three or more: two would cost more than they bring, since the states are found twice.
inline Chunks split(int64_t tiles, int64_t tile_tokens, int64_t warps, const Gpu& gpu) {
  constexpr int64_t kEnoughWarps = 8, kFewWarps = 4, kLeastTokens = 128, kFewestTokens = 64, kLeastChunks = 3;
  if (warps >= kEnoughWarps * gpu.multiprocessors) return {tiles, 1};
  const int64_t wanted = ceil_div(gpu.full_warps(), std::max<int64_t>(warps, 1));
  const auto cut = [&](int64_t least_tokens) {
    const int64_t chunk_tiles = std::max(least_tokens / tile_tokens, ceil_div(tiles, wanted));
    const int64_t chunks = ceil_div(tiles, chunk_tiles);
    return chunks < kLeastChunks ? Chunks{tiles, 1} : Chunks{chunk_tiles, chunks};
  };
  const Chunks chunks = cut(kLeastTokens);
  return chunks.count > 1 || warps >= kFewWarps * gpu.multiprocessors ? chunks : cut(kFewestTokens);
}

}  // namespace mtlkit::cuda
