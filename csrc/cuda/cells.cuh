// The cells with scalars as their value type. Functions of plain numbers are looked up where a template is written, not
// where it is used, so those of math.cuh must come first.
#pragma once
// clang-format off
#include "math.cuh"

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"
// clang-format on

#include <utility>

namespace fusedrnn {

template <class Cell, size_t... Slot>
FUSEDRNN_INLINE constexpr unsigned packed_input_gates(std::index_sequence<Slot...>) {
  return ((unsigned(Cell::kInputGate[Slot]) << (8 * Slot)) | ...);
}

// Cell::kInputGate[slot]: device code has no arrays of constants, but folds this in an unrolled loop.
template <class Cell>
FUSEDRNN_DEVICE int input_gate(int slot) {
  constexpr unsigned packed = packed_input_gates<Cell>(std::make_index_sequence<Cell::kGates>());
  return int(packed >> (8 * slot) & 0xff);
}

}  // namespace fusedrnn
