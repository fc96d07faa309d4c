// Shared by the plans of the scans: when a call fills a GPU, and how its tokens are cut into chunks if it does not.
#pragma once

#include <algorithm>
#include <cstdint>

namespace mtlkit::cuda {

constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

struct Gpu {
  int64_t multiprocessors;
  int64_t shared_bytes;  // the limit per block

  // Enough warps to hide each other's latency.
  int64_t full_warps() const { return 16 * multiprocessors; }
  bool is_full(int64_t warps) const { return warps >= full_warps(); }
  // With fewer warps, spreading the work over more of them pays even though it adds work.
  int64_t enough_warps() const { return 8 * multiprocessors; }
  bool has_enough(int64_t warps) const { return warps >= enough_warps(); }
};

struct Chunks {
  int64_t tiles;  // per chunk; the last has the remainder
  int64_t count;
};

// One chunk if the launch has enough warps. Else the larger of two counts: as many chunks of 128 tokens or more as give
// 16 warps per multiprocessor, but at least three; or as many chunks of 64 tokens or more as give 8 warps. Up to half a
// tile at the end does not become a separate chunk. Fewer than three chunks would not pay, since chunks compute the
// states twice.
inline Chunks split(int64_t tokens, int64_t tile_tokens, int64_t warps, const Gpu& gpu) {
  constexpr int64_t kLeastChunks = 3;
  const int64_t tiles = ceil_div(tokens, tile_tokens), given = std::max<int64_t>(warps, 1);
  if (gpu.has_enough(warps)) return {tiles, 1};
  const auto length = [&](int64_t chunks, int64_t least_tokens) {
    return std::max(least_tokens / tile_tokens, ceil_div(tiles, chunks));
  };
  const int64_t chunk_tiles =
      std::min(length(std::max(kLeastChunks, gpu.full_warps() / given), 128), length(gpu.enough_warps() / given, 64));
  const int64_t chunks = ceil_div(tokens - tile_tokens / 2, chunk_tiles * tile_tokens);
  return chunks < kLeastChunks ? Chunks{tiles, 1} : Chunks{chunk_tiles, chunks};
}

}  // namespace mtlkit::cuda
