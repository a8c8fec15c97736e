// The sequence is worked on in chunks of steps: what is computed for a chunk is still in the caches when it is used,
// and memory does not grow with the sequence. Within a chunk everything is float or double with time first; tensors
// that are stored so are used where they are, the others pass through a buffer of the chunk.
#include "layer.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "../cells/gru.h"
#include "../cells/lstm.h"
#include "../cells/rnn.h"

namespace fusedrnn {
namespace cpu {

thread_local Phases phases;

namespace {

// Adds the time of its scope to a phase.
class Timed {
 public:
  explicit Timed(Phase phase) : phase_(phase), start_(phases.on ? now() : 0) {}
  ~Timed() {
    if (phases.on) phases.ns[phase_] += now() - start_;
  }

 private:
  static int64_t now() { return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1); }
  const Phase phase_;
  const int64_t start_;
};

// Forward: input projections of a chunk take this much per thread, but no fewer rows than repay reading w_ih.
constexpr int64_t kChunkBytes = 1 << 20, kChunkRows = 256;
// Backward: rows of a chunk. Each chunk adds to the weight gradients, which must repay reading and writing them.
constexpr int64_t kGradientRows = 1024;
// Rows that do not repay packing the weights, in one step and in a whole sequence.
constexpr int64_t kFewRows = 2, kFewInAll = 8;

struct Chunk {
  int64_t k0, k1, t0, t1;  // in the order of running, and in time
  int64_t r0, r1;          // rows, counted through the steps
  int64_t rows() const { return r1 - r0; }
};

template <class Cell, class T>
class Pass {
 protected:
  static constexpr int64_t G = Cell::kGates;

  const Kernels<T>& k;
  const Runner& runner;
  const Arena& arena;
  const Sequence seq;
  const int64_t* const order;
  const bool native;

  Pass(const Layer& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : k(k),
        runner(runner),
        arena(arena),
        seq{a.T, a.B, a.reverse, a.offsets},
        order(a.order),
        native(a.type == kTypeOf<T>) {}

  bool few_rows() const { return seq.B <= kFewRows && seq.total() <= kFewInAll; }

  // Rows of a chunk at most, where about as many as those of `steps` whole steps are meant: those of chunks of equal
  // length.
  int64_t rows_of_chunks(int64_t steps) const {
    const int64_t B = std::max<int64_t>(1, seq.B), rows = steps * B;
    const int64_t chunks = std::max<int64_t>(1, (seq.total() + rows - 1) / rows);
    return (seq.total() + chunks * B - 1) / (chunks * B) * B;
  }
  Chunk chunk(int64_t k0, int64_t k1) const {
    const int64_t t0 = seq.reverse ? seq.T - k1 : k0, t1 = seq.reverse ? seq.T - k0 : k1;
    return {k0, k1, t0, t1, seq.before(t0), seq.before(t1)};
  }
  // The longest chunks of up to `rows` rows that begin and that end with a step.
  Chunk chunk_from(int64_t k0, int64_t rows) const {
    int64_t k1 = k0;
    for (int64_t all = 0; k1 < seq.T && (all += seq.rows_of_turn(k1)) <= rows;) ++k1;
    return chunk(k0, k1);
  }
  Chunk chunk_until(int64_t k1, int64_t rows) const {
    int64_t k0 = k1;
    for (int64_t all = 0; k0 > 0 && (all += seq.rows_of_turn(k0 - 1)) <= rows;) --k0;
    return chunk(k0, k1);
  }

  // [rows, columns] of the user's as T.
  const T* dense(const void* p, Type type, int64_t rows, int64_t columns, const int64_t* index = nullptr) const {
    if ((native && !index) || !p) return static_cast<const T*>(p);
    T* to = arena.take<T>(rows * columns);
    const Timed timed(kCopy);
    k.copy(matrix(p, type, rows, columns, index), matrix(to, kTypeOf<T>, rows, columns), 0, rows, rows, columns,
           runner);
    return to;
  }
  // Where a result [rows, columns] is written, before finish() brings it to its type and place.
  T* result(void* p, int64_t rows, int64_t columns, const int64_t* index = nullptr) const {
    return (native && !index) || !p ? static_cast<T*>(p) : arena.take<T>(rows * columns);
  }
  void finish(const T* from, void* to, Type type, int64_t rows, int64_t columns, const int64_t* index = nullptr) const {
    if ((native && !index) || !to) return;
    const Timed timed(kCopy);
    k.copy(matrix(from, kTypeOf<T>, rows, columns), matrix(to, type, rows, columns, index), 0, rows, rows, columns,
           runner);
  }
  static Stored matrix(const void* p, Type type, int64_t rows, int64_t columns, const int64_t* index = nullptr) {
    return {const_cast<void*>(p), type, rows * columns, columns, index};
  }
  const T* state(const void* p, const Layer& a) const { return dense(p, a.type, a.B, a.H, order); }

  T* packed(const Factor& f) const {
    const Timed timed(kPack);
    T* p = arena.take<T>(k.packed_size(f.G, f.N, f.K));
    k.pack(f, p, runner);
    return p;
  }
  T* packed_bias(const void* bias, const Layer& a) const {
    const Timed timed(kPack);
    T* p = arena.take<T>(k.packed_size(G, a.H, 1));
    k.pack_bias(bias, a.type, G, a.H, p);
    return p;
  }
  void multiply(int64_t M, int64_t N, int64_t K, const T* A, int64_t lda, const T* b, T* c, int64_t ldc) const {
    k.product({M, N, K, A, lda, b, c, ldc}, runner);
  }

  // A buffer for the rows of some steps, of which row r0 comes first.
  Stored buffer(T* p, int64_t r0, int64_t columns) const {
    return {p - r0 * columns, kTypeOf<T>, seq.B * columns, columns};
  }
  // The rows of a chunk as T with time first: where they are, or copied to `room`.
  Stored staged(const Stored& s, const Chunk& c, int64_t columns, T* room) const {
    if (!s.p || !room) return s;
    const Stored to = buffer(room, c.r0, columns);
    const Timed timed(kCopy);
    k.copy(s, to, c.r0, c.r1, seq.B, columns, runner);
    return to;
  }
  // Room for staged(), or null where it is not needed. Kernels can read rows of any stride; `any_layout` says that only
  // they do.
  T* room(const Stored& s, int64_t rows, int64_t columns, bool any_layout) const {
    const bool in_place = native && !s.index && (any_layout || (s.row == columns && s.step == seq.B * columns));
    return in_place || !s.p ? nullptr : arena.take<T>(rows * columns);
  }
};

template <class Cell, class T>
constexpr int64_t slots = Cell::kSaved > Cell::kGates ? Cell::kSaved : Cell::kGates;

// ------------------------------------------------------------------------------------------------ forward

template <class Cell, class T>
class ForwardPass : Pass<Cell, T> {
  using P = Pass<Cell, T>;
  using P::G, P::k, P::runner, P::arena, P::seq, P::order, P::native;
  const LayerForward& a;
  const int64_t gates = G * a.H;
  T* w_ih = nullptr;  // packed
  T *x_room = nullptr, *gate_room = nullptr, *y_room, *saved_room = nullptr, *c_room;
  int64_t rows;  // of a chunk, at most
  Forward<T> f{};

  // The projections of a chunk go over what is saved for backward or over y, or what is copied there, where those have
  // the same form, or into a buffer of the chunk.
  bool in_saved() const { return native && a.saved.p && !a.tokens; }
  bool in_y() const { return G == 1 && !a.tokens && (y_room || (a.y.row == a.H && a.y.step == a.B * a.H)); }

 public:
  ForwardPass(const LayerForward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : P(a, k, runner, arena), a(a) {
    const int64_t step_bytes = std::max<int64_t>(1, a.B * gates * int64_t(sizeof(T)));
    const int64_t least = (kChunkRows + a.B) / std::max<int64_t>(1, a.B);
    const int64_t fitting = std::max(least, kChunkBytes * runner.threads / step_bytes);
    rows = P::rows_of_chunks(fitting);
    y_room = P::room(a.y, rows, a.H, true);
    if (!a.tokens) {
      x_room = P::room(a.x, rows, a.I, !P::few_rows());
      if (!in_saved() && !in_y()) gate_room = arena.template take<T>(rows * slots<Cell, T> * a.H);
    }
    c_room = P::room(a.c, rows, a.H, true);
    if (a.saved.p && !native) saved_room = arena.template take<T>(rows * Cell::kSaved * a.H);
  }

  void run() {
    const Factor recurrent{a.w_hh, a.type, G, a.H, a.H, a.H, 1};
    const bool few = P::few_rows();
    f.seq = seq, f.H = a.H, f.resets = a.resets;
    f.h0 = P::state(a.h0, a), f.c0 = P::state(a.c0, a);
    f.h_n = P::result(a.h_n, a.B, a.H, order), f.c_n = P::result(a.c_n, a.B, a.H, order);
    f.b_ih = P::packed_bias(a.b_ih, a), f.b_hh = P::packed_bias(a.b_hh, a);
    f.w_hh = recurrent, f.weights = few ? nullptr : P::packed(recurrent);
    f.states = arena.template take<T>(k.forward_states(a.kind, a.B, a.H));
    if (a.tokens)
      project_table();
    else if (!few)
      w_ih = P::packed({a.w_ih, a.type, G, a.H, a.I, a.I, 1});
    // At least once: a sequence of no steps hands the states through.
    for (int64_t k0 = 0; k0 == 0 || k0 < a.T;) {
      const Chunk c = P::chunk_from(k0, rows);
      prepare(c);
      run_steps();
      finish(c);
      if (a.T == 0) break;
      k0 = c.k1;
    }
    P::finish(f.h_n, a.h_n, a.type, a.B, a.H, order);
    P::finish(f.c_n, a.c_n, a.type, a.B, a.H, order);
  }

 private:
  Factor input() const { return {a.w_ih, a.type, 1, gates, a.I, a.I, 1}; }

  void project_table() {
    T* table = arena.template take<T>(a.V * gates);
    const T* rows = P::dense(a.x.p, a.type, a.V, a.I);
    const T* weights = P::few_rows() ? nullptr : P::packed(input());
    const Timed timed(kProject);
    if (weights)
      P::multiply(a.V, gates, a.I, rows, a.I, weights, table, gates);
    else
      k.few_products(rows, a.V, input(), table, gates, runner);
    f.x = {table, 0, gates};
    f.tokens = a.tokens;
  }

  void run_steps() {
    const Timed timed(kLoop);
    k.forward(a.kind, f, runner);
  }

  void prepare(const Chunk& c) {
    const auto chunk = [&](T* p, int64_t columns) { return P::buffer(p, c.r0, columns).template as<T>(); };
    const Steps<T> none{nullptr, 0, 0};
    f.first = c.k0, f.last = c.k1;
    f.y = y_room ? chunk(y_room, a.H) : a.y.as<T>();
    f.c = !a.c.p ? none : c_room ? chunk(c_room, a.H) : a.c.as<T>();
    f.saved = !a.saved.p ? none : saved_room ? chunk(saved_room, Cell::kSaved * a.H) : a.saved.as<T>();
    if (a.tokens || c.rows() == 0) return;
    const auto x = P::staged(a.x, c, a.I, x_room).template as<const T>();
    const Steps<T> gates_of = in_saved() ? f.saved : in_y() ? f.y : chunk(gate_room, gates);
    const Timed timed(kProject);
    if (!w_ih)
      k.few_products(seq.at(x, c.t0), c.rows(), input(), seq.at(gates_of, c.t0), gates_of.row, runner);
    else if (seq.offsets)  // as one step of many rows
      k.project(
          a.kind,
          {0, 1, c.rows(), a.I, a.H, {seq.at(x, c.t0), 0, x.row}, w_ih, {seq.at(gates_of, c.t0), 0, gates_of.row}},
          runner);
    else
      k.project(a.kind, {c.t0, c.t1, a.B, a.I, a.H, x, w_ih, gates_of}, runner);
    f.x = {gates_of.p, gates_of.step, gates_of.row};
  }

  void finish(const Chunk& c) {
    const Timed timed(kCopy);
    const auto out = [&](T* room, const Stored& to, int64_t columns) {
      if (room) k.copy(P::buffer(room, c.r0, columns), to, c.r0, c.r1, a.B, columns, runner);
    };
    out(y_room, a.y, a.H);
    out(c_room, a.c, a.H);
    out(saved_room, a.saved, Cell::kSaved * a.H);
  }
};

// ------------------------------------------------------------------------------------------------ backward

template <class Cell, class T>
class BackwardPass : Pass<Cell, T> {
  using P = Pass<Cell, T>;
  using P::G, P::k, P::runner, P::arena, P::seq, P::order, P::native;
  static constexpr int64_t D = Cell::kDeltas;
  const LayerBackward& a;
  const int64_t gates = G * a.H, width = D * a.H;
  const bool recomputes = Cell::kSaved > 0 && !a.saved.p;
  const bool wants_w = a.dw_ih || a.dw_hh;
  int64_t rows;  // of a chunk, at most
  T *y_room = nullptr, *c_room, *dy_room, *dc_room, *saved_room, *x_room = nullptr, *dx_room = nullptr;
  T *h_before = nullptr, *c_before = nullptr;  // the states that the steps of a chunk began with
  T *delta, *by_token = nullptr, *scratch = nullptr, *sums = nullptr;
  T *w_ih = nullptr, *w_hh = nullptr;          // packed for the gradients
  T *again_ih = nullptr, *again_hh = nullptr;  // packed for computing gates again
  const T *again_bias[2] = {}, *again_table = nullptr;
  T *dw_ih, *dw_hh;
  Backward<T> f{};

  // Which gate of w_ih and of w_hh a slot of delta belongs to.
  struct Gates {
    int ih[D], hh[D];
    constexpr Gates() : ih{}, hh{} {
      for (int slot = 0; slot < D; ++slot) {
        const int recurrent = slot - Cell::kRecurrentDelta;
        ih[slot] = slot < G ? Cell::kInputGate[slot] : -1;
        hh[slot] = recurrent >= 0 && recurrent < G ? recurrent : -1;
      }
    }
  };
  static constexpr Gates kGateOf{};

 public:
  BackwardPass(const LayerBackward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena)
      : P(a, k, runner, arena), a(a) {
    rows = P::rows_of_chunks(std::max<int64_t>(1, kGradientRows / std::max<int64_t>(1, a.B)));
    const auto take = [&](int64_t n) { return arena.template take<T>(n); };
    if (Cell::kReadsOutput) y_room = P::room(a.y, rows, a.H, true);
    c_room = P::room(a.c, rows, a.H, true), dc_room = P::room(a.dc, rows, a.H, true);
    dy_room = P::room(a.dy, rows, a.H, true);
    saved_room = recomputes ? take(rows * slots<Cell, T> * a.H) : P::room(a.saved, rows, Cell::kSaved * a.H, true);
    if (Cell::kReadsPrevious || recomputes || wants_w) h_before = take(rows * a.H);
    if (Cell::kHasCellState) c_before = take(rows * a.H);
    delta = take((rows + a.B) * width);  // and those of the step that is run after the chunk
    if (!a.tokens && (recomputes || (wants_w && a.x.index))) x_room = P::room(a.x, rows, a.I, !recomputes);
    if (!a.tokens && a.dx.p) dx_room = P::room(a.dx, rows, a.I, false);
    if (a.tokens && (a.dx.p || wants_w)) by_token = take(a.V * gates);
    if (a.db_ih || a.db_hh) sums = take(width);
    if (wants_w || sums) {
      const int64_t of_table = a.tokens ? k.gradient_scratch(a.V, a.I, 0, runner.threads) : 0;
      scratch = take(std::max(of_table, k.gradient_scratch(rows, a.tokens ? 0 : a.I, a.H, runner.threads)));
    }
    dw_ih = P::result(a.dw_ih, gates, a.I), dw_hh = P::result(a.dw_hh, gates, a.H);
  }

  void run() {
    f.seq = seq, f.H = a.H, f.resets = a.resets, f.detach_every = a.detach_every;
    f.dh_n = P::state(a.dh_n, a), f.dc_n = P::state(a.dc_n, a);
    f.dh0 = P::result(a.dh0, a.B, a.H, order), f.dc0 = P::result(a.dc0, a.B, a.H, order);
    f.w_hh = {a.w_hh, a.type, 1, a.H, gates, 1, a.H};
    f.weights = native && P::few_rows() ? nullptr : w_hh = P::packed(f.w_hh);
    f.states = arena.template take<T>(k.backward_states(a.kind, a.B, a.H));
    if (by_token) std::fill_n(by_token, a.V * gates, T(0));
    if (a.dx.p) pack_w_ih();
    if (recomputes) prepare_again();
    for (Chunk c = P::chunk_until(a.T, rows);;) {
      const Chunk next = P::chunk_until(c.k0, rows);
      run_chunk(c, next);
      if (c.k0 == 0) break;
      c = next;
    }
    if (by_token) table_gradients();
    finish();
  }

 private:
  // The first row of the deltas of a chunk, with those of the step that is run after it.
  int64_t first_row(const Chunk& c) const { return a.reverse && c.t0 > 0 ? seq.before(c.t0 - 1) : c.r0; }

  void run_chunk(const Chunk& c, const Chunk& next) {
    const auto staged = [&](const Stored& s, int64_t columns, T* room) {
      return P::staged(s, c, columns, room).template as<const T>();
    };
    f.first = c.k0, f.last = c.k1;
    f.y = staged(a.y, a.H, y_room);
    f.c = staged(a.c, a.H, c_room);
    f.dy = staged(a.dy, a.H, dy_room);
    f.dc = staged(a.dc, a.H, dc_room);
    f.h_before = states_before(c, a.y, a.h0, h_before), f.c_before = states_before(c, a.c, a.c0, c_before);
    const Stored x = a.tokens ? a.x : P::staged(a.x, c, a.I, x_room);
    f.saved = recomputes ? again(c, x) : staged(a.saved, Cell::kSaved * a.H, saved_room);
    f.delta = P::buffer(delta, first_row(c), width).template as<T>();
    run_steps();
    if (c.rows() == 0) return;
    gradients(c, x);
    // Those of the step that the next chunk finds after it.
    const int64_t t = a.reverse ? c.t1 - 1 : c.t0;
    if (c.k0 > 0)
      std::memmove(delta + (seq.before(t) - first_row(next)) * width, seq.at(f.delta, t),
                   seq.rows(t) * width * sizeof(T));
  }

  void run_steps() {
    const Timed timed(kLoop);
    k.backward(a.kind, f, runner);
  }

  void gradients(const Chunk& c, const Stored& x) {
    const T* d = seq.at(f.delta, c.t0);
    const bool first = c.k1 == a.T;  // of the chunks that are added up
    if (by_token) {
      const Timed timed(kInputGradient);
      k.add_by_token({f.delta.p, f.delta.step, f.delta.row}, a.tokens, c.r0, c.r1, a.B, gates, by_token, runner);
    } else if (a.dx.p) {
      const Timed timed(kInputGradient);
      const Stored to = dx_room ? P::buffer(dx_room, c.r0, a.I) : a.dx;
      P::multiply(c.rows(), a.I, gates, d, width, w_ih, seq.at(to.as<T>(), c.t0), a.I);
      if (dx_room) k.copy(to, a.dx, c.r0, c.r1, a.B, a.I, runner);
    }
    if (!wants_w && !sums) return;
    const Timed timed(kWeightGradient);
    WeightGradient<T> input{}, recurrent{};
    if (wants_w && !a.tokens) input = {piece(x, c), a.I, kGateOf.ih, dw_ih};
    if (wants_w) recurrent = {piece(P::buffer(h_before, c.r0, a.H), c), a.H, kGateOf.hh, dw_hh};
    const int64_t B = seq.offsets ? c.rows() : a.B;
    k.weight_gradients({c.rows(), B, a.H, D, d, width, {input, recurrent}, sums, !first, scratch}, runner);
  }

  // The rows of a chunk; those of a packed sequence as one step.
  Piece piece(const Stored& s, const Chunk& c) const {
    if (!seq.offsets) return {s, c.t0, c.t1};
    return {{static_cast<char*>(s.p) + c.r0 * s.row * size_of(s.type), s.type, 0, s.row}, 0, 1};
  }

  Steps<const T> states_before(const Chunk& c, const Stored& all, const void* start, T* to) const {
    if (!to || c.rows() == 0) return {nullptr, 0, 0};
    const Timed timed(kCopy);
    const Stored at = P::buffer(to, c.r0, a.H);
    k.states_before({seq, c.k0, c.k1, a.H, all, P::matrix(start, a.type, a.B, a.H, order), a.resets, at.as<T>()},
                    runner);
    return at.as<const T>();
  }

  // Calls f(slot, gate, count) for each run of slots of delta that are neighbouring gates of the input side too.
  template <class F>
  static void input_gate_runs(const F& f) {
    for (int slot = 0, end; slot < G; slot = end) {
      end = slot + 1;
      while (end < G && Cell::kInputGate[end] == Cell::kInputGate[end - 1] + 1) ++end;
      f(slot, Cell::kInputGate[slot], end - slot);
    }
  }

  // w_ih for dx = delta w_ih: its gates in the order of delta's slots.
  void pack_w_ih() {
    const Timed timed(kPack);
    w_ih = arena.template take<T>(k.packed_size(1, a.I, gates));
    input_gate_runs([&](int slot, int gate, int count) {
      char* rows = static_cast<char*>(const_cast<void*>(a.w_ih)) + gate * a.H * a.I * size_of(a.type);
      k.pack_rows_at({{rows, a.type, 0, a.I}, 0, 1}, count * a.H, a.I, gates, slot * a.H, w_ih, runner);
    });
  }

  // ---- gates that were not saved

  void prepare_again() {
    again_ih = P::packed({a.w_ih, a.type, 1, gates, a.I, a.I, 1});
    again_hh = P::packed({a.w_hh, a.type, G, a.H, a.H, a.H, 1});
    again_bias[0] = P::packed_bias(a.b_ih, a), again_bias[1] = P::packed_bias(a.b_hh, a);
    if (a.tokens) again_table = P::dense(a.x.p, a.type, a.V, a.I);
    if (a.tokens) {
      T* projected = arena.template take<T>(a.V * gates);
      P::multiply(a.V, gates, a.I, again_table, a.I, again_ih, projected, gates);
      again_table = projected;
    }
  }

  // What forward would have saved of a chunk. No step waits for another, since all states are known.
  Steps<const T> again(const Chunk& c, const Stored& x) {
    const Timed timed(kRecompute);
    const int64_t ld = slots<Cell, T> * a.H;
    const Stored saved = P::buffer(saved_room, c.r0, ld);
    if (c.rows() == 0) return saved.as<const T>();
    if (a.tokens) {
      for (int64_t r = c.r0; r < c.r1; ++r)
        std::copy_n(again_table + *a.tokens.at(r / a.B, r % a.B) * gates, gates, saved.row_at<T>(r, a.B));
    } else {
      P::multiply(c.rows(), gates, a.I, seq.at(x.as<const T>(), c.t0), a.I, again_ih, saved_room, ld);
    }
    k.recompute(a.kind,
                {c.rows(), a.H, saved_room, ld, h_before, c_before, a.H, again_hh, again_bias[0], again_bias[1]},
                runner);
    return saved.as<const T>();
  }

  // ---- the end

  void table_gradients() {
    if (a.dx.p) {
      T* dx = P::result(a.dx.p, a.V, a.I);
      P::multiply(a.V, a.I, gates, by_token, gates, w_ih, dx, a.I);
      P::finish(dx, a.dx.p, a.type, a.V, a.I);
    }
    if (!dw_ih) return;
    const Timed timed(kWeightGradient);
    const Stored table{a.x.p, a.type, 0, a.I};
    const WeightGradient<T> input{{table, 0, 1}, a.I, kGateOf.ih, dw_ih};
    k.weight_gradients({a.V, a.V, a.H, G, by_token, gates, {input}, nullptr, false, scratch}, runner);
  }

  void finish() {
    P::finish(f.dh0, a.dh0, a.type, a.B, a.H, order);
    P::finish(f.dc0, a.dc0, a.type, a.B, a.H, order);
    if (seq.total() == 0) {
      if (wants_w) std::fill_n(dw_ih, gates * a.I, T(0)), std::fill_n(dw_hh, gates * a.H, T(0));
      if (sums) std::fill_n(sums, width, T(0));
    }
    P::finish(dw_ih, a.dw_ih, a.type, gates, a.I);
    P::finish(dw_hh, a.dw_hh, a.type, gates, a.H);
    const auto bias = [&](int64_t slot, void* to, int64_t at, int64_t count) {
      void* p = static_cast<char*>(to) + at * a.H * size_of(a.type);
      k.copy(P::matrix(sums + slot * a.H, kTypeOf<T>, 1, count * a.H), P::matrix(p, a.type, 1, count * a.H), 0, 1, 1,
             count * a.H, runner);
    };
    if (a.db_ih)
      for (int slot = 0; slot < G; ++slot) bias(slot, a.db_ih, Cell::kInputGate[slot], 1);
    if (a.db_hh) bias(Cell::kRecurrentDelta, a.db_hh, 0, G);
  }
};

template <class F>
void with_cell(CellKind kind, const F& f) {
  switch (kind) {
    case kLstm: return f(Lstm{});
    case kGru: return f(Gru{});
    case kRnnTanh: return f(RnnTanh{});
    case kRnnRelu: return f(RnnRelu{});
  }
}

}  // namespace

template <class T>
void run_layer(const LayerForward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena) {
  const Timed timed(kWhole);
  with_cell(a.kind, [&](auto cell) { ForwardPass<decltype(cell), T>(a, k, runner, arena).run(); });
}
template <class T>
void run_layer(const LayerBackward& a, const Kernels<T>& k, const Runner& runner, const Arena& arena) {
  const Timed timed(kWhole);
  with_cell(a.kind, [&](auto cell) { BackwardPass<decltype(cell), T>(a, k, runner, arena).run(); });
}

template void run_layer<float>(const LayerForward&, const Kernels<float>&, const Runner&, const Arena&);
template void run_layer<double>(const LayerForward&, const Kernels<double>&, const Runner&, const Arena&);
template void run_layer<float>(const LayerBackward&, const Kernels<float>&, const Runner&, const Arena&);
template void run_layer<double>(const LayerBackward&, const Kernels<double>&, const Runner&, const Arena&);

}  // namespace cpu
}  // namespace fusedrnn
