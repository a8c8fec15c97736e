// One layer in one direction over a whole sequence, on plain pointers: projections, time loop, gradients. It is
// compiled once; what depends on the instruction set is called through the table in kernels.h.
#pragma once
#include <cstddef>

#include "kernels.h"

namespace fusedrnn {
namespace cpu {

// Working memory that lives as long as the call.
struct Arena {
  void* (*allocate)(void* owner, size_t bytes);  // aligned to 64 bytes; throws when there is none
  void* owner;

  template <class T>
  T* take(int64_t count) const {
    return static_cast<T*>(allocate(owner, size_t(count) * sizeof(T)));
  }
};

// What both directions have in common. Without tokens, x has one row per step and entry; with them, x is a table of V
// rows of which tokens[t, b] picks one.
struct Layer {
  CellKind kind;
  Type type;  // of every tensor
  int64_t T, B, I, H;
  bool reverse;
  Stored x;
  Steps<const int64_t> tokens;
  int64_t V;
  const void *h0, *c0;                    // [B, H], or null for zeros
  const void *w_ih, *w_hh, *b_ih, *b_hh;  // [G H, I], [G H, H], [G H] or null
  // Of a packed sequence, where entries may have fewer than T steps: see Sequence. Its tensors are packed, or have an
  // index; the states have the entries in the order of the sequence, or in one of which order[b] is the b-th.
  const int64_t *offsets = nullptr, *order = nullptr;
  Steps<const uint8_t> resets = {nullptr, 0, 0};  // packed likewise: where not 0, states are zeroed before the step
};

// saved and c have time first, or are null: saved when nothing is kept or the gates are to be computed again. saved is
// packed where the sequence is.
struct LayerForward : Layer {
  Stored y, saved, c;
  void *h_n, *c_n;
};

// Results that are null are not computed. dx is that of the table when there are tokens.
struct LayerBackward : Layer {
  Stored y, saved, c, dy;  // saved may be null: then the gates are computed again
  const void *dh_n, *dc_n;
  Stored dx;
  void *dh0, *dc0, *dw_ih, *dw_hh, *db_ih, *db_hh;
  Stored dc = {nullptr, kFloat32, 0, 0};  // gradient of c, or null
  int64_t detach_every = 0;               // no gradient passes the beginning of steps that this divides; 0 for none
};

// Where the time of a thread's layers went, in ns summed over calls, while it is being measured. The last phase is the
// whole, the others are parts of it.
enum Phase {
  kPack,
  kProject,
  kLoop,
  kRecompute,
  kInputGradient,
  kWeightGradient,  // and those of the biases
  kCopy,
  kWhole,
  kPhases
};
struct Phases {
  bool on;
  int64_t ns[kPhases];
};
extern thread_local Phases phases;

template <class T>
void run_layer(const LayerForward&, const Kernels<T>&, const Runner&, const Arena&);
template <class T>
void run_layer(const LayerBackward&, const Kernels<T>&, const Runner&, const Arena&);

}  // namespace cpu
}  // namespace fusedrnn
