"""What the emulator finds: every planted fault is named, and nothing is said of kernels that are right."""

from __future__ import annotations

import re

import numpy as np
import pytest
from emulator.toolchain import HERE, ORDERS, Emulator, Found, Report, Unwritten

SOURCE = (HERE / "kernels" / "cases.cu").read_text(encoding="ascii").splitlines()
NAMES = re.findall(r"^    CASE\((\w+)", "\n".join(SOURCE), re.MULTILINE)
RIGHT = [name for name in NAMES if name.startswith("right_")]
# The lines that say so of themselves.
LINES = {name: [i for i, line in enumerate(SOURCE, 1) if re.search(rf"-> {name}\b", line)] for name in NAMES}

FAULTS = {
    "global_overflow": "memcheck",
    "null_pointer": "memcheck",
    "misaligned": "memcheck",
    "static_overflow": "memcheck",
    "part_overflow": "memcheck",
    "carved_too_much": "memcheck",
    "carved_differently": "synccheck",
    "unwritten_shared": "initcheck",
    "missing_barrier": "racecheck",
    "reused_too_early": "racecheck",
    "missing_syncwarp": "racecheck",
    "shuffle_for_syncwarp": "racecheck",
    "half_warps_mixed": "racecheck",
    "two_barriers": "synccheck",
    "barrier_of_some": "synccheck",
    "shuffle_of_some": "synccheck",
    "shuffle_from_the_gone": "synccheck",
    "grid_barrier_in_plain_launch": "synccheck",
    "blocks_share": "racecheck",
    "missing_grid_barrier": "racecheck",
    "relaxed_store": "racecheck",
    "relaxed_load": "racecheck",
    "fence_alone": "racecheck",
    "released_too_early": "racecheck",
    "stored_over": "racecheck",
    "meeting_without_release": "racecheck",
    "constant_cache": "racecheck",
    "endless_spin": "synccheck",
    "endless_plain_loop": "synccheck",
    "no_wait": "asynccheck",
    "wait_for_one_too_few": "asynccheck",
    "not_committed": "asynccheck",
    "no_barrier_after_wait": "racecheck",
    "copied_over_too_early": "racecheck",
}

SCHEDULES = [
    *({"order": order} for order in ORDERS),
    *({"order": order, "seed": seed, "preempt": 20} for seed, order in enumerate(ORDERS)),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "-".join(map(str, s.values())))


def run(emulator: Emulator, name: str, **schedule: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b, flags = np.arange(256, dtype=np.float32), np.zeros(256, np.float32), np.zeros(4, np.uint32)
    emulator.launch("run_case", NAMES.index(name), a, b, flags, **schedule)
    return a, b, flags


def reports(emulator: Emulator, name: str, **schedule: object) -> list[Report]:
    with pytest.raises(Found) as found:
        run(emulator, name, **schedule)
    return found.value.reports


def test_every_case_is_right_or_a_fault_with_a_line(checked):
    assert checked.module.case_names() == NAMES
    assert sorted(NAMES) == sorted([*RIGHT, *FAULTS])
    assert [name for name in FAULTS if not LINES[name]] == []


@each_schedule
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_with_its_line(checked, name, schedule):
    found = reports(checked, name, **schedule)
    assert any((r.kind, r.file) == (FAULTS[name], "cases.cu") and r.line in LINES[name] for r in found), found


@each_schedule
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_is_silent(emulator, name, schedule):
    run(emulator, name, **schedule)


def test_a_report_names_the_thread_and_the_array(checked):
    (report,) = reports(checked, "part_overflow")
    assert report.message == (
        "block 0,0,0 thread 31,0,0: out of bounds: byte 128 of the shared array first of block 0, which has 128 bytes"
    )
    race = reports(checked, "blocks_share")[0]
    assert race.message.startswith("block 1,0,0 thread 0,0,0: writes what was written by thread number 0 of block")


def test_what_a_launch_found_is_not_held_against_the_next(checked):
    first, second = (reports(checked, "missing_barrier") for _ in range(2))
    assert first == second
    run(checked, "right_barrier")


def test_an_output_that_is_read_first_is_found(checked):
    a, b, flags = np.zeros(256, np.float32), np.zeros(256, np.float32), np.zeros(4, np.uint32)
    with pytest.raises(Found, match=r"initcheck: cases\.cu"):
        checked.launch("run_case", NAMES.index("right_barrier"), Unwritten(a), b, flags)


@pytest.mark.parametrize("name", ["two_barriers", "shuffle_of_some", "endless_spin", "carved_too_much"])
def test_the_plain_build_sees_what_needs_no_look_at_memory(plain, name):
    assert reports(plain, name)[0][:3] == (FAULTS[name], "cases.cu", LINES[name][0])


def test_without_checks_a_copy_that_is_not_waited_for_leaves_nan(plain):
    _, b, _ = run(plain, "no_wait")
    assert np.isnan(b[:128]).all()
    _, b, _ = run(plain, "right_async_copy")
    assert (b[:128] == np.r_[63:-1:-1, 127:63:-1]).all()


@each_schedule
def test_results_do_not_depend_on_the_schedule(emulator, schedule):
    a, b, flags = run(emulator, "right_meeting", **schedule)
    expected = np.arange(256, dtype=np.float32)
    for t in range(1, 4):
        expected = (expected + t)[::-1]
    assert (a == expected).all()
    assert flags[0] == 24
    _, b, _ = run(emulator, "right_hand_over", **schedule)
    assert (b[128:192] == np.arange(64, 0, -1)).all()
    _, b, _ = run(emulator, "right_arrays", **schedule)
    assert (b[:32] == 32 * np.arange(31, -1, -1)).all()
    _, b, _ = run(emulator, "right_votes", **schedule)
    assert (b[:64] == np.r_[[63 + 31] * 32, [63 + 32] * 32]).all()


def test_the_order_of_blocks_is_the_one_that_is_asked_for(plain):
    # The last block that runs leaves its value.
    assert run(plain, "blocks_share")[1][0] == 2
    assert run(plain, "blocks_share", order="reverse")[1][0] == 0
    assert {run(plain, "blocks_share", order="random", seed=seed)[1][0] for seed in range(20)} == {0, 1, 2}


def test_preemption_shows_what_no_order_of_whole_threads_does(checked):
    # Of blocks that meet nowhere, each thread runs to its end at once, unless another comes between its accesses.
    def seen(**schedule: object) -> float:
        a, b, flags = np.zeros(256, np.float32), np.zeros(256, np.float32), np.zeros(4, np.uint32)
        checked.launch("run_case", NAMES.index("right_tickets"), a, b, flags, order="random", **schedule)
        return b[:96].max()

    assert {seen(seed=seed) for seed in range(5)} == {0}
    assert max(seen(seed=seed, preempt=3) for seed in range(5)) > 0


def test_a_cuda_error_of_the_launch_is_raised(checked):
    with pytest.raises(RuntimeError, match="functions_float: CUDA error"):
        checked.launch("functions_float", None, None, 0)
