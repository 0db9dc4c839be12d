// Winograd's way to a 3×3 convolution: 2×2 outputs by 16 products instead of 36 (Lavin and Gray,
// CVPR 2016, section 4.1: F(2×2, 3×3)).
//
//   y = Aᵀ [Σ_{c open} (G w Gᵀ) ⊙ (Bᵀ x B)] A
//
// for each tile of 2×2 outputs y, of 4×4 inputs x. At each of 4×4 points, between the transforms,
// it is a pointwise convolution of tiles. Weights are transformed on the way, those of open filters
// and channels only: nine numbers are less to read from memory than sixteen. An infinite input may
// give NaN, as ∞ − ∞.

#pragma once

#include "layer.h"

namespace gaternet {

constexpr int64_t kTileOutputs = 2;                // in each direction
constexpr int64_t kTileInputs = kTileOutputs + 2;  // points, too
constexpr int64_t kPoints = kTileInputs * kTileInputs;
constexpr int64_t kTaps = 9;

// What a band of tiles may take, its sums included: it fills the second-level cache.
constexpr int64_t kTransformedBytes = 1 << 20;

// Of an image, for the transforms to pay.
constexpr int64_t kFewestTiles = 16;

inline int64_t tiles_along(int64_t pixels) { return (pixels + kTileOutputs - 1) / kTileOutputs; }

inline bool has_tiles(const Shape& s) {
  return s.kernel_height == 3 && s.kernel_width == 3 && s.stride_y == 1 && s.stride_x == 1 &&
         s.dilation_y == 1 && s.dilation_x == 1 && s.channels >= kLanes &&
         tiles_along(s.rows) * tiles_along(s.columns) >= kFewestTiles;
}

// All vectors have to be full: with fewer channels transforms cost more than they save.
inline bool tiles_pay(const Shape& s, const Open& open) {
  return has_tiles(s) && open.count() >= kLanes;
}

// How many rows of tiles make a band.
inline int64_t tile_rows_of_band(const Shape& s) {
  const int64_t channels = s.channels + 2 * kLanes;  // and two blocks of sums
  return kTransformedBytes / (4 * kPoints * tiles_along(s.columns) * channels);
}

// A band of output rows in tiles; those at its ends may reach beyond, and so does its packed input.
struct Tiling : Band {
  int64_t rows, columns;  // of tiles

  int64_t count() const { return rows * columns; }
  int64_t tile_plane() const { return count() * kLanes; }  // of a point, in floats
};

inline Tiling tiling_of(const Shape& s, int64_t first, int64_t last) {
  const int64_t rows = tiles_along(last - first), columns = tiles_along(s.columns);
  const int64_t beyond = kTileInputs - kTileOutputs;
  return {{first, last, rows * kTileOutputs + beyond, columns * kTileOutputs + beyond, kLanes},
          rows, columns};
}

// std::array would drop what a Vector says of its alignment.
template <int64_t kCount>
struct Vectors {
  Vector at[kCount];

  Vector& operator[](int64_t i) { return at[i]; }
  const Vector& operator[](int64_t i) const { return at[i]; }
};

// Bᵀ of four inputs.
inline Vectors<kTileInputs> transform_inputs(const Vectors<kTileInputs>& x) {
  return {x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]};
}

// A row of G, of three weights.
template <int kRow>
Vector transform_weights(const Vector& a, const Vector& b, const Vector& c) {
  if constexpr (kRow == 0) return a;
  if constexpr (kRow == 1) return 0.5f * (a + b + c);
  if constexpr (kRow == 2) return 0.5f * (a - b + c);
  if constexpr (kRow == 3) return c;
}

// Aᵀ of four sums.
inline Vectors<kTileOutputs> transform_sums(const Vectors<kTileInputs>& m) {
  return {m[0] + m[1] + m[2], m[1] - m[2] - m[3]};
}

// Bᵀ x B of a band's tiles, to[point][channel / 16][tile][16].
inline void transform_band(const Tiling& tiling, int64_t planes, const float* packed, float* to) {
  const int64_t row = tiling.packed_columns * kLanes, point = planes * tiling.tile_plane();
  for (int64_t plane = 0; plane < planes; ++plane, packed += tiling.plane()) {
    for (int64_t y = 0; y < tiling.rows; ++y) {
      const float* x = packed + y * kTileOutputs * row;
      for (int64_t tile = 0; tile < tiling.columns; ++tile, to += kLanes) {
        Vectors<kTileInputs> columns[kTileInputs];
#pragma GCC unroll 4
        for (int64_t i = 0; i < kTileInputs; ++i) {
          const float* at = x + (tile * kTileOutputs + i) * kLanes;
          columns[i] = transform_inputs(
              {load(at), load(at + row), load(at + 2 * row), load(at + 3 * row)});
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < kTileInputs; ++i) {
          const auto points =
              transform_inputs({columns[0][i], columns[1][i], columns[2][i], columns[3][i]});
#pragma GCC unroll 4
          for (int64_t j = 0; j < kTileInputs; ++j)
            store(to + (i * kTileInputs + j) * point, points[j]);
        }
      }
    }
  }
}

// What a group of blocks of filters needs.
struct TileGroup {
  const Piece& piece;
  const Tiling& tiling;
  const float* inputs;   // as `transform_band` leaves them
  float* weights;        // of a row of points, [column][open channel][block][16]
  float* sums;           // [point][tile][block][16]
  const int32_t* blocks;
  const int32_t* next;   // the blocks after these, or null
};

// A row of points of G w Gᵀ.
template <int kBlocks, int kRow>
void transform_blocks(const TileGroup& group) {
  const Open& open = group.piece.open;
  const int64_t tap = group.piece.s.channels * kLanes;
  const int64_t column = open.count() * kBlocks * kLanes;
  for (int b = 0; b < kBlocks; ++b) {
    const float* block = group.piece.a.weight + group.blocks[b] * kTaps * tap;
    float* to = group.weights + b * kLanes;
    for (const int32_t channel : open.channels) {
      const float* w = block + channel * kLanes;
      Vector g[3];
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x, w += tap)
        g[x] = transform_weights<kRow>(load(w), load(w + 3 * tap), load(w + 6 * tap));
      store(to, transform_weights<0>(g[0], g[1], g[2]));
      store(to + column, transform_weights<1>(g[0], g[1], g[2]));
      store(to + 2 * column, transform_weights<2>(g[0], g[1], g[2]));
      store(to + 3 * column, transform_weights<3>(g[0], g[1], g[2]));
      to += kBlocks * kLanes;
    }
  }
}

// Some tiles at a point: sums over open channels.
struct Product {
  const float* inputs;   // of the first tile
  int64_t plane;         // from 16 channels to the next
  const float* weights;  // [open channel][block][16]
  const Open& open;
  const float* fetched;  // a tap of weights for later, [channel][16]
};

template <int kTiles, int kBlocks>
void multiply(const Product& product, float* to) {
  Vector sums[kTiles][kBlocks] = {};
  const float* inputs = product.inputs;
  const float* weights = product.weights;
  const int64_t channels = product.open.count();
  const int32_t* channel = product.open.channels.data();
  for (int64_t first = 0; first < channels; first += kLanes, inputs += product.plane) {
    const int64_t lanes = std::min(kLanes, channels - first);
    for (int64_t i = 0; i < lanes; ++i, ++channel, weights += kBlocks * kLanes) {
      __builtin_prefetch(product.fetched + *channel * kLanes);
      __builtin_prefetch(inputs + product.plane + i * kLanes);
      Vector w[kBlocks];
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) w[b] = load(weights + b * kLanes);
#pragma GCC unroll 28
      for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) sums[t][b] += inputs[t * kLanes + i] * w[b];
    }
  }
#pragma GCC unroll 28
  for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b) store(to + (t * kBlocks + b) * kLanes, sums[t][b]);
}

using Multiply = void (*)(const Product&, float*);

// By the number of tiles, from 1.
template <int kBlocks>
constexpr auto kMultiply = one_for_each<kSums / kBlocks>(
    []<int kTiles>() -> Multiply { return multiply<kTiles, kBlocks>; });

// A row of points of a group of blocks: their weights, then the sums of all tiles, as many side by
// side as there are registers. On the way the next group's weights are fetched, one tap a product.
template <int kBlocks, int kRow>
void multiply_row(const TileGroup& group) {
  const Piece& piece = group.piece;
  const int64_t tiles = group.tiling.count(), plane = group.tiling.tile_plane();
  const int64_t channels = piece.open.count(), tap = piece.s.channels * kLanes;
  const int64_t runs = (tiles + kSums / kBlocks - 1) / (kSums / kBlocks);
  transform_blocks<kBlocks, kRow>(group);
  for (int64_t i = 0; i < kTileInputs * runs; ++i) {
    const int64_t column = i / runs, run = i % runs, point = kRow * kTileInputs + column;
    const int64_t from = tiles * run / runs, to = tiles * (run + 1) / runs;
    const int64_t fetched = kRow * kTileInputs * runs + i;  // taps so far
    const bool fetches = group.next && fetched < kBlocks * kTaps;
    const int64_t block = fetches ? group.next[fetched / kTaps] : group.blocks[0];
    const float* later = piece.a.weight + (block * kTaps + fetched % kTaps) * tap;
    const float* inputs = group.inputs + point * piece.open.planes() * plane + from * kLanes;
    const float* weights = group.weights + column * channels * kBlocks * kLanes;
    float* sums = group.sums + (point * tiles + from) * kBlocks * kLanes;
    const Product product{inputs, plane, weights, piece.open, later};
    kMultiply<kBlocks>[to - from - 1](product, sums);
  }
}

// Aᵀ m A of a tile of a block, from sums `point` apart, to the output at row y, column x.
inline void finish_tile(const Piece& piece, int32_t block, const float* sums, int64_t point,
                        int64_t y, int64_t x) {
  const Shape& s = piece.s;
  const Vector bias = load(piece.a.bias + block * kLanes);
  Vectors<kTileOutputs> columns[kTileInputs];
#pragma GCC unroll 4
  for (int64_t i = 0; i < kTileInputs; ++i) {
    const float* m = sums + i * point;
    const int64_t row = kTileInputs * point;
    columns[i] = transform_sums({load(m), load(m + row), load(m + 2 * row), load(m + 3 * row)});
  }
#pragma GCC unroll 2
  for (int64_t i = 0; i < kTileOutputs; ++i) {
    if (y + i >= piece.last) return;
    const auto row = transform_sums({columns[0][i], columns[1][i], columns[2][i], columns[3][i]});
    const auto sum = [&](int p) { return row[p] + bias; };
    const int64_t at = piece.output() + (y + i) * s.columns + x;
    if (x + 1 < s.columns)
      finish<2>(s, piece.a, piece.open, block * kLanes, at, sum);
    else
      finish<1>(s, piece.a, piece.open, block * kLanes, at, sum);
  }
}

// A piece's blocks in groups of `kBlocks`, from those that `group` begins with. Returns where it
// ended, behind the last whole group.
template <int kBlocks>
const int32_t* run_tiles(TileGroup group) {
  const Piece& piece = group.piece;
  const Tiling& tiling = group.tiling;
  for (; group.blocks + kBlocks <= piece.to; group.blocks += kBlocks) {
    group.next = group.blocks + 2 * kBlocks <= piece.share ? group.blocks + kBlocks : nullptr;
    multiply_row<kBlocks, 0>(group);
    multiply_row<kBlocks, 1>(group);
    multiply_row<kBlocks, 2>(group);
    multiply_row<kBlocks, 3>(group);
    const float* sums = group.sums;
    for (int64_t y = 0; y < tiling.rows; ++y)
      for (int64_t x = 0; x < tiling.columns; ++x)
        for (int b = 0; b < kBlocks; ++b, sums += kLanes)
          finish_tile(piece, group.blocks[b], sums, tiling.tile_plane() * kBlocks,
                      piece.first + y * kTileOutputs, x * kTileOutputs);
  }
  return group.blocks;
}

// A worker's way through pieces.
class Winograd {
 public:
  // `again`: the same rows as just before.
  void run(const Piece& piece, bool again) {
    const Tiling tiling = tiling_of(piece.s, piece.first, piece.last);
    if (!again) prepare(piece, tiling);
    const int64_t most = tiling.count() <= kSums / 4 ? 4 : 2;  // blocks side by side
    float* weights = weights_.at_least(kTileInputs * piece.open.count() * most * kLanes);
    float* sums = sums_.at_least(kPoints * tiling.tile_plane() * most);
    TileGroup group{piece, tiling, inputs_.data(), weights, sums, piece.from, nullptr};
    if (most == 4) group.blocks = run_tiles<4>(group);
    group.blocks = run_tiles<2>(group);
    run_tiles<1>(group);
  }

 private:
  void prepare(const Piece& piece, const Tiling& tiling) {
    const int64_t planes = piece.open.planes();
    float* packed = packed_.at_least(planes * tiling.plane());
    pack(piece.s, piece.input(), tiling, piece.open, packed);
    float* inputs = inputs_.at_least(kPoints * planes * tiling.tile_plane());
    transform_band(tiling, planes, packed, inputs);
  }

  Buffer packed_, inputs_, weights_, sums_;
};

}  // namespace gaternet
