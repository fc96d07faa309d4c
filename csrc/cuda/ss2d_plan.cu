// Which kernel serves a call of ss2d, and how its work is cut: see ss2d.h.
#include "cuda/device.cuh"
#include "cuda/ss2d.h"

namespace mtlkit::cuda {
namespace {

struct Row {
  int64_t index, states, lanes, channels, tokens;

  int64_t padded_states() const { return states * lanes; }
  int64_t warps() const { return 2 * channels * lanes / kWarp; }
};

#define MTLKIT_ROW(...) Row{__VA_ARGS__},
constexpr Row kForward[] = {MTLKIT_SS2D_FORWARD_LAYOUTS(MTLKIT_ROW)};
constexpr Row kBackward[] = {MTLKIT_SS2D_BACKWARD_LAYOUTS(MTLKIT_ROW)};
#undef MTLKIT_ROW

bool fits(const Row& row, const SS2DShape& shape, const Gpu& gpu, bool backward) {
  const auto shared = backward ? ss2d_bwd_shared : ss2d_fwd_shared;
  return row.padded_states() >= shape.states && shared(row.index, shape) <= gpu.shared_bytes;
}

}  // namespace

SS2DTiling ss2d_tiling(int64_t states, int64_t rank, const Gpu& gpu) {
  const SS2DShape shape{1, 1, 1, 1, states, rank};
  for (const Row& row : kBackward) {
    if (fits(row, shape, gpu, true)) return {row.padded_states(), row.tokens};
  }
  return {0, 0};
}

SS2DPlan plan_ss2d(const SS2DShape& shape, const Gpu& gpu, bool backward) {
  constexpr int64_t kEnoughWarps = 8, kWantedWarps = 16, kLeastTokens = 128, kLeastChunks = 3;
  const SS2DTiling tiling = ss2d_tiling(shape.states, shape.rank, gpu);
  const auto warps = [&](const Row& row) {
    return std::max<int64_t>(shape.batch * 2 * ceil_div(shape.channels, row.channels) * row.warps(), 1);
  };
  const auto choose = [&](const auto& rows) {
    const Row* chosen = nullptr;
    for (const Row& row : rows) {
      const bool serves = row.padded_states() == tiling.states && row.tokens == tiling.tokens;
      if (!serves || !fits(row, shape, gpu, backward)) continue;
      chosen = &row;
      if (warps(row) >= kWantedWarps * gpu.multiprocessors) break;
    }
    return chosen;
  };
  const Row* row = backward ? choose(kBackward) : choose(kForward);
  if (row == nullptr) return {-1, 0, 0, 0, 0, 0};

  const int64_t tiles = ceil_div(shape.tokens(), row->tokens);
  SS2DPlan plan{row->index, row->padded_states(), tiles, ceil_div(shape.channels, row->channels), tiles, 1};
  if (warps(*row) < kEnoughWarps * gpu.multiprocessors) {
    const int64_t wanted = ceil_div(kWantedWarps * gpu.multiprocessors, warps(*row));
    const int64_t chunk_tiles = std::max(kLeastTokens / row->tokens, ceil_div(tiles, wanted));
    if (const int64_t chunks = ceil_div(tiles, chunk_tiles); chunks >= kLeastChunks) {
      plan.chunk_tiles = chunk_tiles;
      plan.chunks = chunks;
    }
  }
  return plan;
}

}  // namespace mtlkit::cuda
