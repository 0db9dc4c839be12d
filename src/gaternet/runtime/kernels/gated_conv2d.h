// A convolution that computes only what its gates leave open, sample by sample.
//
//   y[n, o] = activation((y[n, o] +) gate(n, o) · (bias[o] + Σ_{c open} weight[o, c] ∗ x[n, c]))
//
// Images are channels last, filters go in blocks of 16 that fill one vector. A band of output rows
// is one piece of work: its open input channels are copied side by side, zero padding included
// (some pointwise layers read the image itself), and each block of filters with an open one in it
// then runs over tiles of neighbouring pixels whose sums stay in registers. Closed channels are
// never read, closed blocks of filters never computed.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace gaternet {

constexpr int64_t kLanes = 16;  // filters in a block
using Vector = float __attribute__((vector_size(4 * kLanes), aligned(4)));

// Sums that a tile keeps in registers, in vectors of 16; the rest holds weights and pixels.
#if defined(__AVX512F__)
constexpr int kSums = 28;
#elif defined(__ARM_NEON)
constexpr int kSums = 6;
#else
constexpr int kSums = 6;
#endif
constexpr int kLongestTile = kSums / 2;  // pixels, with two blocks of filters

struct Shape {
  int64_t batch, channels, height, width;       // of the input
  int64_t filters, rows, columns;               // of the output
  int64_t kernel_height, kernel_width;
  int64_t stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x;

  int64_t blocks() const { return (filters + kLanes - 1) / kLanes; }
  bool pointwise() const {
    return kernel_height == 1 && kernel_width == 1 && padding_y == 0 && padding_x == 0;
  }
};

struct Operands {
  const float* x;         // (N, H, W, C)
  const float* weight;    // (blocks, kernel height, kernel width, C, 16)
  const float* bias;      // (blocks · 16)
  const float* gates;     // (N, G)
  const int32_t* input_gates;   // (C): column of the gates, or -1
  const int32_t* output_gates;  // (filters)
  int64_t gate_count;
  bool relu;
  bool adds;              // to what is in y, a residual
  bool rectified;         // what is in y is not negative
  float* y;               // (N, rows, columns, filters)
};

// What one sample's gates leave of a layer.
struct Open {
  std::vector<int32_t> channels;        // open input channels
  std::vector<int32_t> blocks, closed;  // blocks with an open filter, and the others
  std::vector<float> scale;             // (blocks · 16): each filter's gate, 0 behind the last one

  int64_t count() const { return static_cast<int64_t>(channels.size()); }
  int64_t planes() const { return (count() + kLanes - 1) / kLanes; }
};

inline Open open_parts(const Shape& s, const Operands& a, int64_t n) {
  const float* gates = a.gates + n * a.gate_count;
  Open open;
  open.channels.reserve(s.channels);
  for (int64_t c = 0; c < s.channels; ++c) {
    const int32_t gate = a.input_gates[c];
    if (gate < 0 || gates[gate] != 0.f) open.channels.push_back(static_cast<int32_t>(c));
  }
  open.scale.assign(s.blocks() * kLanes, 0.f);
  for (int64_t b = 0; b < s.blocks(); ++b) {
    bool any = false;
    for (int64_t o = b * kLanes; o < std::min(s.filters, (b + 1) * kLanes); ++o) {
      const int32_t gate = a.output_gates[o];
      open.scale[o] = gate < 0 ? 1.f : gates[gate];
      any |= open.scale[o] != 0.f;
    }
    (any ? open.blocks : open.closed).push_back(static_cast<int32_t>(b));
  }
  return open;
}

// Output rows first … last of one sample, and the input that they read: the image itself, or a copy,
// packed[channel / lanes][row][column][lanes], 16 lanes or fewer. Distances in it are in floats.
struct Band {
  int64_t first, last;
  bool direct;
  int64_t packed_rows, packed_columns, lanes;
  int64_t pixel, row;    // from an output pixel to the next, from an output row to the next
  int64_t tap_row, tap;  // from a row of the kernel to the next, from a tap in it to the next

  int64_t plane() const { return packed_rows * packed_columns * lanes; }
};

// A copy is worth it where many blocks of filters read it, and where pixels lie a multiple of 4 KiB
// apart: those drive each other out of the nearest cache.
constexpr int64_t kDirectBlocks = 8;
constexpr int64_t kDirectChannels = 512;

inline bool reads_directly(const Shape& s, const Open& open) {
  return s.pointwise() && s.stride_y == 1 && s.stride_x == 1 && s.channels <= kDirectChannels &&
         static_cast<int64_t>(open.blocks.size()) <= kDirectBlocks;
}

// A pointwise layer has just the pixels it reads, as one long row: tiles need not end with a row.
inline Band band_of(const Shape& s, const Open& open, int64_t first, int64_t last) {
  const int64_t lanes = std::clamp<int64_t>(open.count(), 1, kLanes);
  if (s.pointwise()) {
    const bool direct = reads_directly(s, open);
    return {first, last, direct, 1, last - first, lanes, direct ? s.channels : lanes, 0, 0, 0};
  }
  const int64_t rows = (last - first - 1) * s.stride_y + (s.kernel_height - 1) * s.dilation_y + 1;
  const int64_t columns = (s.columns - 1) * s.stride_x + (s.kernel_width - 1) * s.dilation_x + 1;
  const int64_t row = columns * lanes;
  return {first, last, false, rows, columns, lanes, s.stride_x * lanes, s.stride_y * row,
          s.dilation_y * row, s.dilation_x * lanes};
}

// One product of a row of the kernel: its input, from that of the first, and its weights, likewise.
struct Step {
  int32_t input, weight;
};

constexpr int64_t kAhead = 16;  // steps between the fetching of weights and their use

// All products of a row of the kernel, and `kAhead` of the next row: weights to fetch.
inline void list_steps(const Shape& s, const Open& open, const Band& band, std::vector<Step>& steps) {
  steps.clear();
  for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
    for (int64_t j = 0; j < open.count(); ++j) {
      const int64_t c = open.channels[j];
      const int64_t at = band.direct ? c : j / band.lanes * band.plane() + j % band.lanes;
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

inline Row row_of(const Shape& s, const Band& band, const float* input, int64_t image, int64_t row) {
  if (s.pointwise()) return {image + band.first, input, 0, 1};
  const int64_t top = row * s.stride_y - s.padding_y;
  int64_t first = 0, last = s.kernel_height;
  while (first < last && top + first * s.dilation_y < 0) ++first;
  while (first < last && top + (last - 1) * s.dilation_y >= s.height) --last;
  return {image + row * s.columns, input + (row - band.first) * band.row, first, last};
}

// One pixel's open channels, to packed[j / 16][·][·][j % 16].
inline void pack_pixel(const float* pixel, const Open& open, float* to, int64_t plane) {
  const int64_t count = open.count();
  const int32_t* c = open.channels.data();
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes, to += plane) {
    if (c[j + kLanes - 1] - c[j] == kLanes - 1) {
      *reinterpret_cast<Vector*>(to) = *reinterpret_cast<const Vector*>(pixel + c[j]);
    } else {
      for (int64_t i = 0; i < kLanes; ++i) to[i] = pixel[c[j + i]];
    }
  }
  for (int64_t i = 0; j + i < count; ++i) to[i] = pixel[c[j + i]];
}

// The open channels of what a band reads, side by side; returns where they are.
inline const float* pack(const Shape& s, const float* image, const Band& band, const Open& open,
                         float* packed) {
  const int64_t plane = band.plane(), lanes = band.lanes;
  if (s.pointwise()) {
    for (int64_t q = band.first; q < band.last; ++q) {
      const int64_t y = q / s.columns * s.stride_y, x = q % s.columns * s.stride_x;
      pack_pixel(image + (y * s.width + x) * s.channels, open, packed + (q - band.first) * lanes,
                 plane);
    }
    return packed;
  }
  const bool as_it_is = open.count() == s.channels && s.channels == lanes;
  const int64_t left = std::min(s.padding_x, band.packed_columns);  // columns that are padding
  const int64_t right = std::clamp(s.padding_x + s.width, left, band.packed_columns);
  const auto pad = [&](float* row, int64_t from, int64_t to) {
    for (int64_t p = 0; p < open.planes() && from < to; ++p)
      std::memset(row + p * plane + from * lanes, 0, 4 * lanes * (to - from));
  };
  for (int64_t i = 0; i < band.packed_rows; ++i) {
    const int64_t y = band.first * s.stride_y - s.padding_y + i;
    float* row = packed + i * band.packed_columns * lanes;
    if (y < 0 || y >= s.height) {
      pad(row, 0, band.packed_columns);
      continue;
    }
    const float* from = image + y * s.width * s.channels;
    pad(row, 0, left);
    if (as_it_is)
      std::memcpy(row + left * lanes, from, 4 * lanes * (right - left));
    else
      for (int64_t column = left; column < right; ++column)
        pack_pixel(from + (column - left) * s.channels, open, row + column * lanes, plane);
    pad(row, right, band.packed_columns);
  }
  return packed;
}

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, const Vector& value) { *reinterpret_cast<Vector*>(to) = value; }

// The same for the last filters, which may not fill a block.
[[gnu::always_inline]] inline Vector load_lanes(const float* from, int64_t lanes) {
  if (lanes >= kLanes) return load(from);
  Vector value{};
  std::memcpy(&value, from, 4 * lanes);
  return value;
}

[[gnu::always_inline]] inline void store_lanes(float* to, const Vector& value, int64_t lanes) {
  if (lanes >= kLanes)
    store(to, value);
  else
    std::memcpy(to, &value, 4 * lanes);
}

// The activation: max(value, least), where NaN stays, as in PyTorch.
[[gnu::always_inline]] inline Vector activated(const Vector& value, const Vector& least) {
  return value < least ? least : value;
}

// Gate, residual and activation of a row of sums, and to the output image with them.
template <int kPixels, bool kAdds, typename Sums>
[[gnu::always_inline]] inline void finish(float* to, int64_t pixel, const Vector& scale,
                                          const Vector& least, Sums sums) {
#pragma GCC unroll 28
  for (int p = 0; p < kPixels; ++p) {
    Vector sum = scale != 0.f ? sums(p) * scale : Vector{};  // also where 0 · inf is NaN
    if (kAdds) sum += load(to + p * pixel);
    store(to + p * pixel, activated(sum, least));
  }
}

template <int kPixels, typename Sums>
[[gnu::always_inline]] inline void finish(const Shape& s, const Operands& a, const Open& open,
                                          int64_t filter, int64_t at, Sums sums) {
  const Vector scale = load(open.scale.data() + filter);
  const Vector least = Vector{} + (a.relu ? 0.f : -std::numeric_limits<float>::infinity());
  float* to = a.y + at * s.filters + filter;
  const int64_t lanes = s.filters - filter;
  if (lanes >= kLanes) {
    if (a.adds)
      finish<kPixels, true>(to, s.filters, scale, least, sums);
    else
      finish<kPixels, false>(to, s.filters, scale, least, sums);
    return;
  }
#pragma GCC unroll 28
  for (int p = 0; p < kPixels; ++p) {
    Vector sum = scale != 0.f ? sums(p) * scale : Vector{};
    if (a.adds) sum += load_lanes(to + p * s.filters, lanes);
    store_lanes(to + p * s.filters, activated(sum, least), lanes);
  }
}

// What the tiles of a group of blocks of filters share.
struct Group {
  const Shape& s;
  const Operands& a;
  const Open& open;
  const Band& band;
  const std::vector<Step>& steps;
  std::vector<int32_t>& lines;  // of the output of a tile, from its first pixel and filter
  const int32_t* blocks;
  const int32_t* next;   // the blocks after these, or null
  const int32_t* share;  // end of the blocks that are this worker's own
};

// What a tile has fetched for those after it, step by step, lest many wait at once: a block's
// weights, and the lines of an output. Nobody else guesses what gates leave.
struct Errand {
  const float* weight;
  const float* output;
};

// `kPixels` neighbouring pixels of `kBlocks` blocks of filters, from their bias to the output image.
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

template <int kBlocks, int... kPixels>
constexpr std::array<Tile, sizeof...(kPixels)> tiles_of(std::integer_sequence<int, kPixels...>) {
  return {tile<kPixels + 1, kBlocks>...};
}

template <int kBlocks>
const std::array<Tile, kSums / kBlocks>& tiles() {
  static constexpr auto table =
      tiles_of<kBlocks>(std::make_integer_sequence<int, kSums / kBlocks>{});
  return table;
}

// What closed blocks of filters leave: zeros, or the residual as the activation lets it through.
inline void fill_closed(const Shape& s, const Operands& a, const Open& open, int64_t from, int64_t to) {
  const bool kept = a.adds && (a.rectified || !a.relu);
  if (kept || open.closed.empty()) return;
  for (int64_t q = from; q < to; ++q) {
    for (const int64_t b : open.closed) {
      float* y = a.y + q * s.filters + b * kLanes;
      const int64_t lanes = s.filters - b * kLanes;
      store_lanes(y, a.adds ? activated(load_lanes(y, lanes), Vector{}) : Vector{}, lanes);
    }
  }
}

// The tiles of a row: their number, their pixels, and how many have one more.
struct Across {
  int64_t tiles, pixels, longer;
};

template <int kBlocks>
Across tiles_across(const Shape& s, const Band& band) {
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
  const Band& band = group.band;
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
      tiles<kBlocks>()[pixels - 1](group, part, errand);
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

// Open blocks number `from` … `to` of a band.
inline void run_band(Group group, const float* input, int64_t from, int64_t to, int64_t image) {
  const Band& band = group.band;
  const int64_t row = group.s.pointwise() ? band.last - band.first : group.s.columns;
  const int32_t* end = group.open.blocks.data() + to;
  group.blocks = group.open.blocks.data() + from;
  if (row <= kSums / 4) group.blocks = run_groups<4>(group, end, input, image);
  group.blocks = run_groups<2>(group, end, input, image);
  run_groups<1>(group, end, input, image);
}

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
// further away. Shares are the better cut where weights outnumber what is read and written so often.
constexpr int64_t kWeighty = 3;

inline Cut cut(const Shape& s, int64_t workers) {
  const int64_t rows = s.pointwise() ? s.rows * s.columns : s.rows;
  const int64_t unit = s.pointwise() ? kLongestTile : 1;
  const int64_t units = (rows + unit - 1) / unit;
  const int64_t pixels = s.pointwise() ? unit : s.columns * s.stride_x * s.stride_y;
  const int64_t largest = std::max<int64_t>(kPackedBytes / (4 * s.channels * pixels), 1);
  const int64_t bands = (units + largest - 1) / largest;
  if (s.batch >= workers) return {rows, unit, bands, 1, 1};
  const int64_t weights = s.blocks() * kLanes * s.channels * s.kernel_height * s.kernel_width;
  const int64_t images = s.height * s.width * s.channels + s.rows * s.columns * s.filters;
  if (weights > kWeighty * images)
    return {rows, unit, bands, std::min(workers, (s.blocks() + 3) / 4), 4};
  const int64_t each = (bands + workers - 1) / workers;
  return {rows, unit, std::min(units, each * workers), 1, 1};
}

// Memory for packed images that grows as need be; a vector's own would not begin with a cache line.
class Buffer {
 public:
  float* at_least(size_t floats) {
    if (floats > size_) {
      const size_t bytes = (4 * floats + kLine - 1) / kLine * kLine;
      data_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_.get();
  }

 private:
  static constexpr size_t kLine = 64;
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

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
    thread_local Buffer buffer;
    thread_local std::vector<Step> steps;
    thread_local std::vector<int32_t> lines;
    const float* input = nullptr;
    int64_t prepared = -1;
    pieces.each(worker, [&](int64_t piece) {
      const int64_t part = piece % c.parts, b = piece / c.parts % c.bands;
      const int64_t share = piece / c.parts / c.bands % c.shares, n = piece / c.pieces();
      const auto [first, last] = c.band(b);
      const Open& left = open[n];
      const int64_t pixels = s.pointwise() ? 1 : s.columns;
      const int64_t image = n * s.rows * s.columns;
      if (share == 0 && part == 0)
        fill_closed(s, a, left, image + first * pixels, image + last * pixels);
      const auto [from, to, end] = c.blocks(share, part, static_cast<int64_t>(left.blocks.size()));
      if (from == to) return;
      const Band band = band_of(s, left, first, last);
      if (n * c.bands + b != prepared) {
        prepared = n * c.bands + b;
        const float* whole = a.x + n * s.height * s.width * s.channels;
        list_steps(s, left, band, steps);
        input = band.direct ? whole + first * s.channels
                            : pack(s, whole, band, left, buffer.at_least(left.planes() * band.plane()));
      }
      const int32_t* own = left.blocks.data() + end;
      run_band({s, a, left, band, steps, lines, nullptr, nullptr, own}, input, from, to, image);
    });
  });
}

}  // namespace gaternet
