// The CPU implementation of the operator gaternet::gated_conv2d; its schema is in operator.py.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "gated_conv2d.h"

namespace {

using at::Tensor;

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

bool are_gates(const Tensor& named, int64_t channels, int64_t count) {
  if (named.scalar_type() != at::kInt || named.dim() != 1 || named.numel() != channels) return false;
  const Tensor own = named.contiguous();
  const int32_t* gate = own.const_data_ptr<int32_t>();
  return std::all_of(gate, gate + channels, [&](int32_t g) { return g >= -1 && g < count; });
}

// How far a kernel of this size goes over an image: the number of output pixels, 0 if it is larger.
int64_t steps(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

gaternet::Shape shape_of(const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const Tensor& gates, const Tensor& input_gates, const Tensor& output_gates,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  for (const Tensor* t : {&x, &weight, &bias, &gates})
    TORCH_CHECK(t->scalar_type() == at::kFloat, "x, weight, bias and gates must be float32");
  for (const Tensor* t : {&weight, &bias, &gates, &input_gates, &output_gates})
    TORCH_CHECK(t->device().is_cpu(), "all tensors must be on the CPU, as x is");
  TORCH_CHECK(x.dim() == 4 && x.size(1) > 0, "x must be (N, C, H, W), is ", x.sizes());
  TORCH_CHECK(weight.dim() == 5 && weight.size(3) == x.size(1) && weight.size(4) == gaternet::kLanes &&
                  weight.size(1) > 0 && weight.size(2) > 0,
              "weight must be packed, (blocks, KH, KW, ", x.size(1), ", 16), is ", weight.sizes());
  TORCH_CHECK(gates.dim() == 2 && gates.size(0) == x.size(0),
              "gates must be (N, G) for ", x.size(0), " images, are ", gates.sizes());
  TORCH_CHECK(are_gates(input_gates, x.size(1), gates.size(1)) &&
                  are_gates(output_gates, output_gates.numel(), gates.size(1)),
              "input_gates (C,) and output_gates (O,) name a column of the gates for each channel, "
              "or -1, in int32");
  TORCH_CHECK(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2 &&
                  std::min({stride[0], stride[1], dilation[0], dilation[1]}) > 0 &&
                  std::min(padding[0], padding[1]) >= 0,
              "stride and dilation are two positive numbers each, padding two that are not negative");
  gaternet::Shape s{};
  s.batch = x.size(0), s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
  s.filters = output_gates.numel();
  s.kernel_height = weight.size(1), s.kernel_width = weight.size(2);
  s.stride_y = stride[0], s.stride_x = stride[1];
  s.padding_y = padding[0], s.padding_x = padding[1];
  s.dilation_y = dilation[0], s.dilation_x = dilation[1];
  s.rows = steps(s.height, s.kernel_height, s.stride_y, s.padding_y, s.dilation_y);
  s.columns = steps(s.width, s.kernel_width, s.stride_x, s.padding_x, s.dilation_x);
  TORCH_CHECK(weight.size(0) == s.blocks() && bias.dim() == 1 &&
                  bias.numel() == s.blocks() * gaternet::kLanes,
              "weight and bias must be packed for ", s.filters, " filters");
  TORCH_CHECK(s.rows > 0 && s.columns > 0, "an image ", x.sizes(), " is smaller than the kernel");
  return s;
}

void run(const gaternet::Shape& s, gaternet::Operands operands, const Tensor& x, const Tensor& weight,
         const Tensor& bias, const Tensor& gates, const Tensor& input_gates,
         const Tensor& output_gates) {
  const Tensor image = x.contiguous(kLayout), filters = weight.contiguous();
  const Tensor offset = bias.contiguous(), open = gates.contiguous();
  const Tensor inputs = input_gates.contiguous(), outputs = output_gates.contiguous();
  operands.x = image.const_data_ptr<float>();
  operands.weight = filters.const_data_ptr<float>();
  operands.bias = offset.const_data_ptr<float>();
  operands.gates = open.const_data_ptr<float>();
  operands.input_gates = inputs.const_data_ptr<int32_t>();
  operands.output_gates = outputs.const_data_ptr<int32_t>();
  operands.gate_count = open.size(1);
  gaternet::gated_conv2d(s, operands, at::get_num_threads(), [](int64_t workers, const auto& work) {
    at::parallel_for(0, workers, 1, [&](int64_t from, int64_t to) {
      for (int64_t worker = from; worker < to; ++worker) work(worker);
    });
  });
}

Tensor gated_conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                    const Tensor& input_gates, const Tensor& output_gates, at::IntArrayRef stride,
                    at::IntArrayRef padding, at::IntArrayRef dilation, bool relu) {
  const auto s = shape_of(x, weight, bias, gates, input_gates, output_gates, stride, padding, dilation);
  Tensor y = at::empty({s.batch, s.filters, s.rows, s.columns}, x.options().memory_format(kLayout));
  gaternet::Operands operands{};
  operands.relu = relu;
  operands.y = y.mutable_data_ptr<float>();
  run(s, operands, x, weight, bias, gates, input_gates, output_gates);
  return y;
}

void gated_conv2d_add_(Tensor& y, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       const Tensor& gates, const Tensor& input_gates, const Tensor& output_gates,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                       bool relu, bool rectified) {
  const auto s = shape_of(x, weight, bias, gates, input_gates, output_gates, stride, padding, dilation);
  TORCH_CHECK(y.sizes() == at::IntArrayRef({s.batch, s.filters, s.rows, s.columns}) &&
                  y.scalar_type() == at::kFloat,
              "y must be float32 and of the shape of the output");
  at::assert_no_overlap(y, x);
  const Tensor sum = y.contiguous(kLayout);
  gaternet::Operands operands{};
  operands.relu = relu;
  operands.adds = true;
  operands.rectified = rectified;
  operands.y = sum.mutable_data_ptr<float>();
  run(s, operands, x, weight, bias, gates, input_gates, output_gates);
  if (!sum.is_same(y)) y.copy_(sum);
}

// A step of a chain, in the numbers that spell it; what it reads and adds to are values: images that
// are given, then what each step made.
constexpr int64_t kNumbers = 10, kParameters = 4;

struct Step {
  const int64_t* number;

  int64_t given() const { return number[0]; }
  int64_t residual() const { return number[1]; }  // -1: none
  bool relu() const { return number[2] != 0; }
  bool rectified() const { return number[3] != 0; }
  at::IntArrayRef stride() const { return {number + 4, 2}; }
  at::IntArrayRef padding() const { return {number + 6, 2}; }
  at::IntArrayRef dilation() const { return {number + 8, 2}; }
};

std::vector<Tensor> gated_conv2d_chain(at::TensorList images, const Tensor& gates,
                                       at::TensorList parameters, at::IntArrayRef steps,
                                       at::IntArrayRef kept) {
  const int64_t first = images.size(), count = steps.size() / kNumbers;
  TORCH_CHECK(static_cast<int64_t>(steps.size()) == count * kNumbers &&
                  static_cast<int64_t>(parameters.size()) == count * kParameters,
              "a step has 10 numbers and 4 parameters");
  const auto step = [&](int64_t i) { return Step{steps.data() + kNumbers * i}; };
  std::vector<int64_t> last(first + count, -1);  // the step that reads a value last
  std::vector<bool> there(first + count, true);  // and not overwritten
  for (int64_t i = 0; i < count; ++i) {
    const int64_t given = step(i).given(), residual = step(i).residual();
    TORCH_CHECK(given >= 0 && given < first + i && there[given], "step ", i,
                " reads what is not there");
    TORCH_CHECK(residual == -1 || (residual >= first && residual < first + i && there[residual]),
                "step ", i, " adds to what no earlier step made");
    last[given] = i;
    if (residual == -1) continue;
    last[residual] = i;
    there[residual] = false;
  }
  for (const int64_t i : kept) {
    TORCH_CHECK(i >= 0 && i < count && there[first + i], "there is no step ", i, " to keep");
    last[first + i] = count;
  }
  std::vector<Tensor> values(images.begin(), images.end());
  values.resize(first + count);
  for (int64_t i = 0; i < count; ++i) {
    const Step s = step(i);
    const Tensor *own = parameters.data() + kParameters * i, &x = values[s.given()];
    Tensor& y = values[first + i];
    if (s.residual() == -1) {
      y = gated_conv2d(x, own[0], own[1], gates, own[2], own[3], s.stride(), s.padding(),
                       s.dilation(), s.relu());
    } else {
      y = values[s.residual()];
      gated_conv2d_add_(y, x, own[0], own[1], gates, own[2], own[3], s.stride(), s.padding(),
                        s.dilation(), s.relu(), s.rectified());
    }
    for (const int64_t value : {s.given(), s.residual()})
      if (value != -1 && last[value] == i) values[value].reset();
  }
  std::vector<Tensor> found;
  for (const int64_t i : kept) found.push_back(values[first + i]);
  return found;
}

}  // namespace

TORCH_LIBRARY_IMPL(gaternet, CPU, m) {
  m.impl("gated_conv2d", &gated_conv2d);
  m.impl("gated_conv2d_add_", &gated_conv2d_add_);
  m.impl("gated_conv2d_chain", &gated_conv2d_chain);
}
