"""What ptxas 13.0 says of machine code, as nvcc hands it on, becomes figures for each function and architecture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tvmbridge.bundle.gpu_code import GpuBuild, GpuFacts, GpuFunction, MachineCode
from tvmbridge.codegen.ptxas import parse_ptxas

# Of nvcc 13.0.88 --fatbin -O3 -Xptxas=-v --threads=0, for sm_75, sm_80 and sm_90: parts of what it said of two files.
NVCC_13 = """\
ptxas info    : 272 bytes gmem
ptxas info    : Compiling entry function 'indexed_locals' for 'sm_90'
ptxas info    : Function properties for indexed_locals
    160 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 11 registers, used 0 barriers, 160 bytes cumulative stack size
ptxas info    : Compile time = 40.910 ms
ptxas info    : Compiling entry function 'shared_and_slow_path' for 'sm_90'
ptxas info    : Function properties for shared_and_slow_path
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 40 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compile time = 46.553 ms
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'spilling' for 'sm_90'
ptxas info    : Function properties for spilling
    288 bytes stack frame, 572 bytes spill stores, 644 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 288 bytes cumulative stack size
ptxas info    : Compile time = 72.577 ms
ptxas info    : 272 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function 'indexed_locals' for 'sm_75'
ptxas info    : Function properties for indexed_locals
    160 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 160 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 10.361 ms
ptxas info    : Compiling entry function 'shared_and_slow_path' for 'sm_75'
ptxas info    : Function properties for shared_and_slow_path
    40 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 28 registers, used 1 barriers, 40 bytes cumulative stack size, 1024 bytes smem, 360 bytes cmem[0], 32 bytes cmem[2]
ptxas info    : Compile time = 20.924 ms
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'spilling' for 'sm_75'
ptxas info    : Function properties for spilling
    288 bytes stack frame, 572 bytes spill stores, 636 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 288 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 34.602 ms
ptxas info    : 272 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function 'spilling' for 'sm_80'
ptxas info    : Function properties for spilling
    288 bytes stack frame, 572 bytes spill stores, 636 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 288 bytes cumulative stack size, 360 bytes cmem[0]
ptxas info    : Compile time = 61.958 ms
"""  # noqa: E501


def test_every_function_has_its_figures_for_each_architecture_by_number():
    assert parse_ptxas(NVCC_13) == {
        "indexed_locals": (MachineCode("sm_75", 12, 0, 160, 0, 0), MachineCode("sm_90", 11, 0, 160, 0, 0)),
        "shared_and_slow_path": (MachineCode("sm_75", 28, 1024, 40, 0, 0), MachineCode("sm_90", 28, 1024, 40, 0, 0)),
        "spilling": (
            MachineCode("sm_75", 64, 0, 288, 572, 636),
            MachineCode("sm_80", 64, 0, 288, 572, 636),
            MachineCode("sm_90", 64, 0, 288, 572, 644),
        ),
    }


def test_a_stack_frame_is_no_spill():
    codes = parse_ptxas(NVCC_13)
    assert [code.spills for code in codes["indexed_locals"] + codes["spilling"]] == [False, False, True, True, True]


def test_warnings_between_the_lines_change_nothing():
    lines = NVCC_13.splitlines()
    noisy = "\n".join(f"{line}\nkernels.cu(12): warning #177-D: variable was declared" for line in lines)
    assert parse_ptxas(noisy) == parse_ptxas(NVCC_13)


@given(st.text(max_size=200), st.integers(0, len(NVCC_13)))
def test_what_is_cut_short_or_is_no_report_gives_what_it_has(text, length):
    assert parse_ptxas(text.replace("ptxas", "")) == {}
    whole, some = parse_ptxas(NVCC_13), parse_ptxas(NVCC_13[:length])
    assert set(some) <= set(whole)


def test_the_manifest_says_the_most_registers_and_whether_any_function_spills():
    codes = parse_ptxas(NVCC_13)
    functions = [GpuFunction(name, name, (1, 1, 1), (32, 1, 1), 0, code) for name, code in codes.items()]
    assert GpuBuild("nvcc 13.0.88", tuple(functions)).facts == GpuFacts("nvcc 13.0.88", 64, True)
    assert GpuBuild("nvcc 13.0.88", tuple(functions[:2])).facts == GpuFacts("nvcc 13.0.88", 28, False)
    assert GpuBuild("nvcc 13.0.88", ()).facts == GpuFacts("nvcc 13.0.88", None, None)
