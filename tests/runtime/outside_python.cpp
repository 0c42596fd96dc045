// A program without Python: outside_python NETWORK LIBRARY N C H W < floats > floats.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "interface.h"

extern "C" const OrtApiBase *OrtGetApiBase();

int main(int, char **argv) {
  const ort::Interface api{OrtGetApiBase()->GetApi(ort::VERSION)};
  auto check = [&](OrtStatus *status) {
    if (!status) return;
    const auto message = reinterpret_cast<const char *(*)(const OrtStatus *)>(const_cast<void *>(api.table[2]));
    std::fprintf(stderr, "%s\n", message(status));
    std::exit(1);
  };
  void *environment = nullptr, *options = nullptr, *library = nullptr, *session = nullptr, *memory = nullptr;
  check(api.call(3, 3, "test", &environment));
  check(api.call(10, &options));
  check(api.call(29, options, static_cast<const char *>(argv[2]), &library));
  check(api.call(7, environment, static_cast<const char *>(argv[1]), options, &session));
  std::vector<int64_t> sizes;
  size_t count = 1;
  for (int i = 3; i < 7; ++i) sizes.push_back(std::atoll(argv[i])), count *= size_t(sizes.back());
  std::vector<float> x(count);
  if (std::fread(x.data(), sizeof(float), count, stdin) != count) return 2;
  check(api.call(69, 0, 0, &memory));
  OrtValue *given = nullptr, *made = nullptr;
  check(api.call(49, memory, static_cast<void *>(x.data()), count * sizeof(float), sizes.data(), size_t{4}, 1, &given));
  const char *input = "input", *output = "output";
  const OrtValue *inputs[] = {given};
  check(api.call(9, session, static_cast<void *>(nullptr), &input, static_cast<const OrtValue *const *>(inputs),
                 size_t{1}, &output, size_t{1}, &made));
  OrtTensorTypeAndShapeInfo *shape = nullptr;
  size_t numbers = 0;
  void *y = nullptr;
  check(api.shape(made, &shape));
  check(api.call(64, static_cast<const OrtTensorTypeAndShapeInfo *>(shape), &numbers));
  check(api.data(made, &y));
  return std::fwrite(y, sizeof(float), numbers, stdout) == numbers ? 0 : 3;
}
