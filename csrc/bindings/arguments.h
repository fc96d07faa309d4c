// Readers of the values that Python passes (mtlkit/operators/_launch.py). A reader returns false for a value of the
// wrong type; `kKind` is the name of the type in docstrings.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <type_traits>

#include "common/tensor.h"

namespace mtlkit {

// A struct that Python got from this module and passes back.
template <typename T>
struct Reader {
  static constexpr const char* kKind = "object";
  static bool read(PyObject* value, T& to) {
    if (!pybind11::isinstance<T>(value)) return false;
    to = pybind11::cast<const T&>(pybind11::handle(value));
    return true;
  }
};

template <>
struct Reader<int64_t> {
  static constexpr const char* kKind = "int";
  static bool read(PyObject* value, int64_t& to) {
    to = PyLong_AsLongLong(value);
    return to != -1 || !PyErr_Occurred();
  }
};

template <>
struct Reader<int> {
  static constexpr const char* kKind = "int";
  static bool read(PyObject* value, int& to) {
    int64_t wide;
    if (!Reader<int64_t>::read(value, wide)) return false;
    to = static_cast<int>(wide);
    return to == wide;
  }
};

template <>
struct Reader<bool> {
  static constexpr const char* kKind = "bool";
  static bool read(PyObject* value, bool& to) {
    const int truth = PyObject_IsTrue(value);
    to = truth == 1;
    return truth >= 0;
  }
};

template <>
struct Reader<double> {
  static constexpr const char* kKind = "float";
  static bool read(PyObject* value, double& to) {
    to = PyFloat_AsDouble(value);
    return to != -1.0 || !PyErr_Occurred();
  }
};

template <>
struct Reader<float> {
  static constexpr const char* kKind = "float";
  static bool read(PyObject* value, float& to) {
    double wide;
    if (!Reader<double>::read(value, wide)) return false;
    to = static_cast<float>(wide);
    return true;
  }
};

// Contiguous memory, given by its address; 0 for an absent argument.
template <typename T>
struct Reader<T*> {
  static constexpr const char* kKind = "address";
  static bool read(PyObject* value, T*& to) {
    const auto number = PyLong_AsUnsignedLongLong(value);
    if (number == static_cast<unsigned long long>(-1) && PyErr_Occurred()) return false;
    to = reinterpret_cast<T*>(static_cast<uintptr_t>(number));
    return true;
  }
};

template <typename Addresses>
struct AddressesReader {
  static constexpr const char* kKind = "tuple of addresses";
  static bool read(PyObject* value, Addresses& to) {
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != static_cast<Py_ssize_t>(std::size(to))) return false;
    for (size_t i = 0; i < std::size(to); ++i) {
      if (!Reader<std::decay_t<decltype(to[i])>>::read(PyTuple_GET_ITEM(value, i), to[i])) return false;
    }
    return true;
  }
};
template <typename T, size_t kCount>
struct Reader<T* [kCount]> : AddressesReader<T* [kCount]> {};
template <typename T, size_t kCount>
struct Reader<std::array<T*, kCount>> : AddressesReader<std::array<T*, kCount>> {};

// (address, dtype, (stride, ...)), or None for an absent argument.
template <int kRank>
struct Reader<Tensor<kRank>> {
  static constexpr const char* kKind = "tensor";
  static bool read(PyObject* value, Tensor<kRank>& to) {
    if (value == Py_None) return true;
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 3) return false;
    int dtype;
    if (!Reader<void*>::read(PyTuple_GET_ITEM(value, 0), to.data)) return false;
    if (!Reader<int>::read(PyTuple_GET_ITEM(value, 1), dtype)) return false;
    to.dtype = static_cast<DType>(dtype);
    PyObject* const strides = PyTuple_GET_ITEM(value, 2);
    if (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != kRank) return false;
    for (int i = 0; i < kRank; ++i) {
      if (!Reader<int64_t>::read(PyTuple_GET_ITEM(strides, i), to.stride[i])) return false;
    }
    return true;
  }
};

}  // namespace mtlkit
