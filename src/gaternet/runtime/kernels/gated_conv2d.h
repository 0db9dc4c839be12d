// A convolution that computes only what its gates leave open, sample by sample.
//
//   y[n, o] = activation((y[n, o] +) gate(n, o) · (bias[o] + Σ_{c open} weight[o, c] ∗ x[n, c]))
//
// Images are channels last, filters go in blocks of 16 that fill one vector. A band of output rows
// is one piece of work: its open input channels are copied side by side, zero padding included
// (some pointwise layers read the image itself), and each block of filters with an open one in it
// is then computed from them, tile by tile, with sums in registers: as it is defined (direct.h), or
// in fewer products (winograd.h). Closed channels are never read, closed blocks of filters never
// computed.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "direct.h"
#include "layer.h"
#include "winograd.h"

namespace gaternet {

// How an image is cut into pieces: bands of rows (of pixels, if pointwise), shares of the filters,
// parts of those.
struct Cut {
  int64_t rows, unit;  // of the whole image; that stay together
  int64_t bands, shares, parts;

  int64_t pieces() const { return bands * shares * parts; }

  // The rows of a band: nearly as many in each.
  std::array<int64_t, 2> band(int64_t band) const {
    const int64_t units = (rows + unit - 1) / unit;
    const auto cut = [&](int64_t i) { return std::min(units * i / bands * unit, rows); };
    return {cut(band), cut(band + 1)};
  }

  // Of so many open blocks where a part of a share begins and ends, and where the share does. Parts
  // end with four blocks, where they can: in narrow images four are computed together.
  std::array<int64_t, 3> blocks(int64_t share, int64_t part, int64_t open) const {
    const int64_t first = open * share / shares, end = open * (share + 1) / shares;
    const int64_t fours = (end - first + 3) / 4;
    const auto cut = [&](int64_t i) { return std::min(first + 4 * (fours * i / parts), end); };
    return {cut(part), cut(part + 1), end};
  }
};

constexpr int64_t kPackedBytes = 384 << 10;  // a band's input: it shares the second-level cache

// Of bands, each worker reads all weights; of shares, all that others have just written, which is
// further away. Shares are the better cut where weights are so many times what is read and written.
constexpr int64_t kWeighty = 3;

// What bands are made of.
struct Units {
  int64_t rows;     // of an image; pixels, if pointwise
  int64_t unit;     // how many of them stay together
  int64_t largest;  // how many units make the largest band
};

inline Units units_of(const Shape& s) {
  if (s.pointwise())
    return {s.rows * s.columns, kLongestTile, kPackedBytes / (4 * s.channels * kLongestTile)};
  if (has_tiles(s)) return {s.rows, kTileOutputs, tile_rows_of_band(s)};
  return {s.rows, 1, kPackedBytes / (4 * s.channels * s.columns * s.stride_x * s.stride_y)};
}

inline Cut cut(const Shape& s, int64_t workers) {
  const auto [rows, unit, largest] = units_of(s);
  const int64_t units = (rows + unit - 1) / unit;
  const int64_t bands = (units - 1) / std::max<int64_t>(largest, 1) + 1;
  if (s.batch >= workers) return {rows, unit, bands, 1, 1};
  const int64_t weights = s.blocks() * kLanes * s.channels * s.kernel_height * s.kernel_width;
  const int64_t images = s.height * s.width * s.channels + s.rows * s.columns * s.filters;
  if (weights > kWeighty * images)
    return {rows, unit, bands, std::min(workers, (s.blocks() + 3) / 4), 4};
  const int64_t each = (bands + workers - 1) / workers;
  return {rows, unit, std::min(units, each * workers), 1, 1};
}

using Parallel = std::function<void(int64_t workers, const std::function<void(int64_t)>&)>;

// Hands out pieces 0 … count: to each worker its own share first, then what is left of the others'.
// A worker has the same share of all layers that are cut alike, so that it finds most of what it
// reads in its own cache: another one's can be as far away as memory.
class Pieces {
 public:
  Pieces(int64_t count, int64_t workers) : shares_(workers) {
    for (int64_t w = 0; w < workers; ++w) {
      shares_[w].next = count * w / workers;
      shares_[w].end = count * (w + 1) / workers;
    }
  }

  template <typename Work>
  void each(int64_t worker, const Work& work) {
    const int64_t workers = static_cast<int64_t>(shares_.size());
    for (int64_t i = 0; i < workers; ++i) {
      Share& share = shares_[(worker + i) % workers];
      for (int64_t piece = share.next++; piece < share.end; piece = share.next++) work(piece);
    }
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Share> shares_;
};

inline void gated_conv2d(const Shape& s, const Operands& a, int64_t workers,
                         const Parallel& parallel) {
  std::vector<Open> open(s.batch);
  for (int64_t n = 0; n < s.batch; ++n) open[n] = open_parts(s, a, n);
  const Cut c = cut(s, workers);
  const int64_t count = s.batch * c.pieces();
  workers = std::min(workers, count);
  Pieces pieces(count, workers);
  parallel(workers, [&](int64_t worker) {
    thread_local Direct direct;
    thread_local Winograd winograd;
    int64_t before = -1;  // the band of an image
    pieces.each(worker, [&](int64_t number) {
      const int64_t part = number % c.parts, band = number / c.parts % c.bands;
      const int64_t share = number / c.parts / c.bands % c.shares, n = number / c.pieces();
      const auto [first, last] = c.band(band);
      const Open& left = open[n];
      if (share == 0 && part == 0) {
        const int64_t row = s.pointwise() ? 1 : s.columns, image = n * s.rows * s.columns;
        fill_closed(s, a, left, image + first * row, image + last * row);
      }
      const auto [from, to, end] = c.blocks(share, part, static_cast<int64_t>(left.blocks.size()));
      if (from == to) return;
      const int32_t* blocks = left.blocks.data();
      const Piece piece{s, a, left, n, first, last, blocks + from, blocks + to, blocks + end};
      const bool again = n * c.bands + band == before;
      before = n * c.bands + band;
      if (tiles_pay(s, left))
        winograd.run(piece, again);
      else
        direct.run(piece, again);
    });
  });
}

}  // namespace gaternet
