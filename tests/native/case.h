// A case: a call of an operator with its inputs, and the reference's results in float64. tests/native/cases.py writes
// cases.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

struct Array {
  std::vector<int64_t> sizes;
  std::vector<double> values;
  double bound = 0;  // of an expected array: the largest relative error in the 2-norm

  int64_t elements() const { return static_cast<int64_t>(values.size()); }
};

class Case {
 public:
  std::string name, kind;  // of the operator
  std::map<std::string, double> numbers;
  std::map<std::string, Array> inputs, expected;

  double number(const std::string& key) const { return numbers.count(key) ? numbers.at(key) : 0; }
  bool has(const std::string& key) const { return inputs.count(key) > 0; }
  int64_t size(const std::string& key, size_t dimension) const { return inputs.at(key).sizes.at(dimension); }

  // An input in float32, or null if it was omitted; it lives as long as the case.
  float* data(const std::string& key);
  // An array to write, such as an output, filled with NaN. `compare` compares it with the expected array of this name.
  float* output(const std::string& key, int64_t elements);
  float* output(const std::string& key) { return output(key, expected.at(key).elements()); }

  // Describes unexpected results; empty if there are none.
  std::vector<std::string> compare();
  void clear_outputs() { outputs_.clear(); }
  // Describes expected arrays that no run computed; gradients count only with WITH_BACKWARD.
  std::vector<std::string> never_compared() const;

 private:
  std::map<std::string, std::vector<float>> floats_, outputs_;
  std::set<std::string> compared_;
};

std::vector<Case> read_cases(const char* path);
