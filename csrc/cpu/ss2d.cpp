// Four-direction 2-D selective scan: the directional scan along rows and columns, forwards and backwards.
#include "cpu/ss2d.h"

#include <memory>
#include <new>

#include "cpu/directional_scan/directional_scan.h"
#include "cpu/kernels.h"

namespace mtlkit {
namespace MTLKIT_ISA {

int directional_scan_forward(const DirectionalScanForward&);
int directional_scan_backward(const DirectionalScanBackward&);

namespace {

// Writes the four scan orders, (4, L).
void write_cross_order(const SS2DShape& s, int32_t* order) {
  const int64_t tokens = s.tokens();
  int64_t column_step = tokens;
  for (int64_t w = 0; w < s.width; ++w) {
    for (int64_t h = 0; h < s.height; ++h) order[column_step++] = static_cast<int32_t>(h * s.width + w);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    order[t] = static_cast<int32_t>(t);
    order[3 * tokens - 1 - t] = order[t];
    order[4 * tokens - 1 - t] = order[tokens + t];
  }
}

// The four scan orders of a map, (4, L), or null without memory. A thread keeps those of its last size of map: written
// in every call, they would move from the caches of one thread to those of the others each time.
const int32_t* cross_order(const SS2DShape& s) {
  thread_local std::unique_ptr<int32_t[]> order;
  thread_local int64_t height = 0, width = 0;
  if (!order || height != s.height || width != s.width) {
    order.reset(new (std::nothrow) int32_t[kDirections * s.tokens()]);
    if (!order) return nullptr;
    write_cross_order(s, order.get());
    height = s.height;
    width = s.width;
  }
  return order.get();
}

Tensor<5> shared(const Tensor<4>& image) {
  const int64_t* s = image.stride;
  return {image.data, image.dtype, {s[0], 0, s[1], s[2], s[3]}};
}

DirectionalScanForward directional(const SS2DForward& p, const int32_t* order) {
  const SS2DShape& s = p.shape;
  DirectionalScanForward q{};
  q.shape = {s.batch, kDirections, s.channels, s.height, s.width, s.tokens(), s.states, s.rank};
  q.merge = true;
  q.u = shared(p.u);
  q.y = shared(p.y);
  q.x_dbl = p.x_dbl;
  q.dt_weight = p.dt_weight;
  q.dt_bias = p.dt_bias;
  q.A_logs = p.A_logs;
  q.Ds = p.Ds;
  q.order = order;
  q.checkpoints = p.checkpoints;
  q.use_double = p.use_double;
  q.threads = p.threads;
  return q;
}

}  // namespace

int ss2d_forward(const SS2DForward& p) {
  const int32_t* const order = cross_order(p.shape);
  return order ? directional_scan_forward(directional(p, order)) : kOutOfMemory;
}

int ss2d_backward(const SS2DBackward& p) {
  const int32_t* const order = cross_order(p.forward.shape);
  if (!order) return kOutOfMemory;
  DirectionalScanBackward q{};
  q.forward = directional(p.forward, order);
  q.dy = shared(p.dy);
  q.du = shared(p.du);
  q.dx_dbl = p.dx_dbl;
  q.ddt_weight = p.ddt_weight;
  q.ddt_bias = p.ddt_bias;
  q.dA_logs = p.dA_logs;
  q.dDs = p.dDs;
  return directional_scan_backward(q);
}

}  // namespace MTLKIT_ISA
}  // namespace mtlkit
