"""Threads and processes of every kind around a layer: the numbers of one thread, again and again, and never a hang."""

from __future__ import annotations

import ctypes
import faulthandler
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import Kind, assert_bitwise, assert_same, call, cotangent, each_layer, f32, flatten, results

PROGRAM = Path(__file__).with_name("processes.py")
PATIENCE = 60  # seconds, of which a few are used

# (T, B, I, H). Rows are split over threads in the first, hidden units in the next two, with more units than threads
# and with fewer; nothing is split in the last.
SIZES = [(4, 96, 8, 64), (5, 3, 16, 200), (40, 5, 24, 35), (2, 2, 3, 4)]
each_size = pytest.mark.parametrize("size", SIZES, ids=str)


@pytest.fixture(autouse=True)
def ends_with_a_traceback_where_it_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def drawn(kind: Kind, size, **options):
    T, B, I, H = size
    module = kind.ours(I, H, dtype=f32, **options)
    return module, *kind.example(module, T, B, dtype=f32)


@each_layer
@each_size
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True, "bidirectional": True, "num_layers": 2, "recompute": True}], ids=str
)
def test_results_agree_for_any_number_of_threads_and_each_is_repeatable_to_the_bit(kind: Kind, size, options):
    arguments = drawn(kind, size, **options)
    alone = results(*arguments)
    for threads in (1, 2, 3, 5, 16):
        torch.set_num_threads(threads)
        together = results(*arguments)
        assert_same(together, alone, f32, 5e-6)
        for _ in range(2):
            assert_bitwise(results(*arguments), together)


@each_layer
@each_size
def test_backward_may_have_other_threads_than_forward(kind: Kind, size):
    module, x, hx = drawn(kind, size)
    leaves = [x, *flatten(hx), *module.parameters()]

    def run(forward: int, backward: int):
        torch.set_num_threads(forward)
        out = flatten(call(module, x, hx))
        torch.set_num_threads(backward)
        return dict(enumerate(torch.autograd.grad(out, leaves, [cotangent(t) for t in out])))

    alone = run(1, 1)
    for forward, backward in ((1, 3), (3, 1), (2, 5)):
        assert_same(run(forward, backward), alone, f32, 5e-6)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_calls_from_several_python_threads_at_once_do_not_disturb_each_other(threads):
    cases = [
        drawn(Kind(name, **options), size)
        for size in SIZES
        for name, options in (("LSTM", {}), ("GRU", {}), ("RNN", {"nonlinearity": "tanh"}))
    ]
    torch.set_num_threads(1)
    alone = [results(*case) for case in cases]
    torch.set_num_threads(threads)
    start = threading.Barrier(6)

    def work(first: int) -> None:
        torch.set_num_threads(threads)  # OpenMP keeps it per thread
        start.wait(PATIENCE)
        for i in range(2 * len(cases)):
            at = (5 * first + i) % len(cases)
            assert_same(results(*cases[at]), alone[at], f32, 5e-6)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6), timeout=PATIENCE))


def openmp() -> ctypes.CDLL:
    """The OpenMP that torch runs its threads with."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "libgomp" in line}
    if not paths:
        pytest.skip("torch runs here without GNU's OpenMP")
    return ctypes.CDLL(paths.pop())


@pytest.mark.skipif(sys.platform != "linux", reason="finds OpenMP in /proc")
@each_layer
@each_size
def test_a_call_inside_a_parallel_region_gives_the_same(kind: Kind, size):
    """Where every thread of the region makes a call, each for itself, though the layer asks for more threads."""
    case = drawn(kind, size)
    alone = results(*case)
    torch.set_num_threads(2)
    results(*case)
    library, found = openmp(), []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        try:
            found.append((library.omp_in_parallel(), results(*case)))
        except Exception as error:
            found.append(error)

    library.GOMP_parallel(body, None, 3, 0)
    assert len(found) == 3
    for inside, result in found:
        assert inside
        assert_bitwise(result, alone)


def run_program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(program: subprocess.Popen[str]) -> str:
    try:
        text, _ = program.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        program.kill()
        raise
    assert program.returncode == 0, text
    return text


@pytest.mark.parametrize("what", ["fork", "spawn", "loader-fork", "loader-spawn"])
def test_child_processes_compute_what_their_parent_does(what):
    if what.endswith("fork") and sys.platform != "linux":
        pytest.skip("nobody forks here")
    finish(run_program(what))


def test_two_processes_with_more_threads_than_cores_get_the_same_numbers():
    programs = [run_program("alone", threads) for threads in ("16", "5")]
    first, second = map(finish, programs)
    assert first == second
