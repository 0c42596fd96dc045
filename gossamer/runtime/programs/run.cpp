// Runs the network on a binary PPM image: ./run photo.ppm   (`magick photo.jpg photo.ppm`)
// g++ -std=c++17 -O2 run.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -o run   ($ORT: a release of ONNX Runtime)
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

constexpr int HEIGHT = /*HEIGHT*/, WIDTH = /*WIDTH*/, CHANNELS = /*CHANNELS*/;
constexpr bool BGR = /*BGR*/, CHANNELS_LAST = /*CHANNELS_LAST*/, CUBIC = /*CUBIC*/;
constexpr double CROP = /*CROP*/;  // 0: the whole image is scaled
const std::vector<float> MEAN = {/*MEAN*/}, STD = {/*STD*/};

struct Image {
    int width = 0, height = 0;
    std::vector<float> pixels;  // rows of RGB, 0 to 255
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int most = 0;
    Image image;
    file >> magic >> image.width >> image.height >> most;
    file.get();
    if (!file || magic != "P6" || most != 255) throw std::runtime_error(path + " is no binary PPM of 8 bits");
    std::vector<char> bytes(static_cast<size_t>(image.width) * image.height * 3);
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file) throw std::runtime_error(path + " is cut short");
    for (char byte : bytes) image.pixels.push_back(static_cast<unsigned char>(byte));
    return image;
}

double kernel(double x) {
    x = std::abs(x);
    if (!CUBIC) return std::max(0.0, 1 - x);
    if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
    return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// One direction, with the filter as wide as the reduction; rows become columns.
Image resized(const Image& image, double from, double to, int size) {
    const double scale = (to - from) / size, wide = std::max(scale, 1.0), support = (CUBIC ? 2 : 1) * wide;
    Image result{image.height, size, std::vector<float>(static_cast<size_t>(size) * image.height * 3)};
    for (int i = 0; i < size; ++i) {
        const double center = from + (i + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(std::floor(center - support + 0.5)));
        const int last = std::min(image.width, static_cast<int>(std::floor(center + support + 0.5)));
        std::vector<double> weights;
        for (int j = first; j < last; ++j) weights.push_back(kernel((j - center + 0.5) / wide));
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (int y = 0; y < image.height; ++y)
            for (int c = 0; c < 3; ++c) {
                double value = 0;
                for (int j = first; j < last; ++j) value += weights[j - first] / sum * image.pixels[(y * image.width + j) * 3 + c];
                result.pixels[(i * image.height + y) * 3 + c] = std::clamp(std::round(static_cast<float>(value)), 0.0f, 255.0f);
            }
    }
    return result;
}

std::vector<float> prepared(const Image& image) {
    double left = 0, top = 0, right = image.width, bottom = image.height;
    if (CROP > 0) {
        const double scale = std::max(std::floor(WIDTH / CROP + 1e-6) / image.width, std::floor(HEIGHT / CROP + 1e-6) / image.height);
        left = std::floor((std::round(image.width * scale) - WIDTH) / 2) / scale;
        top = std::floor((std::round(image.height * scale) - HEIGHT) / 2) / scale;
        right = std::min<double>(image.width, left + WIDTH / scale);
        bottom = std::min<double>(image.height, top + HEIGHT / scale);
    }
    const Image small = resized(resized(image, left, right, WIDTH), top, bottom, HEIGHT);
    std::vector<float> x(static_cast<size_t>(CHANNELS) * HEIGHT * WIDTH);
    for (int i = 0; i < HEIGHT * WIDTH; ++i)
        for (int c = 0; c < CHANNELS; ++c) {
            const float* rgb = &small.pixels[3 * i];
            const float grey = std::floor((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 32768) / 65536);
            const float value = CHANNELS == 1 ? grey : rgb[BGR ? 2 - c : c];
            x[CHANNELS_LAST ? i * CHANNELS + c : c * HEIGHT * WIDTH + i] = (value / 255 - MEAN[c]) / STD[c];
        }
    return x;
}

int main(int count, char** arguments) {
    std::vector<std::string> labels;
    std::ifstream file("labels.txt");
    for (std::string line; std::getline(file, line);) labels.push_back(line);
    Ort::Env environment;
    Ort::SessionOptions options;
    Ort::Session session(environment, ORT_TSTR("/*MODEL_FILE*/"), options);
    Ort::AllocatorWithDefaultOptions allocator;
    const auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
    const char *inputs[] = {input.get()}, *outputs[] = {output.get()};
    const std::vector<int64_t> shape = CHANNELS_LAST ? std::vector<int64_t>{1, HEIGHT, WIDTH, CHANNELS}
                                                     : std::vector<int64_t>{1, CHANNELS, HEIGHT, WIDTH};
    for (int n = 1; n < count; ++n) {
        std::vector<float> x = prepared(read_ppm(arguments[n]));
        const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
        const auto tensor = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
        const auto found = session.Run(Ort::RunOptions{}, inputs, &tensor, 1, outputs, 1);
        const float* scores = found[0].GetTensorData<float>();
        const size_t size = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
        std::vector<size_t> order(size);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + std::min<size_t>(3, size), order.end(),
                          [&](size_t a, size_t b) { return scores[a] > scores[b]; });
        std::cout << arguments[n];
        for (size_t i = 0; i < std::min<size_t>(3, size); ++i)
            std::cout << ' ' << (order[i] < labels.size() ? labels[order[i]] : std::to_string(order[i])) << '=' << scores[order[i]];
        std::cout << '\n';
    }
}
