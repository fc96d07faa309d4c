#include "case.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <stdexcept>

namespace {

template <typename T>
T read(std::ifstream& file) {
  T value;
  if (!file.read(reinterpret_cast<char*>(&value), sizeof value)) throw std::runtime_error("the file of cases is short");
  return value;
}

std::string read_words(std::ifstream& file) {
  std::string words(read<uint32_t>(file), ' ');
  if (!file.read(words.data(), static_cast<std::streamsize>(words.size()))) {
    throw std::runtime_error("the file of cases is short");
  }
  return words;
}

std::map<std::string, Array> read_arrays(std::ifstream& file) {
  std::map<std::string, Array> arrays;
  for (uint32_t left = read<uint32_t>(file); left > 0; --left) {
    Array& array = arrays[read_words(file)];
    array.bound = read<double>(file);
    array.sizes.resize(read<uint32_t>(file));
    int64_t elements = 1;
    for (int64_t& size : array.sizes) elements *= size = read<int64_t>(file);
    array.values.resize(elements);
    for (double& value : array.values) value = read<double>(file);
  }
  return arrays;
}

}  // namespace

std::vector<Case> read_cases(const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(std::string(path) + " cannot be read");
  std::vector<Case> cases(read<uint32_t>(file));
  for (Case& c : cases) {
    c.name = read_words(file);
    c.kind = read_words(file);
    for (uint32_t left = read<uint32_t>(file); left > 0; --left) {
      double& number = c.numbers[read_words(file)];
      number = read<double>(file);
    }
    c.inputs = read_arrays(file);
    c.expected = read_arrays(file);
  }
  return cases;
}

float* Case::data(const std::string& key) {
  if (!has(key)) return nullptr;
  std::vector<float>& floats = floats_[key];
  if (floats.empty()) {
    const std::vector<double>& values = inputs.at(key).values;
    floats.assign(values.begin(), values.end());
    floats.push_back(0);  // gives empty arrays an address
  }
  return floats.data();
}

float* Case::output(const std::string& key, int64_t elements) {
  std::vector<float>& floats = outputs_[key];
  floats.assign(elements + 1, std::numeric_limits<float>::quiet_NaN());
  return floats.data();
}

std::vector<std::string> Case::compare() {
  std::vector<std::string> wrong;
  for (const auto& [key, array] : expected) {
    if (!outputs_.count(key)) continue;
    const std::vector<float>& got = outputs_.at(key);
    compared_.insert(key);
    double difference = 0, scale = 0;
    for (size_t i = 0; i < array.values.size(); ++i) {
      difference += std::pow(got[i] - array.values[i], 2);
      scale += std::pow(array.values[i], 2);
    }
    const double error = std::sqrt(difference) / (scale > 0 ? std::sqrt(scale) : 1);
    if (error <= array.bound) continue;  // false for NaN
    wrong.push_back(name + ": " + key + ": relative error " + std::to_string(error));
  }
  return wrong;
}

std::vector<std::string> Case::never_compared() const {
  std::vector<std::string> wrong;
  for (const auto& [key, array] : expected) {
#if !defined(WITH_BACKWARD)
    if (inputs.count(key.substr(1))) continue;
#endif
    if (!compared_.count(key)) wrong.push_back(name + ": " + key + " was never computed");
  }
  return wrong;
}
