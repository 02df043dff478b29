# Settings of XLA and NCCL for training on A100, H100 or H200. Usage: source launch/env_gpu.sh a100|h100|h200
# They follow the public advice of JAX and NVIDIA for sharded language models (docs/cluster.md, "GPU settings");
# measure them on your own cluster. An unknown flag stops JAX at once, so a test checks that the pinned XLA knows them.

case "${1:-}" in
a100 | h100 | h200) ;;
*) echo "usage: source launch/env_gpu.sh a100|h100|h200" >&2 && return 2 ;;
esac

elva_flags=(
  # Overlap collectives with computation wherever the order of operations allows it.
  --xla_gpu_enable_latency_hiding_scheduler=true
  # In the loop over layers, gather the next layer's weights and scatter the previous layer's gradients while this one
  # computes.
  --xla_gpu_enable_pipelined_all_gather=true
  --xla_gpu_enable_pipelined_reduce_scatter=true
  --xla_gpu_enable_pipelined_all_reduce=true
  # Two buffers for the values that this loop carries, so that pipelining needs no copies.
  --xla_gpu_enable_while_loop_double_buffering=true
  # Combine small collectives up to this many bytes: fewer launches, but combined ones cannot overlap each other. About
  # one decoder layer of the 1.5B model.
  --xla_gpu_all_gather_combine_threshold_bytes=134217728
  --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
  # Gradients that no axis scatters (mesh.data) are combined further, because only the optimizer waits for them.
  --xla_gpu_all_reduce_combine_threshold_bytes=536870912
  # Combine collectives whatever dimension they gather along: the weights of a layer differ in it.
  --xla_gpu_enable_all_gather_combine_by_dim=false
  --xla_gpu_enable_reduce_scatter_combine_by_dim=false
  # cuBLAS for matrix products: as fast as Triton for large ones, without a search while compiling.
  --xla_gpu_enable_triton_gemm=false
  # Seconds after which a collective that hangs because of a dead host ends the process.
  --xla_gpu_nccl_termination_timeout_seconds=600
  # The same for the first collective of all GPUs, which is slower.
  --xla_gpu_first_collective_call_terminate_timeout_seconds=600
)
export XLA_FLAGS="${elva_flags[*]} ${XLA_FLAGS:-}" # your own flags come last and take precedence
unset elva_flags

# The share of the memory that XLA allocates at the start; the rest is for buffers of NCCL and cuDNN.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
# One queue from host to GPU, so that kernels start in the order in which XLA planned the overlap.
export CUDA_DEVICE_MAX_CONNECTIONS="${CUDA_DEVICE_MAX_CONNECTIONS:-1}"
# NCCL says why it fails, and nothing else.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# InfiniBand waits 4 us x 2^22 = 17 s for an acknowledgement before it retries, because a rerouting switch must not end a run.
export NCCL_IB_TIMEOUT="${NCCL_IB_TIMEOUT:-22}"
if [ "$1" = a100 ]; then
  # NVLink SHARP needs NVSwitches of the H100 generation.
  export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-0}"
else
  # The NVSwitch sums gradients within a host; 2: where it can.
  export NCCL_NVLS_ENABLE="${NCCL_NVLS_ENABLE:-2}"
fi
# A restarted run loads its compiled programs from here; with a folder on shared storage only one host compiles them.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$HOME/.cache/elva_jax/programs}"
