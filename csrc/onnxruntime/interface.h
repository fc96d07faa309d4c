// The part of ONNX Runtime's C interface that this library calls.
//
// ONNX Runtime's packages do not include its header, and none is needed: OrtApi is a table of functions to which
// releases only append, so a function's position never changes. Types and positions are those of the public
// onnxruntime_c_api.h. Version 17 is the first whose custom operators return statuses, infer shapes and may use their
// session's threads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mtlkit {
namespace ort {

inline constexpr uint32_t kVersion = 17;
inline constexpr const char* kRelease = "1.17";

struct Status;
struct Value;
struct Attributes;    // OrtKernelInfo
struct Call;          // OrtKernelContext
struct Inference;     // OrtShapeInferContext
struct TypeAndShape;  // OrtTensorTypeAndShapeInfo
struct Domain;        // OrtCustomOpDomain
struct SessionOptions;

using Api = void* const;  // the first function of the table

struct ApiBase {
  Api* (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kInt32 = 6 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum MemoryType : int { kDefaultMemory = 0 };

// The function at a position of the table.
template <size_t place, typename Signature>
struct Function;
template <size_t place, typename Result, typename... Arguments>
struct Function<place, Result(Arguments...)> {
  static Result call(Api* api, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(api[place])(arguments...);
  }
};

struct Operator;

using CreateStatus = Function<0, Status*(ErrorCode, const char*)>;
using GetMessage = Function<2, const char*(const Status*)>;
using CreateDomain = Function<26, Status*(const char*, Domain**)>;
using AddOperator = Function<27, Status*(Domain*, const Operator*)>;
using AddDomain = Function<28, Status*(SessionOptions*, Domain*)>;
using GetData = Function<51, Status*(Value*, void**)>;
using CreateTypeAndShape = Function<57, Status*(TypeAndShape**)>;
using SetElementType = Function<58, Status*(TypeAndShape*, ElementType)>;
using SetDimensions = Function<59, Status*(TypeAndShape*, const int64_t*, size_t)>;
using GetRank = Function<61, Status*(const TypeAndShape*, size_t*)>;
using GetDimensions = Function<62, Status*(const TypeAndShape*, int64_t*, size_t)>;
using GetSymbols = Function<63, Status*(const TypeAndShape*, const char**, size_t)>;
using GetTypeAndShape = Function<65, Status*(const Value*, TypeAndShape**)>;
using GetFloat = Function<85, Status*(const Attributes*, const char*, float*)>;
using GetInteger = Function<86, Status*(const Attributes*, const char*, int64_t*)>;
using CountInputs = Function<88, Status*(const Call*, size_t*)>;
using GetInput = Function<90, Status*(const Call*, size_t, const Value**)>;
using GetOutput = Function<91, Status*(Call*, size_t, const int64_t*, size_t, Value**)>;
using ReleaseStatus = Function<93, void(Status*)>;
using ReleaseTypeAndShape = Function<99, void(TypeAndShape*)>;
using InputShape = Function<268, Status*(const Inference*, size_t, TypeAndShape**)>;
using SetOutputShape = Function<270, Status*(const Inference*, size_t, const TypeAndShape*)>;
using SetSymbols = Function<271, Status*(TypeAndShape*, const char**, size_t)>;
using ParallelFor = Function<274, Status*(const Call*, void (*)(void*, size_t), size_t, size_t, void*)>;

// OrtCustomOp: the functions that ONNX Runtime calls.
struct Operator {
  uint32_t version = kVersion;
  void* (*create_kernel_v1)(const Operator*, Api*, const Attributes*) = nullptr;
  const char* (*name)(const Operator*) = nullptr;
  const char* (*provider)(const Operator*) = nullptr;
  ElementType (*input_type)(const Operator*, size_t) = nullptr;
  size_t (*inputs)(const Operator*) = nullptr;
  ElementType (*output_type)(const Operator*, size_t) = nullptr;
  size_t (*outputs)(const Operator*) = nullptr;
  void (*compute_v1)(void*, Call*) = nullptr;
  void (*destroy_kernel)(void*) = nullptr;
  Characteristic (*input_characteristic)(const Operator*, size_t) = nullptr;
  Characteristic (*output_characteristic)(const Operator*, size_t) = nullptr;
  MemoryType (*input_memory_type)(const Operator*, size_t) = nullptr;
  int (*variadic_input_min_arity)(const Operator*) = nullptr;
  int (*variadic_input_homogeneity)(const Operator*) = nullptr;
  int (*variadic_output_min_arity)(const Operator*) = nullptr;
  int (*variadic_output_homogeneity)(const Operator*) = nullptr;
  Status* (*create_kernel)(const Operator*, Api*, const Attributes*, void**) = nullptr;
  Status* (*compute)(void*, Call*) = nullptr;
  Status* (*infer_shapes)(const Operator*, Inference*) = nullptr;
  int (*start_version)(const Operator*) = nullptr;
  int (*end_version)(const Operator*) = nullptr;
};

}  // namespace ort
}  // namespace mtlkit
