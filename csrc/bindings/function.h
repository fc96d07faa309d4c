// Functions of mtlkit._C whose arguments are keywords.
//
// Each keyword is declared once, with the member of the Params struct that it fills; the reader, the signature and the
// docstring follow from this declaration. Keywords are cheaper than pybind11's positional arguments: Python passes
// interned names, which are compared by address and arrive in the declared order.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/arguments.h"

namespace mtlkit {

template <typename Params>
struct Argument {
  std::string name, kind, meaning;
  std::function<bool(PyObject*, Params&)> read;
};

template <typename Params>
using Arguments = std::vector<Argument<Params>>;

template <typename Params>
Arguments<Params> operator+(Arguments<Params> some, const Arguments<Params>& others) {
  some.insert(some.end(), others.begin(), others.end());
  return some;
}

// Follows a path of pointers to members and array indices to its target.
template <typename T>
T& member(T& object) {
  return object;
}
template <typename T, typename... Rest>
auto& member(T& array, size_t index, Rest... rest) {
  return member(array[index], rest...);
}
template <typename T, typename Member, typename... Rest>
auto& member(T& object, Member T::* first, Rest... rest) {
  return member(object.*first, rest...);
}

template <typename Params, typename... Path>
Argument<Params> argument(const std::string& name, const char* meaning, Path... path) {
  using Type = std::remove_reference_t<decltype(member(std::declval<Params&>(), path...))>;
  return {name, Reader<Type>::kKind, meaning,
          [=](PyObject* value, Params& p) { return Reader<Type>::read(value, member(p, path...)); }};
}

// A function that returns the member of the Params struct at the end of a path.
template <typename Params, typename... Path>
auto member_of(Path... path) {
  return [=](Params& p) -> auto& { return member(p, path...); };
}

// A tuple that fills some members of the struct that `get` returns.
template <typename Params, typename Get, typename... Members>
Argument<Params> tuple_of(const char* name, const char* meaning, Get get, Members... members) {
  return {name, "tuple of ints", meaning, [=](PyObject* value, Params& p) {
            if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != sizeof...(members)) return false;
            Py_ssize_t next = 0;
            return (... && Reader<int64_t>::read(PyTuple_GET_ITEM(value, next++), get(p).*members));
          }};
}

template <typename Params, typename Get, typename... Members>
Argument<Params> sizes(const char* meaning, Get get, Members... members) {
  return tuple_of<Params>("sizes", meaning, get, members...);
}

template <typename Params, typename Result>
class Function {
 public:
  using Call = std::function<Result(const Params&)>;

  // Adds the function to the module. Like the module, it lives as long as the process.
  static void add(pybind11::module_& m, const char* name, const char* summary, Arguments<Params> arguments, Call call) {
    auto* const self = new Function(name, summary, std::move(arguments), std::move(call));
    const auto function = pybind11::reinterpret_steal<pybind11::object>(
        PyCFunction_NewEx(&self->definition_, pybind11::capsule(self).ptr(), m.attr("__name__").ptr()));
    if (!function) throw pybind11::error_already_set();
    m.add_object(name, function);
  }

 private:
  Function(const char* name, const char* summary, Arguments<Params> arguments, Call call)
      : name_(name), arguments_(std::move(arguments)), call_(std::move(call)) {
    std::string signature, details;
    for (const auto& argument : arguments_) {
      keys_.push_back(PyUnicode_InternFromString(argument.name.c_str()));
      if (!keys_.back()) throw pybind11::error_already_set();
      signature += ", " + argument.name;
      details += "\n    " + argument.name + " (" + argument.kind + "): " + argument.meaning;
    }
    documentation_ = name_ + "($module, /, *" + signature + ")\n--\n\n" + summary + "\n\nArgs:" + details;
    definition_ = {name_.c_str(), reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&from_python)),
                   METH_FASTCALL | METH_KEYWORDS, documentation_.c_str()};
  }

  static PyObject* from_python(PyObject* self, PyObject* const* values, Py_ssize_t positional, PyObject* keywords) {
    const auto& function = *static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
    try {
      Params params{};
      function.read(values, positional, keywords, params);
      const Result result = [&] {
        pybind11::gil_scoped_release release;
        return function.call_(params);
      }();
      if constexpr (std::is_integral_v<Result>) {
        return PyLong_FromLongLong(result);
      } else {
        return pybind11::cast(result).release().ptr();
      }
    } catch (pybind11::error_already_set& error) {
      error.restore();
    } catch (const pybind11::builtin_exception& error) {
      error.set_error();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

  void read(PyObject* const* values, Py_ssize_t positional, PyObject* keywords, Params& params) const {
    if (positional > 0) throw pybind11::type_error(name_ + ": expected keyword arguments alone");
    const size_t given = keywords ? PyTuple_GET_SIZE(keywords) : 0, count = arguments_.size();
    for (size_t i = 0; i < given; ++i) {
      const auto& argument = arguments_[find(PyTuple_GET_ITEM(keywords, i), i)];
      if (argument.read(values[i], params)) continue;
      PyErr_Clear();
      const auto got = pybind11::repr(values[i]).template cast<std::string>();
      throw pybind11::type_error(name_ + ": " + argument.name + ": expected " + argument.kind + " (" +
                                 argument.meaning + "), got " + got);
    }
    if (given == count) return;  // Python rejects repeated keywords
    std::string missing;
    for (size_t k = 0; k < count; ++k) {
      bool found = false;
      for (size_t i = 0; i < given; ++i) found = found || is(PyTuple_GET_ITEM(keywords, i), k);
      if (!found) missing += (missing.empty() ? "" : ", ") + arguments_[k].name;
    }
    throw pybind11::type_error(name_ + ": expected all arguments, got none for " + missing);
  }

  // The index of a keyword; the search begins at `start`.
  size_t find(PyObject* keyword, size_t start) const {
    const size_t count = keys_.size();
    for (size_t k = 0; k < count; ++k) {
      const size_t index = (start + k) % count;
      if (keys_[index] == keyword) return index;
    }
    for (size_t k = 0; k < count; ++k) {
      if (is(keyword, k)) return k;
    }
    throw pybind11::type_error(name_ + ": expected no argument of the name " +
                               pybind11::cast<std::string>(pybind11::handle(keyword)));
  }

  bool is(PyObject* keyword, size_t index) const { return PyUnicode_Compare(keys_[index], keyword) == 0; }

  std::string name_, documentation_;
  Arguments<Params> arguments_;
  std::vector<PyObject*> keys_;
  Call call_;
  PyMethodDef definition_;
};

template <typename Params, typename Call>
void add_function(pybind11::module_& m, const char* name, const char* summary, Arguments<Params> arguments, Call call) {
  using Result = std::decay_t<std::invoke_result_t<Call, const Params&>>;
  Function<Params, Result>::add(m, name, summary, std::move(arguments), std::move(call));
}

}  // namespace mtlkit
