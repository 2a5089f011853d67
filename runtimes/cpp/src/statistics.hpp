// What a network pools over the whole picture, shared by its tiles. Mirrors runtimes/restore/statistics.py.
#pragma once

#include <clusir/clusir.h>

#include <cstdint>
#include <vector>

#include "backends/backend.hpp"
#include "pixels.hpp"
#include "spec.hpp"

namespace clusir::detail {

// Pixels start to start + side along an axis, of which first to last (in the window) count.
struct Window {
    std::int64_t start, side, first, last;
};

// The windows along an axis of `length` pixels: evenly spread samples, or as many as cover it. All have one side.
std::vector<Window> windows_along(std::int64_t length, const ModelSpec& spec, bool exact);

// The statistics [spec.statistics] of a picture, by its statistics graph. Throws Failure(CLUSIR_FAILED) for NaN and
// infinity.
std::vector<float> pool(const Graph& graph, const Given& picture, const ModelSpec& spec, bool exact);

}  // namespace clusir::detail
