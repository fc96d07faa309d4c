#include "onnxruntime/session_node.h"

#include <string>

namespace mtlkit {
namespace {

// The shape of an input before the node runs; -1 for an unknown size.
bool known_shape(ort::Api* api, const ort::Inference* inference, size_t input, Sizes& sizes,
                 std::vector<const char*>& symbols) {
  ort::TypeAndShape* info = nullptr;  // owned by the inference context
  size_t rank = 0;
  const auto done = [&](ort::Status* status) {
    if (status) ort::ReleaseStatus::call(api, status);
    return !status;
  };
  if (!done(ort::InputShape::call(api, inference, input, &info)) || !info) return false;
  if (!done(ort::GetRank::call(api, info, &rank))) return false;
  sizes.resize(rank);
  symbols.resize(rank);
  return rank > 0 &&  // a completely unknown shape has rank 0; no operator takes scalars
         done(ort::GetDimensions::call(api, info, sizes.data(), rank)) &&
         done(ort::GetSymbols::call(api, info, symbols.data(), rank));
}

}  // namespace

void check_status(ort::Api* api, ort::Status* status) {
  if (!status) return;
  const std::string words = ort::GetMessage::call(api, status);
  ort::ReleaseStatus::call(api, status);
  throw std::runtime_error(words);
}

// ---- Calls ----------------------------------------------------------------------------------------------------------

SessionCall::SessionCall(ort::Api* api, ort::Call* call) : api_(api), call_(call), inputs_(0) {
  check_status(api, ort::CountInputs::call(api, call, &inputs_));
}

Input SessionCall::input(const char* name, size_t place) const {
  Input found;
  found.name = name;
  const ort::Value* value = nullptr;
  if (place < inputs_) {
    check_status(api_, ort::GetInput::call(api_, call_, place, &value));
  }
  if (!value) return found;
  found.given = true;
  ort::TypeAndShape* info = nullptr;
  check_status(api_, ort::GetTypeAndShape::call(api_, value, &info));
  size_t rank = 0;
  ort::Status* status = ort::GetRank::call(api_, info, &rank);
  found.sizes.resize(rank);
  if (!status) {
    status = ort::GetDimensions::call(api_, info, found.sizes.data(), rank);
  }
  ort::ReleaseTypeAndShape::call(api_, info);
  check_status(api_, status);
  void* data = nullptr;
  check_status(api_, ort::GetData::call(api_, const_cast<ort::Value*>(value), &data));
  found.data = static_cast<float*>(data);
  return found;
}

float* SessionCall::output(size_t place, const Sizes& sizes) const {
  ort::Value* value = nullptr;
  void* data = nullptr;
  check_status(api_, ort::GetOutput::call(api_, call_, place, sizes.data(), sizes.size(), &value));
  check_status(api_, ort::GetData::call(api_, value, &data));
  return static_cast<float*>(data);
}

// ---- Attributes -----------------------------------------------------------------------------------------------------

int64_t SessionAttributes::integer(const char* name, int64_t missing) const {
  int64_t value = missing;
  ort::Status* status = ort::GetInteger::call(api_, attributes_, name, &value);
  if (!status) return value;
  ort::ReleaseStatus::call(api_, status);
  return missing;
}

float SessionAttributes::number(const char* name, float missing) const {
  float value = missing;
  ort::Status* status = ort::GetFloat::call(api_, attributes_, name, &value);
  if (!status) return value;
  ort::ReleaseStatus::call(api_, status);
  return missing;
}

// ---- Shapes ---------------------------------------------------------------------------------------------------------

void SessionShapes::same(size_t output, size_t input) const {
  Sizes sizes;
  std::vector<const char*> symbols;
  if (known_shape(api_, inference_, input, sizes, symbols)) set(output, sizes, symbols);
}

void SessionShapes::set(size_t output, std::initializer_list<Dimension> dimensions) const {
  Sizes sizes;
  std::vector<const char*> symbols;
  for (const Dimension& d : dimensions) {
    Sizes known{d.value};
    std::vector<const char*> names{""};
    if (d.kind == Dimension::kOfInput &&
        (!known_shape(api_, inference_, static_cast<size_t>(d.value), known, names) || d.dimension >= known.size())) {
      return;
    }
    sizes.push_back(known[d.dimension]);
    symbols.push_back(names[d.dimension]);
  }
  set(output, sizes, symbols);
}

// ONNX Runtime would treat all sizes that have neither a number nor a name as equal; in that case the shape stays open.
void SessionShapes::set(size_t output, const Sizes& sizes, std::vector<const char*>& symbols) const {
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] < 0 && (!symbols[i] || !*symbols[i])) return;
  }
  ort::TypeAndShape* info = nullptr;
  ort::Status* status = ort::CreateTypeAndShape::call(api_, &info);
  if (!status) status = ort::SetElementType::call(api_, info, ort::kFloat);
  if (!status) status = ort::SetDimensions::call(api_, info, sizes.data(), sizes.size());
  if (!status) status = ort::SetSymbols::call(api_, info, symbols.data(), symbols.size());
  if (!status) status = ort::SetOutputShape::call(api_, inference_, output, info);
  if (info) ort::ReleaseTypeAndShape::call(api_, info);
  if (status) ort::ReleaseStatus::call(api_, status);
}

}  // namespace mtlkit
