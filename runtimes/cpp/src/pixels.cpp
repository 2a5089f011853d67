#include "pixels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.hpp"

namespace clusir::detail {
namespace {

[[noreturn]] void refuse(const char* what, const std::string& why) {
    throw Failure(CLUSIR_INVALID_ARGUMENT, std::string("image '") + what + "': " + why);
}

std::size_t sample_size(clusir_type type) { return static_cast<std::size_t>(type); }

std::size_t row_bytes(const clusir_image& image) {
    return std::size_t{image.width} * image.channels * sample_size(image.type);
}

// Bytes from the first sample to behind the last one.
std::size_t extent(const clusir_image& image) {
    return (image.height - std::size_t{1}) * image.stride_bytes + row_bytes(image);
}

float to_unit(std::uint8_t sample) { return static_cast<float>(sample) / 255.0F; }
float to_unit(std::uint16_t sample) { return static_cast<float>(sample) / 65535.0F; }
float to_unit(float sample) { return sample; }

template <typename Sample>
Sample from_unit(float value) {
    constexpr float kTop = sizeof(Sample) == 1 ? 255.0F : 65535.0F;
    return static_cast<Sample>(std::nearbyint(std::clamp(value, 0.0F, 1.0F) * kTop));  // half to even, as numpy rounds
}
template <>
float from_unit<float>(float value) {
    return std::clamp(value, 0.0F, 1.0F);
}

template <typename Sample>
const Sample* row_of(const clusir_image& image, std::int64_t y) {
    const auto* bytes =
        static_cast<const unsigned char*>(image.data) + static_cast<std::size_t>(y) * image.stride_bytes;
    return reinterpret_cast<const Sample*>(bytes);
}

float sample_at(const clusir_image& image, std::uint32_t y, std::size_t index) {
    if (image.type == CLUSIR_U8) return to_unit(row_of<std::uint8_t>(image, y)[index]);
    if (image.type == CLUSIR_U16) return to_unit(row_of<std::uint16_t>(image, y)[index]);
    return row_of<float>(image, y)[index];
}

// A grey picture gives its one channel to each of the model's.
std::size_t source_channel(const clusir_image& image, std::size_t channel) { return image.channels < 3 ? 0 : channel; }

template <typename Sample>
void gather_as(const clusir_image& image, const ModelSpec& spec, const Axis& rows,
               const std::vector<std::size_t>& offsets, std::int64_t top, std::vector<float>& planes) {
    const auto channels = static_cast<std::size_t>(spec.channels), width = offsets.size();
    const auto height = static_cast<std::size_t>(rows.tile);
    for (std::size_t y = 0; y < height; ++y) {
        const Sample* row = row_of<Sample>(image, reflect(top + static_cast<std::int64_t>(y), rows.length));
        for (std::size_t c = 0; c < channels; ++c) {
            float* into = planes.data() + (c * height + y) * width;
            const std::size_t from = source_channel(image, c);
            for (std::size_t x = 0; x < width; ++x) {
                const float scaled = to_unit(row[offsets[x] + from]) * spec.scale;
                into[x] = scaled + spec.offset;
            }
        }
    }
}

// What one sample of an axis that is enlarged `scale` times is made of: Pillow's bicubic kernel (a = -0.5), the weights
// of what lies within the axis, normalised.
struct Taps {
    std::size_t first = 0;
    std::vector<double> weights;
};

Taps taps_at(std::size_t position, std::size_t length, int scale) {
    const double centre = (static_cast<double>(position) + 0.5) / scale;
    Taps taps;
    taps.first = static_cast<std::size_t>(std::max(0.0, std::floor(centre - 1.5)));
    const auto end = static_cast<std::size_t>(std::min(static_cast<double>(length), std::floor(centre + 2.5)));
    double sum = 0.0;
    for (std::size_t x = taps.first; x < end; ++x) {
        const double d = std::fabs(static_cast<double>(x) + 0.5 - centre);
        const double w = d < 1.0   ? (1.5 * d - 2.5) * d * d + 1.0
                         : d < 2.0 ? ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
                                   : 0.0;
        taps.weights.push_back(w);
        sum += w;
    }
    for (double& w : taps.weights) w /= sum;
    return taps;
}

// Row `y` of the enlarged alpha channel of `in`, 0..1.
std::vector<float> enlarged_alpha(const clusir_image& in, std::uint32_t y, int scale) {
    const std::size_t width = in.width, channel = in.channels - std::size_t{1};
    const Taps rows = taps_at(y, in.height, scale);
    std::vector<float> result(width * static_cast<std::size_t>(scale));
    for (std::size_t x = 0; x < result.size(); ++x) {
        const Taps columns = taps_at(x, width, scale);
        double sum = 0.0;
        for (std::size_t i = 0; i < rows.weights.size(); ++i) {
            double across = 0.0;
            for (std::size_t j = 0; j < columns.weights.size(); ++j) {
                const std::size_t at = (columns.first + j) * in.channels + channel;
                across += columns.weights[j] * double{sample_at(in, static_cast<std::uint32_t>(rows.first + i), at)};
            }
            sum += rows.weights[i] * double{static_cast<float>(across)};
        }
        result[x] = static_cast<float>(sum);
    }
    return result;
}

template <typename Sample>
void write_as(const clusir_image& in, const clusir_image& out, std::uint32_t y, const float* row, const ModelSpec& spec,
              float blend) {
    const bool large = spec.upscale != 1;
    const std::vector<float> alphas =
        large && has_alpha(out) ? enlarged_alpha(in, y, spec.upscale) : std::vector<float>{};
    auto* into = const_cast<Sample*>(row_of<Sample>(out, y));
    const auto channels = static_cast<std::size_t>(spec.channels);
    const std::size_t alpha = has_alpha(out) ? 1 : 0, colours = out.channels - alpha;
    const auto unit = [&](float value) { return (value - spec.offset) / spec.scale; };
    const auto mixed = [&](float restored, std::size_t index) {
        if (blend == 1.0F) return restored;
        const float before = sample_at(in, y, index);
        const float share = blend * (std::clamp(restored, 0.0F, 1.0F) - before);
        return before + share;
    };
    for (std::size_t x = 0; x < out.width; ++x) {
        const std::size_t first = x * out.channels;
        const float* values = row + x * channels;
        Sample* to = into + x * out.channels;
        if (colours == channels) {
            for (std::size_t c = 0; c < colours; ++c) to[c] = from_unit<Sample>(mixed(unit(values[c]), first + c));
        } else {
            double sum = 0.0;  // in double precision: the mean of three equal numbers is that number
            for (std::size_t c = 0; c < channels; ++c) sum += double{unit(values[c])};
            to[0] = from_unit<Sample>(mixed(static_cast<float>(sum / static_cast<double>(channels)), first));
        }
        if (alpha == 0) continue;
        if (large) {
            to[colours] = from_unit<Sample>(alphas[x]);
            continue;
        }
        const std::size_t at = first + colours;
        to[colours] = in.type == out.type ? row_of<Sample>(in, y)[at] : from_unit<Sample>(sample_at(in, y, at));
    }
}

}  // namespace

clusir_image check_image(const clusir_image* image, const char* what, const ModelSpec& spec) {
    if (image == nullptr || image->data == nullptr) refuse(what, "is null");
    clusir_image checked = *image;
    if (checked.width == 0 || checked.height == 0) refuse(what, "has no pixels");
    // The type may come from another language: look at the number, not at the enumeration.
    int type = 0;
    std::memcpy(&type, &image->type, sizeof type);
    if (type != CLUSIR_U8 && type != CLUSIR_U16 && type != CLUSIR_F32)
        refuse(what, "type " + std::to_string(type) + " is not U8, U16 or F32");
    const std::uint32_t most = spec.channels == 3 ? 4 : 2;
    if (checked.channels < 1 || checked.channels > most) {
        refuse(what, std::to_string(checked.channels) + " channels; the model takes " +
                         (most == 4 ? "1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha)"
                                    : "1 (grey) or 2 (grey and alpha)"));
    }
    const std::size_t bytes = sample_size(checked.type);
    if (std::size_t{checked.width} > SIZE_MAX / 16) refuse(what, "is too wide");
    if (checked.stride_bytes == 0) checked.stride_bytes = row_bytes(checked);
    if (checked.stride_bytes < row_bytes(checked)) {
        refuse(what, "stride " + std::to_string(checked.stride_bytes) + " bytes is less than a row of " +
                         std::to_string(row_bytes(checked)));
    }
    if (checked.stride_bytes % bytes != 0) refuse(what, "stride is not a multiple of the sample size");
    const auto address = reinterpret_cast<std::uintptr_t>(checked.data);
    if (address % bytes != 0) refuse(what, "data is not aligned to the sample size");
    if (checked.stride_bytes > (SIZE_MAX / 2) / checked.height || extent(checked) > UINTPTR_MAX - address) {
        refuse(what, "stride and height reach over the end of memory");
    }
    return checked;
}

bool has_alpha(const clusir_image& image) { return image.channels % 2 == 0; }

void check_samples(const clusir_image& in) {
    if (in.type != CLUSIR_F32) return;
    const std::size_t samples = std::size_t{in.width} * in.channels;
    for (std::uint32_t y = 0; y < in.height; ++y) {
        const float* row = row_of<float>(in, y);
        for (std::size_t i = 0; i < samples; ++i) {
            if (!(row[i] >= 0.0F && row[i] <= 1.0F))
                refuse("in", "holds " + std::to_string(row[i]) + "; float samples are within 0..1");
        }
    }
}

void check_pair(const clusir_image& in, const clusir_image& out, const ModelSpec& spec) {
    const auto scale = static_cast<std::uint64_t>(spec.upscale);
    if (scale * in.width != out.width || scale * in.height != out.height || in.channels != out.channels) {
        refuse("out", scale == 1
                          ? "differs from 'in' in width, height or channels"
                          : "is not " + std::to_string(scale) + " times as wide and high as 'in', of as many channels");
    }
    const auto from = reinterpret_cast<std::uintptr_t>(in.data), to = reinterpret_cast<std::uintptr_t>(out.data);
    if (from < to + extent(out) && to < from + extent(in)) refuse("out", "overlaps 'in'; give it memory of its own");
}

std::vector<MapPlane> read_maps(const clusir_map* given, std::size_t count, const ModelSpec& spec,
                                const clusir_image& in) {
    std::vector<MapPlane> planes(spec.maps.size());
    std::vector<bool> told(planes.size(), false);
    for (std::size_t i = 0; i < planes.size(); ++i) planes[i].value = static_cast<float>(spec.map_defaults[i]);
    for (std::size_t i = 0; i < count; ++i) {
        if (given[i].name == nullptr) throw Failure(CLUSIR_INVALID_ARGUMENT, "options: a map has no name");
        const std::string name = given[i].name, what = "map '" + name + "'";
        const auto found = std::find(spec.maps.begin(), spec.maps.end(), name);
        if (found == spec.maps.end())
            throw Failure(CLUSIR_INVALID_ARGUMENT, "options: the model takes no " + what);
        const auto at = static_cast<std::size_t>(found - spec.maps.begin());
        MapPlane& plane = planes[at];
        told[at] = true;
        if (given[i].image == nullptr) {
            plane.value = given[i].value;
            if (!(plane.value >= 0.0F && plane.value <= 1.0F))
                throw Failure(CLUSIR_INVALID_ARGUMENT, what + ": its value is not within 0..1");
            continue;
        }
        ModelSpec colours;  // of three channels: any picture is taken
        const clusir_image map = check_image(given[i].image, name.c_str(), colours);
        if (map.width != in.width || map.height != in.height)
            throw Failure(CLUSIR_INVALID_ARGUMENT, what + ": its size is not the picture's");
        check_samples(map);
        const std::size_t used = map.channels - (has_alpha(map) ? std::size_t{1} : std::size_t{0});
        plane.pixels.reserve(std::size_t{map.width} * map.height);
        for (std::uint32_t y = 0; y < map.height; ++y) {
            for (std::size_t x = 0; x < map.width; ++x) {
                double sum = 0.0;
                for (std::size_t c = 0; c < used; ++c) sum += double{sample_at(map, y, x * map.channels + c)};
                plane.pixels.push_back(static_cast<float>(sum / static_cast<double>(used)));
            }
        }
    }
    const auto own = std::find(spec.maps.begin(), spec.maps.end(), kOwnAlpha);
    const auto at = static_cast<std::size_t>(own - spec.maps.begin());
    if (own != spec.maps.end() && !told[at] && has_alpha(in)) {
        planes[at].pixels.reserve(std::size_t{in.width} * in.height);
        for (std::uint32_t y = 0; y < in.height; ++y) {
            for (std::size_t x = 1; x <= in.width; ++x)
                planes[at].pixels.push_back(sample_at(in, y, x * in.channels - 1));
        }
    }
    return planes;
}

void gather(const clusir_image& image, const std::vector<MapPlane>& maps, const ModelSpec& spec, const Axis& rows,
            const Axis& columns, std::int64_t top, std::int64_t left, std::vector<float>& planes) {
    std::vector<std::size_t> offsets(static_cast<std::size_t>(columns.tile));
    for (std::size_t x = 0; x < offsets.size(); ++x) {
        offsets[x] =
            static_cast<std::size_t>(reflect(left + static_cast<std::int64_t>(x), columns.length)) * image.channels;
    }
    if (image.type == CLUSIR_U8) gather_as<std::uint8_t>(image, spec, rows, offsets, top, planes);
    if (image.type == CLUSIR_U16) gather_as<std::uint16_t>(image, spec, rows, offsets, top, planes);
    if (image.type == CLUSIR_F32) gather_as<float>(image, spec, rows, offsets, top, planes);
    const std::size_t one = static_cast<std::size_t>(rows.tile) * offsets.size();
    float* into = planes.data() + static_cast<std::size_t>(spec.channels) * one;
    for (const MapPlane& map : maps) {
        if (map.pixels.empty()) std::fill(into, into + one, map.value);
        for (std::int64_t y = 0; !map.pixels.empty() && y < rows.tile; ++y) {
            const float* row = map.pixels.data() +
                               static_cast<std::size_t>(reflect(top + y, rows.length)) * static_cast<std::size_t>(image.width);
            float* line = into + static_cast<std::size_t>(y) * offsets.size();
            for (std::size_t x = 0; x < offsets.size(); ++x) line[x] = row[offsets[x] / image.channels];
        }
        into += one;
    }
}

void write_row(const clusir_image& in, const clusir_image& out, std::uint32_t y, const float* row,
               const ModelSpec& spec, float blend) {
    if (out.type == CLUSIR_U8) write_as<std::uint8_t>(in, out, y, row, spec, blend);
    if (out.type == CLUSIR_U16) write_as<std::uint16_t>(in, out, y, row, spec, blend);
    if (out.type == CLUSIR_F32) write_as<float>(in, out, y, row, spec, blend);
}

void copy_row(const clusir_image& in, const clusir_image& out, std::uint32_t y) {
    if (in.type == out.type) {
        std::memcpy(const_cast<unsigned char*>(row_of<unsigned char>(out, y)), row_of<unsigned char>(in, y),
                    row_bytes(in));
        return;
    }
    const std::size_t samples = std::size_t{in.width} * in.channels;
    for (std::size_t i = 0; i < samples; ++i) {
        const float unit = sample_at(in, y, i);
        if (out.type == CLUSIR_U8)
            const_cast<std::uint8_t*>(row_of<std::uint8_t>(out, y))[i] = from_unit<std::uint8_t>(unit);
        if (out.type == CLUSIR_U16)
            const_cast<std::uint16_t*>(row_of<std::uint16_t>(out, y))[i] = from_unit<std::uint16_t>(unit);
        if (out.type == CLUSIR_F32) const_cast<float*>(row_of<float>(out, y))[i] = from_unit<float>(unit);
    }
}

}  // namespace clusir::detail
