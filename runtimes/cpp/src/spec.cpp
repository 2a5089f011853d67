#include "spec.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "error.hpp"
#include "json.hpp"

namespace clusir::detail {
namespace {

constexpr int kFirstVersion = 1, kLastVersion = 5;  // 2 where scale is not 1, 3 maps, 4 numbers, 5 a maximum
constexpr int kLargestScale = 8;
// A tile is held in memory several times over; the largest that is sensible is far below what the format can say.
constexpr int kLargestTile = 4096;
constexpr std::size_t kMostLevels = 64, kMostMaps = 8, kMostNumbers = 8;
constexpr int kMostClusters = 4096;
constexpr int kMostStatistics = 1 << 24;
constexpr std::size_t kLongestText = 1024;  // characters
constexpr double kLargestBound = 1e6, kLeastWidth = 1e-3;

class SpecFields {
public:
    explicit SpecFields(const Metadata& metadata) : metadata_(metadata) {}

    bool read(const char* field, Json& value) const {
        const auto found = metadata_.find(std::string("clusir.") + field);
        if (found == metadata_.end()) return false;
        if (!parse_json(found->second, value)) refuse(field, "is not JSON");
        return true;
    }

    void integer(const char* field, int low, int high, int& into) const {
        Json value;
        if (read(field, value)) into = checked(field, value, low, high);
    }

    void text(const char* field, std::string& into) const {
        Json value;
        if (!read(field, value)) return;
        into = checked_text(field, value);
    }

    static std::string checked_text(const char* field, const Json& value) {
        if (!value.is_text()) refuse(field, "is not a string");
        const std::string& text = value.characters;
        const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
        if (static_cast<std::size_t>(characters) > kLongestText) refuse(field, "is longer than 1024 characters");
        return text;
    }

    void integers(const char* field, std::vector<int>& into) const {
        Json value;
        if (!read(field, value)) return;
        if (!value.is_list() || value.items.size() > kMostLevels) refuse(field, "is not a list of at most 64 integers");
        for (const auto& item : value.items) into.push_back(checked(field, item, 1, kMostClusters));
    }

    static int checked(const char* field, const Json& value, int low, int high) {
        // By value: 4.0 is an integer. A double holds every integer that is allowed.
        const double number = value.is_number() ? value.value : 0.5;
        if (number != std::floor(number)) refuse(field, "is not an integer");
        if (!(number >= low && number <= high)) {
            refuse(field, "is not within " + std::to_string(low) + ".." + std::to_string(high));
        }
        return static_cast<int>(number);
    }

    [[noreturn]] static void refuse(const char* field, const std::string& why) {
        bad_model("model metadata: clusir." + std::string(field) + " " + why);
    }

private:
    const Metadata& metadata_;
};

bool is_pair(const Json& value) {
    return value.is_list() && value.items.size() == 2 && value.items[0].is_number() && value.items[1].is_number();
}

void read_size(const SpecFields& fields, ModelSpec& spec) {
    Json size;
    if (!fields.read("size", size)) return;
    if (!size.is_object()) SpecFields::refuse("size", "is not an object");
    if (const Json* side = size.find("multiple_of")) spec.multiple_of = SpecFields::checked("size", *side, 1, 4096);
    if (const Json* side = size.find("minimum")) spec.minimum = SpecFields::checked("size", *side, 1, 65536);
    if (const Json* side = size.find("static_px")) spec.static_px = SpecFields::checked("size", *side, 0, kLargestTile);
    if (const Json* side = size.find("maximum")) spec.maximum = SpecFields::checked("size", *side, 0, 65536);
}

void read_range(const SpecFields& fields, ModelSpec& spec) {
    Json range;
    if (!fields.read("value_range", range)) return;
    if (!is_pair(range)) {
        SpecFields::refuse("value_range", "is not two numbers");
    }
    spec.low = range.items[0].value;
    spec.high = range.items[1].value;
    const double width = spec.high - spec.low, largest = std::max({1.0, std::fabs(spec.low), std::fabs(spec.high)});
    if (!(spec.low >= -kLargestBound && spec.high <= kLargestBound && width >= largest * kLeastWidth))
        SpecFields::refuse("value_range", "does not rise by a thousandth of its larger bound, or leaves -1e6..1e6");
    spec.offset = static_cast<float>(spec.low);
    spec.scale = static_cast<float>(width);
}

std::vector<std::string> read_names(const SpecFields& fields, const char* key) {
    Json names;
    std::vector<std::string> found;
    if (!fields.read(key, names)) return found;
    if (!names.is_list() || names.items.size() > kMostLevels)
        SpecFields::refuse(key, "is not a list of at most 64 names");
    for (const auto& name : names.items) found.push_back(SpecFields::checked_text(key, name));
    if (std::set<std::string>(found.begin(), found.end()).size() != found.size())
        SpecFields::refuse(key, "names one twice");
    return found;
}

std::vector<double> read_shares(const SpecFields& fields, const char* key) {
    Json values;
    std::vector<double> found;
    if (!fields.read(key, values)) return found;
    if (!values.is_list() || values.items.size() > kMostLevels)
        SpecFields::refuse(key, "is not a list of at most 64 numbers");
    for (const auto& value : values.items) {
        if (!value.is_number()) SpecFields::refuse(key, "is not a list of numbers");
        const double least = value.value;
        if (!(least >= 0.0 && least <= 1.0)) SpecFields::refuse(key, "is not within 0..1");
        found.push_back(least);
    }
    return found;
}

void read_families(const SpecFields& fields, ModelSpec& spec) {
    spec.families = read_names(fields, "families");
    spec.evidence_thresholds = read_shares(fields, "evidence_thresholds");
    if (spec.families.size() != spec.evidence_thresholds.size())
        SpecFields::refuse("evidence_thresholds", "has not one number for each of the families");
    spec.evidence_floors = read_shares(fields, "evidence_floors");
    if (!spec.evidence_floors.empty() && spec.families.size() != spec.evidence_floors.size())
        SpecFields::refuse("evidence_floors", "has not one number for each of the families");
}

void read_maps(const SpecFields& fields, ModelSpec& spec) {
    spec.maps = read_names(fields, "maps");
    if (spec.maps.size() > (spec.channels == 1 ? 1 : kMostMaps))
        SpecFields::refuse("maps", "are more than 8, or more than one of a grey picture");
    spec.map_defaults = read_shares(fields, "map_defaults");
    if (spec.map_defaults.size() != spec.maps.size())
        SpecFields::refuse("map_defaults", "has not one number for each of the maps");
    if (!spec.maps.empty() && (spec.routed() || spec.low != 0.0 || spec.high != 1.0))
        SpecFields::refuse("maps", "are beside routed levels, or beside a value range that is not 0..1");
}

void read_numbers(const SpecFields& fields, ModelSpec& spec) {
    spec.numbers = read_names(fields, "numbers");
    if (spec.numbers.size() > kMostNumbers) SpecFields::refuse("numbers", "are more than 8");
    if (!spec.numbers.empty() && spec.routed()) SpecFields::refuse("numbers", "are beside routed levels");
    std::set<std::string> taken{"posterior", "gate",  "expert_probability", "statistics", "permissions",
                                "evidence",  "weight", "given", "known", "level", "largest"};
    taken.insert({spec.input_name, spec.output_name});
    taken.insert(spec.maps.begin(), spec.maps.end());
    for (const auto& name : spec.numbers) {
        if (taken.count(name)) SpecFields::refuse("numbers", "has the name of another tensor");
    }
    Json values, ranges;
    const bool have_values = fields.read("number_defaults", values), have_ranges = fields.read("number_ranges", ranges);
    const auto each = [&](bool have, const Json& list) {
        return list.items.size() == spec.numbers.size() && (list.is_list() || !have);
    };
    if (!each(have_values, values)) SpecFields::refuse("number_defaults", "has not one number for each of the numbers");
    if (!each(have_ranges, ranges)) SpecFields::refuse("number_ranges", "has not one pair for each of the numbers");
    for (std::size_t i = 0; i < spec.numbers.size(); ++i) {
        const auto& pair = ranges.items[i];
        if (!values.items[i].is_number() || !is_pair(pair))
            SpecFields::refuse("number_ranges", "and defaults are no numbers");
        const double low = pair.items[0].value, value = values.items[i].value, high = pair.items[1].value;
        if (!(-kLargestBound <= low && low <= value && value <= high && high <= kLargestBound))
            SpecFields::refuse("number_ranges", "does not hold the default, or leaves -1e6..1e6");
        spec.number_defaults.push_back(value);
        spec.number_ranges.emplace_back(low, high);
    }
}

void read_labels(const SpecFields& fields, ModelSpec& spec) {
    Json labels;
    if (!fields.read("cluster_labels", labels)) return;
    if (!labels.is_list()) SpecFields::refuse("cluster_labels", "is not a list");
    if (labels.items.empty()) return;
    if (labels.items.size() != spec.clusters.size())
        SpecFields::refuse("cluster_labels", "does not match the clusters");
    for (std::size_t level = 0; level < labels.items.size(); ++level) {
        const auto& row = labels.items[level];
        if (!row.is_list() || row.items.size() != static_cast<std::size_t>(spec.clusters[level])) {
            SpecFields::refuse("cluster_labels", "does not match the clusters");
        }
        auto& into = spec.cluster_labels.emplace_back();
        for (const auto& label : row.items) {
            into.push_back(SpecFields::checked_text("cluster_labels", label));
        }
    }
}

void read_tolerances(const SpecFields& fields, ModelSpec& spec) {
    Json tolerances;
    if (!fields.read("tolerances", tolerances)) return;
    if (!tolerances.is_object()) SpecFields::refuse("tolerances", "is not an object");
    for (std::size_t i = 0; i < tolerances.items.size(); ++i) {
        const Json& bound = tolerances.items[i];
        if (!bound.is_number() || !(bound.value >= 0.0)) SpecFields::refuse("tolerances", "holds no bound");
        spec.tolerances[tolerances.keys[i]] = bound.value;
    }
}

void read_layout(const SpecFields& fields) {
    std::string layout = "NCHW", colour_order = "RGB";
    fields.text("layout", layout);
    fields.text("colour_order", colour_order);
    if (layout != "NCHW" || colour_order != "RGB") SpecFields::refuse("layout", "is not NCHW with colour order RGB");
}

}  // namespace

int ModelSpec::posterior_size() const { return std::accumulate(clusters.begin(), clusters.end(), 0); }
int ModelSpec::gate_size() const { return std::accumulate(experts.begin(), experts.end(), 0); }

ModelSpec ModelSpec::from_metadata(const Metadata& metadata) {
    const SpecFields fields(metadata);
    Json version;
    if (!fields.read("spec_version", version))
        bad_model("the model carries no clusir metadata (key clusir.spec_version)");
    SpecFields::checked("spec_version", version, kFirstVersion, kLastVersion);

    ModelSpec spec;
    fields.text("name", spec.name);
    fields.text("graph", spec.graph);
    fields.text("checkpoint_sha256", spec.checkpoint_sha256);
    fields.text("precision", spec.precision);
    fields.text("router_form", spec.router_form);
    fields.text("dft_form", spec.dft_form);
    fields.text("input_name", spec.input_name);
    fields.text("output_name", spec.output_name);
    fields.integer("channels", 1, 3, spec.channels);
    fields.integer("tile_px", 1, kLargestTile, spec.tile_px);
    fields.integer("halo_px", 0, kLargestTile, spec.halo_px);
    fields.integer("top_k", 1, kMostClusters, spec.top_k);
    fields.integer("statistics", 0, kMostStatistics, spec.statistics);
    fields.integer("scale", 1, kLargestScale, spec.upscale);
    fields.integers("clusters", spec.clusters);
    fields.integers("experts", spec.experts);
    read_layout(fields);
    read_size(fields, spec);
    read_range(fields, spec);
    read_families(fields, spec);
    read_maps(fields, spec);
    read_numbers(fields, spec);
    read_labels(fields, spec);
    read_tolerances(fields, spec);

    const bool pools = spec.graph == "pooled" || spec.graph == "statistics";
    if (spec.graph != "whole" && spec.graph != "tile" && spec.graph != "router" && !pools) {
        SpecFields::refuse("graph", "is not whole, tile, router, pooled or statistics");
    }
    if (pools && (spec.routed() || !spec.statistics))
        SpecFields::refuse("graph", "is of a network that pools, without statistics or with routing");
    if (spec.channels == 2) SpecFields::refuse("channels", "is not 1 or 3");
    if (2 * spec.halo_px >= spec.tile_px) SpecFields::refuse("halo_px", "leaves no core of the tile");
    const bool fits = spec.static_px ? spec.tile_px == spec.static_px
                                     : spec.tile_px >= spec.minimum && spec.tile_px % spec.multiple_of == 0 &&
                                           (spec.maximum == 0 || spec.tile_px <= spec.maximum);
    if (!fits) SpecFields::refuse("tile_px", "does not fit the size rule");
    if (spec.maximum && (spec.static_px || spec.statistics))
        SpecFields::refuse("size", "has a maximum beside one size, or beside statistics");
    if (spec.clusters.size() != spec.experts.size())
        SpecFields::refuse("experts", "does not name the levels of the clusters");
    if (spec.upscale != 1 && spec.routed()) SpecFields::refuse("scale", "is not 1 beside routed levels");
    for (const int experts : spec.experts) {
        if (spec.top_k > experts) SpecFields::refuse("top_k", "is more than the experts of a level");
    }
    return spec;
}

Metadata metadata_of_json(const std::string& text, const std::string& path) {
    Json values;
    if (!parse_json(text, values) || !values.is_object()) bad_model(path + ": it is no JSON object");
    Metadata found;
    for (std::size_t i = 0; i < values.items.size(); ++i) {
        if (!values.items[i].is_text()) bad_model(path + ": " + values.keys[i] + " is no text");
        found[values.keys[i]] = values.items[i].characters;
    }
    return found;
}

}  // namespace clusir::detail
