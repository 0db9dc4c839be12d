// A layer of gated filters: its operands, what gates leave of them, and what all ways to compute it
// begin and end with, packing open channels side by side and finishing sums.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace gaternet {

constexpr int64_t kLanes = 16;  // filters in a block
using Vector = float __attribute__((vector_size(4 * kLanes), aligned(4)));

// Sums that are kept in registers, in vectors of 16; the rest holds weights and pixels.
#if defined(__AVX512F__)
constexpr int kSums = 28;
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

// Output rows first … last of one sample (pixels, if pointwise), and a copy of the input they read,
// packed[channel / lanes][row][column][lanes], 16 lanes or fewer.
struct Band {
  int64_t first, last;
  int64_t packed_rows, packed_columns, lanes;

  int64_t plane() const { return packed_rows * packed_columns * lanes; }  // in floats
};

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

// The open channels of what a band reads, side by side.
inline void pack(const Shape& s, const float* image, const Band& band, const Open& open,
                 float* packed) {
  const int64_t plane = band.plane(), lanes = band.lanes;
  if (s.pointwise()) {
    for (int64_t q = band.first; q < band.last; ++q) {
      const int64_t y = q / s.columns * s.stride_y, x = q % s.columns * s.stride_x;
      pack_pixel(image + (y * s.width + x) * s.channels, open, packed + (q - band.first) * lanes,
                 plane);
    }
    return;
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

// What closed blocks of filters leave: zeros, or the residual as the activation lets it through.
inline void fill_closed(const Shape& s, const Operands& a, const Open& open, int64_t from,
                        int64_t to) {
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

// A piece of work: rows first … last of an image, and some of its open blocks of filters.
struct Piece {
  const Shape& s;
  const Operands& a;
  const Open& open;
  int64_t image, first, last;
  const int32_t *from, *to;  // the blocks
  const int32_t* share;      // end of the share of the blocks that these are from

  const float* input() const { return a.x + image * s.height * s.width * s.channels; }
  int64_t output() const { return image * s.rows * s.columns; }  // the image's first pixel
};

// Memory for packed images that grows as need be; a vector's own would not begin with a cache line.
class Buffer {
 public:
  float* at_least(size_t floats) {
    if (floats > size_) {
      size_ = 0;  // also if there is no memory
      const size_t bytes = (4 * floats + kLine - 1) / kLine * kLine;
      data_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_.get();
  }

  const float* data() const { return data_.get(); }

 private:
  static constexpr size_t kLine = 64;
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  std::unique_ptr<float, Free> data_;
  size_t size_ = 0;
};

// What a function with a number for a template argument returns for 1 … kCount.
template <int kCount, typename Function>
constexpr auto one_for_each(Function function) {
  return [&]<int... kNumbers>(std::integer_sequence<int, kNumbers...>) {
    return std::array{function.template operator()<kNumbers + 1>()...};
  }(std::make_integer_sequence<int, kCount>{});
}

}  // namespace gaternet
