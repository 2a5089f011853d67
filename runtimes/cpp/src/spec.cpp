#include "spec.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace clusir::detail {
namespace {

using nlohmann::json;

constexpr int kFirstVersion = 1, kLastVersion = 5;  // 2 where scale is not 1, 3 maps, 4 numbers, 5 a maximum
constexpr int kLargestScale = 8;
// A tile is held in memory several times over; the largest that is sensible is far below what the format can say.
constexpr int kLargestTile = 4096;
constexpr std::size_t kMostLevels = 64, kMostMaps = 8, kMostNumbers = 8;
constexpr int kMostClusters = 4096;
constexpr int kMostStatistics = 1 << 24;
constexpr std::size_t kLongestText = 1024;  // characters
constexpr double kLargestBound = 1e6, kLeastWidth = 1e-3;

class Fields {
public:
    explicit Fields(const Metadata& metadata) : metadata_(metadata) {}

    bool read(const char* field, json& value) const {
        const auto found = metadata_.find(std::string("clusir.") + field);
        if (found == metadata_.end()) return false;
        // The parser would skip a byte order mark, which JSON does not allow.
        const bool marked = found->second.rfind("\xEF\xBB\xBF", 0) == 0;
        value = json::parse(found->second, nullptr, false);
        if (marked || value.is_discarded()) refuse(field, "is not JSON");
        return true;
    }

    void integer(const char* field, int low, int high, int& into) const {
        json value;
        if (read(field, value)) into = checked(field, value, low, high);
    }

    void text(const char* field, std::string& into) const {
        json value;
        if (!read(field, value)) return;
        into = checked_text(field, value);
    }

    static std::string checked_text(const char* field, const json& value) {
        if (!value.is_string()) refuse(field, "is not a string");
        auto text = value.get<std::string>();
        const auto characters = std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
        if (static_cast<std::size_t>(characters) > kLongestText) refuse(field, "is longer than 1024 characters");
        return text;
    }

    void integers(const char* field, std::vector<int>& into) const {
        json value;
        if (!read(field, value)) return;
        if (!value.is_array() || value.size() > kMostLevels) refuse(field, "is not a list of at most 64 integers");
        for (const auto& item : value) into.push_back(checked(field, item, 1, kMostClusters));
    }

    static int checked(const char* field, const json& value, int low, int high) {
        // By value: 4.0 is an integer. A double holds every integer that is allowed, whatever its JSON type.
        const double number = value.is_number() ? value.get<double>() : 0.5;
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

void read_size(const Fields& fields, ModelSpec& spec) {
    json size;
    if (!fields.read("size", size)) return;
    if (!size.is_object()) Fields::refuse("size", "is not an object");
    if (size.contains("multiple_of")) spec.multiple_of = Fields::checked("size", size["multiple_of"], 1, 4096);
    if (size.contains("minimum")) spec.minimum = Fields::checked("size", size["minimum"], 1, 65536);
    if (size.contains("static_px")) spec.static_px = Fields::checked("size", size["static_px"], 0, kLargestTile);
    if (size.contains("maximum")) spec.maximum = Fields::checked("size", size["maximum"], 0, 65536);
}

void read_range(const Fields& fields, ModelSpec& spec) {
    json range;
    if (!fields.read("value_range", range)) return;
    if (!range.is_array() || range.size() != 2 || !range[0].is_number() || !range[1].is_number()) {
        Fields::refuse("value_range", "is not two numbers");
    }
    spec.low = range[0].get<double>();
    spec.high = range[1].get<double>();
    const double width = spec.high - spec.low, largest = std::max({1.0, std::fabs(spec.low), std::fabs(spec.high)});
    if (!(spec.low >= -kLargestBound && spec.high <= kLargestBound && width >= largest * kLeastWidth))
        Fields::refuse("value_range", "does not rise by a thousandth of its larger bound, or leaves -1e6..1e6");
    spec.offset = static_cast<float>(spec.low);
    spec.scale = static_cast<float>(width);
}

std::vector<std::string> read_names(const Fields& fields, const char* key) {
    json names;
    std::vector<std::string> found;
    if (!fields.read(key, names)) return found;
    if (!names.is_array() || names.size() > kMostLevels) Fields::refuse(key, "is not a list of at most 64 names");
    for (const auto& name : names) found.push_back(Fields::checked_text(key, name));
    if (std::set<std::string>(found.begin(), found.end()).size() != found.size()) Fields::refuse(key, "names one twice");
    return found;
}

std::vector<double> read_shares(const Fields& fields, const char* key) {
    json values;
    std::vector<double> found;
    if (!fields.read(key, values)) return found;
    if (!values.is_array() || values.size() > kMostLevels) Fields::refuse(key, "is not a list of at most 64 numbers");
    for (const auto& value : values) {
        if (!value.is_number()) Fields::refuse(key, "is not a list of numbers");
        const double least = value.get<double>();
        if (!(least >= 0.0 && least <= 1.0)) Fields::refuse(key, "is not within 0..1");
        found.push_back(least);
    }
    return found;
}

void read_families(const Fields& fields, ModelSpec& spec) {
    spec.families = read_names(fields, "families");
    spec.evidence_thresholds = read_shares(fields, "evidence_thresholds");
    if (spec.families.size() != spec.evidence_thresholds.size())
        Fields::refuse("evidence_thresholds", "has not one number for each of the families");
    spec.evidence_floors = read_shares(fields, "evidence_floors");
    if (!spec.evidence_floors.empty() && spec.families.size() != spec.evidence_floors.size())
        Fields::refuse("evidence_floors", "has not one number for each of the families");
}

void read_maps(const Fields& fields, ModelSpec& spec) {
    spec.maps = read_names(fields, "maps");
    if (spec.maps.size() > (spec.channels == 1 ? 1 : kMostMaps))
        Fields::refuse("maps", "are more than 8, or more than one of a grey picture");
    spec.map_defaults = read_shares(fields, "map_defaults");
    if (spec.map_defaults.size() != spec.maps.size())
        Fields::refuse("map_defaults", "has not one number for each of the maps");
    if (!spec.maps.empty() && (spec.routed() || spec.low != 0.0 || spec.high != 1.0))
        Fields::refuse("maps", "are beside routed levels, or beside a value range that is not 0..1");
}

void read_numbers(const Fields& fields, ModelSpec& spec) {
    spec.numbers = read_names(fields, "numbers");
    if (spec.numbers.size() > kMostNumbers) Fields::refuse("numbers", "are more than 8");
    if (!spec.numbers.empty() && spec.routed()) Fields::refuse("numbers", "are beside routed levels");
    std::set<std::string> taken{"posterior", "gate",  "expert_probability", "statistics", "permissions",
                                "evidence",  "weight", "given", "known", "level", "largest"};
    taken.insert({spec.input_name, spec.output_name});
    taken.insert(spec.maps.begin(), spec.maps.end());
    for (const auto& name : spec.numbers) {
        if (taken.count(name)) Fields::refuse("numbers", "has the name of another tensor");
    }
    json values, ranges;
    if (!fields.read("number_defaults", values)) values = json::array();
    if (!fields.read("number_ranges", ranges)) ranges = json::array();
    const auto each = [&](const json& list) { return list.is_array() && list.size() == spec.numbers.size(); };
    if (!each(values)) Fields::refuse("number_defaults", "has not one number for each of the numbers");
    if (!each(ranges)) Fields::refuse("number_ranges", "has not one pair for each of the numbers");
    for (std::size_t i = 0; i < spec.numbers.size(); ++i) {
        const auto& pair = ranges[i];
        if (!values[i].is_number() || !pair.is_array() || pair.size() != 2 || !pair[0].is_number() || !pair[1].is_number())
            Fields::refuse("number_ranges", "and defaults are no numbers");
        const double low = pair[0].get<double>(), value = values[i].get<double>(), high = pair[1].get<double>();
        if (!(-kLargestBound <= low && low <= value && value <= high && high <= kLargestBound))
            Fields::refuse("number_ranges", "does not hold the default, or leaves -1e6..1e6");
        spec.number_defaults.push_back(value);
        spec.number_ranges.emplace_back(low, high);
    }
}

void read_labels(const Fields& fields, ModelSpec& spec) {
    json labels;
    if (!fields.read("cluster_labels", labels)) return;
    if (!labels.is_array()) Fields::refuse("cluster_labels", "is not a list");
    if (labels.empty()) return;
    if (labels.size() != spec.clusters.size()) Fields::refuse("cluster_labels", "does not match the clusters");
    for (std::size_t level = 0; level < labels.size(); ++level) {
        const auto& row = labels[level];
        if (!row.is_array() || row.size() != static_cast<std::size_t>(spec.clusters[level])) {
            Fields::refuse("cluster_labels", "does not match the clusters");
        }
        auto& into = spec.cluster_labels.emplace_back();
        for (const auto& label : row) {
            into.push_back(Fields::checked_text("cluster_labels", label));
        }
    }
}

void read_tolerances(const Fields& fields, ModelSpec& spec) {
    json tolerances;
    if (!fields.read("tolerances", tolerances)) return;
    if (!tolerances.is_object()) Fields::refuse("tolerances", "is not an object");
    for (const auto& [name, bound] : tolerances.items()) {
        if (!bound.is_number() || !(bound.get<double>() >= 0.0)) Fields::refuse("tolerances", "holds no bound");
        spec.tolerances[name] = bound.get<double>();
    }
}

void read_layout(const Fields& fields) {
    std::string layout = "NCHW", colour_order = "RGB";
    fields.text("layout", layout);
    fields.text("colour_order", colour_order);
    if (layout != "NCHW" || colour_order != "RGB") Fields::refuse("layout", "is not NCHW with colour order RGB");
}

}  // namespace

int ModelSpec::posterior_size() const { return std::accumulate(clusters.begin(), clusters.end(), 0); }
int ModelSpec::gate_size() const { return std::accumulate(experts.begin(), experts.end(), 0); }

ModelSpec ModelSpec::from_metadata(const Metadata& metadata) {
    const Fields fields(metadata);
    json version;
    if (!fields.read("spec_version", version))
        bad_model("the model carries no clusir metadata (key clusir.spec_version)");
    Fields::checked("spec_version", version, kFirstVersion, kLastVersion);

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
        Fields::refuse("graph", "is not whole, tile, router, pooled or statistics");
    }
    if (pools && (spec.routed() || !spec.statistics))
        Fields::refuse("graph", "is of a network that pools, without statistics or with routing");
    if (spec.channels == 2) Fields::refuse("channels", "is not 1 or 3");
    if (2 * spec.halo_px >= spec.tile_px) Fields::refuse("halo_px", "leaves no core of the tile");
    const bool fits = spec.static_px ? spec.tile_px == spec.static_px
                                     : spec.tile_px >= spec.minimum && spec.tile_px % spec.multiple_of == 0 &&
                                           (spec.maximum == 0 || spec.tile_px <= spec.maximum);
    if (!fits) Fields::refuse("tile_px", "does not fit the size rule");
    if (spec.maximum && (spec.static_px || spec.statistics))
        Fields::refuse("size", "has a maximum beside one size, or beside statistics");
    if (spec.clusters.size() != spec.experts.size())
        Fields::refuse("experts", "does not name the levels of the clusters");
    if (spec.upscale != 1 && spec.routed()) Fields::refuse("scale", "is not 1 beside routed levels");
    for (const int experts : spec.experts) {
        if (spec.top_k > experts) Fields::refuse("top_k", "is more than the experts of a level");
    }
    return spec;
}

Metadata metadata_of_json(const std::string& text, const std::string& path) {
    const json values = json::parse(text, nullptr, false);
    if (!values.is_object()) bad_model(path + ": it is no JSON object");
    Metadata found;
    for (const auto& [key, value] : values.items()) {
        if (!value.is_string()) bad_model(path + ": " + key + " is no text");
        found[key] = value.get<std::string>();
    }
    return found;
}

}  // namespace clusir::detail
