// An MLX primitive whose work is done by a kernel in Rust.
//
// The interface of primitives is described in MLX's documentation under
// "Custom Extensions in MLX"; mlx/primitives.h and mlx/backend/cpu/encoder.h
// are the headers it rests on.
#include "host_kernel.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/private/array.h"
#include "mlx/c/private/enums.h"
#include "mlx/c/private/stream.h"
#include "mlx/c/private/vector.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

namespace {

// The arrays' data, for the time a kernel runs. Shapes are copied because the
// arrays may be gone by then; MLX keeps the buffers alive until a task is done.
class Tensors {
 public:
  void add(mx::array& a) {
    auto& shape = shapes_.emplace_back(a.shape().begin(), a.shape().end());
    tensors_.push_back({a.size() ? a.data<char>() : nullptr, shape.data(), shape.size(), a.size(),
                        static_cast<int32_t>(mlx_dtype_to_c(a.dtype()))});
  }
  const taq_tensor* data() const { return tensors_.data(); }
  size_t size() const { return tensors_.size(); }

 private:
  std::vector<std::vector<int32_t>> shapes_;
  std::vector<taq_tensor> tensors_;
};

struct Copy {
  char* to;
  const char* from;
  size_t bytes;
};

struct Work {
  Tensors inputs, outputs;
  std::vector<Copy> copies;
};

void check(const taq_error& error) {
  if (error.text[0]) {
    throw std::runtime_error(error.text);
  }
}

class HostKernel : public mx::Primitive {
 public:
  HostKernel(mx::Stream stream, std::string name, const taq_kernel_functions* functions,
             std::shared_ptr<const void> kernel, size_t in_place)
      : Primitive(stream), name_(std::move(name)), functions_(functions), kernel_(std::move(kernel)),
        in_place_(in_place) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    // Every output of a node lists the node's inputs, so with several outputs no input would ever be free. The other
    // lists are of no more use: MLX clears them when the node is done.
    if (in_place_ > 0 && !outputs[0].is_tracer()) {
      for (auto& a : outputs) {
        if (&a.inputs() != &inputs) {
          a.inputs().clear();
        }
      }
    }
    auto work = std::make_shared<Work>();
    for (size_t i = 0; i < inputs.size(); i++) {
      auto& input = inputs[i];
      if (!input.flags().row_contiguous) {
        throw std::runtime_error("[" + name_ + "] an input is not row-contiguous");
      }
      if (i >= in_place_) {
        auto a = input;
        work->inputs.add(a);
      }
    }
    for (size_t i = 0; i < outputs.size(); i++) {
      auto& a = outputs[i];
      if (i < in_place_ && inputs[i].is_donatable()) {
        // Nobody else looks at the input again: its memory becomes the output's.
        a.copy_shared_buffer(inputs[i]);
      } else {
        a.set_data(mx::allocator::malloc(a.nbytes()));
        if (i < in_place_ && a.nbytes() > 0) {
          work->copies.push_back({a.data<char>(), inputs[i].data<char>(), a.nbytes()});
        }
      }
      work->outputs.add(a);
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    encoder.dispatch([work, functions = functions_, kernel = kernel_] {
      for (auto& copy : work->copies) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
      auto& [in, out, copies] = *work;
      taq_error error{};
      functions->forward(kernel.get(), in.data(), in.size(), out.data(), out.size(), &error);
      check(error);
    });
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("[" + name_ + "] host kernels run on the CPU only; use MLX operations on a GPU");
  }

  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& wanted,
                             const std::vector<mx::array>& outputs) override {
    // Borrowed for the call: the callee takes copies of the arrays it keeps.
    auto borrow = [](const std::vector<mx::array>& v) {
      return mlx_vector_array{const_cast<std::vector<mx::array>*>(&v)};
    };
    std::vector<mx::array> gradients;
    mlx_vector_array result{&gradients};
    taq_error error{};
    functions_->vjp(kernel_.get(), borrow(primals), borrow(cotangents), borrow(outputs),
                    wanted.data(), wanted.size(), &result, &error);
    check(error);
    if (gradients.size() != wanted.size()) {
      throw std::runtime_error("[" + name_ + "] the gradient function returned " +
                               std::to_string(gradients.size()) + " arrays instead of " +
                               std::to_string(wanted.size()));
    }
    for (size_t i = 0; i < wanted.size(); i++) {
      if (gradients[i].shape() != primals[wanted[i]].shape()) {
        throw std::runtime_error("[" + name_ + "] the gradient of input " +
                                 std::to_string(wanted[i]) + " has another shape than the input");
      }
    }
    return gradients;
  }

  const char* name() const override { return name_.c_str(); }

 private:
  std::string name_;
  const taq_kernel_functions* functions_;
  std::shared_ptr<const void> kernel_;
  // So many inputs, the first ones, are where the outputs of the same places begin.
  size_t in_place_;
};

bool is_ready_and_dense(const mx::array& a) {
  return a.status() != mx::array::Status::unscheduled && a.flags().row_contiguous;
}

} // namespace

extern "C" void taq_host_call(const taq_kernel_functions* functions, const void* kernel,
                              const char* name, mlx_vector_array inputs, size_t in_place, const int32_t* shapes,
                              const size_t* ranks, const int32_t* dtypes, size_t output_count,
                              mlx_stream stream, mlx_vector_array* result, taq_error* error) {
  try {
    std::shared_ptr<const void> owned(kernel, functions->release);
    auto on = mlx_stream_get_(stream);
    std::vector<mx::array> dense;
    for (auto& a : mlx_vector_array_get_(inputs)) {
      dense.push_back(is_ready_and_dense(a) ? a : mx::contiguous(a, false, on));
    }
    std::vector<mx::Shape> out_shapes;
    std::vector<mx::Dtype> out_dtypes;
    for (size_t i = 0; i < output_count; shapes += ranks[i++]) {
      out_shapes.emplace_back(shapes, shapes + ranks[i]);
      out_dtypes.push_back(mlx_dtype_to_cpp(static_cast<mlx_dtype>(dtypes[i])));
    }
    auto node = std::make_shared<HostKernel>(on, name, functions, std::move(owned), in_place);
    mlx_vector_array_set_(*result, mx::array::make_arrays(std::move(out_shapes), out_dtypes, node, dense));
  } catch (const std::exception& e) {
    std::snprintf(error->text, sizeof error->text, "%s", e.what());
  } catch (...) {
    std::snprintf(error->text, sizeof error->text, "unknown C++ exception");
  }
}
