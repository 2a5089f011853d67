// Between a caller's pixels (any sample type, stride, alpha) and the model's planes of float.
#pragma once

#include <clusir/clusir.h>

#include <cstdint>
#include <vector>

#include "spec.hpp"
#include "tiling.hpp"

namespace clusir::detail {

// A checked image: the stride is filled in. Float samples are not looked at (check_samples). Throws
// Failure(CLUSIR_INVALID_ARGUMENT); `what` is "in" or "out".
clusir_image check_image(const clusir_image* image, const char* what, const ModelSpec& spec);

// Refuses pairs whose memory overlaps, that differ in channels, or whose sizes do not differ by the model's scale.
void check_pair(const clusir_image& in, const clusir_image& out, const ModelSpec& spec);

// Refuses float samples outside 0..1, alpha among them. Throws Failure(CLUSIR_INVALID_ARGUMENT).
void check_samples(const clusir_image& in);

// Whether the last channel is alpha: of 2 channels (grey) and of 4 (RGB).
bool has_alpha(const clusir_image& image);

// One map of a model: numbers in 0..1 for every pixel of the picture, rows without gaps, or `value` everywhere.
struct MapPlane {
    std::vector<float> pixels;
    float value = 0.0F;
};

// The maps of `spec` in its order: those that are given by name, else the picture's own alpha for kOwnAlpha where it has
// one, else their defaults; of a coloured one the mean of its colours. Throws Failure(CLUSIR_INVALID_ARGUMENT) for other
// names, sizes, and numbers outside 0..1.
std::vector<MapPlane> read_maps(const clusir_map* given, std::size_t count, const ModelSpec& spec,
                                const clusir_image& in);

// A picture, and what the network takes beside it: maps and numbers in the order of the spec.
struct Given {
    const clusir_image& in;
    const std::vector<MapPlane>& maps;
    const std::vector<float>& numbers;
};

// Fills planes [spec.planes(), rows.tile, columns.tile] with one tile, reflected where it reaches over the picture's
// edge: the channels of `image`, then `maps`.
void gather(const clusir_image& image, const std::vector<MapPlane>& maps, const ModelSpec& spec, const Axis& rows,
            const Axis& columns, std::int64_t top, std::int64_t left, std::vector<float>& planes);

// Writes row `y` of `out`: colours from `row` (interleaved, the model's channels and range), alpha from `in`; a grey
// picture is the mean of the model's channels. Of a model that enlarges, alpha is enlarged bicubically.
// `blend` is the share of what was restored, held to 0..1, in what is written; the rest is `in`.
void write_row(const clusir_image& in, const clusir_image& out, std::uint32_t y, const float* row,
               const ModelSpec& spec, float blend = 1.0F);

// Writes row `y` of `in` to `out`, scaled where the types differ.
void copy_row(const clusir_image& in, const clusir_image& out, std::uint32_t y);

}  // namespace clusir::detail
