// libcuda.so.1 as TVM uses it: modules, functions, launches.
#include <dlfcn.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <memory>
#include <set>

#include "device.h"

using namespace emulation;

namespace {

// A fat binary: this header, then entries of one architecture each. As fatbin.py of tvmbridge reads it.
struct FatHeader {
  std::uint32_t magic;
  std::uint16_t version, header_size;
  std::uint64_t size;
};
struct FatEntry {
  std::uint16_t kind, version;  // kind: 1 is PTX, 2 machine code
  std::uint32_t header_size;
  std::uint64_t size;
  std::uint32_t unknown[3];
  std::uint32_t architecture;
};
constexpr std::uint32_t kMagic = 0xBA55ED50;
constexpr int kPtx = 1, kMachineCode = 2;

struct Function;
struct Module {
  int file = -1;
  void* library = nullptr;
  std::vector<std::unique_ptr<Function>> functions;
};
struct Function {
  const CudaEmulationKernel* kernel;
  std::size_t dynamic_shared_limit;
};
std::set<Module*> modules;
std::set<Function*> functions;

// Machine code runs on its own and on later minor versions, PTX on anything later; the best of them wins.
const char* choose(const char* image, std::uint64_t* size) {
  FatHeader header;
  std::memcpy(&header, image, sizeof header);
  const char *position = image + header.header_size, *const end = position + header.size, *best = nullptr;
  const unsigned device = settings().major * 10 + settings().minor;
  unsigned best_rank = 0;
  while (position + sizeof(FatEntry) <= end) {
    FatEntry entry;
    std::memcpy(&entry, position, sizeof entry);
    const bool fits = entry.kind == kMachineCode
                          ? entry.architecture / 10 == device / 10 && entry.architecture <= device
                          : entry.kind == kPtx && entry.architecture <= device;
    const unsigned rank = entry.architecture * 2 + (entry.kind == kMachineCode);
    if (fits && rank > best_rank) {
      best = position + entry.header_size;
      best_rank = rank;
      *size = entry.size;
    }
    position += entry.header_size + entry.size;
  }
  return best;
}

std::string text(const unsigned* v) {
  return std::to_string(v[0]) + " x " + std::to_string(v[1]) + " x " + std::to_string(v[2]);
}

struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  Stream* stream;
  void* attributes;
  unsigned attribute_count;
};

// What a device refuses before anything runs.
int check(const Function& function, const LaunchConfig& config) {
  const CudaEmulationKernel& kernel = *function.kernel;
  const std::uint64_t threads = std::uint64_t(config.block[0]) * config.block[1] * config.block[2];
  const auto refuse = [&](int code, const std::string& why) {
    complain(std::string(code_name(code)) + ": " + kernel.name + ": " + why);
    return code;
  };
  for (int axis = 0; axis < 3; ++axis)
    if (!config.grid[axis] || !config.block[axis]) return refuse(kInvalidValue, "a grid or block without threads");
  if (threads > 1024 || config.block[2] > 64) return refuse(kInvalidValue, "a block of " + text(config.block));
  if (config.grid[0] > 0x7fffffff || config.grid[1] > 65535 || config.grid[2] > 65535)
    return refuse(kInvalidValue, "a grid of " + text(config.grid));
  if (threads > kernel.max_threads)
    return refuse(kOutOfResources, "a block of " + text(config.block) + " threads, and __launch_bounds__(" +
                                       std::to_string(kernel.max_threads) + ")");
  if (config.shared_bytes + kernel.shared_bytes > function.dynamic_shared_limit)
    return refuse(kInvalidValue, std::to_string(kernel.shared_bytes) + " + " + std::to_string(config.shared_bytes) +
                                     " bytes of shared memory, of at most " +
                                     std::to_string(function.dynamic_shared_limit));
  if (config.attribute_count) return refuse(kNotSupported, "launch attributes are not emulated");
  return kSuccess;
}

// The arguments of one launch, kept until it runs.
struct Arguments {
  std::vector<std::vector<char>> values;
  std::vector<void*> pointers;
  std::vector<std::uint64_t> allocations;  // that they point into
};

void* address_in(const CudaEmulationKernel& kernel, const Arguments& arguments, unsigned i) {
  void* address = nullptr;
  if (kernel.arguments[i].pointer) std::memcpy(&address, arguments.pointers[i], sizeof address);
  return address;
}

int run_now(const Function& function, const LaunchConfig& config, Arguments& arguments) {
  const CudaEmulationKernel& kernel = *function.kernel;
  for (unsigned i = 0; i < kernel.argument_count; ++i) {
    const void* const address = address_in(kernel, arguments, i);
    const std::uint64_t allocation = address ? allocation_of(address, 1) : 0;
    if (address && (!allocation || allocation != arguments.allocations[i]))
      return fail(kIllegalAddress, std::string(kernel.name) + ": argument " + std::to_string(i) + " points to " +
                                       (arguments.allocations[i] ? "memory that has been freed since"
                                                                 : "no memory of the device"));
  }
  Launch launch{&kernel, arguments.pointers.data(), {}, {}, config.shared_bytes};
  std::memcpy(launch.grid, config.grid, sizeof launch.grid);
  std::memcpy(launch.block, config.block, sizeof launch.block);
  const Outcome outcome = run(launch);
  return outcome.code ? fail(outcome.code, outcome.what) : kSuccess;
}

}  // namespace

extern "C" {

int cuModuleLoadData(Module** made, const void* data) {
  EMULATION_ENTER();
  if (const int code = check_unsafe("cuModuleLoadData")) return code;
  const auto* image = static_cast<const char*>(data);
  std::uint32_t magic;
  std::memcpy(&magic, image, sizeof magic);
  if (magic != kMagic) return kInvalidImage;
  std::uint64_t size = 0;
  const char* code = choose(image, &size);
  if (!code) return kNoBinaryForDevice;
  if (size < 4 || std::memcmp(code, "\177ELF", 4)) {
    complain("a library holds real CUDA code: it was not built by the emulated nvcc");
    return kInvalidImage;
  }
  auto module = std::make_unique<Module>();
  module->file = memfd_create("cuda-emulation", MFD_CLOEXEC);
  for (std::uint64_t written = 0; written < size;) {
    const ssize_t step = write(module->file, code + written, size - written);
    if (step <= 0) return kOutOfMemory;
    written += step;
  }
  // The loader knows libraries by their names: the file stays open, so that no other gets this one.
  const std::string path = "/proc/self/fd/" + std::to_string(module->file);
  module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!module->library) {
    complain(std::string("compiled kernels do not load: ") + dlerror());
    close(module->file);
    return kInvalidImage;
  }
  *made = *modules.insert(module.release()).first;
  return kSuccess;
}

int cuModuleUnload(Module* module) {
  EMULATION_ENTER();
  if (!modules.count(module)) return kInvalidHandle;
  const int code = finish();
  for (const auto& function : module->functions) functions.erase(function.get());
  dlclose(module->library);
  close(module->file);
  modules.erase(module);
  delete module;
  return code;
}

int cuModuleGetFunction(Function** made, Module* module, const char* name) {
  EMULATION_ENTER();
  if (!modules.count(module)) return kInvalidHandle;
  auto* kernels = static_cast<const CudaEmulationKernel* const*>(dlsym(module->library, "cuda_emulation_kernels"));
  auto* count = static_cast<const unsigned*>(dlsym(module->library, "cuda_emulation_kernel_count"));
  if (!kernels || !count) return kInvalidImage;
  for (unsigned i = 0; i < *count; ++i) {
    if (std::strcmp(kernels[i]->name, name)) continue;
    module->functions.push_back(std::make_unique<Function>(Function{kernels[i], kSharedBytes}));
    *made = *functions.insert(module->functions.back().get()).first;
    return kSuccess;
  }
  return kNotFound;
}

int cuFuncSetAttribute(Function* function, int attribute, int value) {
  EMULATION_ENTER();
  constexpr int kDynamicSharedBytes = 8;
  if (!functions.count(function)) return kInvalidHandle;
  if (attribute != kDynamicSharedBytes) return kNotSupported;
  const std::size_t whole = value + function->kernel->shared_bytes;
  if (value < 0 || whole > settings().shared_bytes_opt_in) {
    complain(std::string(function->kernel->name) + ": " + std::to_string(whole) +
             " bytes of shared memory are wanted, the device has " + std::to_string(settings().shared_bytes_opt_in));
    return kInvalidValue;
  }
  function->dynamic_shared_limit = std::max(whole, kSharedBytes);
  return kSuccess;
}

int cuLaunchKernelEx(const LaunchConfig* config, Function* function, void** parameters, void** extra) {
  EMULATION_ENTER();
  if (!functions.count(function) || !is_stream(config->stream)) return kInvalidHandle;
  if (extra) return kNotSupported;
  if (const int code = check(*function, *config)) return code;
  auto arguments = std::make_shared<Arguments>();
  for (unsigned i = 0; i < function->kernel->argument_count; ++i) {
    const auto* value = static_cast<const char*>(parameters[i]);
    arguments->values.emplace_back(value, value + function->kernel->arguments[i].size);
  }
  for (auto& value : arguments->values) arguments->pointers.push_back(value.data());
  for (unsigned i = 0; i < function->kernel->argument_count; ++i) {
    const void* const address = address_in(*function->kernel, *arguments, i);
    arguments->allocations.push_back(address ? allocation_of(address, 1) : 0);
  }
  return submit(config->stream, [function, config = *config, arguments] {
    return run_now(*function, config, *arguments);
  });
}

int cuInit(unsigned flags) {
  EMULATION_ENTER();
  return flags ? kInvalidValue : kSuccess;
}

int cuDriverGetVersion(int* version) {
  *version = kCudaVersion;
  return kSuccess;
}

int cuDeviceGetCount(int* count) {
  EMULATION_ENTER();
  *count = 1;
  return kSuccess;
}

int cuDeviceGet(int* device, int index) {
  EMULATION_ENTER();
  *device = index;
  return index ? kInvalidDevice : kSuccess;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  EMULATION_ENTER();
  *value = attribute_of(attribute);
  return device ? kInvalidDevice : kSuccess;
}

int cuDeviceGetName(char* name, int length, int device) {
  if (device) return kInvalidDevice;
  std::snprintf(name, length, "%s", kDeviceName);
  return kSuccess;
}

int cuGetErrorName(int code, const char** name) {
  *name = code_name(code);
  return kSuccess;
}

int cuGetErrorString(int code, const char** said) {
  *said = code_text(code);
  return kSuccess;
}

}  // extern "C"
