// The outermost level of an ONNX file, read without a runtime: whether it is one, and its metadata. Mirrors
// runtimes/runners/metadata.py.
#pragma once

#include <optional>

#include "../spec.hpp"
#include "backend.hpp"

namespace clusir::detail {

// The metadata_props of a model in a file or in memory; nothing where the bytes are not, up to their end, a protobuf
// message with a graph. The graph is skipped, not read.
std::optional<Metadata> onnx_metadata(const Source& source);

}  // namespace clusir::detail
