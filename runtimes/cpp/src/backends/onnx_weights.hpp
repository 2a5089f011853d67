// Graphs that keep their weights in a file beside them (ONNX's external data): put together here, so that both back ends
// are given all of a model in memory, and follow no path that a file names.
#pragma once

#include <string>

#include "backend.hpp"

namespace clusir::detail {

// `graph` with the weights in it that it keeps elsewhere; empty where it keeps none there, or is no protobuf. They are
// read from the source's folder or, of a source in memory, from its `weights`. Throws Failure where they are not there,
// would lie in another folder, are too short, or are those of another export (SHA-1).
std::string with_weights(const Source& source, const std::string& graph);

}  // namespace clusir::detail
