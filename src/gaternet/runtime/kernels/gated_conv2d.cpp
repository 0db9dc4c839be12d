// The CPU implementation of the operator gaternet::gated_conv2d; its schema is in operator.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "gated_conv2d.h"

namespace {

using at::Tensor;

constexpr auto kLayout = at::MemoryFormat::ChannelsLast;

gaternet::Shape shape_of(const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const Tensor& gates, const Tensor& input_gates, const Tensor& output_gates,
                         at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation) {
  TORCH_CHECK(x.dim() == 4 && x.scalar_type() == at::kFloat, "x must be float32 (N, C, H, W)");
  TORCH_CHECK(weight.dim() == 5 && weight.size(3) == x.size(1) && weight.size(4) == gaternet::kLanes,
              "the packed weight is of another number of input channels");
  TORCH_CHECK(weight.scalar_type() == at::kFloat && bias.scalar_type() == at::kFloat &&
                  gates.scalar_type() == at::kFloat,
              "weight, bias and gates must be float32");
  TORCH_CHECK(gates.dim() == 2 && gates.size(0) == x.size(0), "gates must be (N, G)");
  TORCH_CHECK(input_gates.scalar_type() == at::kInt && input_gates.numel() == x.size(1) &&
                  output_gates.scalar_type() == at::kInt,
              "input_gates and output_gates name a gate for each channel, int32");
  gaternet::Shape s{};
  s.batch = x.size(0), s.channels = x.size(1), s.height = x.size(2), s.width = x.size(3);
  s.filters = output_gates.numel();
  s.kernel_height = weight.size(1), s.kernel_width = weight.size(2);
  s.stride_y = stride[0], s.stride_x = stride[1];
  s.padding_y = padding[0], s.padding_x = padding[1];
  s.dilation_y = dilation[0], s.dilation_x = dilation[1];
  s.rows = (s.height + 2 * s.padding_y - s.dilation_y * (s.kernel_height - 1) - 1) / s.stride_y + 1;
  s.columns = (s.width + 2 * s.padding_x - s.dilation_x * (s.kernel_width - 1) - 1) / s.stride_x + 1;
  TORCH_CHECK(weight.size(0) == s.blocks() && bias.numel() == s.blocks() * gaternet::kLanes,
              "the packed weight and bias are of another number of filters");
  TORCH_CHECK(s.rows > 0 && s.columns > 0, "the image is smaller than the kernel");
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
  const Tensor sum = y.contiguous(kLayout);
  gaternet::Operands operands{};
  operands.relu = relu;
  operands.adds = true;
  operands.rectified = rectified;
  operands.y = sum.mutable_data_ptr<float>();
  run(s, operands, x, weight, bias, gates, input_gates, output_gates);
  if (!sum.is_same(y)) y.copy_(sum);
}

}  // namespace

TORCH_LIBRARY_IMPL(gaternet, CPU, m) {
  m.impl("gated_conv2d", &gated_conv2d);
  m.impl("gated_conv2d_add_", &gated_conv2d_add_);
}
