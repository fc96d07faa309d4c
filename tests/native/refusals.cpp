#include <limits>

#include "operators.h"

namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

std::vector<std::string> wrong;

void expect(mtlkit_status status, const char* words) {
  const std::string got = status == MTLKIT_INVALID_ARGUMENT ? mtlkit_last_error() : "status " + std::to_string(status);
  if (got != words) wrong.push_back(std::string("expected \"") + words + "\", got \"" + got + "\"");
}

void refuse_arrays() {
  std::vector<float> x(24, 1), y(24);
  const auto call = [&](mtlkit_input in, mtlkit_output out, mtlkit_input weight = {}) {
    mtlkit_norm_gate_arguments a = {};
    a.x = in;
    a.weight = weight;
    a.y = out;
    return mtlkit_norm_gate(&a, nullptr);
  };
  const mtlkit_output good = {y.data(), 2, {4, 6}};
  expect(call({x.data(), 2, {4, 6}}, good), "status 0");
  expect(call({x.data(), 2, {4, 6}}, {y.data(), 2, {4, 5}}), "y: expected shape (4, 6), got (4, 5)");
  expect(call({x.data(), 2, {4, 6}}, {}), "y: expected shape (4, 6), got none");
  expect(call({x.data(), 2, {4, 6}}, {nullptr, 2, {4, 6}}), "y: expected data of sizes (4, 6), got NULL");
  expect(call({nullptr, 2, {4, 6}}, good), "x: expected data of sizes (4, 6), got NULL");
  expect(call({x.data(), 2, {-4, -6}}, good), "x: expected sizes of at least 0, got (-4, -6)");
  expect(call({x.data(), 6, {4, 6}}, good), "x: expected a rank from 0 to 5, got 6");
  expect(call({x.data(), -1, {4, 6}}, good), "x: expected a rank from 0 to 5, got -1");
  expect(call({x.data(), 2, {kMost, kMost}}, good),
         "x: expected an array that fits the memory, got sizes (9223372036854775807, 9223372036854775807)");
  expect(call({x.data(), 2, {4, 6}}, good, {x.data(), 1, {5}}), "weight: expected shape (D,) = (6,), got (5,)");
  expect(call({nullptr, 2, {0, 6}}, {nullptr, 2, {0, 6}}), "status 0");
  expect(mtlkit_norm_gate(nullptr, nullptr), "arguments: expected an address, got NULL");
}

void refuse_offsets() {
  std::vector<float> x(2 * 2 * 6), weight(4 * 9), y(2 * 2 * 4);
  for (const int64_t offset : {int64_t{-1}, int64_t{3}, kMost}) {
    mtlkit_dwconv_silu_arguments a = {};
    a.x = {x.data(), 4, {1, 2, 2, 6}};
    a.weight = {weight.data(), 4, {4, 1, 3, 3}};
    a.offset = offset;
    a.y = {y.data(), 4, {1, 2, 2, 4}};
    if (mtlkit_dwconv_silu(&a, nullptr) != MTLKIT_INVALID_ARGUMENT) wrong.push_back("an offset was not refused");
  }
}

void refuse_orders() {
  std::vector<float> numbers(64);
  const auto call = [&](std::vector<int32_t> order) {
    mtlkit_directional_scan_arguments a = {};
    a.u = {numbers.data(), 3, {1, 3, 2}};
    a.x_dbl = {numbers.data(), 4, {1, 3, 2, 3}};
    a.dt_weight = {numbers.data(), 3, {2, 2, 1}};
    a.dt_bias = {numbers.data(), 2, {2, 2}};
    a.A_logs = {numbers.data(), 2, {4, 1}};
    a.Ds = {numbers.data(), 1, {4}};
    if (!order.empty()) a.order = {order.data(), 2, {2, static_cast<int64_t>(order.size() / 2)}};
    a.merge = 1;
    std::vector<float> y(6);
    a.y = {y.data(), 3, {1, 3, 2}};
    return mtlkit_directional_scan(&a, nullptr);
  };
  expect(call({0, 1, 2, 2, 1, 0}), "status 0");
  expect(call({}), "order: expected shape (K, T) or (B, K, T), got none");
  expect(call({0, 1, 2, 3, 1, 0}), "order: expected tokens from 0 to 2, got 3");
  expect(call({0, -1, 2, 2, 1, 0}), "order: expected tokens from 0 to 2, got -1");
  expect(call({0, 1, 1, 2, 1, 0}), "order: expected each token at most once in a direction, got token 1 twice");
}

void refuse_levels_and_pools() {
  const std::string level = mtlkit_isa();
  if (mtlkit_set_isa("sse9") != MTLKIT_INVALID_ARGUMENT || level != mtlkit_isa()) wrong.push_back("mtlkit_set_isa");
  expect(mtlkit_set_isa(nullptr), "level: expected an address, got NULL");
  mtlkit_pool* pool = nullptr;
  expect(mtlkit_pool_create(-1, &pool), "threads: expected a number that is at least 0, got -1");
  expect(mtlkit_pool_create(1, nullptr), "pool: expected an address, got NULL");
  expect(mtlkit_pool_of_host(1, nullptr, nullptr, &pool), "run: expected a function, got NULL");
  if (pool) wrong.push_back("a pool was made of nothing");
  mtlkit_pool_destroy(nullptr);
}

}  // namespace

std::vector<std::string> check_refusals() {
  refuse_arrays();
  refuse_offsets();
  refuse_orders();
  refuse_levels_and_pools();
  return wrong;
}
