// The part of ONNX Runtime's C interface that the operators use, declared anew.
//
// The interface is one table of functions whose order never changes: a release only adds to its end. So a function is
// its place in the table, and a library that is built once runs under every release from 1.17 (version 17) on.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {
struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

using OrtApi = const void *const;  // the first function of the table

struct OrtApiBase {
  OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)();
};

// What ONNX Runtime asks of an operator. Functions that are null have their usual meaning.
struct OrtCustomOp {
  uint32_t version;
  void *(*CreateKernel)(const OrtCustomOp *, OrtApi *, const OrtKernelInfo *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  int (*GetInputType)(const OrtCustomOp *, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  int (*GetOutputType)(const OrtCustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *, OrtKernelContext *);
  void (*KernelDestroy)(void *);
  int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, OrtApi *, const OrtKernelInfo *, void **);
  OrtStatus *(*KernelComputeV2)(void *, OrtKernelContext *);
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, void *);
  int (*GetStartVersion)(const OrtCustomOp *);
  int (*GetEndVersion)(const OrtCustomOp *);
};
}

namespace ort {

constexpr uint32_t VERSION = 17;
constexpr int FLOAT = 1, UINT8 = 2, REQUIRED = 0, FAIL = 1, CPU_MEMORY = 0;

// The functions, by their places.
struct Interface {
  OrtApi *table;

  template <class... A>
  OrtStatus *call(size_t place, A... given) const {
    return reinterpret_cast<OrtStatus *(*)(A...)>(const_cast<void *>(table[place]))(given...);
  }
  template <class... A>
  void release(size_t place, A... given) const {
    reinterpret_cast<void (*)(A...)>(const_cast<void *>(table[place]))(given...);
  }

  OrtStatus *status(int code, const char *message) const { return call(0, code, message); }
  OrtStatus *create_domain(const char *name, OrtCustomOpDomain **out) const { return call(26, name, out); }
  OrtStatus *add_operator(OrtCustomOpDomain *domain, const OrtCustomOp *op) const { return call(27, domain, op); }
  OrtStatus *add_domain(OrtSessionOptions *options, OrtCustomOpDomain *domain) const {
    return call(28, options, domain);
  }
  OrtStatus *data(OrtValue *value, void **out) const { return call(51, value, out); }
  OrtStatus *rank(const OrtTensorTypeAndShapeInfo *shape, size_t *out) const { return call(61, shape, out); }
  OrtStatus *sizes(const OrtTensorTypeAndShapeInfo *shape, int64_t *out, size_t rank) const {
    return call(62, shape, out, rank);
  }
  OrtStatus *shape(const OrtValue *value, OrtTensorTypeAndShapeInfo **out) const { return call(65, value, out); }
  OrtStatus *attribute(const OrtKernelInfo *info, const char *name, int64_t *out) const {
    return call(86, info, name, out);
  }
  OrtStatus *input(const OrtKernelContext *context, size_t index, const OrtValue **out) const {
    return call(90, context, index, out);
  }
  OrtStatus *output(OrtKernelContext *context, size_t index, const int64_t *sizes, size_t rank, OrtValue **out) const {
    return call(91, context, index, sizes, rank, out);
  }
  void release_shape(OrtTensorTypeAndShapeInfo *shape) const { release(99, shape); }
  OrtStatus *attributes(const OrtKernelInfo *info, const char *name, int64_t *out, size_t *count) const {
    return call(163, info, name, out, count);
  }
  OrtStatus *constant(const OrtKernelInfo *info, size_t index, int *is_constant, const OrtValue **out) const {
    return call(249, info, index, is_constant, out);
  }
  OrtStatus *parallel(const OrtKernelContext *context, void (*work)(void *, size_t), size_t count, void *data) const {
    return call(274, context, work, count, size_t{0}, data);
  }
};

}  // namespace ort
