// Chooses the kernel for a call of ss2d and divides its work: see ss2d.h.
#include "cuda/device.cuh"
#include "cuda/ss2d/ss2d.h"

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

constexpr int64_t kPartsPerElement = 4;  // floats per element of u

// Divides a backward pass into launches, so that the parts of a launch (of the gradient of x_dbl, and sums over tokens)
// take at most kPartsPerElement floats per element of u. It first uses windows, each of which has as many blocks as the
// complete pass. If windows cannot be short enough, it uses slices of images, as long as each slice fills the GPU.
void cut_launches(SS2DPlan& plan, const SS2DShape& shape, int64_t tile_tokens, int64_t warps, const Gpu& gpu) {
  constexpr int64_t kLeastTiles = 2;
  const int64_t most = kPartsPerElement * shape.batch * shape.channels * shape.tokens();
  const auto launches = [&](int64_t floats) { return most > 0 ? std::max<int64_t>(1, ceil_div(floats, most)) : 1; };
  const auto rows = [&] { return plan.channel_blocks * shape.batch * plan.pixels * plan.scans() * shape.row(); };
  const int64_t windows = launches(rows());
  const int64_t longest = plan.longest_chunk();
  plan.window_tiles = std::min(longest, std::max(kLeastTiles, ceil_div(longest, windows)));
  if (plan.window_tiles < longest) {
    plan.pixels = std::min(plan.chunks * plan.window_tiles * tile_tokens, shape.tokens());
  }
  if (plan.window_tiles > kLeastTiles) return;

  const int64_t sums = shape.batch * plan.chunks * plan.scans() * shape.channels * (shape.states + shape.rank + 2);
  const int64_t slices = std::min(launches(rows() + sums), warps / gpu.full_warps());
  if (slices > 1) plan.images = ceil_div(shape.batch, slices);
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
  const auto choose = [&](const auto& rows, const auto& suffices) {
    const Row* chosen = nullptr;
    for (const Row& row : rows) {
      const bool serves = row.padded_states() == tiling.states && row.tokens == tiling.tokens;
      if (!serves || !fits(row, shape, gpu, backward)) continue;
      chosen = &row;
      if (suffices(row)) break;
    }
    return chosen;
  };
  const auto fills = [&](const Row& row) { return gpu.is_full(warps(row)); };
  const Row* row = backward ? choose(kBackward, fills) : choose(kForward, fills);
  if (row == nullptr) return {-1, 0, 0, 0, 0, 0, 0, 0, 0, 0};

  int64_t pairs = 2;
  if (backward && !gpu.has_enough(warps(*row))) {
    const Row* widest = choose(kBackward, [](const Row&) { return true; });
    const int64_t parts = ceil_div(shape.channels, widest->channels) * kDirections * shape.row();
    if (parts > kPartsPerElement * shape.channels) {
      row = widest;
      pairs = 1;
    }
  }
  const int64_t tiles = ceil_div(shape.tokens(), row->tokens), launch_warps = warps(*row) * pairs / 2;
  const Chunks chunks = split(shape.tokens(), row->tokens, launch_warps, gpu);
  SS2DPlan plan{row->index,     row->padded_states(),
                tiles,          ceil_div(shape.channels, row->channels),
                chunks.tiles,   chunks.count,
                shape.batch,    chunks.tiles,
                shape.tokens(), pairs};
  if (backward) cut_launches(plan, shape, row->tokens, launch_warps, gpu);
  return plan;
}

}  // namespace mtlkit::cuda
