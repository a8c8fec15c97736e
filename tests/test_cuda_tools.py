"""What build_tools/ reads out of compiled CUDA kernels, on code written here: neither nvcc nor a GPU is needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BUILD_TOOLS = Path(__file__).parents[1] / "build_tools"
if not BUILD_TOOLS.exists():
    pytest.skip("no build_tools/ beside tests/: not a source tree", allow_module_level=True)
sys.path.insert(0, str(BUILD_TOOLS))

import cuda_limits  # noqa: E402
import docs_tables  # noqa: E402
import inspect_cuda  # noqa: E402
import nvcc  # noqa: E402
import sass  # noqa: E402
from occupancy import MULTIPROCESSORS, blocks_at_once  # noqa: E402

# A time loop around a product and around gate math, as nvdisasm prints them.
LOOPS = """
//--------------------- .nv.info                  --------------------------
	//----- nvinfo : EIATTR_MAX_THREADS
        /*0008*/ 	.word	0x00000400
//--------------------- .nv.info._Z4gridv        --------------------------
	//----- nvinfo : EIATTR_MAX_THREADS
	.align		4
.L_33:
        /*0078*/ 	.byte	0x04, 0x05
        /*007c*/ 	.word	0x00000080
        /*0080*/ 	.word	0x00000003
        /*0084*/ 	.word	0x00000001
	//----- nvinfo : EIATTR_CRS_STACK_SIZE
        /*0088*/ 	.word	0x00000007
//--------------------- .text._Z4gridv           --------------------------
	.section	.text._Z4gridv,"ax",@progbits
.text._Z4gridv:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128.STRONG.GPU R4, desc[UR22][R2.64] ;
.L_x_1:
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_2:
        /*0030*/                   {load} R8, [R9] ;
        /*0040*/             @!UP0 LDG.E.128 R12, desc[UR4][R10.64] ;
        /*0050*/                   {product} R0, R8, R12, R0 ;
        /*0060*/               @P1 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   LDS R8, [R9] ;
        /*0080*/                   FFMA R8, R8, R8, R8 ;
        /*0090*/                   STG.E.U16 desc[UR4][R10.64], R8 ;
        /*00a0*/               @P1 BRA `(.L_x_3) ;
        /*00b0*/               @P2 BRA `(.L_x_1) ;
        /*00c0*/                   EXIT ;
.L_x_4:
        /*00d0*/                   BRA `(.L_x_4);
        /*00e0*/                   NOP;
"""


def kernel(load: str = "LDS.128", product: str = "HMMA.16816.F32") -> sass.Kernel:
    kernels = sass.parse(LOOPS.replace("{load}", load).replace("{product}", product))
    return kernels["_Z4gridv"]


def inspected(code: sass.Kernel, name: str = "grid_forward", type: str = "float16", architecture: int = 90):
    return inspect_cuda.Inspected(architecture, name, "LSTM", type, "", False, nvcc.Resources(200, 0), code)


def wrong(code: sass.Kernel, **kwargs) -> list[str]:
    return list(inspect_cuda.what_is_wrong(inspected(code, **kwargs)))


def test_instructions_are_counted_by_opcode_and_width():
    code = kernel()
    assert code.threads == 128 * 3
    assert code.count("LDG") == code.count("LDG", width=128) == 2
    assert (code.count("LDS"), code.count("LDS", width=128)) == (2, 1)
    assert (code.count("HMMA"), code.count("FFMA"), code.count("LDL", "STL")) == (1, 1, 0)
    assert code.count("BRA") == 4


def test_a_width_is_no_part_of_another_number():
    assert kernel(product="HMMA.1288.F32").count("HMMA", width=128) == 0


@pytest.mark.parametrize("product", ["HMMA.16816.F32", "FFMA"])
def test_the_loop_that_multiplies_is_neither_the_time_loop_nor_gate_math(product):
    (loop,) = kernel(product=product).product_loops()
    assert loop == ["LDS.128", "LDG.E.128", product, "BRA"]


def test_a_kernel_as_it_is_meant_to_be():
    assert wrong(kernel()) == []
    assert wrong(kernel(product="FFMA"), type="float32") == []
    assert wrong(kernel(product="FFMA"), name="block_forward") == []


@pytest.mark.parametrize(
    "code, kwargs, says",
    [
        (kernel(product="FFMA"), {}, "no tensor core instruction"),
        (kernel(), {"type": "float32"}, "tensor cores, which are not meant"),
        (kernel(), {"type": "bfloat16", "architecture": 75}, "tensor cores, which are not meant"),
        (kernel(), {"name": "block_forward"}, "tensor cores, which are not meant"),
        (kernel("LDS.64"), {}, "1 LDS.64 in a product: not 128 bits"),
        (kernel("LD.E.128"), {}, "1 LD.E.128 in a product: the compiler does not know that memory, shared or global"),
        (kernel("LDL"), {}, "1 accesses of local memory"),
        (kernel(product="IMAD"), {"name": "block_forward"}, "no loop that multiplies was found"),
    ],
)
def test_what_is_wrong_is_said(code, kwargs, says):
    assert wrong(code, **kwargs) == [says]


@pytest.mark.parametrize(
    "demangled, name, arguments",
    [
        (
            "void fusedrnn::cuda::grid_forward_kernel<fusedrnn::Rnn<fusedrnn::Tanh>, __half, "
            "fusedrnn::cuda::GridShape<8, 4, 6>, false, fusedrnn::cuda::MaskedForward<__half>>"
            "(fusedrnn::cuda::MaskedForward<__half>, fusedrnn::cuda::GridPlan)",
            "grid_forward",
            ["Rnn<Tanh>", "__half", "GridShape<8, 4, 6>", "false", "MaskedForward<__half>"],
        ),
        (
            "void fusedrnn::cuda::step_backward_kernel<fusedrnn::Gru, double>(long)",
            "step_backward",
            ["Gru", "double"],
        ),
        ("fusedrnn::cuda::flags_kernel(fusedrnn::cuda::MaskedCopy<unsigned short>)", "flags", []),
    ],
)
def test_template_arguments(demangled, name, arguments):
    assert inspect_cuda.template_arguments(demangled) == (name, arguments)


def test_what_ptxas_says():
    said = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 254 registers, used 1 barriers
ptxas info    : Compile time = 447.629 ms
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
ptxas info    : Used 37 registers, used 1 barriers, 2048 bytes smem, 400 bytes cmem[0]
"""
    assert nvcc.resources(said) == {"_Z1av": nvcc.Resources(254, 0), "_Z1bv": nvcc.Resources(37, 2048)}


# 2048 threads of a multiprocessor that has 64 K registers. The first two are of the CUDA best practices guide, the next
# two of the programming guide.
@pytest.mark.parametrize(
    "threads, registers, shared, blocks",
    [
        (128, 37, 0, 12),
        (320, 37, 0, 4),
        (512, 64, 0, 2),
        (512, 65, 0, 1),
        (256, 32, 0, 8),
        (32, 16, 0, 32),  # blocks at most
        (256, 255, 0, 1),
        (256, 32, 100_000, 1),
        (256, 32, 163 * 1024, 1),
        (256, 32, 164 * 1024, 0),
    ],
)
def test_occupancy_of_sm_80(threads, registers, shared, blocks):
    assert blocks_at_once(80, threads, registers, shared) == blocks


@pytest.mark.parametrize("architecture, bytes", [(75, 65536), (80, 166912), (86, 101376), (90, 232448), (120, 101376)])
def test_shared_memory_of_a_block(architecture, bytes):
    assert MULTIPROCESSORS[architecture].shared_of_block == bytes
    assert blocks_at_once(architecture, 256, 128, bytes) == 1
    assert blocks_at_once(architecture, 256, 128, bytes + 1) == 0


def test_every_architecture_has_limits():
    assert list(MULTIPROCESSORS) == nvcc.ARCHITECTURES


def test_tables_are_written_between_their_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end of a -->\nafter\n", encoding="utf-8")
    table = docs_tables.markdown(["x", "y"], [["1", "2"]])
    docs_tables.write_between_markers({"a": table}, page)
    assert page.read_text("utf-8") == (
        "before\n<!-- a -->\n| x | y |\n| --- | --- |\n| 1 | 2 |\n<!-- end of a -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="b"):
        docs_tables.write_between_markers({"b": table}, page)


def test_the_page_has_the_markers_of_all_tables():
    text = docs_tables.PAGE.read_text("utf-8")
    for name in ["occupancy", "instructions", *(f"limits of {device.name}" for device in cuda_limits.DEVICES)]:
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- end of {name} -->") == 1


def test_a_missing_disassembler_is_named(monkeypatch):
    monkeypatch.setattr(sass.shutil, "which", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="pip install nvidia-cuda-nvdisasm"):
        sass.disassembler()


# 96 blocks of 8 units; a warp has 3 of the 24 chunks of K, all in registers, whose rows are loaded at once.
PLAN = {"kind": 1, "tensor_cores": 1, "groups": 1, "chunks": 24, "slots": 0, "shared_slots": 0}
PLAN |= {"teams": 1, "blocks": 96, "rows": 16}


def test_limits_of_a_step_whose_weights_are_in_registers(monkeypatch):
    monkeypatch.setattr(
        cuda_limits.Schedule, "of", lambda *_: cuda_limits.Schedule(8, 4, 6, 16, ahead=12, ahead_of_slots=3)
    )
    problem = cuda_limits.Problem("LSTM", "float16", 16, 768, backward=False)
    step = cuda_limits.grid_step(problem, PLAN, cuda_limits.DEVICES[1])
    assert step.multiplied * step.busy == 16 * 4 * 768 * 768
    assert step.l2 == 16 * 768 * 2  # each block reads all of h
    assert step.shared == 2 * 4 * 16 * 8 * 32
    assert step.memory == (4 + 1 + 1 + 4) * 16 * 768 * 2
    assert step.waits == 1
    assert step.limit == step.exchange + max(step.multiply_us, step.shared_us, step.l2_us, step.wait)
    assert cuda_limits.where_weights_are(PLAN, cuda_limits.DEVICES[1]) == "100 / 0 / 0"


def test_weights_that_are_not_in_registers_are_read_once_for_each_pass(monkeypatch):
    monkeypatch.setattr(
        cuda_limits.Schedule, "of", lambda *_: cuda_limits.Schedule(8, 4, 2, 16, ahead=12, ahead_of_slots=3)
    )
    problem = cuda_limits.Problem("LSTM", "float16", 32, 768, backward=False)
    plan = {**PLAN, "chunks": 64, "slots": 6, "shared_slots": 4, "rows": 32}
    step = cuda_limits.grid_step(problem, plan, cuda_limits.DEVICES[0])
    slot = 8 * 4 * 512
    assert step.l2 == 32 * 64 * 64 + 2 * 2 * slot
    assert step.shared == 2 * 4 * slot + 2 * 4 * 32 * 8 * 32
    assert step.waits == 2 * (1 + 2)
    assert cuda_limits.where_weights_are(plan, cuda_limits.DEVICES[0]) == "25 / 50 / 25"


def test_numbers_of_the_sources_are_found():
    narrow, wide, broad = (cuda_limits.Schedule.of(kind, kind > 0, 90) for kind in range(3))
    assert narrow.tiles < wide.tiles < broad.tiles and narrow.rows < wide.rows == broad.rows
    assert cuda_limits.Schedule.of(1, True, 80).ahead < wide.ahead


def test_a_group_of_tiles_more_loads_its_rows_again():
    made = cuda_limits.Schedule(8, 4, 2, 16, ahead=12, ahead_of_slots=3)
    assert [made.waits(groups, chunks=64) for groups in (1, 2)] == [1 + 2, 1 + 2 + 3]
    assert made.waits(1, chunks=16) == 1


def test_what_the_sources_no_longer_say_is_named():
    with pytest.raises(SystemExit, match="no more"):
        cuda_limits._numbers(r"no such (\d+)", "text")
