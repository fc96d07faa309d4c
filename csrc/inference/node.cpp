#include "inference/node.h"

#include <functional>
#include <numeric>

namespace mtlkit {
std::string spelled(const Sizes& sizes) {
  std::string words = "(";
  for (size_t i = 0; i < sizes.size(); ++i) words += (i ? ", " : "") + std::to_string(sizes[i]);
  return words + (sizes.size() == 1 ? ",)" : ")");
}

int64_t Input::elements() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

void Input::check_rank(const char* letters, size_t rank, size_t first) const {
  bool fits = sizes.size() == rank;
  for (size_t i = first; fits && i < rank; ++i) fits = sizes[i] >= 1;
  if (fits) return;
  const char* sizes_too = sizes.size() == rank ? " with sizes of at least 1" : "";
  throw Refused(std::string(name) + ": expected shape " + letters + sizes_too + ", got " +
                (given ? spelled(sizes) : "none"));
}

void Input::check_shape(const char* letters, const Sizes& expected) const {
  if (sizes == expected) return;
  throw Refused(std::string(name) + ": expected shape " + letters + " = " + spelled(expected) + ", got " +
                (given ? spelled(sizes) : "none"));
}

}  // namespace mtlkit
