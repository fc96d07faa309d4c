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
  const SS2DTiling tiling = ss2d_tiling(shape.states, shape.rank, gpu);
  const auto warps = [&](const Row& row) {
    return shape.batch * 2 * ceil_div(shape.channels, row.channels) * row.warps();
  };
  const auto choose = [&](const auto& rows) {
    const Row* chosen = nullptr;
    for (const Row& row : rows) {
      const bool serves = row.padded_states() == tiling.states && row.tokens == tiling.tokens;
      if (!serves || !fits(row, shape, gpu, backward)) continue;
      chosen = &row;
      if (gpu.is_full(warps(row))) break;
    }
    return chosen;
  };
  const Row* row = backward ? choose(kBackward) : choose(kForward);
  if (row == nullptr) return {-1, 0, 0, 0, 0, 0};

  const int64_t tiles = ceil_div(shape.tokens(), row->tokens);
  const Chunks chunks = split(tiles, row->tokens, warps(*row), gpu);
  return {row->index, row->padded_states(), tiles, ceil_div(shape.channels, row->channels), chunks.tiles, chunks.count};
}

}  // namespace mtlkit::cuda
