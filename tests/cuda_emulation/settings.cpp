// What the environment says of the device; names of errors; errors that stay.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "device.h"

namespace emulation {

std::recursive_mutex gate;

namespace {

const char* setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}

std::size_t opt_in_bytes(int capability) {
  // CUDA C++ Programming Guide, technical specifications per compute capability.
  switch (capability) {
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 90: case 100: case 103: return 227 << 10;
    default: return 99 << 10;
  }
}

Settings read() {
  Settings made{};
  if (std::sscanf(setting("CUDA_EMULATION_CAPABILITY", "8.0"), "%d.%d", &made.major, &made.minor) != 2) {
    complain("CUDA_EMULATION_CAPABILITY is no number such as 8.0");
    std::abort();
  }
  made.memory_bytes = std::strtoull(setting("CUDA_EMULATION_MEMORY_BYTES", "8589934592"), nullptr, 10);
  const unsigned cores = std::max(1u, std::thread::hardware_concurrency());
  made.workers = std::max(1, std::atoi(setting("CUDA_EMULATION_THREADS", std::to_string(cores).c_str())));
  made.order = setting("CUDA_EMULATION_ORDER", "forward");
  made.trace = std::strcmp(setting("CUDA_EMULATION_TRACE", "0"), "1") == 0;
  made.disturb = std::strcmp(setting("CUDA_EMULATION_DISTURB", "0"), "1") == 0;
  made.shared_bytes_opt_in = opt_in_bytes(made.major * 10 + made.minor);
  made.multiprocessors = 8;
  return made;
}

pid_t first_user = 0;
int staying = kSuccess;

struct Named {
  int code;
  const char* name;
  const char* text;
};
constexpr Named kNames[] = {
    {kSuccess, "CUDA_SUCCESS", "no error"},
    {kInvalidValue, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {kOutOfMemory, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {kNotInitialized, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {kInvalidDevice, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {kInvalidImage, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {kNoBinaryForDevice, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {kNotFound, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {kNotReady, "CUDA_ERROR_NOT_READY", "device not ready"},
    {kIllegalAddress, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {kOutOfResources, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {kMisalignedAddress, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {kNotSupported, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {kCaptureUnsupported, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {kCaptureInvalidated, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error"},
    {kCaptureImplicit, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capture"},
    {kCaptureWrongThread, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "attempt to terminate a capture from another thread"},
};

}  // namespace

const Settings& settings() {
  static const Settings read_once = read();
  return read_once;
}

int attribute_of(int attribute) {
  const Settings& device = settings();
  switch (attribute) {
    case 1: case 2: case 3: return 1024;                                // threads of a block; its x and y
    case 4: return 64;                                                  // its z
    case 5: return 0x7fffffff;                                          // blocks of a grid
    case 6: case 7: return 65535;
    case 8: return kSharedBytes;
    case 9: return 65536;                                               // constant memory
    case 10: return 32;                                                 // warp
    case 12: case 82: return 65536;                                     // registers
    case 13: case 36: return 1000000;                                   // clocks, kHz
    case 16: return device.multiprocessors;
    case 37: return 256;                                                // bits of the memory's bus
    case 38: return 4 << 20;                                            // L2
    case 39: return device.major * 10 + device.minor == 75 ? 1024 : 2048;
    case 75: return device.major;
    case 76: return device.minor;
    case 81: return device.shared_bytes_opt_in + 1024;
    case 97: return device.shared_bytes_opt_in;
    case 111: return 1024;
    case 41: return 1;                                                  // one address space with the host
    default: return 0;
  }
}

const char* code_name(int code) {
  for (const Named& named : kNames)
    if (named.code == code) return named.name;
  return "CUDA_ERROR_UNKNOWN";
}

const char* code_text(int code) {
  for (const Named& named : kNames)
    if (named.code == code) return named.text;
  return "unknown error";
}

void complain(const std::string& what) { std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str()); }

int enter() {
  if (!first_user) first_user = getpid();
  if (first_user != getpid()) {
    complain("CUDA was used before this process was forked: on a device, nothing works in the child");
    return kNotInitialized;
  }
  return staying;
}

int fail(int code, const std::string& what) {
  complain(std::string(code_name(code)) + ": " + what);
  staying = code;
  return code;
}

}  // namespace emulation
