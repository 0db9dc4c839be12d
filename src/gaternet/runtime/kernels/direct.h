// A convolution as it is defined: tiles of neighbouring pixels of a few blocks of filters, whose
// sums stay in registers over all products.

#pragma once

#include "layer.h"

namespace gaternet {

// A band and where in its input things are: in its copy, or in the image itself. In floats.
struct DirectBand : Band {
  bool in_place;
  int64_t pixel, row;    // from an output pixel to the next, from an output row to the next
  int64_t tap_row, tap;  // from a row of the kernel to the next, from a tap in it to the next
};

// A copy is worth it where many blocks of filters read it, and where pixels lie a multiple of 4 KiB
// apart: those drive each other out of the nearest cache.
constexpr int64_t kInPlaceBlocks = 8;
constexpr int64_t kInPlaceChannels = 512;

inline bool reads_in_place(const Shape& s, const Open& open) {
  return s.pointwise() && s.stride_y == 1 && s.stride_x == 1 && s.channels <= kInPlaceChannels &&
         static_cast<int64_t>(open.blocks.size()) <= kInPlaceBlocks;
}

// A pointwise layer has just the pixels it reads, as one long row: tiles need not end with a row.
inline DirectBand direct_band(const Shape& s, const Open& open, int64_t first, int64_t last) {
  const int64_t lanes = std::clamp<int64_t>(open.count(), 1, kLanes);
  if (s.pointwise()) {
    const bool in_place = reads_in_place(s, open);
    const int64_t pixel = in_place ? s.channels : lanes;
    return {{first, last, 1, last - first, lanes}, in_place, pixel, 0, 0, 0};
  }
  const int64_t rows = (last - first - 1) * s.stride_y + (s.kernel_height - 1) * s.dilation_y + 1;
  const int64_t columns = (s.columns - 1) * s.stride_x + (s.kernel_width - 1) * s.dilation_x + 1;
  const int64_t row = columns * lanes;
  return {{first, last, rows, columns, lanes}, false, s.stride_x * lanes, s.stride_y * row,
          s.dilation_y * row, s.dilation_x * lanes};
}

// One product of a row of the kernel: its input, from that of the first, and its weights, likewise.
struct Step {
  int32_t input, weight;
};

constexpr int64_t kAhead = 16;  // steps between the fetching of weights and their use

// All products of a row of the kernel, and `kAhead` of the next row: weights to fetch.
inline void list_steps(const Shape& s, const Open& open, const DirectBand& band,
                       std::vector<Step>& steps) {
  steps.clear();
  for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
    for (int64_t j = 0; j < open.count(); ++j) {
      const int64_t c = open.channels[j];
      const int64_t at = band.in_place ? c : j / band.lanes * band.plane() + j % band.lanes;
      steps.push_back({static_cast<int32_t>(kx * band.tap + at),
                       static_cast<int32_t>((kx * s.channels + c) * kLanes)});
    }
  }
  const size_t count = steps.size();
  const auto row = static_cast<int32_t>(s.kernel_width * s.channels * kLanes);
  for (size_t i = 0; count > 0 && i < kAhead; ++i) steps.push_back({0, row + steps[i].weight});
}

// Where a row of output pixels is: the first one's number, its input, and the kernel rows that meet
// the image and not only its padding.
struct Row {
  int64_t at;
  const float* input;
  int64_t first_tap, last_tap;
};

inline Row row_of(const Shape& s, const DirectBand& band, const float* input, int64_t image,
                  int64_t row) {
  if (s.pointwise()) return {image + band.first, input, 0, 1};
  const int64_t top = row * s.stride_y - s.padding_y;
  int64_t first = 0, last = s.kernel_height;
  while (first < last && top + first * s.dilation_y < 0) ++first;
  while (first < last && top + (last - 1) * s.dilation_y >= s.height) --last;
  return {image + row * s.columns, input + (row - band.first) * band.row, first, last};
}

// What the tiles of a group of blocks of filters share.
struct Group {
  const Shape& s;
  const Operands& a;
  const Open& open;
  const DirectBand& band;
  const std::vector<Step>& steps;
  std::vector<int32_t>& lines;  // of the output of a tile, from its first pixel and filter
  const int32_t* blocks;
  const int32_t* next;   // the blocks after these, or null
  const int32_t* share;  // end of the share of the blocks that these are from
};

// What a tile has fetched for those after it, step by step, lest many wait at once: a block's
// weights, and the lines of an output. Nobody else guesses what gates leave.
struct Errand {
  const float* weight;
  const float* output;
};

// `kPixels` neighbouring pixels of `kBlocks` blocks of filters, from bias to output image.
template <int kPixels, int kBlocks>
void tile(const Group& group, const Row& row, const Errand& errand) {
  const Shape& s = group.s;
  const Operands& a = group.a;
  const int64_t weight_row = s.kernel_width * s.channels * kLanes;
  const int64_t size = s.kernel_height * weight_row;
  const float* weight[kBlocks];
  Vector sums[kPixels][kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    weight[b] = a.weight + group.blocks[b] * size;
    const Vector bias = load(a.bias + group.blocks[b] * kLanes);
#pragma GCC unroll 28
    for (int p = 0; p < kPixels; ++p) sums[p][b] = bias;
  }
  const int32_t* lines = group.lines.data();
  const Step* steps = group.steps.data();
  const int64_t count = static_cast<int64_t>(group.steps.size()) - kAhead;
  const int64_t pixel = group.band.pixel;
  for (int64_t ky = row.first_tap; ky < row.last_tap; ++ky) {
    const float* tap_row = row.input + ky * group.band.tap_row;
    const int64_t first = ky * weight_row;
    for (int64_t i = 0; i < count; ++i) {
      const float* input = tap_row + steps[i].input;
      Vector w[kBlocks];
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b) {
        w[b] = load(weight[b] + first + steps[i].weight);
        __builtin_prefetch(weight[b] + first + steps[i + kAhead].weight);
      }
      __builtin_prefetch(errand.weight + first + steps[i].weight);
      __builtin_prefetch(errand.output + lines[i], 1);
#pragma GCC unroll 28
      for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
        for (int b = 0; b < kBlocks; ++b) sums[p][b] += input[p * pixel] * w[b];
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
    finish<kPixels>(s, a, group.open, group.blocks[b] * kLanes, row.at,
                    [&](int p) { return sums[p][b]; });
}

using Tile = void (*)(const Group&, const Row&, const Errand&);

// By the number of pixels, from 1.
template <int kBlocks>
constexpr auto kTiles =
    one_for_each<kSums / kBlocks>([]<int kPixels>() -> Tile { return tile<kPixels, kBlocks>; });

// The tiles of a row: their number, their pixels, and how many have one more.
struct Across {
  int64_t tiles, pixels, longer;
};

template <int kBlocks>
Across tiles_across(const Shape& s, const DirectBand& band) {
  constexpr int64_t longest = kSums / kBlocks;
  const int64_t length = s.pointwise() ? band.last - band.first : s.columns;
  const int64_t tiles = (length + longest - 1) / longest;
  return {tiles, length / tiles, length % tiles};
}

// Where the lines of a tile's output are; as many as there are steps, at least.
template <int kBlocks>
void list_lines(const Group& group, const int32_t* blocks) {
  const int64_t longest = tiles_across<kBlocks>(group.s, group.band).pixels + 1;
  std::vector<int32_t>& lines = group.lines;
  lines.clear();
  for (int64_t p = 0; p < longest; ++p)
    for (int b = 0; b < kBlocks; ++b)
      lines.push_back(static_cast<int32_t>(p * group.s.filters + (blocks[b] - blocks[0]) * kLanes));
  lines.resize(std::max(lines.size(), group.steps.size()));
}

// A group's tiles, of nearly equal length, row by row. Each has the output of the next one fetched,
// those after the first a block of the next group's weights each: the first waits for its own.
template <int kBlocks>
void run_blocks(const Group& group, const float* input, int64_t image) {
  const Shape& s = group.s;
  const Operands& a = group.a;
  const DirectBand& band = group.band;
  const int64_t rows = s.pointwise() ? 1 : band.last - band.first;
  const Across across = tiles_across<kBlocks>(s, band);
  const int64_t size = s.kernel_height * s.kernel_width * s.channels * kLanes;
  const int64_t start = row_of(s, band, input, image, band.first).at;
  int64_t left = rows * across.tiles, fetched = -1;
  for (int64_t r = band.first; left > 0; ++r) {
    const Row row = row_of(s, band, input, image, r);
    int64_t from = 0;
    for (int64_t t = 0; t < across.tiles; ++t, ++fetched) {
      const int64_t pixels = across.pixels + (t < across.longer);
      const Row part{row.at + from, row.input + from * band.pixel, row.first_tap, row.last_tap};
      from += pixels;
      const bool last = --left == 0;
      const int32_t* after = last && group.next ? group.next : group.blocks;
      if (after == group.next) list_lines<kBlocks>(group, after);
      const bool fetches = group.next && fetched >= 0 && fetched < kBlocks;
      const int32_t block = fetches ? group.next[fetched] : group.blocks[0];
      const int64_t at = last ? start : row.at + from;
      const Errand errand{a.weight + block * size, a.y + at * s.filters + after[0] * kLanes};
      kTiles<kBlocks>[pixels - 1](group, part, errand);
    }
  }
}

// The open blocks `from` … `to` of a band, whose input `input` points at, in groups of `kBlocks`.
// Returns where it ended, behind the last whole group.
template <int kBlocks>
const int32_t* run_groups(Group group, const int32_t* to, const float* input, int64_t image) {
  if (group.blocks + kBlocks <= to) list_lines<kBlocks>(group, group.blocks);
  for (; group.blocks + kBlocks <= to; group.blocks += kBlocks) {
    group.next = group.blocks + 2 * kBlocks <= group.share ? group.blocks + kBlocks : nullptr;
    run_blocks<kBlocks>(group, input, image);
  }
  return group.blocks;
}

// A worker's way through pieces.
class Direct {
 public:
  // `again`: the same rows as just before.
  void run(const Piece& piece, bool again) {
    const Shape& s = piece.s;
    const DirectBand band = direct_band(s, piece.open, piece.first, piece.last);
    if (!again) prepare(piece, band);
    Group group{s, piece.a, piece.open, band, steps_, lines_, piece.from, nullptr, piece.share};
    const int64_t row = s.pointwise() ? band.last - band.first : s.columns;
    if (row <= kSums / 4) group.blocks = run_groups<4>(group, piece.to, input_, piece.output());
    group.blocks = run_groups<2>(group, piece.to, input_, piece.output());
    run_groups<1>(group, piece.to, input_, piece.output());
  }

 private:
  void prepare(const Piece& piece, const DirectBand& band) {
    list_steps(piece.s, piece.open, band, steps_);
    if (band.in_place) {
      input_ = piece.input() + band.first * piece.s.channels;
      return;
    }
    float* packed = packed_.at_least(piece.open.planes() * band.plane());
    pack(piece.s, piece.input(), band, piece.open, packed);
    input_ = packed;
  }

  Buffer packed_;
  std::vector<Step> steps_;
  std::vector<int32_t> lines_;
  const float* input_ = nullptr;
};

}  // namespace gaternet
