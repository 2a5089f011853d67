// Where the tiles of a picture lie and how they blend. Mirrors runtimes/restore/tiling.py; tests/golden holds both to
// it.
#pragma once

#include <cstdint>
#include <vector>

#include "spec.hpp"

namespace clusir::detail {

// The tiles along one axis. Axes are independent: a tile of the picture is a pair, its weights are products.
struct Axis {
    std::int64_t length = 0;           // of the picture
    std::int64_t tile = 0;             // of every tile; larger than `length` where the picture is padded
    std::vector<std::int64_t> starts;  // rising; the first is 0, the last tile ends at max(length, tile)
    std::vector<std::vector<float>>
        weights;  // per tile and position in it; over all tiles they sum to 1 at every pixel
};

// The smallest length that the size rule allows and that is at least `length`.
std::int64_t padded(std::int64_t length, const ModelSpec& spec);

Axis plan_axis(std::int64_t length, const ModelSpec& spec);

// The same tiles in the pixels of a picture `scale` times as long; `halo` is that of the small one.
Axis enlarged(const Axis& axis, std::int64_t scale, std::int64_t halo);

// The pixel that reflection (without repeating the edge) puts at `position`; any position >= 0, any length >= 1.
std::int64_t reflect(std::int64_t position, std::int64_t length);

// The first pixels of at most three windows as long as a tile, evenly spread on JPEG's grid: where routing looks.
std::vector<std::int64_t> sample(const Axis& axis);

}  // namespace clusir::detail
