// Score and decision of an image by a model that `main.py export` wrote, with ONNX Runtime alone.
//
//     g++ -std=c++17 -O2 predict.cpp -I $ONNXRUNTIME_ROOT/include -L $ONNXRUNTIME_ROOT/lib -lonnxruntime -o predict
//     ./predict model.onnx photo.ppm
//
// Images are binary PPM files of 8 bits, upright, as `convert photo.jpg -auto-orient photo.ppm` writes them. They are
// resized and cropped as in training, to the byte: scores are those of `main.py predict` on the same pixels.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

#include <onnxruntime_cxx_api.h>

struct Image {
  int width = 0, height = 0;
  std::vector<uint8_t> rgb;  // row by row, three bytes a pixel
};

Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  Image image;
  int most = 0;
  const auto next = [&](auto& value) {
    while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
    file >> value;
  };
  next(kind), next(image.width), next(image.height), next(most);
  if (!file || kind != "P6" || most != 255 || image.width < 1 || image.height < 1)
    throw std::runtime_error(path + " is no binary PPM file (P6) of 8 bits");
  file.get();
  image.rgb.resize(3ull * image.width * image.height);
  if (!file.read(reinterpret_cast<char*>(image.rgb.data()), image.rgb.size()))
    throw std::runtime_error(path + " ends before its last pixel");
  return image;
}

// Rows at another width, by Pillow's bilinear filter in its fixed-point numbers, and then transposed: twice is a resize.
Image resampled(const Image& image, int width) {
  constexpr int bits = 22;
  Image out{image.height, width, std::vector<uint8_t>(3ull * image.height * width)};
  const double scale = double(image.width) / width, reach = std::max(scale, 1.0);
  for (int x = 0; x < width; ++x) {
    const double centre = (x + 0.5) * scale;
    const int first = std::max(0, int(centre - reach + 0.5)), last = std::min(image.width, int(centre + reach + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int i = first; i < last; ++i)
      sum += weights.emplace_back(std::max(0.0, 1 - std::abs((i - centre + 0.5) * (1 / reach))));
    std::vector<int> shares;
    for (double weight : weights) shares.push_back(int(0.5 + weight / sum * (1 << bits)));
    for (int y = 0; y < image.height; ++y)
      for (int channel = 0; channel < 3; ++channel) {
        int total = 1 << (bits - 1);
        for (int i = first; i < last; ++i)
          total += image.rgb[3ull * (1ull * y * image.width + i) + channel] * shares[i - first];
        out.rgb[3ull * (1ull * x * image.height + y) + channel] = uint8_t(std::clamp(total >> bits, 0, 255));
      }
  }
  return out;
}

Image cropped(const Image& image, int side) {
  const int left = int(std::nearbyint((image.width - side) / 2.0)), top = int(std::nearbyint((image.height - side) / 2.0));
  Image out{side, side, {}};
  for (int y = top; y < top + side; ++y) {
    const auto row = image.rgb.begin() + 3ll * (1ll * y * image.width + left);
    out.rgb.insert(out.rgb.end(), row, row + 3ll * side);
  }
  return out;
}

// What the file says of itself, by name; empty where it does not.
std::string note(const Ort::Session& session, const char* name) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto found = session.GetModelMetadata().LookupCustomMetadataMapAllocated(name, allocator);
  return found ? found.get() : "";
}

double number(const std::string& json, const std::string& name) {
  std::smatch found;
  if (!std::regex_search(json, found, std::regex("\"" + name + "\": ([-+.0-9eE]+)")))
    throw std::runtime_error("the model does not say its " + name);
  return std::stod(found[1]);
}

Image as_the_model_sees(const Image& image, const std::string& transform) {
  const int side = int(number(transform, "imagesize"));
  if (transform.find("\"resize_mode\": \"square\"") != std::string::npos)
    return resampled(resampled(image, side), side);
  const double resize = number(transform, "resize"), shorter = std::min(image.width, image.height);
  const int width = int(resize * image.width / shorter), height = int(resize * image.height / shorter);
  return cropped(resampled(resampled(image, width), height), side);
}

double mean_grey(const Image& image) {
  constexpr std::array<double, 3> luma{0.299, 0.587, 0.114};
  double sum = 0;
  for (size_t i = 0; i < image.rgb.size(); ++i) sum += luma[i % 3] * image.rgb[i];
  return sum / (1.0 * image.width * image.height);
}

void predict(const std::string& model, const std::string& path) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR);
  Ort::Session session(env, std::filesystem::path(model).c_str(), Ort::SessionOptions{});
  if (note(session, "input").find("uint8") == std::string::npos)
    throw std::runtime_error(model + " does not take pixels of 8 bits: export it without --input float");
  Image image = as_the_model_sees(read_ppm(path), note(session, "transform"));
  const std::array<int64_t, 4> shape{1, image.height, image.width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto pixels =
      Ort::Value::CreateTensor<uint8_t>(memory, image.rgb.data(), image.rgb.size(), shape.data(), shape.size());
  const char *inputs[]{"images"}, *outputs[]{"scores"};  // "maps" are there too
  auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &pixels, 1, outputs, 1);
  const double score = found[0].GetTensorData<float>()[0], threshold = std::stod(note(session, "image_threshold"));
  std::printf("score %.4f, %s\n", score, score > threshold ? "anomalous" : "normal");
  const std::string brightness = note(session, "brightness");
  if (brightness.empty()) return;
  const double grey = mean_grey(image);
  if (grey < number(brightness, "lowest") || grey > number(brightness, "highest"))
    std::fprintf(stderr, "%s than the images that the threshold comes from: it promises nothing\n",
                 grey < number(brightness, "lowest") ? "Darker" : "Brighter");
}

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "Usage: %s MODEL.onnx IMAGE.ppm\n", words[0]);
    return 2;
  }
  try {
    predict(words[1], words[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "Error: %s\n", error.what());
    return 1;
  }
}
