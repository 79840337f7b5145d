// A launch: its blocks spread over threads of the host, faults of its threads made errors of the device.
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <thread>

#include "block.h"

namespace emulation {
namespace {

struct sigaction before[NSIG];

// A fault of a CUDA thread: its runner goes on behind the switch to that thread, and finds the error there.
void on_fault(int number, siginfo_t* info, void* context) {
  void* const resume = runner ? runner->resume_point() : nullptr;
  if (!resume) {
    sigaction(number, &before[number], nullptr);  // not ours: it faults again
    return;
  }
  if (number == SIGFPE) {
    runner->note_fault(kLaunchFailed, "an integer is divided by zero");
  } else {
    char text[80];
    std::snprintf(text, sizeof text, "%s at %p, which no allocation holds", "a read or a write", info->si_addr);
    runner->note_fault(kIllegalAddress, text);
  }
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  registers[REG_RSP] = reinterpret_cast<greg_t>(resume);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&emulation_resume);
}

class Pool {
 public:
  Pool() {
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE}) sigaction(number, &action, &before[number]);
    for (unsigned i = 0; i < settings().workers; ++i) std::thread(&Pool::work, this).detach();
  }

  Outcome run(const Launch& launch) {
    std::unique_lock<std::mutex> held(lock_);
    launch_ = &launch;
    blocks_ = std::uint64_t(launch.grid[0]) * launch.grid[1] * launch.grid[2];
    next_ = 0;
    step_ = std::max<std::uint64_t>(1, std::min<std::uint64_t>(64, blocks_ / (4 * settings().workers)));
    outcome_ = {};
    busy_ = settings().workers;
    ++generation_;
    start_.notify_all();
    done_.wait(held, [this] { return busy_ == 0; });
    return outcome_;
  }

 private:
  void work() {
    char* const signal_stack = static_cast<char*>(
        mmap(nullptr, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    const stack_t alternate = {signal_stack, 0, 64 << 10};
    sigaltstack(&alternate, nullptr);
    BlockRunner own;
    runner = &own;
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock<std::mutex> held(lock_);
        start_.wait(held, [&] { return generation_ != seen; });
        seen = generation_;
      }
      for (std::uint64_t first; (first = next_.fetch_add(step_)) < blocks_;) {
        if (own.run(*launch_, first, std::min(first + step_, blocks_))) continue;
        std::lock_guard<std::mutex> held(lock_);
        if (!outcome_.code) outcome_ = own.outcome;
        next_ = blocks_;
      }
      std::lock_guard<std::mutex> held(lock_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex lock_;
  std::condition_variable start_, done_;
  const Launch* launch_ = nullptr;
  std::uint64_t blocks_ = 0, step_ = 1, generation_ = 0;
  std::atomic<std::uint64_t> next_{0};
  unsigned busy_ = 0;
  Outcome outcome_;
};

}  // namespace

Outcome run(const Launch& launch) {
  static Pool* const pool = new Pool;  // its threads outlive everything
  const auto start = std::chrono::steady_clock::now();
  const Outcome outcome = pool->run(launch);
  if (settings().trace) {
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
    std::fprintf(stderr, "CUDA emulation: %9.3f ms  %s  grid %u x %u x %u, block %u x %u x %u, shared %zu + %zu\n",
                 taken.count(), launch.kernel->name, launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0],
                 launch.block[1], launch.block[2], launch.kernel->shared_bytes, launch.dynamic_shared_bytes);
  }
  return outcome;
}

}  // namespace emulation
