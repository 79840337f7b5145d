// Device memory: host memory between pages that nobody may touch, filled with NaNs when it is new.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>

#include "device.h"

namespace emulation {
namespace {

constexpr std::size_t kAlignment = 256;  // what cudaMalloc promises
constexpr std::size_t kGuard = std::size_t{64} << 20;  // on each side, of addresses alone: indices go wrong by more than a page

struct Held : Block {
  char* mapping;
  std::size_t mapping_size;
};
std::map<const char*, Held> blocks;
std::size_t in_use = 0;
std::uint64_t allocations = 0;

std::size_t round_up(std::size_t size, std::size_t step) { return (size + step - 1) / step * step; }

}  // namespace

int allocate(void** address, std::size_t size, bool pinned) {
  *address = nullptr;
  if (!size) return kSuccess;
  if (!pinned && in_use + size > settings().memory_bytes) return kOutOfMemory;
  const std::size_t page = sysconf(_SC_PAGESIZE), kept = round_up(size, kAlignment), inner = round_up(kept, page);
  const std::size_t mapping_size = inner + 2 * kGuard;
  void* mapping = mmap(nullptr, mapping_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return kOutOfMemory;
  char* const first = static_cast<char*>(mapping) + kGuard;
  if (mprotect(first, inner, PROT_READ | PROT_WRITE)) {
    munmap(mapping, mapping_size);
    return kOutOfMemory;
  }
  // The end lies at the guard: reading past it faults.
  char* const start = first + (inner - kept);
  std::memset(start, 0xff, kept);
  blocks[start] = Held{{size, pinned, ++allocations}, static_cast<char*>(mapping), mapping_size};
  if (!pinned) in_use += size;
  *address = start;
  return kSuccess;
}

int release(void* address, bool pinned) {
  if (!address) return kSuccess;
  const auto found = blocks.find(static_cast<char*>(address));
  if (found == blocks.end() || found->second.pinned != pinned) {
    complain("memory is freed that was not allocated, or already freed");
    return kInvalidValue;
  }
  if (!pinned) in_use -= found->second.size;
  munmap(found->second.mapping, found->second.mapping_size);
  blocks.erase(found);
  return kSuccess;
}

std::size_t memory_in_use() { return in_use; }

bool is_allocated(const void* address, std::size_t size, Block* found) {
  const char* const start = static_cast<const char*>(address);
  auto after = blocks.upper_bound(start);
  if (after == blocks.begin()) return false;
  const auto& [first, block] = *--after;
  if (start + size > first + block.size) return false;
  if (found) *found = block;
  return true;
}

std::uint64_t allocation_of(const void* address, std::size_t size) {
  Block block{};
  return is_allocated(address, size, &block) ? block.number : 0;
}

}  // namespace emulation
