// Runs an unpacked variant of a bundle with TVM's two shared libraries alone: no Python, no tvmbridge, no compiler.
//
//   tvmbridge unpack model.tvmb -o model/
//   ./run_variant model/ input0.bin input1.bin ...      (raw elements, in the order of `input` lines of variant.txt)
//
// Writes output0.bin, output1.bin, ... and prints what they are. Exit code 1 where anything is not as it should be.

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

namespace ffi = tvm::ffi;

constexpr size_t kAlignment = 64;  // kernels load whole vectors
constexpr DLDevice kHost{kDLCPU, 0};
constexpr int kPooledAllocator = 2;

struct Line {
  std::string what, dtype, shape, rest;
};

// Memory that somebody else owns, as a tensor's.
struct Lent {
  void* data;
  void AllocData(DLTensor* tensor) { tensor->data = data; }
  void FreeData(DLTensor*) {}
};

std::vector<Line> ReadVariant(const std::string& folder) {
  std::ifstream file(folder + "/variant.txt");
  if (!file) throw std::runtime_error(folder + "/variant.txt cannot be read");
  std::vector<Line> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    Line line;
    words >> line.what;
    if (line.what != "runtime") words >> line.dtype >> line.shape;
    std::getline(words >> std::ws, line.rest);
    lines.push_back(line);
  }
  return lines;
}

std::vector<int64_t> ParseShape(const std::string& text) {
  std::vector<int64_t> shape;
  if (text == "scalar") return shape;
  std::istringstream axes(text);
  for (std::string axis; std::getline(axes, axis, 'x');) shape.push_back(std::stoll(axis));
  return shape;
}

ffi::Tensor Lend(void* data, const Line& line) {
  std::vector<int64_t> shape = ParseShape(line.shape);
  return ffi::Tensor::FromNDAlloc(Lent{data}, ffi::ShapeView(shape.data(), shape.size()),
                                  ffi::StringToDLDataType(line.dtype), kHost);
}

// Mapped privately: processes share the pages, and nothing writes to the file.
char* Map(const std::string& path) {
  int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status) != 0) throw std::runtime_error(path + " cannot be read");
  if (status.st_size == 0) return nullptr;  // a model without weights
  void* data = mmap(nullptr, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (data == MAP_FAILED) throw std::runtime_error(path + " cannot be mapped");
  return static_cast<char*>(data);
}

void ReadInput(const std::string& path, const ffi::Tensor& tensor) {
  std::ifstream file(path, std::ios::binary);
  size_t size = ffi::GetDataSize(tensor);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(size));
  if (static_cast<size_t>(file.gcount()) != size || file.peek() != EOF)
    throw std::runtime_error(path + " does not hold the " + std::to_string(size) + " bytes of this input");
}

void* Allocate(const Line& line) {
  ffi::Tensor shape_only = Lend(nullptr, line);
  size_t size = ffi::GetDataSize(shape_only);
  void* data = std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment);
  if (data == nullptr) throw std::bad_alloc();
  return data;
}

int Run(int count, char** arguments) {
  if (count < 2) throw std::runtime_error("usage: run_variant FOLDER INPUT.bin ...");
  std::string folder = arguments[1];
  std::vector<Line> lines = ReadVariant(folder);

  // The runtime before the model: it registers the virtual machine that the model is run by.
  for (const Line& line : lines)
    if (line.what == "runtime" && !dlopen((folder + "/" + line.rest).c_str(), RTLD_NOW | RTLD_GLOBAL))
      throw std::runtime_error(dlerror());
  ffi::Module model = ffi::Module::LoadFromFile(folder + "/model.so");
  ffi::Module machine = model->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
  machine->GetFunction("vm_initialization").value()(static_cast<int>(kHost.device_type), kHost.device_id,
                                                   kPooledAllocator);

  char* weights = Map(folder + "/weights.bin");
  ffi::Array<ffi::Tensor> lent;
  std::vector<ffi::Any> call;
  std::vector<Line> outputs;
  for (const Line& line : lines) {
    if (line.what == "weight") lent.push_back(Lend(weights + std::stoull(line.rest), line));
    if (line.what == "output") outputs.push_back(line);
    if (line.what != "input") continue;
    if (static_cast<int>(call.size()) + 2 >= count) throw std::runtime_error("no file for input " + line.rest);
    ffi::Tensor tensor = Lend(Allocate(line), line);
    ReadInput(arguments[call.size() + 2], tensor);
    call.push_back(tensor);
  }
  if (static_cast<int>(call.size()) + 2 != count) throw std::runtime_error("more files than the model has inputs");
  if (lent.size() > 0) call.push_back(lent);

  std::vector<ffi::AnyView> views(call.begin(), call.end());
  ffi::Any result;
  machine->GetFunction("main").value().CallPacked(views.data(), static_cast<int32_t>(views.size()), &result);
  ffi::Array<ffi::Tensor> results;
  if (auto one = result.try_cast<ffi::Tensor>()) {
    results.push_back(*one);
  } else {
    results = result.cast<ffi::Array<ffi::Tensor>>();
  }
  for (size_t i = 0; i < results.size(); ++i) {
    ffi::Tensor output = results[i];
    std::string path = "output" + std::to_string(i) + ".bin";
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char*>(output.data_ptr()),
               static_cast<std::streamsize>(ffi::GetDataSize(output)));
    if (!file.flush()) throw std::runtime_error(path + " cannot be written");
    std::cout << path << ": " << outputs.at(i).rest << " " << outputs[i].dtype << " " << outputs[i].shape << "\n";
  }
  return 0;
}

int main(int count, char** arguments) {
  try {
    return Run(count, arguments);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
