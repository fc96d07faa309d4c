// A case: a call of an operator with its inputs, and what the reference gives in float64. Cases are written by
// tests/native/cases.py.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

struct Array {
  std::vector<int64_t> sizes;
  std::vector<double> values;
  double bound = 0;  // of an expected array: its relative error in the 2-norm

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

  // An input in float32, null where it was left out; it lives as long as the case.
  float* data(const std::string& key);
  // An output or another array to be written, full of NaN. What is expected under its name is compared by `compare`.
  float* output(const std::string& key, int64_t elements);
  float* output(const std::string& key) { return output(key, expected.at(key).elements()); }

  // The words on what was not as expected; empty if all is well.
  std::vector<std::string> compare();
  void clear_outputs() { outputs_.clear(); }
  // The words on what is expected and was not computed in any run; gradients count only with WITH_BACKWARD.
  std::vector<std::string> never_compared() const;

 private:
  std::map<std::string, std::vector<float>> floats_, outputs_;
  std::set<std::string> compared_;
};

std::vector<Case> read_cases(const char* path);
