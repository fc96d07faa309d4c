// The operators of the domain "mtlkit" on maps (B, C, H, W) between convolutions.
#include <algorithm>

#include "cpu/dispatch.h"
#include "inference/kernel_node.h"

namespace mtlkit {
namespace {

// ---- GatedResidual --------------------------------------------------------------------------------------------------

// The formula is that of csrc/cpu/gated_residual.h. Inputs: three maps, weights (B, 3), bias (C), residual, then all or
// none of fc1_weight (hidden, C), fc1_bias, fc2_weight (C, hidden), fc2_bias, spatial_weight (1, 2, 7, 7) and
// spatial_bias (1).
class GatedResidualKernel : public Kernel {
 public:
  explicit GatedResidualKernel(const NodeAttributes&) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input maps[kMostMaps] = {call.input("first", 0), call.input("second", 1), call.input("third", 2)};
    const Input weights = call.input("weights", 3), bias = call.input("bias", 4), residual = call.input("residual", 5);
    const Input fc1_weight = call.input("fc1_weight", 6), fc1_bias = call.input("fc1_bias", 7);
    const Input fc2_weight = call.input("fc2_weight", 8), fc2_bias = call.input("fc2_bias", 9);
    const Input spatial_weight = call.input("spatial_weight", 10), spatial_bias = call.input("spatial_bias", 11);
    maps[0].check_rank("(B, C, H, W)", 4, 1);
    const Sizes& sizes = maps[0].sizes;
    const int64_t B = sizes[0], C = sizes[1];
    for (const Input* map : {&maps[1], &maps[2], &residual}) map->check_shape("(B, C, H, W)", sizes);
    weights.check_shape("(B, 3)", {B, kMostMaps});
    bias.check_shape("(C,)", {C});
    int64_t hidden = 0;
    if (fc1_weight.given) {
      fc1_weight.check_rank("(hidden, C)", 2, 0);
      hidden = fc1_weight.sizes[0];
      fc1_weight.check_shape("(hidden, C)", {hidden, C});
      fc1_bias.check_shape("(hidden,)", {hidden});
      fc2_weight.check_shape("(C, hidden)", {C, hidden});
      fc2_bias.check_shape("(C,)", {C});
      spatial_weight.check_shape("(1, 2, 7, 7)", {1, 2, kSpatialTaps, kSpatialTaps});
      spatial_bias.check_shape("(1,)", {1});
    }

    float* y = call.output(0, sizes);
    if (B == 0) return;
    GatedResidualForward p{};
    p.batch = B, p.channels = C, p.height = sizes[2], p.width = sizes[3];
    for (int i = 0; i < kMostMaps; ++i) p.maps[i] = maps[i].data;
    p.weights = weights.data;
    p.bias = bias.data;
    p.residual = residual.data;
    p.hidden = hidden;
    p.fc1_weight = fc1_weight.data;
    p.fc1_bias = fc1_bias.data;
    p.fc2_weight = fc2_weight.data;
    p.fc2_bias = fc2_bias.data;
    p.spatial_weight = spatial_weight.data;
    p.spatial_bias = spatial_bias.data;
    p.y = y;
    p.threads = threads;
    check(cpu_kernels().gated_residual_forward(p));
  }
};

// ---- Interleave -----------------------------------------------------------------------------------------------------

// y[b, o, 2 m + i, 2 n + j] = phase_ij[b, o, m, n], without the last `crop_rows` rows and `crop_columns` columns, which
// are attributes. Inputs: the phases 00, 01, 10 and 11, (B, O, M, N) each.
class InterleaveKernel : public Kernel {
 public:
  explicit InterleaveKernel(const NodeAttributes& attributes)
      : crop_rows_(attributes.integer("crop_rows", 0)), crop_columns_(attributes.integer("crop_columns", 0)) {
    check_attribute(0 <= crop_rows_ && crop_rows_ <= 1, "crop_rows: expected 0 or 1");
    check_attribute(0 <= crop_columns_ && crop_columns_ <= 1, "crop_columns: expected 0 or 1");
  }

  void compute(const NodeCall& call, int threads) const override {
    const Input phases[] = {call.input("phase_00", 0), call.input("phase_01", 1), call.input("phase_10", 2),
                            call.input("phase_11", 3)};
    phases[0].check_rank("(B, O, M, N)", 4, 1);
    const Sizes& sizes = phases[0].sizes;
    for (const Input& phase : phases) phase.check_shape("(B, O, M, N)", sizes);
    InterleaveForward p{};
    p.planes = sizes[0] * sizes[1], p.rows = sizes[2], p.columns = sizes[3];
    p.height = 2 * p.rows - crop_rows_, p.width = 2 * p.columns - crop_columns_;
    p.y = call.output(0, {sizes[0], sizes[1], p.height, p.width});
    if (p.planes == 0) return;
    for (int i = 0; i < 4; ++i) p.phases[i] = phases[i].data;
    p.threads = threads;
    check(cpu_kernels().interleave_forward(p));
  }

 private:
  int64_t crop_rows_, crop_columns_;
};

// ---- Shuffle --------------------------------------------------------------------------------------------------------

// y[..., 2 d] = left[..., d], y[..., 2 d + 1] = right[..., d]. Inputs: both (..., D).
class ShuffleKernel : public Kernel {
 public:
  explicit ShuffleKernel(const NodeAttributes&) {}

  void compute(const NodeCall& call, int threads) const override {
    const Input left = call.input("left", 0), right = call.input("right", 1);
    Sizes sizes = left.sizes;
    if (sizes.empty() || sizes.back() < 1) left.check_rank("(..., D)", std::max<size_t>(sizes.size(), 1));
    right.check_shape("(..., D), that of left,", sizes);
    InterleaveForward p{};
    p.columns = sizes.back(), p.width = 2 * p.columns, p.rows = p.height = 1;
    p.planes = left.elements() / p.columns;
    sizes.back() = p.width;
    p.y = call.output(0, sizes);
    if (p.planes == 0) return;
    p.phases[0] = left.data, p.phases[1] = right.data;
    p.threads = threads;
    check(cpu_kernels().interleave_forward(p));
  }
};

}  // namespace

const std::vector<NodeKind>& map_node_kinds() {
  static const std::vector<NodeKind> kinds = {
      {"GatedResidual", 6, 6, 1, make<GatedResidualKernel>, [](const NodeShapes& s) { s.same(0, 0); }},
      {"Interleave", 4, 0, 1, make<InterleaveKernel>, [](const NodeShapes&) {}},
      {"Shuffle", 2, 0, 1, make<ShuffleKernel>, [](const NodeShapes&) {}},
  };
  return kinds;
}

}  // namespace mtlkit
