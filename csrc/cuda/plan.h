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
// each, if that makes three or more (two would cost more than they bring, since the states are found twice).
inline Chunks split(int64_t tiles, int64_t tile_tokens, int64_t warps, const Gpu& gpu) {
  constexpr int64_t kEnoughWarps = 8, kWantedWarps = 16, kLeastTokens = 128, kLeastChunks = 3;
  if (warps >= kEnoughWarps * gpu.multiprocessors) return {tiles, 1};
  const int64_t wanted = ceil_div(kWantedWarps * gpu.multiprocessors, std::max<int64_t>(warps, 1));
  const int64_t chunk_tiles = std::max(kLeastTokens / tile_tokens, ceil_div(tiles, wanted));
  const int64_t chunks = ceil_div(tiles, chunk_tiles);
  return chunks < kLeastChunks ? Chunks{tiles, 1} : Chunks{chunk_tiles, chunks};
}

}  // namespace mtlkit::cuda
