// How the persistent kernel of grid.cuh is laid out over a GPU: a pure function of numbers, known before a launch.
#pragma once
#include <cstdint>
#include <type_traits>

#include "../inline.h"

namespace fusedrnn {
namespace cuda {

constexpr int kTileColumns = 8;  // columns of a product that one fragment of weights serves
constexpr int kPassRows = 16;    // batch rows that are multiplied before the gate math runs on them
constexpr int kChunkBytes = 64;  // of a row of h or delta, that one fragment of weights serves
constexpr int kFragmentBytes = kChunkBytes * kTileColumns;  // of the 32 lanes of a warp

// Warps of a block, tiles that a warp sums side by side, and chunks of them whose weights stay in registers.
template <int Warps, int Tiles, int RegisterChunks>
struct GridShape {
  static constexpr int kWarps = Warps, kTiles = Tiles, kRegisterChunks = RegisterChunks;
  static_assert(RegisterChunks >= 1, "the first chunk is always there");
};
// 12, 24 and 12 fragments of 16 bytes, 48 and 96 of the 255 registers of a thread: more of them spill, since Broad also
// sums in 48.
using GridNarrow = GridShape<8, 1, 12>;
using GridWide = GridShape<8, 4, 6>;
using GridBroad = GridShape<8, 12, 1>;
enum class GridKind { kNarrow, kWide, kBroad, kTested };  // the last of tests alone
template <class Shape>
constexpr GridKind kGridKind = std::is_same_v<Shape, GridNarrow>  ? GridKind::kNarrow
                               : std::is_same_v<Shape, GridWide>  ? GridKind::kWide
                               : std::is_same_v<Shape, GridBroad> ? GridKind::kBroad
                                                                  : GridKind::kTested;

// Of a team: blocks (one a multiprocessor) and the shared memory that one may ask for.
struct GridLimits {
  int blocks;
  int64_t shared_bytes;
};

struct GridPlan {
  bool fits;
  GridKind kind;            // of shape
  int teams, team_blocks;   // each team runs its own rows with blocks of its own
  int64_t rows;             // of a team; the last may have fewer
  int units;                // of H, of a block; the last of a team may have fewer
  int groups;               // times that a warp goes over its share of K, each time for kTiles tiles
  int chunks;               // of K
  int slots, shared_slots;  // chunks of a warp that are not in registers; those in shared memory, the rest streamed
  int64_t shared_bytes, workspace_bytes;

  FUSEDRNN_INLINE int blocks() const { return teams * team_blocks; }
};

// What is asked of a plan. Forward multiplies [B, H] by the G columns of each unit, backward [B, G H] by one.
struct GridProblem {
  int64_t B, H;
  int gates, value_bytes;
  bool backward;

  FUSEDRNN_INLINE int columns_of_unit() const { return backward ? 1 : gates; }
  FUSEDRNN_INLINE int64_t K() const { return backward ? gates * H : H; }
};

constexpr int kExchanges = 4;  // see grid.cuh

// Of a pass when so many are left.
FUSEDRNN_INLINE int pass_rows(int64_t left) { return left < kPassRows ? int(left) : kPassRows; }

FUSEDRNN_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats from one row of partial sums to the next: the four rows that half a warp stores at once are on other banks.
FUSEDRNN_INLINE int64_t sums_pitch(int64_t columns) { return columns % 32 ? columns : columns + kTileColumns; }

// Bytes in front of the weights: partial sums, two states of each unit, two biases of each column, and alignment.
FUSEDRNN_INLINE int64_t grid_fixed_bytes(int64_t rows, int64_t units, int64_t columns, int warps) {
  const int64_t sums = int64_t(warps) * pass_rows(rows) * sums_pitch(columns), states = 2 * rows * units,
                biases = 2 * columns;
  return 4 * (sums + states + biases) + 5 * 16;
}

// With so many teams at most, and blocks of a team. Units fill the tiles of a block: the same product on fewer blocks,
// each of which has to read what all exchange.
template <class Shape>
GridPlan grid_blocks(const GridLimits& limits, const GridProblem& p, int64_t most_teams = 1) {
  GridPlan plan{};
  if (limits.blocks < 1 || p.H < 1 || p.B < 1) return plan;
  const int64_t wanted = divide_up(divide_up(p.H, limits.blocks) * p.columns_of_unit(), kTileColumns);
  const int64_t tiles = divide_up(wanted, Shape::kTiles) * Shape::kTiles;
  const int64_t units = tiles * kTileColumns / p.columns_of_unit(), columns = tiles * kTileColumns;
  const int64_t chunks = divide_up(p.K() * p.value_bytes, kChunkBytes), own = divide_up(chunks, Shape::kWarps);
  const int64_t kept = own < Shape::kRegisterChunks ? own : Shape::kRegisterChunks;
  const int64_t slots = tiles / Shape::kTiles * own - kept;
  const int64_t slot_bytes = int64_t(Shape::kWarps) * Shape::kTiles * kFragmentBytes;
  const int64_t rows = divide_up(p.B, most_teams);
  const int64_t free_bytes = limits.shared_bytes - grid_fixed_bytes(rows, units, columns, Shape::kWarps);
  if (free_bytes < 0) return plan;
  const int64_t shared = free_bytes / slot_bytes < slots ? free_bytes / slot_bytes : slots;
  plan.fits = true, plan.kind = kGridKind<Shape>;
  plan.teams = int(divide_up(p.B, rows)), plan.rows = rows;
  plan.team_blocks = int(divide_up(p.H, units)), plan.units = int(units);
  plan.groups = int(tiles / Shape::kTiles), plan.chunks = int(chunks);
  plan.slots = int(slots), plan.shared_slots = int(shared);
  plan.shared_bytes = limits.shared_bytes - free_bytes + shared * slot_bytes;
  plan.workspace_bytes = kExchanges * p.B * chunks * kChunkBytes + plan.blocks() * (slots - shared) * slot_bytes;
  return plan;
}

}  // namespace cuda
}  // namespace fusedrnn
