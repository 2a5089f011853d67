// Numbers that a network takes beside the picture, such as a noise level.
#pragma once

#include <clusir/clusir.h>

#include <vector>

#include "backends/backend.hpp"
#include "spec.hpp"

namespace clusir::detail {

// The numbers of `spec` in its order: those that are given by name, else their defaults. Throws
// Failure(CLUSIR_INVALID_ARGUMENT) for other names, and for values outside their range.
std::vector<float> read_numbers(const clusir_number* given, std::size_t count, const ModelSpec& spec);

// Adds each as an input [1], where the graph has it: OpenVINO drops those that nothing reads of a file in memory.
// `numbers` must outlive the feeds.
void feed_numbers(const Graph& graph, const ModelSpec& spec, const std::vector<float>& numbers,
                  std::vector<Feed>& feeds);

}  // namespace clusir::detail
