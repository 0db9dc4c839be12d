// A convolution that computes only what its gates leave open, sample by sample.
//
//   y[n, o] = activation((y[n, o] +) gate(n, o) · (bias[o] + Σ_{c open} weight[o, c] ∗ x[n, c]))
//
// Images are channels last, filters go in blocks of 16 that fill one vector. A band of output rows
// is one piece of work: its open input channels are copied side by side, zero padding included, and
// each block of filters with an open one in it then runs over tiles of neighbouring pixels whose
// sums stay in registers. Closed channels are never read, closed blocks of filters never computed.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
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
  std::vector<int32_t> channels;  // open input channels, then 16 of the next tap of the kernel
  int64_t count = 0;              // open input channels
  std::vector<int32_t> blocks;    // blocks with an open filter
  std::vector<float> scale;       // (blocks · 16): the gate of each filter, 0 behind the last one
};

inline Open open_parts(const Shape& s, const Operands& a, int64_t n) {
  const float* gates = a.gates + n * a.gate_count;
  Open open;
  open.channels.reserve(s.channels + kLanes);
  for (int64_t c = 0; c < s.channels; ++c) {
    const int32_t gate = a.input_gates[c];
    if (gate < 0 || gates[gate] != 0.f) open.channels.push_back(static_cast<int32_t>(c));
  }
  open.count = static_cast<int64_t>(open.channels.size());
  for (int64_t i = 0; open.count > 0 && i < kLanes; ++i)
    open.channels.push_back(static_cast<int32_t>(s.channels + open.channels[i % open.count]));
  open.scale.assign(s.blocks() * kLanes, 0.f);
  for (int64_t b = 0; b < s.blocks(); ++b) {
    bool any = false;
    for (int64_t o = b * kLanes; o < std::min(s.filters, (b + 1) * kLanes); ++o) {
      const int32_t gate = a.output_gates[o];
      open.scale[o] = gate < 0 ? 1.f : gates[gate];
      any |= open.scale[o] != 0.f;
    }
    if (any) open.blocks.push_back(static_cast<int32_t>(b));
  }
  return open;
}

// Output rows first … last of one sample, with the input they read: packed[channel / 16][row][column][16].
struct Band {
  int64_t first, last;
  int64_t packed_rows, packed_columns;
  int64_t step_y, step_x, reach_y, reach_x;  // in the packed image: stride, and dilation
};

// A pointwise layer packs just the pixels it reads, as one long row: tiles need not end with a row.
inline Band band_of(const Shape& s, int64_t first, int64_t last) {
  if (s.pointwise()) return {first, last, 1, last - first, 1, 1, 1, 1};
  const int64_t rows = (last - first - 1) * s.stride_y + (s.kernel_height - 1) * s.dilation_y + 1;
  const int64_t columns = (s.columns - 1) * s.stride_x + (s.kernel_width - 1) * s.dilation_x + 1;
  return {first, last, rows, columns, s.stride_y, s.stride_x, s.dilation_y, s.dilation_x};
}

// Where a row of output pixels is: the first one's number, its packed input, and the kernel rows
// that meet the image and not only its padding.
struct Row {
  int64_t at;
  const float* packed;
  int64_t first_tap, last_tap;
};

inline Row row_of(const Shape& s, const Band& band, const float* packed, int64_t image, int64_t row) {
  if (s.pointwise()) return {image + band.first, packed, 0, 1};
  const int64_t top = row * s.stride_y - s.padding_y;
  int64_t first = 0, last = s.kernel_height;
  while (first < last && top + first * s.dilation_y < 0) ++first;
  while (first < last && top + (last - 1) * s.dilation_y >= s.height) --last;
  return {image + row * s.columns,
          packed + (row - band.first) * band.step_y * band.packed_columns * kLanes, first, last};
}

// One pixel's open channels, to packed[j / 16][·][·][j % 16].
inline void pack_pixel(const float* pixel, const Open& open, float* to, int64_t plane) {
  const int64_t count = open.count;
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

inline void pack(const Shape& s, const float* image, const Band& band, const Open& open,
                 float* packed) {
  const int64_t plane = band.packed_rows * band.packed_columns * kLanes;
  if (s.pointwise()) {
    for (int64_t q = band.first; q < band.last; ++q) {
      const int64_t y = q / s.columns * s.stride_y, x = q % s.columns * s.stride_x;
      pack_pixel(image + (y * s.width + x) * s.channels, open, packed + (q - band.first) * kLanes,
                 plane);
    }
    return;
  }
  const int64_t planes = (open.count + kLanes - 1) / kLanes;
  const int64_t top = band.first * s.stride_y - s.padding_y;
  for (int64_t row = 0; row < band.packed_rows; ++row) {
    const int64_t y = top + row;
    for (int64_t column = 0; column < band.packed_columns; ++column) {
      const int64_t x = column - s.padding_x;
      float* to = packed + (row * band.packed_columns + column) * kLanes;
      if (y < 0 || y >= s.height || x < 0 || x >= s.width) {
        for (int64_t p = 0; p < planes; ++p) std::memset(to + p * plane, 0, 4 * kLanes);
      } else {
        pack_pixel(image + (y * s.width + x) * s.channels, open, to, plane);
      }
    }
  }
}

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }

// Gate, residual and activation of a row of sums, and to the output image with them.
template <int kPixels, typename Sums>
[[gnu::always_inline]] inline void finish(const Shape& s, const Operands& a, const Open& open,
                                          int64_t filter, int64_t at, Sums sums) {
  const int64_t lanes = std::min(kLanes, s.filters - filter);
  const Vector scale = load(open.scale.data() + filter);
#pragma GCC unroll 28
  for (int p = 0; p < kPixels; ++p) {
    Vector sum = scale != 0.f ? sums(p) * scale : Vector{};  // also where 0 · inf is NaN
    const int64_t to = (at + p) * s.filters + filter;
    if (a.adds) {
      Vector other{};
      if (lanes == kLanes)
        other = load(a.y + to);
      else
        std::memcpy(&other, a.y + to, 4 * lanes);
      sum += other;
    }
    if (a.relu) sum = sum < 0.f ? Vector{} : sum;  // NaN stays, as in PyTorch
    if (lanes == kLanes)
      *reinterpret_cast<Vector*>(a.y + to) = sum;
    else
      std::memcpy(a.y + to, &sum, 4 * lanes);
  }
}

// `kPixels` neighbouring pixels of `kBlocks` blocks of filters, from their bias to the output image.
template <int kPixels, int kBlocks>
void tile(const Shape& s, const Operands& a, const Open& open, const Band& band,
          const int32_t* blocks, const Row& row) {
  const int64_t size = s.kernel_height * s.kernel_width * s.channels * kLanes;
  const float* weight[kBlocks];
  Vector sums[kPixels][kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b) {
    weight[b] = a.weight + blocks[b] * size;
    const Vector bias = load(a.bias + blocks[b] * kLanes);
#pragma GCC unroll 28
    for (int p = 0; p < kPixels; ++p) sums[p][b] = bias;
  }
  for (int p = 0; p < kPixels; ++p) {  // on their way from memory while the sums are made
    const int64_t to = (row.at + p) * s.filters;
    for (int b = 0; b < kBlocks; ++b) __builtin_prefetch(a.y + to + blocks[b] * kLanes, 1);
  }
  const int32_t* channels = open.channels.data();
  const int64_t count = open.count;
  const int64_t plane = band.packed_rows * band.packed_columns * kLanes;
  const int64_t step = band.step_x * kLanes;
  for (int64_t ky = row.first_tap; ky < row.last_tap; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_width; ++kx) {
      const float* pixels =
          row.packed + (ky * band.reach_y * band.packed_columns + kx * band.reach_x) * kLanes;
      const int64_t offset = (ky * s.kernel_width + kx) * s.channels * kLanes;
      for (int64_t j = 0; j < count; j += kLanes, pixels += plane) {
        const int64_t lanes = std::min(kLanes, count - j);
        for (int64_t i = 0; i < lanes; ++i) {
          const int64_t filters = offset + channels[j + i] * kLanes;
          Vector w[kBlocks];
#pragma GCC unroll 4
          for (int b = 0; b < kBlocks; ++b) {
            w[b] = load(weight[b] + filters);
            // Behind closed channels the processor does not guess what comes next.
            __builtin_prefetch(weight[b] + offset + channels[j + i + kLanes] * kLanes);
          }
#pragma GCC unroll 28
          for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
            for (int b = 0; b < kBlocks; ++b) sums[p][b] += pixels[p * step + i] * w[b];
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
    finish<kPixels>(s, a, open, blocks[b] * kLanes, row.at, [&](int p) { return sums[p][b]; });
}

using Tile = void (*)(const Shape&, const Operands&, const Open&, const Band&, const int32_t*,
                      const Row&);

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

// A row of pixels in tiles of nearly equal length, for `kBlocks` blocks at a time.
template <int kBlocks>
void run_row(const Shape& s, const Operands& a, const Open& open, const Band& band,
             const int32_t* blocks, const Row& row, int64_t length) {
  constexpr int64_t longest = kSums / kBlocks;
  const int64_t count = (length + longest - 1) / longest;
  int64_t from = 0;
  for (int64_t t = 1; t <= count; ++t) {
    const int64_t to = length * t / count;
    const Row part{row.at + from, row.packed + from * band.step_x * kLanes, row.first_tap,
                   row.last_tap};
    tiles<kBlocks>()[to - from - 1](s, a, open, band, blocks, part);
    from = to;
  }
}

// What closed blocks of filters leave: zeros, or the residual as the activation lets it through.
inline void fill_closed(const Shape& s, const Operands& a, const Open& open, int64_t from, int64_t to) {
  const bool kept = a.adds && (a.rectified || !a.relu);
  if (kept || static_cast<int64_t>(open.blocks.size()) == s.blocks()) return;
  auto next = open.blocks.begin();
  for (int64_t b = 0; b < s.blocks(); ++b) {
    if (next != open.blocks.end() && *next == b) {
      ++next;
      continue;
    }
    const int64_t lanes = std::min(kLanes, s.filters - b * kLanes);
    for (int64_t q = from; q < to; ++q) {
      float* y = a.y + q * s.filters + b * kLanes;
      for (int64_t i = 0; i < lanes; ++i) y[i] = a.adds ? std::max(y[i], 0.f) : 0.f;
    }
  }
}

template <int kBlocks>
void run_blocks(const Shape& s, const Operands& a, const Open& open, const Band& band,
                const float* packed, const int32_t* blocks, int64_t image) {
  const int64_t rows = s.pointwise() ? 1 : band.last - band.first;
  const int64_t length = s.pointwise() ? band.last - band.first : s.columns;
  for (int64_t row = band.first; row < band.first + rows; ++row)
    run_row<kBlocks>(s, a, open, band, blocks, row_of(s, band, packed, image, row), length);
}

// Open blocks number `from` … `to` of a band.
inline void run_band(const Shape& s, const Operands& a, const Open& open, const Band& band,
                     const float* packed, int64_t from, int64_t to, int64_t image) {
  const int64_t row = s.pointwise() ? band.last - band.first : s.columns;
  const int32_t* blocks = open.blocks.data();
  if (row <= kSums / 4)
    for (; from + 4 <= to; from += 4) run_blocks<4>(s, a, open, band, packed, blocks + from, image);
  for (; from + 2 <= to; from += 2) run_blocks<2>(s, a, open, band, packed, blocks + from, image);
  for (; from < to; ++from) run_blocks<1>(s, a, open, band, packed, blocks + from, image);
}

// How a layer is cut into pieces: bands of rows (of pixels, if pointwise), and groups of blocks.
struct Cut {
  int64_t rows;    // of the whole image, in the unit of bands
  int64_t band;    // rows a band
  int64_t bands, groups;
};

constexpr int64_t kPackedBytes = 384 << 10;  // a band's input: it shares the second-level cache

inline Cut cut(const Shape& s, int64_t workers) {
  const int64_t rows = s.pointwise() ? s.rows * s.columns : s.rows;
  const int64_t pixel = s.channels * 4;
  const int64_t row = s.pointwise() ? pixel : s.columns * s.stride_x * s.stride_y * pixel;
  int64_t band = std::max<int64_t>(kPackedBytes / row, 1);
  int64_t groups = 1;
  if (s.batch < workers) {
    const int64_t weights = s.blocks() * kLanes * s.channels * s.kernel_height * s.kernel_width;
    const int64_t image = s.height * s.width * s.channels;
    if (weights > image) {
      groups = std::min(2 * workers, (s.blocks() + 3) / 4);
    } else {
      band = std::min(band, (rows + 2 * workers - 1) / (2 * workers));
    }
  }
  if (s.pointwise()) band = (band + kLongestTile - 1) / kLongestTile * kLongestTile;
  band = std::min(band, rows);
  const int64_t bands = (rows + band - 1) / band;
  return {rows, (rows + bands - 1) / bands, bands, groups};
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

inline void gated_conv2d(const Shape& s, const Operands& a, int64_t workers,
                         const Parallel& parallel) {
  std::vector<Open> open(s.batch);
  for (int64_t n = 0; n < s.batch; ++n) open[n] = open_parts(s, a, n);
  const Cut c = cut(s, workers);
  const int64_t pieces = s.batch * c.bands * c.groups;
  std::atomic<int64_t> next{0};
  parallel(std::min(workers, pieces), [&](int64_t) {
    thread_local Buffer buffer;
    float* packed = nullptr;
    int64_t packed_for = -1;
    for (int64_t piece = next++; piece < pieces; piece = next++) {
      const int64_t which = piece / c.groups, group = piece % c.groups;
      const int64_t n = which / c.bands, first = which % c.bands * c.band;
      const int64_t last = std::min(first + c.band, c.rows);
      if (first >= last) continue;
      const Open& left = open[n];
      const int64_t pixels = s.pointwise() ? 1 : s.columns;
      const int64_t image = n * s.rows * s.columns;
      if (group == 0) fill_closed(s, a, left, image + first * pixels, image + last * pixels);
      const int64_t blocks = static_cast<int64_t>(left.blocks.size());
      const int64_t from = blocks * group / c.groups, to = blocks * (group + 1) / c.groups;
      if (from == to) continue;
      const Band band = band_of(s, first, last);
      if (which != packed_for) {
        const int64_t planes = (left.count + kLanes - 1) / kLanes;
        const size_t size = planes * band.packed_rows * band.packed_columns * kLanes;
        packed = buffer.at_least(size);
        pack(s, a.x + n * s.height * s.width * s.channels, band, left, packed);
        packed_for = which;
      }
      run_band(s, a, left, band, packed, from, to, image);
    }
  });
}

}  // namespace gaternet
