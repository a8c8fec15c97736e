// Weights in PyTorch's layout to panels (tile.h), and rows from one layout and type to another.
#pragma once
#include "convert.h"
#include "tile.h"

namespace fusedrnn {
namespace {

using cpu::Factor;
using cpu::Piece;
using cpu::Runner;
using cpu::Stored;

#if defined(__clang__) || __GNUC__ >= 12
template <int... I>
struct Lanes {};
template <int N, int... I>
struct CountLanes : CountLanes<N - 1, N - 1, I...> {};
template <int... I>
struct CountLanes<0, I...> {
  typedef Lanes<I...> type;
};

// Exchanges blocks of S lanes between a and b: one stage of a transposition.
template <class T, int S, int... I>
FUSEDRNN_INLINE void exchange(Vec<T>& a, Vec<T>& b, Lanes<I...>) {
  constexpr int L = kLanes<T>;
  const Vec<T> low = __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...);
  const Vec<T> high = __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
  a = low;
  b = high;
}

// a summed over pairs of blocks of S lanes where the lane has no S, b likewise where it has.
template <class T, int S, int... I>
FUSEDRNN_INLINE Vec<T> add_pairs(Vec<T> a, Vec<T> b, Lanes<I...>) {
  constexpr int L = kLanes<T>;
  return __builtin_shufflevector(a, b, ((I & S) ? L + I - S : I)...) +
         __builtin_shufflevector(a, b, ((I & S) ? L + I : I + S)...);
}

// Lane i of the result is the sum of all lanes of m[i].
template <class T, int S = 1>
FUSEDRNN_INLINE Vec<T> sum_lanes(Vec<T> (&m)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (S < L) {
    FUSEDRNN_EACH(i, L / (2 * S))
    m[2 * S * i] = add_pairs<T, S>(m[2 * S * i], m[2 * S * i + S], typename CountLanes<L>::type{});
    return sum_lanes<T, 2 * S>(m);
  } else {
    return m[0];
  }
}

template <class T, int S = 1>
FUSEDRNN_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  constexpr int L = kLanes<T>;
  if constexpr (S < L) {
    FUSEDRNN_EACH(i, L) if (!(i & S)) exchange<T, S>(m[i], m[i + S], typename CountLanes<L>::type{});
    transpose<T, 2 * S>(m);
  }
}
#else
template <class T>
FUSEDRNN_INLINE void transpose(Vec<T> (&m)[kLanes<T>]) {
  for (int i = 0; i < kLanes<T>; ++i)
    for (int j = 0; j < i; ++j) {
      const T x = m[i][j];
      m[i][j] = m[j][i];
      m[j][i] = x;
    }
}
template <class T>
FUSEDRNN_INLINE Vec<T> sum_lanes(Vec<T> (&m)[kLanes<T>]) {
  transpose<T>(m);
  Vec<T> total = m[0];
  for (int i = 1; i < kLanes<T>; ++i) total += m[i];
  return total;
}
#endif

// f(i) for i in [0, n).
template <class F>
static void for_each(int64_t n, bool parallel, const Runner& runner, const F& f) {
  if (!parallel || runner.threads <= 1) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  runner.run(
      n,
      [](void* p, int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const F*>(p))(i);
      },
      const_cast<F*>(&f));
}

constexpr int64_t kWorthSharingBytes = 64 << 10;  // of memory that is moved

template <class T>
static int64_t packed_size(int64_t G, int64_t N, int64_t K) {
  return G * panels<T>(N) * kLanes<T> * K;
}

// Panel `tile` for x w^T: w[g * N + unit][k], k innermost, goes to stream g / W, at [k][g % W][lane].
template <class T, int G, class S>
static void pack_rows(const Factor& w, int64_t tile, T* panel) {
  constexpr int L = kLanes<T>, W = kWidth<G>;
  const int64_t unit = tile * L, valid = w.N - unit, ldw = w.n_stride;
  for (int64_t g = 0; g < G; ++g)
    for (int64_t k = 0; k < w.K; k += L) {
      Vec<T> m[L];
      const S* from = static_cast<const S*>(w.p) + (g * w.N + unit) * ldw + k;
      FUSEDRNN_EACH(i, L) m[i] = i < valid ? load_as<T>(from + i * ldw, w.K - k) : Vec<T>{};
      transpose<T>(m);
      T* to = panel + (g / W * w.K + k) * W * L + g % W * L;
      if (w.K - k >= L) {
        FUSEDRNN_EACH(i, L) store(to + i * W * L, m[i]);
      } else {
        for (int i = 0; i < w.K - k; ++i) store(to + i * W * L, m[i]);
      }
    }
}

// Panels side by side that are packed together: whole cache lines of each row, and fewer visits to each page.
constexpr int64_t kPanelsTogether = 4;
template <class T>
static int64_t panel_groups(int64_t N) {
  return (panels<T>(N) + kPanelsTogether - 1) / kPanelsTogether;
}

// Some rows and up to kPanelsTogether panels of w[K][N] for x w: panel[k][lane] = w[k][unit].
template <class T, class S>
static void pack_columns(const S* w, int64_t ldw, int64_t rows, int64_t valid, T* panel, int64_t panel_size) {
  constexpr int64_t L = kLanes<T>, kWide = kPanelsTogether * L;
  for (int64_t k = 0; k < rows; ++k, w += ldw, panel += L)
    if (valid >= kWide) {
      FUSEDRNN_EACH(i, kPanelsTogether) store(panel + i * panel_size, load_as<T>(w + i * L, L));
    } else {
      for (int64_t j = 0; j < valid; j += L) store(panel + j / L * panel_size, load_as<T>(w + j, valid - j));
    }
}

template <class T>
static void pack(const Factor& w, T* packed, const Runner& runner) {
  constexpr int L = kLanes<T>;
  const int64_t panel = w.G * w.K * L, tiles = panels<T>(w.N);
  with_type<T>(w.type, [&](auto zero) {
    using S = decltype(zero);
    const bool parallel = tiles * panel * int64_t(sizeof(T)) > kWorthSharingBytes;
    if (w.k_stride != 1)
      return for_each(panel_groups<T>(w.N), parallel, runner, [&](int64_t group) {
        const int64_t t = group * kPanelsTogether;
        pack_columns(static_cast<const S*>(w.p) + t * L, w.k_stride, w.K, w.N - t * L, packed + t * panel, panel);
      });
    for_each(tiles, parallel, runner, [&](int64_t t) {
      if (w.G == 1)
        pack_rows<T, 1, S>(w, t, packed + t * panel);
      else if (w.G == 3)
        pack_rows<T, 3, S>(w, t, packed + t * panel);
      else
        pack_rows<T, 4, S>(w, t, packed + t * panel);
    });
  });
}

// Rows k... of K rows of a factor of N columns: one group of panels of them.
template <class T>
static void pack_piece(const Piece& piece, int64_t B, int64_t N, int64_t group, int64_t K, int64_t k, T* packed) {
  constexpr int L = kLanes<T>;
  const int64_t tile = group * kPanelsTogether;
  T* to = packed + (tile * K + k) * L;
  with_type<T>(piece.rows.type, [&](auto zero) {
    const auto from = piece.rows.as<const decltype(zero)>();
    for (int64_t t = piece.t0; t < piece.t1; ++t, to += B * L)
      pack_columns(from.at(t) + tile * L, from.row, B, N - tile * L, to, K * L);
  });
}

template <class T>
static void pack_rows_at(const Piece& piece, int64_t B, int64_t N, int64_t K, int64_t k, T* packed,
                         const Runner& runner) {
  const int64_t bytes = (piece.t1 - piece.t0) * B * N * int64_t(sizeof(T));
  for_each(panel_groups<T>(N), bytes > kWorthSharingBytes, runner,
           [&](int64_t group) { pack_piece(piece, B, N, group, K, k, packed); });
}

// bias[G * H], or null for zeros, as [tile][g][lane].
template <class T>
static void pack_bias(const void* bias, cpu::Type type, int64_t G, int64_t H, T* packed) {
  constexpr int L = kLanes<T>;
  with_type<T>(type, [&](auto zero) {
    const auto* b = static_cast<const decltype(zero)*>(bias);
    for (int64_t t = 0; t < panels<T>(H); ++t)
      for (int64_t g = 0; g < G; ++g)
        store(packed + (t * G + g) * L, b ? load_as<T>(b + g * H + t * L, H - t * L) : Vec<T>{});
  });
}

template <class T>
static void copy(const Stored& from, const Stored& to, int64_t r0, int64_t r1, int64_t B, int64_t N,
                 const Runner& runner) {
  with_type<T>(from.type, [&](auto zero) {
    with_type<T>(to.type, [&](auto other) {
      for_each(r1 - r0, (r1 - r0) * N * int64_t(sizeof(T)) > kWorthSharingBytes, runner, [&](int64_t i) {
        const auto* a = from.template row_at<const decltype(zero)>(r0 + i, B);
        auto* b = to.template row_at<decltype(other)>(r0 + i, B);
        for (int64_t k = 0; k < N; k += kLanes<T>) store_as<T>(b + k, load_as<T>(a + k, N - k), N - k);
      });
    });
  });
}

template <class T>
static void states_before(const cpu::StatesBefore<T>& a, const Runner& runner) {
  const Sequence& seq = a.seq;
  with_type<T>(a.all.type, [&](auto zero) {
    using S = const decltype(zero);
    const int64_t bytes = (a.k1 - a.k0) * seq.B * a.N * int64_t(sizeof(T));
    for_each(a.k1 - a.k0, bytes > kWorthSharingBytes, runner, [&](int64_t i) {
      const int64_t k = a.k0 + i, t = seq.step(k), rows = seq.rows(t), had = seq.rows_of_turn(k - 1);
      const int64_t earlier = had > 0 ? seq.before(seq.step(k - 1)) : 0;
      const uint8_t* resets = a.resets ? seq.at(a.resets, t) : nullptr;
      T* to = seq.at(a.to, t);
      for (int64_t b = 0; b < rows; ++b, to += a.to.row) {
        S* from = b < had     ? a.all.template row_at<S>(earlier + b, seq.B)
                  : a.start.p ? a.start.template row_at<S>(b, seq.B)
                              : nullptr;
        if (resets && resets[b * a.resets.row]) from = nullptr;
        for (int64_t j = 0; j < a.N; j += kLanes<T>)
          store_up_to(to + j, from ? load_as<T>(from + j, a.N - j) : Vec<T>{}, a.N - j);
      }
    });
  });
}

}  // namespace
}  // namespace fusedrnn
