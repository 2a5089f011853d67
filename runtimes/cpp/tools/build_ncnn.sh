#!/usr/bin/env bash
# Builds ncnn for the ncnn back end: a shared library with the layers that clusir-export --target ncnn writes, and those that
# ncnn makes of them itself. All of ncnn is three times as much.
# Usage: build_ncnn.sh ncnn-VERSION.tar.gz PREFIX [cmake options, such as -DCMAKE_TOOLCHAIN_FILE=...]
set -euo pipefail
archive=$1 prefix=$(mkdir -p "$2" && cd "$2" && pwd)
shift 2
written="Input Split MemoryData Reshape Permute Crop Padding Concat Slice Tile BinaryOp UnaryOp Reduction Convolution Deconvolution
ConvolutionDepthWise DeconvolutionDepthWise InnerProduct MatMul Pooling Interp PixelShuffle Reorg Threshold Clip ReLU ELU Erf GELU
HardSigmoid HardSwish Sigmoid TanH Softmax LayerNorm InstanceNorm"
inner="Flatten Packing Cast Gemm Quantize Dequantize Requantize"
build=$prefix/build
mkdir -p "$build/source"
tar xzf "$archive" -C "$build/source" --strip-components=1
off=()
while read -r layer; do
    case " $(echo $written $inner) " in
    *" $layer "*) ;;
    *) off+=("-DWITH_LAYER_$(echo "$layer" | tr '[:upper:]' '[:lower:]')=OFF") ;;
    esac
done < <(sed -n 's/^ncnn_add_layer(\([A-Za-z0-9_]*\).*/\1/p' "$build/source/src/CMakeLists.txt")
# The back end computes in float32 and, with model_int8.param, in integers.
cmake -S "$build/source" -B "$build/made" -DCMAKE_BUILD_TYPE=Release -DCMAKE_INSTALL_PREFIX="$prefix" -DNCNN_SHARED_LIB=ON \
    -DNCNN_VULKAN=OFF -DNCNN_PYTHON=OFF -DNCNN_BUILD_TOOLS=OFF -DNCNN_BUILD_EXAMPLES=OFF -DNCNN_BUILD_BENCHMARK=OFF \
    -DNCNN_BF16=OFF -DNCNN_AVX512BF16=OFF -DNCNN_AVX512FP16=OFF -DNCNN_AVXNECONVERT=OFF -DNCNN_ARM82FP16FML=OFF "${off[@]}" "$@"
cmake --build "$build/made" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-2}" --target install
