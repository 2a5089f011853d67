#include "spec.hpp"

#include <numeric>

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace clusir::detail {
namespace {

using nlohmann::json;

constexpr int kSpecVersion = 1;
// A tile is held in memory several times over; the largest that is sensible is far below what the format can say.
constexpr int kLargestTile = 4096;
constexpr std::size_t kMostLevels = 64;
constexpr int kMostClusters = 4096;
constexpr int kMostStatistics = 1 << 24;

class Fields {
public:
    explicit Fields(const Metadata& metadata) : metadata_(metadata) {}

    bool read(const char* field, json& value) const {
        const auto found = metadata_.find(std::string("clusir.") + field);
        if (found == metadata_.end()) return false;
        value = json::parse(found->second, nullptr, false);
        if (value.is_discarded()) refuse(field, "is not JSON");
        return true;
    }

    void integer(const char* field, int low, int high, int& into) const {
        json value;
        if (read(field, value)) into = checked(field, value, low, high);
    }

    void text(const char* field, std::string& into) const {
        json value;
        if (!read(field, value)) return;
        if (!value.is_string()) refuse(field, "is not a string");
        into = value.get<std::string>();
        if (into.size() > 1024) refuse(field, "is longer than 1024 characters");
    }

    void integers(const char* field, std::vector<int>& into) const {
        json value;
        if (!read(field, value)) return;
        if (!value.is_array() || value.size() > kMostLevels) refuse(field, "is not a list of at most 64 integers");
        for (const auto& item : value) into.push_back(checked(field, item, 1, kMostClusters));
    }

    static int checked(const char* field, const json& value, int low, int high) {
        if (!value.is_number_integer()) refuse(field, "is not an integer");
        // An unsigned value above the signed range would wrap to a small one.
        const bool huge = value.is_number_unsigned() && value.get<std::uint64_t>() > INT32_MAX;
        const auto number = huge ? std::int64_t{INT32_MAX} : value.get<std::int64_t>();
        if (huge || number < low || number > high) {
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
    if (size.contains("static_px")) spec.static_px = Fields::checked("size", size["static_px"], 0, 65536);
}

void read_range(const Fields& fields, ModelSpec& spec) {
    json range;
    if (!fields.read("value_range", range)) return;
    if (!range.is_array() || range.size() != 2 || !range[0].is_number() || !range[1].is_number()) {
        Fields::refuse("value_range", "is not two numbers");
    }
    spec.low = range[0].get<float>();
    spec.high = range[1].get<float>();
    const float width = spec.high - spec.low;
    if (!(width > 0.0F && width <= 65535.0F)) Fields::refuse("value_range", "does not rise");
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
            if (!label.is_string()) Fields::refuse("cluster_labels", "holds something that is not a string");
            into.push_back(label.get<std::string>());
        }
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
    Fields::checked("spec_version", version, kSpecVersion, kSpecVersion);

    ModelSpec spec;
    fields.text("name", spec.name);
    fields.text("graph", spec.graph);
    fields.text("precision", spec.precision);
    fields.text("input_name", spec.input_name);
    fields.text("output_name", spec.output_name);
    fields.integer("channels", 1, 3, spec.channels);
    fields.integer("tile_px", 1, kLargestTile, spec.tile_px);
    fields.integer("halo_px", 0, kLargestTile, spec.halo_px);
    fields.integer("top_k", 1, kMostClusters, spec.top_k);
    fields.integer("statistics", 0, kMostStatistics, spec.statistics);
    fields.integers("clusters", spec.clusters);
    fields.integers("experts", spec.experts);
    read_layout(fields);
    read_size(fields, spec);
    read_range(fields, spec);
    read_labels(fields, spec);

    if (spec.graph != "whole" && spec.graph != "tile" && spec.graph != "router") {
        Fields::refuse("graph", "is not whole, tile or router");
    }
    if (spec.channels == 2) Fields::refuse("channels", "is not 1 or 3");
    if (2 * spec.halo_px >= spec.tile_px) Fields::refuse("halo_px", "leaves no core of the tile");
    const bool fits = spec.static_px ? spec.tile_px == spec.static_px
                                     : spec.tile_px >= spec.minimum && spec.tile_px % spec.multiple_of == 0;
    if (!fits) Fields::refuse("tile_px", "does not fit the size rule");
    if (spec.clusters.size() != spec.experts.size())
        Fields::refuse("experts", "does not name the levels of the clusters");
    for (const int experts : spec.experts) {
        if (spec.top_k > experts) Fields::refuse("top_k", "is more than the experts of a level");
    }
    return spec;
}

}  // namespace clusir::detail
