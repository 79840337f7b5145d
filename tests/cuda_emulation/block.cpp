// One block of threads on one thread of the host (see block.h): stacks, turns, barriers, meetings of warps.
#include "block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#if !defined(__x86_64__)
#error "the emulated CUDA device switches stacks in x86-64 assembly; it has none for this machine"
#endif

// The registers that a function has to preserve stay on the stack that is left.
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
.globl emulation_resume
.type emulation_resume, @function
emulation_resume:
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, . - emulation_switch
)");

namespace emulation {

thread_local BlockRunner* runner = nullptr;

namespace {

constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kPage = 4096, kStackBytes = 256 << 10;
// An odd number of pages: stacks do not compete for the same lines of the cache.
constexpr std::size_t kStackStride = kStackBytes + kPage;
constexpr std::size_t kSharedBytesStored = 256 << 10;
constexpr unsigned char kPoison = 0xff;  // a NaN in every type
constexpr int kSavedRegisters = 6;

std::string triple(const unsigned* values) {
  return "(" + std::to_string(values[0]) + ", " + std::to_string(values[1]) + ", " + std::to_string(values[2]) + ")";
}

char* map(std::size_t size) {
  void* made = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) {
    complain("no memory for the stacks of a block");
    std::abort();
  }
  return static_cast<char*>(made);
}

}  // namespace

BlockRunner::BlockRunner() : fibers_(kMostThreads), stacks_(map(kStackStride * kMostThreads)) {
  static_shared_ = map(kSharedBytesStored);
  // Dynamic shared memory lies before as much again that nobody may touch.
  dynamic_storage_ = kSharedBytesStored;
  dynamic_shared_ = map(2 * dynamic_storage_);
  mprotect(dynamic_shared_ + dynamic_storage_, dynamic_storage_, PROT_NONE);
  for (unsigned i = 0; i < kMostThreads; ++i) {
    mprotect(stacks_ + i * kStackStride, kPage, PROT_NONE);
    fibers_[i].number = i;
    reset_fiber(fibers_[i]);
  }
  random_.seed(1);
}

void BlockRunner::reset_fiber(Fiber& fiber) {
  const std::size_t colour = fiber.number % 16 * 256;
  auto* top = reinterpret_cast<void**>(stacks_ + (fiber.number + 1) * kStackStride - colour);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&BlockRunner::fiber_main);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void BlockRunner::fiber_main() {
  for (;;) {
    BlockRunner& self = *runner;
    const Launch& launch = *self.launch_;
    if (self.alone_) {
      for (unsigned i = 0; i < self.threads_; ++i) {
        self.current_->index = self.indices_[self.order_[i]];
        launch.kernel->run(launch.arguments);
      }
    } else {
      launch.kernel->run(launch.arguments);
    }
    self.wait(State::kEnded);
  }
}

void BlockRunner::switch_to(Fiber& fiber) {
  current_ = &fiber;
  emulation_switch(&scheduler_pointer_, fiber.stack_pointer);
  current_ = nullptr;
}

void BlockRunner::wait(State state) {
  Fiber& self = *current_;
  self.state = state;
  emulation_switch(&self.stack_pointer, scheduler_pointer_);
}

void BlockRunner::prepare() {
  const unsigned* size = launch_->block;
  threads_ = size[0] * size[1] * size[2];
  indices_.resize(threads_);
  for (unsigned i = 0; i < threads_; ++i)
    fibers_[i].index = indices_[i] = i % size[0] | i / size[0] % size[1] << 10 | i / (size[0] * size[1]) << 20;
  order_.resize(threads_);
  std::iota(order_.begin(), order_.end(), 0u);
  if (settings().order == "backward") std::reverse(order_.begin(), order_.end());
  warps_.assign((threads_ + 31) / 32, Warp{});
  for (unsigned i = 0; i < warps_.size(); ++i)
    warps_[i].present = threads_ - i * 32 >= 32 ? ~0u : (1u << (threads_ - i * 32)) - 1;
  alone_ = !launch_->kernel->cooperates;
}

bool BlockRunner::run(const Launch& launch, std::uint64_t first, std::uint64_t last) {
  launch_ = &launch;
  outcome = {};
  prepare();
  for (std::uint64_t number = first; number < last; ++number) {
    block_index_[0] = number % launch.grid[0];
    block_index_[1] = number / launch.grid[0] % launch.grid[1];
    block_index_[2] = number / launch.grid[0] / launch.grid[1];
    if (!run_block()) {
      for (Fiber& fiber : fibers_) reset_fiber(fiber);  // threads were left where they stood
      return false;
    }
  }
  return true;
}

bool BlockRunner::run_block() {
  if (settings().order == "random") std::shuffle(order_.begin(), order_.end(), random_);
  std::memset(static_shared_, kPoison, launch_->kernel->shared_storage_bytes);
  const std::size_t dynamic = (launch_->dynamic_shared_bytes + 255) / 256 * 256;
  char* const whole = dynamic_shared_;
  dynamic_shared_ = whole + dynamic_storage_ - dynamic;
  std::memset(dynamic_shared_, kPoison, dynamic);
  const bool well = (alone_ ? run_alone() : run_together()) && check_red_zones();
  dynamic_shared_ = whole;
  return well;
}

bool BlockRunner::run_alone() {
  switch_to(fibers_[0]);
  return outcome.code == kSuccess;
}

bool BlockRunner::run_together() {
  at_barrier_ = ended_ = 0;
  for (unsigned i = 0; i < threads_; ++i) fibers_[i].state = State::kReady;
  for (Warp& warp : warps_) warp.ended = warp.meeting = warp.asking = 0;
  while (ended_ < threads_) {
    bool progress = false;
    for (const unsigned i : order_) {
      Fiber& fiber = fibers_[i];
      if (fiber.state != State::kReady) continue;
      progress = true;
      switch_to(fiber);
      if (outcome.code) return false;
      if (fiber.state == State::kEnded) {
        ++ended_;
        Warp& warp = warp_of(fiber);
        warp.ended |= 1u << i % 32;
        // Who waits for this lane waits no longer.
        for (unsigned lane = 0; lane < 32 && warp.meeting; ++lane)
          if (warp.meeting >> lane & 1) try_meeting(warp, i / 32, fibers_[i / 32 * 32 + lane]);
        if (outcome.code) return false;
      }
    }
    if (at_barrier_ == threads_) {
      last_count_ = 0;
      for (unsigned i = 0; i < threads_; ++i) {
        last_count_ += fibers_[i].predicate;
        fibers_[i].state = State::kReady;
      }
      at_barrier_ = 0;
    } else if (!progress && !answer_questions()) {
      unsigned meeting = 0;
      for (const Warp& warp : warps_) meeting += __builtin_popcount(warp.meeting);
      return fail_block(kLaunchFailed, "of " + std::to_string(threads_) + " threads " + std::to_string(at_barrier_) +
                                           " wait at __syncthreads, " + std::to_string(meeting) +
                                           " for other lanes of their warp, and " + std::to_string(ended_) +
                                           " have ended: none can go on");
    }
  }
  return true;
}

unsigned BlockRunner::sync_block(bool predicate) {
  if (alone_) give_up(kLaunchFailed, "a kernel waits for others that was taken for one that does not");
  current_->predicate = predicate;
  ++at_barrier_;
  wait(State::kAtBarrier);
  return last_count_;
}

void BlockRunner::meet(std::uint32_t mask, CudaEmulationCollective collective, void* brought) {
  if (alone_) give_up(kLaunchFailed, "a kernel waits for others that was taken for one that does not");
  Fiber& self = *current_;
  Warp& warp = warp_of(self);
  if (!(mask >> self.number % 32 & 1)) give_up(kLaunchFailed, "a lane meets others by a mask that leaves itself out");
  self.mask = mask;
  self.collective = collective;
  self.brought = brought;
  self.state = State::kMeeting;
  warp.meeting |= 1u << self.number % 32;
  try_meeting(warp, self.number / 32, self);
  if (outcome.code) emulation_switch(&self.stack_pointer, scheduler_pointer_);
  if (self.state == State::kMeeting) wait(State::kMeeting);
}

void BlockRunner::try_meeting(Warp& warp, unsigned warp_number, Fiber& asked) {
  const std::uint32_t lanes = asked.mask & warp.present & ~warp.ended;
  if ((warp.meeting & lanes) != lanes) return;
  void* brought[32] = {};
  Fiber* const first = &fibers_[warp_number * 32];
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (!(lanes >> lane & 1)) continue;
    if (first[lane].mask != asked.mask || first[lane].collective != asked.collective) {
      outcome = {kLaunchFailed, "lanes of a warp meet in different operations, or with different masks" + where()};
      return;
    }
    brought[lane] = first[lane].brought;
  }
  if (asked.collective) asked.collective(brought, lanes);
  for (unsigned lane = 0; lane < 32; ++lane)
    if (lanes >> lane & 1) first[lane].state = State::kReady;
  warp.meeting &= ~lanes;
}

std::uint32_t BlockRunner::active_mask() {
  if (alone_) give_up(kLaunchFailed, "a kernel waits for others that was taken for one that does not");
  warp_of(*current_).asking |= 1u << current_->number % 32;
  wait(State::kAsking);
  return current_->mask;
}

// Nobody can go on: the lanes of a warp that ask who is active are, together, those that are.
bool BlockRunner::answer_questions() {
  bool answered = false;
  for (unsigned i = 0; i < warps_.size(); ++i) {
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(warps_[i].asking >> lane & 1)) continue;
      Fiber& fiber = fibers_[i * 32 + lane];
      fiber.mask = warps_[i].asking;
      fiber.state = State::kReady;
      answered = true;
    }
    warps_[i].asking = 0;
  }
  return answered;
}

bool BlockRunner::check_red_zones() {
  const CudaEmulationKernel& kernel = *launch_->kernel;
  for (unsigned i = 0; i < kernel.red_zone_count; ++i) {
    const char* zone = static_shared_ + kernel.red_zones[i].offset;
    for (std::size_t byte = 0; byte < kCudaEmulationRedZoneBytes; ++byte)
      if (static_cast<unsigned char>(zone[byte]) != kPoison)
        return fail_block(kIllegalAddress, std::string("something was written behind the shared array ") +
                                               kernel.red_zones[i].array);
  }
  return true;
}

std::string BlockRunner::where() const {
  std::string text = std::string(", in ") + launch_->kernel->name + ", block " + triple(block_index_);
  if (current_) {
    const unsigned index[] = {current_->index & 1023, current_->index >> 10 & 1023, current_->index >> 20};
    text += ", thread " + triple(index);
  }
  return text;
}

bool BlockRunner::fail_block(int code, const std::string& what) {
  if (!outcome.code) outcome = {code, what + where()};
  return false;
}

void BlockRunner::note_fault(int code, const std::string& what) { fail_block(code, what); }

void BlockRunner::give_up(int code, const std::string& what) {
  fail_block(code, what);
  emulation_switch(&current_->stack_pointer, scheduler_pointer_);
  __builtin_unreachable();
}

}  // namespace emulation

using emulation::runner;

extern "C" {
std::uint32_t cuda_emulation_thread_index() { return runner->current().index; }
std::uint64_t cuda_emulation_block_size() {
  const unsigned* size = runner->launch().block;
  return size[0] | std::uint64_t(size[1]) << 11 | std::uint64_t(size[2]) << 22;
}
std::uint32_t cuda_emulation_block_index(unsigned axis) { return runner->block_index(axis); }
std::uint32_t cuda_emulation_grid_size(unsigned axis) { return runner->launch().grid[axis]; }
unsigned cuda_emulation_lane() { return runner->current().number % 32; }
void* cuda_emulation_static_shared() { return runner->static_shared(); }
void* cuda_emulation_dynamic_shared() { return runner->dynamic_shared(); }
unsigned cuda_emulation_sync_block(bool predicate) { return runner->sync_block(predicate); }
void cuda_emulation_meet(std::uint32_t mask, CudaEmulationCollective collective, void* brought) {
  runner->meet(mask, collective, brought);
}
std::uint32_t cuda_emulation_active_mask() { return runner->active_mask(); }
void cuda_emulation_trap(const char* what) { runner->give_up(emulation::kLaunchFailed, what); }
}
