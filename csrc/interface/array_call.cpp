#include "interface/array_call.h"

#include <cstring>

namespace mtlkit {
namespace {

constexpr int64_t kMostElements = INT64_MAX / 64;  // so that byte offsets do not overflow

// The sizes of an array; throws if they are invalid.
template <typename Array>
Sizes sizes_of(const char* name, const Array& array) {
  if (array.rank < 0 || array.rank > MTLKIT_MAX_RANK) {
    throw Refused(std::string(name) + ": expected a rank from 0 to " + std::to_string(MTLKIT_MAX_RANK) + ", got " +
                  std::to_string(array.rank));
  }
  Sizes sizes(array.sizes, array.sizes + array.rank);
  int64_t elements = 1, most = 1;  // `most`: the product of the sizes that are not 0
  for (const int64_t size : sizes) {
    if (size < 0) throw Refused(std::string(name) + ": expected sizes of at least 0, got " + spelled(sizes));
    if (size > 0 && most > kMostElements / size) {
      throw Refused(std::string(name) + ": expected an array that fits the memory, got sizes " + spelled(sizes));
    }
    most *= size > 0 ? size : 1;
    elements *= size;
  }
  if (array.rank > 0 && elements > 0 && !array.data) {
    throw Refused(std::string(name) + ": expected data of sizes " + spelled(sizes) + ", got NULL");
  }
  return sizes;
}

}  // namespace

Input ArrayCall::input(const char* name, size_t place) const {
  Input found;
  found.name = name;
  if (place >= inputs_.size()) return found;
  const mtlkit_input& array = *inputs_[place];
  found.sizes = sizes_of(name, array);
  found.given = array.rank > 0;
  found.data = found.given ? const_cast<float*>(array.data) : nullptr;  // nodes do not write to their inputs
  return found;
}

float* ArrayCall::output(size_t place, const Sizes& sizes) const {
  const NamedOutput& output = outputs_.at(place);
  const Sizes given = sizes_of(output.name, output.array);
  if (given.empty() && output.optional) {
    int64_t elements = 1;
    for (const int64_t size : sizes) elements *= size;
    return unwanted_.emplace_back(elements).data();
  }
  if (given != sizes) {
    throw Refused(std::string(output.name) + ": expected shape " + spelled(sizes) + ", got " +
                  (given.empty() ? "none" : spelled(given)));
  }
  return output.array.data;
}

const double* ArrayAttributes::find(const char* name) const {
  for (const auto& [own, value] : values_) {
    if (std::strcmp(own, name) == 0) return &value;
  }
  return nullptr;
}

int64_t ArrayAttributes::integer(const char* name, int64_t missing) const {
  const double* value = find(name);
  return value ? static_cast<int64_t>(*value) : missing;
}

float ArrayAttributes::number(const char* name, float missing) const {
  const double* value = find(name);
  return value ? static_cast<float>(*value) : missing;
}

}  // namespace mtlkit
