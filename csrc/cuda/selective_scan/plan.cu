// Chooses the kernel for a call of selective_scan and divides its work: see selective_scan.h.
#include "cuda/device.cuh"
#include "cuda/selective_scan/selective_scan.h"

namespace mtlkit::cuda {
namespace {

struct Row {
  int64_t index, states, lanes, channels, tokens;
};

#define MTLKIT_ROW(...) Row{__VA_ARGS__},
constexpr Row kVariable[] = {MTLKIT_SELECTIVE_SCAN_LAYOUTS(MTLKIT_ROW)};
constexpr Row kConstant[] = {MTLKIT_SELECTIVE_SCAN_CONSTANT_LAYOUTS(MTLKIT_ROW)};
#undef MTLKIT_ROW

}  // namespace

SelectiveScanPlan plan_selective_scan(const SelectiveScanShape& shape, bool constant, const Gpu& gpu) {
  const int64_t group = shape.channels / shape.groups;
  const auto warps = [&](const Row& row) {
    const int64_t blocks = shape.batch * shape.groups * ceil_div(group, row.channels);
    return blocks * row.channels * row.lanes / kWarp;
  };
  const auto choose = [&](const auto& rows) {
    const Row* chosen = nullptr;
    for (const Row& row : rows) {
      const int64_t padded = row.states * row.lanes;
      if (padded < shape.states || (chosen && padded != chosen->states * chosen->lanes)) continue;
      chosen = &row;
      if (gpu.is_full(warps(row))) break;
    }
    return chosen;
  };
  const Row* row = constant ? choose(kConstant) : choose(kVariable);
  if (row == nullptr) return {-1, 0, 0, 0, 0, 0, 0};

  const Chunks chunks = split(shape.tokens, row->tokens, warps(*row), gpu);
  return {row->index,   row->states * row->lanes,           row->tokens, ceil_div(group, row->channels), chunks.tiles,
          chunks.count, ceil_div(shape.tokens, row->tokens)};
}

}  // namespace mtlkit::cuda
