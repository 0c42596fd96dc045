// The operator SignProduct for ONNX Runtime: a convolution or a matrix product of signs, by counting bits.
//
// Inputs: x float, (N, C, H, W) or (..., C); signs and limits float (C,): an input is 1 where signs * x >= limits, else
// -1; weights uint8 (O, bytes), the bits of C / group x kernel of each output, the first one lowest, 1 for +1; scales
// and bias float (O,). All but x are constants. Attributes: group, kernel_shape, strides, dilations, pads (top, left,
// bottom, right), outside (what the padding holds: 1, -1, or 0 for nothing), matrix (1: x is (..., C)).
#include <algorithm>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "interface.h"
#include "products.h"

namespace {

constexpr int BITS = 32;
constexpr size_t STEPS_OF_A_TASK = 1 << 16;
constexpr int64_t MOST = 1 << 24, MOST_PLACES = 1 << 12;

const Products &best() {
#if defined(__x86_64__) && !defined(ONLY_PLAIN)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("avx512bw")) return products_avx512;
  if (__builtin_cpu_supports("avx2")) return products_avx2;
#endif
  return products_plain;
}

[[noreturn]] void fail(const std::string &why) { throw std::runtime_error("SignProduct: " + why); }

void require(bool holds, const char *why) {
  if (!holds) fail(why);
}

// A status of ONNX Runtime, passed on as it is.
struct Failed {
  OrtStatus *status;
};

void check(OrtStatus *status) {
  if (status) throw Failed{status};
}

std::vector<int64_t> sizes_of(const ort::Interface &api, const OrtValue *value) {
  OrtTensorTypeAndShapeInfo *shape = nullptr;
  check(api.shape(value, &shape));
  size_t rank = 0;
  OrtStatus *status = api.rank(shape, &rank);
  std::vector<int64_t> sizes(rank);
  if (!status) status = api.sizes(shape, sizes.data(), rank);
  api.release_shape(shape);
  check(status);
  return sizes;
}

template <class T>
T *data_of(const ort::Interface &api, const OrtValue *value) {
  void *data = nullptr;
  check(api.data(const_cast<OrtValue *>(value), &data));
  return static_cast<T *>(data);
}

int64_t product(const std::vector<int64_t> &sizes) {
  int64_t total = 1;
  for (int64_t size : sizes) total *= size;
  return total;
}

template <class T>
std::vector<T> constant(const ort::Interface &api, const OrtKernelInfo *info, size_t index,
                        std::vector<int64_t> *sizes = nullptr) {
  int is_constant = 0;
  const OrtValue *value = nullptr;
  check(api.constant(info, index, &is_constant, &value));
  require(is_constant != 0, "its inputs 1 to 5 must be constants");
  const std::vector<int64_t> found = sizes_of(api, value);
  if (sizes) *sizes = found;
  const T *data = data_of<T>(api, value);
  return std::vector<T>(data, data + product(found));
}

struct Span {
  int64_t kernel, stride, dilation, before, after;

  int64_t output(int64_t size) const { return (size + before + after - dilation * (kernel - 1) - 1) / stride + 1; }
};

// One operator of a network.
class Kernel {
 public:
  Kernel(OrtApi *table, const OrtKernelInfo *info) : api_{table}, inner_(best()) {
    const auto kernel = attributes(info, "kernel_shape", 2), stride = attributes(info, "strides", 2);
    const auto dilation = attributes(info, "dilations", 2), pads = attributes(info, "pads", 4);
    rows_ = {kernel[0], stride[0], dilation[0], pads[0], pads[2]};
    columns_ = {kernel[1], stride[1], dilation[1], pads[1], pads[3]};
    for (const Span &span : {rows_, columns_})
      for (int64_t number : {span.kernel - 1, span.stride - 1, span.dilation - 1, span.before, span.after})
        require(number >= 0 && number < MOST_PLACES,
                "sizes of the kernel, strides and dilations are at least 1, pads at least 0, none over 4,096");
    check(api_.attribute(info, "group", &groups_));
    check(api_.attribute(info, "outside", &outside_));
    check(api_.attribute(info, "matrix", &matrix_));
    signs_ = constant<float>(api_, info, 1);
    limits_ = constant<float>(api_, info, 2);
    std::vector<int64_t> sizes;
    const std::vector<uint8_t> bits = constant<uint8_t>(api_, info, 3, &sizes);
    scales_ = constant<float>(api_, info, 4);
    bias_ = constant<float>(api_, info, 5);
    channels_ = int64_t(signs_.size());
    outputs_ = int64_t(scales_.size());
    taps_ = rows_.kernel * columns_.kernel;
    require(channels_ < MOST && outputs_ < MOST && channels_ * taps_ < MOST, "it is larger than any layer");
    require(groups_ > 0 && channels_ > 0 && channels_ % groups_ == 0 && outputs_ % groups_ == 0,
            "channels and outputs are multiples of the groups");
    require(int64_t(limits_.size()) == channels_ && int64_t(bias_.size()) == outputs_, "constants differ in size");
    of_group_ = channels_ / groups_;
    words_ = (of_group_ + BITS - 1) / BITS;
    require(sizes.size() == 2 && sizes[0] == outputs_ && sizes[1] == (of_group_ * taps_ + 7) / 8,
            "weights are one row of bits for each output");
    require(!matrix_ || (taps_ == 1 && groups_ == 1), "matrix products have no kernel and no groups");
    order(bits);
    scales_ = by_lanes(scales_), bias_ = by_lanes(bias_);
  }

  void run(OrtKernelContext *context) {
    const OrtValue *value = nullptr;
    check(api_.input(context, 0, &value));
    std::vector<int64_t> sizes = sizes_of(api_, value);
    const float *x = data_of<float>(api_, value);
    const size_t place = matrix_ ? sizes.size() - 1 : 1;  // of the channels
    require((matrix_ ? !sizes.empty() : sizes.size() == 4) && sizes[place] == channels_,
            "its input has other dimensions or another number of channels");
    Call call{*this, context, x, {}, nullptr, 1, 1, 1, 1, 1, 1, 1, 0, 0};
    if (matrix_) {
      call.width = call.across = product(sizes) / channels_;
      sizes.back() = outputs_;
    } else {
      call.samples = sizes[0], call.height = sizes[2], call.width = sizes[3];
      call.down = rows_.output(call.height), call.across = columns_.output(call.width);
      require(call.down > 0 && call.across > 0, "its kernel is larger than the padded input");
      sizes = {call.samples, outputs_, call.down, call.across};
    }
    OrtValue *made = nullptr;
    check(api_.output(context, 0, sizes.data(), sizes.size(), &made));
    if (product(sizes) == 0) return;
    call.y = data_of<float>(api_, made);
    call.padded = call.width + columns_.before + columns_.after;
    call.plane = (call.height + rows_.before + rows_.after) * call.padded;
    call.packed.resize(size_t(call.samples * groups_ * words_ * call.plane));
    const int64_t packings = matrix_ ? 1 + call.width / PACKED_ROWS : call.samples * groups_ * words_;
    parallel(context, size_t(packings), &Call::pack, call);
    const size_t steps = size_t(taps_ * words_ * ((call.across + PLACES - 1) / PLACES));
    call.vectors = std::min(vectors_, std::max<int64_t>(1, int64_t(STEPS_OF_A_TASK / PLACES / steps)));
    call.parts = (vectors_ + call.vectors - 1) / call.vectors;
    parallel(context, size_t(call.samples * call.down * groups_ * call.parts), &Call::multiply, call);
  }

  const ort::Interface &api() const { return api_; }

 private:
  static constexpr int64_t PACKED_ROWS = 16;

  // What one run of the operator shares between its tasks.
  struct Call {
    const Kernel &kernel;
    OrtKernelContext *context;
    const float *x;
    std::vector<uint32_t> packed;  // samples, groups, words, rows, columns
    float *y;
    int64_t samples, height, width, down, across, padded, plane, vectors, parts;

    void pack(size_t task) {
      kernel.matrix_ ? kernel.pack_rows(*this, int64_t(task)) : kernel.pack_plane(*this, int64_t(task));
    }
    void multiply(size_t task) { kernel.multiply(*this, int64_t(task)); }
  };

  std::vector<int64_t> attributes(const OrtKernelInfo *info, const char *name, size_t wanted) const {
    std::vector<int64_t> found(wanted);
    size_t count = wanted;
    check(api_.attributes(info, name, found.data(), &count));
    if (count != wanted) fail(std::string(name) + " has another number of values");
    return found;
  }

  // Weights as the inner loop reads them: groups, vectors of outputs, steps (taps, words), lanes.
  void order(const std::vector<uint8_t> &bits) {
    const int64_t made = outputs_ / groups_, lanes = inner_.lanes, row = (of_group_ * taps_ + 7) / 8;
    vectors_ = (made + lanes - 1) / lanes;
    weights_.assign(size_t(groups_ * vectors_ * taps_ * words_ * lanes), 0);
    for (int64_t output = 0; output < outputs_; ++output) {
      const int64_t group = output / made, vector = output % made / lanes, lane = output % made % lanes;
      uint32_t *start = weights_.data() + (group * vectors_ + vector) * taps_ * words_ * lanes;
      for (int64_t c = 0; c < of_group_; ++c)
        for (int64_t tap = 0; tap < taps_; ++tap) {
          const int64_t bit = c * taps_ + tap;
          const uint32_t one = bits[size_t(output * row + bit / 8)] >> (bit % 8) & 1;
          start[(tap * words_ + c / BITS) * lanes + lane] |= one << (c % BITS);
        }
    }
  }

  // Numbers of the outputs as the inner loop reads them: groups, vectors, lanes.
  std::vector<float> by_lanes(const std::vector<float> &numbers) const {
    const int64_t made = outputs_ / groups_, lanes = vectors_ * inner_.lanes;
    std::vector<float> found(size_t(groups_ * lanes), 0.0F);
    for (int64_t output = 0; output < outputs_; ++output)
      found[size_t(output / made * lanes + output % made)] = numbers[size_t(output)];
    return found;
  }

  void pack_plane(Call &call, int64_t task) const {
    const int64_t word = task % words_, group = task / words_ % groups_, sample = task / words_ / groups_;
    const int64_t first = word * BITS, channels = std::min<int64_t>(BITS, of_group_ - first);
    const int64_t channel = group * of_group_ + first, area = call.height * call.width;
    uint32_t *out = call.packed.data() + task * call.plane;
    const float *x = call.x + (sample * channels_ + channel) * area;
    const uint32_t all = channels == BITS ? ~uint32_t{0} : (uint32_t{1} << channels) - 1;
    std::fill(out, out + call.plane, outside_ == 1 ? all : 0);
    const float *signs = signs_.data() + channel, *limits = limits_.data() + channel;
    if (call.plane == area) return inner_.pack_planes(x, size_t(area), signs, limits, int(channels), size_t(area), out);
    for (int64_t i = 0; i < call.height; ++i)
      inner_.pack_planes(x + i * call.width, size_t(area), signs, limits, int(channels), size_t(call.width),
                         out + (i + rows_.before) * call.padded + columns_.before);
  }

  void pack_rows(Call &call, int64_t task) const {
    const int64_t end = std::min(call.width, (task + 1) * PACKED_ROWS);
    for (int64_t row = task * PACKED_ROWS; row < end; ++row)
      for (int64_t word = 0; word < words_; ++word) {
        const int64_t first = word * BITS, channels = std::min<int64_t>(BITS, channels_ - first);
        call.packed[size_t(word * call.plane + row)] = inner_.pack_row(
            call.x + row * channels_ + first, signs_.data() + first, limits_.data() + first, int(channels));
      }
  }

  // The taps that meet the image at an output place, as offsets of words and rows of weights; gives their number.
  int64_t steps_at(const Call &call, int64_t i, int64_t j, std::vector<ptrdiff_t> &offsets,
                   std::vector<int32_t> &rows) const {
    offsets.clear(), rows.clear();
    int64_t taps = 0;
    for (int64_t a = 0; a < rows_.kernel; ++a)
      for (int64_t b = 0; b < columns_.kernel; ++b) {
        const int64_t row = i * rows_.stride + a * rows_.dilation, column = j * columns_.stride + b * columns_.dilation;
        if (outside_ == 0 && (row < rows_.before || row >= rows_.before + call.height || column < columns_.before ||
                              column >= columns_.before + call.width))
          continue;
        ++taps;
        for (int64_t word = 0; word < words_; ++word) {
          offsets.push_back(word * call.plane + row * call.padded + column);
          rows.push_back(int32_t((a * columns_.kernel + b) * words_ + word));
        }
      }
    return taps;
  }

  bool whole(const Call &call, int64_t j) const {
    const int64_t first = j * columns_.stride, last = first + (columns_.kernel - 1) * columns_.dilation;
    return outside_ != 0 || (first >= columns_.before && last < columns_.before + call.width);
  }

  void multiply(Call &call, int64_t task) const {
    const int64_t part = task % call.parts, group = task / call.parts % groups_;
    const int64_t i = task / call.parts / groups_ % call.down, sample = task / call.parts / groups_ / call.down;
    const uint32_t *x = call.packed.data() + (sample * groups_ + group) * words_ * call.plane;
    std::vector<ptrdiff_t> offsets;
    std::vector<int32_t> rows;
    const int64_t last = std::min(vectors_, (part + 1) * call.vectors);
    int64_t known = -1, terms = 0;  // the place whose taps are known; all places with every tap have the same
    for (int64_t j = 0; j < call.across;) {
      const bool inside = whole(call, j);
      const int places = inside && j + PLACES <= call.across && whole(call, j + PLACES - 1) ? PLACES : 1;
      if (known < 0 || !inside || !whole(call, known)) {
        known = j;
        terms = steps_at(call, i, j, offsets, rows) * of_group_;
      }
      const uint32_t *start = x + (j - known) * columns_.stride;
      for (int64_t vector = part * call.vectors; vector < last; ++vector) {
        uint32_t counts[PLACES * MOST_LANES];
        const uint32_t *weights = weights_.data() + (group * vectors_ + vector) * taps_ * words_ * inner_.lanes;
        inner_.count(start, ptrdiff_t(columns_.stride), offsets.data(), weights, rows.data(), offsets.size(), places,
                     counts);
        write(call, sample, group, vector, i, j, places, terms, counts);
      }
      j += places;
    }
  }

  void write(Call &call, int64_t sample, int64_t group, int64_t vector, int64_t i, int64_t j, int places,
             int64_t terms, const uint32_t *counts) const {
    const int64_t made = outputs_ / groups_, first = vector * inner_.lanes, output = group * made + first;
    const int lanes = int(std::min<int64_t>(inner_.lanes, made - first));
    const int64_t padded = (group * vectors_ + vector) * inner_.lanes;
    const int64_t across = matrix_ ? 1 : call.down * call.across, down = matrix_ ? outputs_ : 1;
    float *y = matrix_ ? call.y + j * outputs_ + output
                       : call.y + (sample * outputs_ + output) * across + i * call.across + j;
    inner_.finish(counts, int32_t(terms), scales_.data() + padded, bias_.data() + padded, places, lanes, across, down,
                  y);
  }

  void parallel(OrtKernelContext *context, size_t count, void (Call::*work)(size_t), Call &call) const {
    struct Shared {
      void (Call::*work)(size_t);
      Call *call;
      std::mutex mutex;
      std::exception_ptr failed;  // no exception may leave a task: that would end the process
    } shared{work, &call, {}, nullptr};
    check(api_.parallel(
        context,
        [](void *data, size_t task) {
          auto *shared = static_cast<Shared *>(data);
          try {
            (shared->call->*shared->work)(task);
          } catch (...) {
            std::lock_guard<std::mutex> lock(shared->mutex);
            shared->failed = std::current_exception();
          }
        },
        count, &shared));
    if (shared.failed) std::rethrow_exception(shared.failed);
  }

  ort::Interface api_;
  const Products &inner_;
  Span rows_, columns_;
  int64_t groups_ = 1, outside_ = 0, matrix_ = 0, channels_ = 0, outputs_ = 0, taps_ = 1, of_group_ = 0, words_ = 0;
  int64_t vectors_ = 0;
  std::vector<float> signs_, limits_, scales_, bias_;
  std::vector<uint32_t> weights_;
};

template <class Work>
OrtStatus *guarded(const ort::Interface &api, Work work) {
  try {
    work();
    return nullptr;
  } catch (const Failed &failed) {
    return failed.status;
  } catch (const std::exception &error) {
    return api.status(ort::FAIL, error.what());
  }
}

OrtStatus *create(const OrtCustomOp *, OrtApi *table, const OrtKernelInfo *info, void **out) {
  return guarded({table}, [&] { *out = new Kernel(table, info); });
}

OrtStatus *compute(void *kernel, OrtKernelContext *context) {
  auto *own = static_cast<Kernel *>(kernel);
  return guarded(own->api(), [&] { own->run(context); });
}

OrtCustomOp sign_product() {
  OrtCustomOp op{};
  op.version = ort::VERSION;
  op.GetName = [](const OrtCustomOp *) { return "SignProduct"; };
  op.GetExecutionProviderType = [](const OrtCustomOp *) -> const char * { return nullptr; };
  op.GetInputType = [](const OrtCustomOp *, size_t index) { return index == 3 ? ort::UINT8 : ort::FLOAT; };
  op.GetInputTypeCount = [](const OrtCustomOp *) { return size_t{6}; };
  op.GetOutputType = [](const OrtCustomOp *, size_t) { return ort::FLOAT; };
  op.GetOutputTypeCount = [](const OrtCustomOp *) { return size_t{1}; };
  op.KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp *, size_t) { return ort::REQUIRED; };
  op.GetOutputCharacteristic = [](const OrtCustomOp *, size_t) { return ort::REQUIRED; };
  op.GetInputMemoryType = [](const OrtCustomOp *, size_t) { return ort::CPU_MEMORY; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.GetStartVersion = [](const OrtCustomOp *) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp *) { return 1; };
  return op;
}

}  // namespace

// What the library was built from.
extern "C" __attribute__((visibility("default"))) const char gossamer_operators_source[] = SOURCE;

// What ONNX Runtime calls when the library is registered with the options of a session.
extern "C" __attribute__((visibility("default"))) OrtStatus *RegisterCustomOps(OrtSessionOptions *options,
                                                                               const OrtApiBase *base) {
  static const OrtCustomOp op = sign_product();
  static std::mutex mutex;
  static OrtCustomOpDomain *domain = nullptr;  // shared by all sessions, as long as the process lives
  OrtApi *table = base->GetApi(ort::VERSION);
  if (!table)
    return ort::Interface{base->GetApi(1)}.status(ort::FAIL, "gossamer's operators need ONNX Runtime 1.17 or newer");
  const ort::Interface api{table};
  return guarded(api, [&] {
    std::lock_guard<std::mutex> lock(mutex);
    if (!domain) {
      OrtCustomOpDomain *made = nullptr;
      check(api.create_domain("gossamer", &made));
      check(api.add_operator(made, &op));
      domain = made;
    }
    check(api.add_domain(options, domain));
  });
}
