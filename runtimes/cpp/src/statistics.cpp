#include "statistics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "numbers.hpp"
#include "pixels.hpp"
#include "routing.hpp"

namespace clusir::detail {
namespace {

constexpr std::int64_t kSamples = 5;  // windows along an axis, at most
constexpr std::int64_t kStep = 8;     // windows start at multiples of it

std::int64_t grid(const ModelSpec& spec) { return std::max<std::int64_t>(spec.multiple_of, kStep); }

// Windows whose cores cover the axis once: they meet in the middle of what two of them overlap by.
std::vector<Window> covering(const std::vector<std::int64_t>& starts, std::int64_t tile, const ModelSpec& spec) {
    std::vector<Window> windows;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < starts.size(); ++i) {
        const std::int64_t last = i + 1 < starts.size()
                                      ? (starts[i] + tile + starts[i + 1]) / 2 / grid(spec) * grid(spec)
                                      : starts[i] + tile;
        windows.push_back({starts[i], tile, first - starts[i], last - starts[i]});
        first = last;
    }
    return windows;
}

// Windows of a picture, stacked as the statistics graph takes them.
struct Batch {
    std::vector<float> images, weights;
    std::int64_t count = 0;
};

struct Pooled {
    std::vector<float> row, level, largest;
};

Pooled run(const Graph& graph, const Batch& batch, const Shape& window, const ModelSpec& spec,
           const std::vector<float>& numbers, const std::vector<float>& given, const std::vector<float>& known) {
    const std::int64_t count = spec.statistics;
    const auto size = static_cast<std::size_t>(count);
    Pooled found{std::vector<float>(size), std::vector<float>(size), std::vector<float>(size)};
    std::vector<Feed> feeds{
        {spec.input_name.c_str(), {batch.count, spec.planes(), window[0], window[1]}, batch.images.data()},
        {"weight", {batch.count, 1, window[0], window[1]}, batch.weights.data()},
        {"given", {1, count}, given.data()},
        {"known", {1, count}, known.data()}};
    feed_numbers(graph, spec, numbers, feeds);
    graph.run(feeds,
              {{"statistics", {1, count}, found.row.data()},
               {"level", {count}, found.level.data()},
               {"largest", {count}, found.largest.data()}});
    check_finite(found.row.data(), size, "statistics");
    return found;
}

bool takes_batches(const Graph& graph, const ModelSpec& spec) {
    for (const auto& input : graph.inputs()) {
        if (input.name == spec.input_name) return !input.shape.empty() && input.shape[0] < 0;
    }
    return false;
}

}  // namespace

std::vector<Window> windows_along(std::int64_t length, const ModelSpec& spec, bool exact) {
    const std::int64_t side = padded(length, spec), tile = spec.tile_px, halo = spec.halo_px;
    if (side <= tile) return {{0, side, 0, side}};
    const std::int64_t step = std::max<std::int64_t>(spec.multiple_of, (tile - 2 * halo) / grid(spec) * grid(spec));
    const std::int64_t count = (side - tile + step - 1) / step + 1;
    std::vector<std::int64_t> starts;
    if (exact || count <= kSamples / 2 + 1) {
        for (std::int64_t i = 0; i < count; ++i) starts.push_back(std::min(i * step, side - tile));
        return covering(starts, tile, spec);
    }
    const std::int64_t small = padded(std::max(tile / 2, std::min(tile, 4 * halo)), spec), last = side - small;
    std::vector<Window> windows;
    for (std::int64_t i = 0; i < kSamples; ++i) {
        const double place = static_cast<double>(last * i) / static_cast<double>(kSamples - 1);
        const auto cell = static_cast<std::int64_t>(std::nearbyint(place / static_cast<double>(grid(spec))));
        const std::int64_t start = std::min(cell * grid(spec), last);
        windows.push_back({start, small, start == 0 ? 0 : halo, start == last ? small : small - halo});
    }
    return windows;
}

std::vector<float> pool(const Graph& graph, const Given& picture, const ModelSpec& spec, bool exact) {
    const auto& [in, maps, numbers] = picture;
    const auto rows = windows_along(in.height, spec, exact), columns = windows_along(in.width, spec, exact);
    const Shape window{rows[0].side, columns[0].side};
    Axis along_y, along_x;
    along_y.length = in.height, along_y.tile = window[0];
    along_x.length = in.width, along_x.tile = window[1];
    const auto size = static_cast<std::size_t>(spec.statistics), pixels = static_cast<std::size_t>(window[0] * window[1]);
    const std::size_t together = exact || !takes_batches(graph, spec) ? 1 : rows.size() * columns.size();
    std::vector<float> planes(static_cast<std::size_t>(spec.planes()) * pixels), given(size), known(size);
    given[0] = static_cast<float>(padded(in.height, spec) * padded(in.width, spec));
    double levels = 1.0;
    for (double level = 1.0; level <= levels; ++level) {
        std::vector<double> total(size), most(size, -std::numeric_limits<double>::infinity());
        double weights = 0.0;
        std::size_t groups = 0;
        Pooled found;
        Batch batch;
        for (const Window& row : rows) {
            for (const Window& column : columns) {
                gather(in, maps, spec, along_y, along_x, row.start, column.start, planes);
                batch.images.insert(batch.images.end(), planes.begin(), planes.end());
                const std::size_t at = batch.weights.size();
                batch.weights.resize(at + pixels);
                for (std::int64_t y = row.first; y < row.last; ++y) {
                    float* line = batch.weights.data() + at + static_cast<std::size_t>(y * column.side);
                    std::fill(line + column.first, line + column.last, 1.0F);
                }
                if (++batch.count < static_cast<std::int64_t>(together)) continue;
                found = run(graph, batch, window, spec, numbers, given, known);
                double weight = 0.0;
                for (const float one : batch.weights) weight += static_cast<double>(one);
                for (std::size_t i = 0; i < size; ++i) {
                    total[i] += weight * static_cast<double>(found.row[i]);
                    most[i] = std::max(most[i], static_cast<double>(found.row[i]));
                }
                weights += weight;
                ++groups;
                batch = {};
            }
        }
        for (std::size_t i = 1; i < size; ++i) {  // the first one is the picture's size
            if (known[i] > 0.5F) continue;
            given[i] = static_cast<float>(found.largest[i] > 0.5F ? most[i] : total[i] / weights);
        }
        if (groups == 1) break;  // the graph pools its batch level by level itself
        for (std::size_t i = 0; i < size; ++i) {
            known[i] = static_cast<double>(found.level[i]) <= level ? 1.0F : 0.0F;
            levels = std::max(levels, static_cast<double>(found.level[i]));
        }
    }
    return given;
}

}  // namespace clusir::detail
