#include "tiling.hpp"

#include <algorithm>

namespace clusir::detail {
namespace {

// Rises over the inner half of the overlap; what lies outside it has seen too much of the tile's border to be used.
double ramp(std::int64_t distance, double halo) {
    return std::clamp((static_cast<double>(distance) + 0.5 - halo / 2) / halo, 0.0, 1.0);
}

}  // namespace

Axis plan_axis(std::int64_t length, const ModelSpec& spec) {
    Axis axis;
    axis.length = length;
    const std::int64_t halo = spec.halo_px, tile = spec.tile_px;
    if (length <= tile) {
        const std::int64_t multiple = spec.multiple_of;
        const std::int64_t rounded = (std::max<std::int64_t>(length, spec.minimum) + multiple - 1) / multiple * multiple;
        axis.tile = spec.static_px ? spec.static_px : rounded;
        axis.starts = {0};
        axis.weights.emplace_back(static_cast<std::size_t>(axis.tile), 1.0F);
        return axis;
    }
    axis.tile = tile;
    const std::int64_t step = tile - 2 * halo;
    const std::int64_t count = (length - tile + step - 1) / step + 1;
    for (std::int64_t i = 0; i < count; ++i) axis.starts.push_back(std::min(i * step, length - tile));

    const auto raw = [&](std::size_t index, std::int64_t x) {
        double weight = 1.0;
        if (halo > 0 && index > 0) weight = std::min(weight, ramp(x, static_cast<double>(halo)));
        if (halo > 0 && index + 1 < axis.starts.size()) weight = std::min(weight, ramp(tile - 1 - x, static_cast<double>(halo)));
        return weight;
    };
    for (std::size_t index = 0; index < axis.starts.size(); ++index) {
        auto& weights = axis.weights.emplace_back(static_cast<std::size_t>(tile));
        for (std::int64_t x = 0; x < tile; ++x) {
            const std::int64_t position = axis.starts[index] + x;
            // Only the neighbours two steps away can reach here: the last tile is moved back by less than one step.
            double sum = 0.0;
            const std::size_t first = index < 2 ? 0 : index - 2;
            for (std::size_t other = first; other < axis.starts.size() && axis.starts[other] <= position; ++other) {
                if (position < axis.starts[other] + tile) sum += raw(other, position - axis.starts[other]);
            }
            weights[static_cast<std::size_t>(x)] = static_cast<float>(raw(index, x) / sum);
        }
    }
    return axis;
}

std::int64_t reflect(std::int64_t position, std::int64_t length) {
    if (length == 1) return 0;
    const std::int64_t period = 2 * length - 2;
    const std::int64_t within = position % period;
    return within < length ? within : period - within;
}

std::vector<std::size_t> sample(const Axis& axis) {
    const std::size_t count = axis.starts.size();
    if (count == 1) return {0};
    if (count == 2) return {0, 1};
    return {0, (count - 1) / 2, count - 1};
}

}  // namespace clusir::detail
