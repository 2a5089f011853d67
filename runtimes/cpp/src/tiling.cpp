#include "tiling.hpp"

#include <algorithm>
#include <cmath>

namespace clusir::detail {
namespace {

// R of runtimes/restore/tiling.py at pixel `x` for the neighbours that start at `start` and `following`: 0 before the
// overlap of the two, 1 behind it, a cubic in multiples of 1/2048 between.
double ramp(std::int64_t x, std::int64_t start, std::int64_t following, std::int64_t tile, std::int64_t halo) {
    const double centre = static_cast<double>(x) + 0.5, middle = static_cast<double>(start + following + tile) / 2;
    if (halo == 0) return centre > middle ? 1.0 : 0.0;
    const double t = std::clamp((centre - middle) / (1.5 * static_cast<double>(halo)) + 0.5, 0.0, 1.0);
    return std::floor(t * t * (3 - 2 * t) * 2048 + 0.5) / 2048;
}

// The sum over the tiles telescopes to exactly 1, and products of two weights are exact in float32.
void weigh(Axis& axis, std::int64_t halo) {
    const auto last = axis.starts.size() - 1;
    for (std::size_t i = 0; i <= last; ++i) {
        auto& weights = axis.weights.emplace_back(static_cast<std::size_t>(axis.tile));
        for (std::int64_t offset = 0; offset < axis.tile; ++offset) {
            const std::int64_t x = axis.starts[i] + offset;
            const double left = i > 0 ? ramp(x, axis.starts[i - 1], axis.starts[i], axis.tile, halo) : 1.0;
            const double right = i < last ? ramp(x, axis.starts[i], axis.starts[i + 1], axis.tile, halo) : 0.0;
            weights[static_cast<std::size_t>(offset)] = static_cast<float>(left - right);
        }
    }
}

}  // namespace

std::int64_t padded(std::int64_t length, const ModelSpec& spec) {
    if (spec.static_px) return spec.static_px;
    const std::int64_t multiple = spec.multiple_of;
    const std::int64_t count = (std::max<std::int64_t>(length, spec.minimum) + multiple - 1) / multiple;
    return (spec.maximum ? std::min(count, spec.maximum / multiple) : count) * multiple;
}

Axis plan_axis(std::int64_t length, const ModelSpec& spec) {
    Axis axis;
    axis.length = length;
    const std::int64_t halo = spec.halo_px;
    if (length <= spec.tile_px) {
        axis.tile = padded(length, spec);
        axis.starts = {0};
        axis.weights.emplace_back(static_cast<std::size_t>(axis.tile), 1.0F);
        return axis;
    }
    const std::int64_t core = spec.tile_px - 2 * halo;
    const std::int64_t count = (length - spec.tile_px + core - 1) / core + 1;
    // No longer than the model's tile, which obeys the size rule itself; a static graph knows one size.
    axis.tile = padded((length - 2 * halo + count - 1) / count + 2 * halo, spec);
    const std::int64_t step = axis.tile - 2 * halo;
    for (std::int64_t i = 0; i < count; ++i) axis.starts.push_back(std::min(i * step, length - axis.tile));

    weigh(axis, halo);
    return axis;
}

Axis enlarged(const Axis& axis, std::int64_t scale, std::int64_t halo) {
    Axis large;
    large.length = scale * axis.length;
    large.tile = scale * axis.tile;
    for (const std::int64_t start : axis.starts) large.starts.push_back(scale * start);
    weigh(large, scale * halo);
    return large;
}

std::int64_t reflect(std::int64_t position, std::int64_t length) {
    if (length == 1) return 0;
    const std::int64_t period = 2 * length - 2;
    const std::int64_t within = position % period;
    return within < length ? within : period - within;
}

std::vector<std::int64_t> sample(const Axis& axis) {
    const std::int64_t count = std::clamp<std::int64_t>((axis.length - 7 + axis.tile - 1) / axis.tile, 1, 3);
    std::vector<std::int64_t> starts;
    for (std::int64_t i = 0; i < count; ++i)
        starts.push_back(i * (axis.length - axis.tile) / std::max<std::int64_t>(1, count - 1) / 8 * 8);
    return starts;
}

}  // namespace clusir::detail
