// The tables that Python and JavaScript answer too: clusir-tables FOLDER (tests/golden/tables). Compiled with the
// library's own sources: what is asked lies behind its interface.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include <nlohmann/json.hpp>

#include "../src/error.hpp"
#include "../src/pixels.hpp"
#include "../src/routing.hpp"
#include "../src/spec.hpp"
#include "../src/steering.hpp"
#include "../src/tiling.hpp"
#include "support.hpp"

namespace {

using namespace clusir::detail;
using nlohmann::json;

Checks checks;

json table(const std::string& folder, const std::string& name) {
    const auto text = read_file(folder + "/" + name + ".json");
    return json::parse(text.begin(), text.end());
}

double number(const json& value) {
    if (value.is_number()) return value.get<double>();
    if (value == "NaN") return std::numeric_limits<double>::quiet_NaN();
    return value == "Infinity" ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
}

// What the body raised; 0 where it raised nothing.
template <typename Body>
int raised(const Body& body) {
    try {
        body();
        return 0;
    } catch (const Failure& failure) {
        return std::strchr(failure.what(), '\n') == nullptr ? failure.status : -1;
    }
}

ModelSpec read_spec(const json& entry) {
    Metadata metadata;
    for (const auto& [key, text] : entry["metadata"].items()) metadata["clusir." + key] = text;
    return ModelSpec::from_metadata(metadata);
}

json as_json(const ModelSpec& spec) {
    const int older = !spec.numbers.empty() ? 4 : !spec.maps.empty() ? 3 : spec.upscale == 1 ? 1 : 2;
    const int version = spec.maximum ? 5 : older;
    const json size = {{"multiple_of", spec.multiple_of},
                       {"minimum", spec.minimum},
                       {"static_px", spec.static_px},
                       {"maximum", spec.maximum}};
    return {{"name", spec.name},
            {"graph", spec.graph},
            {"spec_version", version},
            {"checkpoint_sha256", spec.checkpoint_sha256},
            {"layout", "NCHW"},
            {"colour_order", "RGB"},
            {"value_range", {spec.low, spec.high}},
            {"input_name", spec.input_name},
            {"output_name", spec.output_name},
            {"channels", spec.channels},
            {"size", size},
            {"tile_px", spec.tile_px},
            {"halo_px", spec.halo_px},
            {"precision", spec.precision},
            {"router_form", spec.router_form},
            {"dft_form", spec.dft_form},
            {"clusters", spec.clusters},
            {"experts", spec.experts},
            {"top_k", spec.top_k},
            {"cluster_labels", spec.cluster_labels},
            {"tolerances", spec.tolerances.empty() ? json::object() : json(spec.tolerances)},
            {"statistics", spec.statistics},
            {"scale", spec.upscale},
            {"families", spec.families},
            {"evidence_thresholds", spec.evidence_thresholds},
            {"evidence_floors", spec.evidence_floors},
            {"maps", spec.maps},
            {"map_defaults", spec.map_defaults},
            {"numbers", spec.numbers},
            {"number_defaults", spec.number_defaults},
            {"number_ranges", spec.number_ranges}};
}

void specs(const std::string& folder) {
    const json all = table(folder, "specs");
    for (const auto& entry : all["good"]) {
        const std::string name = "good spec '" + entry["name"].get<std::string>() + "'";
        try {
            const json read = as_json(read_spec(entry));
            for (const auto& [key, value] : entry["reads"].items())
                checks.that(read[key] == value, name + ": " + key + " is " + read[key].dump());
        } catch (const Failure& failure) {
            checks.that(false, name + ": " + failure.what());
        }
    }
    for (const auto& entry : all["bad"]) {
        checks.that(raised([&] { read_spec(entry); }) == CLUSIR_BAD_MODEL,
                    "bad spec '" + entry["name"].get<std::string>() + "' is read");
    }
    // The field list is that of the schema, which is that of Python's dataclass.
    const json described = as_json(ModelSpec{});
    checks.that(described.size() == std::size(kSpecFields), "as many fields are listed as are read");
    for (const char* field : kSpecFields) {
        checks.that(described.contains(field), std::string("the field ") + field + " is read");
        std::printf("field %s\n", field);
    }
}

void gates(const std::string& folder) {
    const json all = table(folder, "gates");
    for (const auto& entry : all["cases"]) {
        const std::string name = "gate '" + entry["name"].get<std::string>() + "'";
        std::vector<float> probability, gate(entry["probability"].size(), -1.0F);
        for (const auto& value : entry["probability"]) probability.push_back(static_cast<float>(number(value)));
        const int status = raised([&] {
            top_k(probability.data(), static_cast<int>(probability.size()), entry["k"].get<int>(), gate.data());
        });
        if (entry["gate"].is_null()) {
            checks.that(status == CLUSIR_FAILED, name + " is an error");
            continue;
        }
        checks.that(status == 0, name + " is no error");
        for (std::size_t i = 0; i < gate.size(); ++i) {
            const double expected = entry["gate"][i].get<double>();
            checks.that(std::fabs(gate[i] - expected) <= 1e-6 && (gate[i] > 0) == (expected > 0), name);
        }
    }
}

clusir_type type_of(const json& entry) {
    return entry["type"] == "u8" ? CLUSIR_U8 : entry["type"] == "u16" ? CLUSIR_U16 : CLUSIR_F32;
}

ModelSpec ranged(const json& entry) {
    ModelSpec spec;
    spec.multiple_of = spec.minimum = 1;
    spec.tile_px = 1;
    spec.halo_px = 0;
    spec.low = entry["low"];
    spec.high = entry["high"];
    spec.offset = static_cast<float>(spec.low);
    spec.scale = static_cast<float>(spec.high - spec.low);
    return spec;
}

double sample_at(const void* at, clusir_type type) {
    if (type == CLUSIR_U8) return *static_cast<const std::uint8_t*>(at);
    if (type == CLUSIR_U16) return *static_cast<const std::uint16_t*>(at);
    return double{*static_cast<const float*>(at)};
}

void pixels(const std::string& folder) {
    const json all = table(folder, "pixels");
    for (const auto& entry : all["written"]) {
        const std::string name =
            "written " + entry["type"].get<std::string>() + " '" + entry["name"].get<std::string>() + "'";
        const ModelSpec spec = ranged(entry);
        const auto value = static_cast<float>(number(entry["value"]));
        const float row[3] = {value, value, value};
        for (const std::uint32_t channels : {1U, 3U}) {
            alignas(4) unsigned char into[16] = {}, from[16] = {};
            const clusir_image out{into, 1, 1, channels, type_of(entry), 0},
                in{from, 1, 1, channels, type_of(entry), 0};
            const int status = raised([&] {
                check_finite(row, 3, "restored");
                write_row(in, out, 0, row, spec);
            });
            if (entry["gives"].is_null()) {
                checks.that(status == CLUSIR_FAILED, name + " is an error");
                continue;
            }
            const double stored = sample_at(into, type_of(entry));
            checks.that(status == 0 && stored == double{static_cast<float>(entry["gives"].get<double>())},
                        name + ": " + std::to_string(stored));
        }
    }
    for (const auto& entry : all["read"]) {
        const std::string name = "read " + entry.dump();
        alignas(4) unsigned char bytes[12] = {};
        const double sample = number(entry["sample"]);
        for (std::size_t c = 0; c < 3; ++c) {
            if (entry["type"] == "u8") bytes[c] = static_cast<unsigned char>(sample);
            if (entry["type"] == "u16") reinterpret_cast<std::uint16_t*>(bytes)[c] = static_cast<std::uint16_t>(sample);
            if (entry["type"] == "f32") reinterpret_cast<float*>(bytes)[c] = static_cast<float>(sample);
        }
        const ModelSpec spec = ranged(entry);
        const Axis axis = plan_axis(1, spec);
        for (const std::uint32_t channels : {1U, 3U}) {
            std::vector<float> planes(3, -100.0F);
            const int status = raised([&] {
                const clusir_image given{bytes, 1, 1, channels, type_of(entry), 0};
                const clusir_image image = check_image(&given, "in", spec);
                check_samples(image);
                gather(image, {}, spec, axis, axis, 0, 0, planes);
            });
            if (entry["gives"].is_null()) {
                checks.that(status == CLUSIR_INVALID_ARGUMENT, name + " is refused");
                continue;
            }
            const double expected = entry["gives"];
            for (const float value : planes)
                checks.that(status == 0 && std::fabs(value - expected) <= 2e-7 * std::fabs(expected) + 1e-7, name);
        }
    }
}

void plans(const std::string& folder) {
    const json all = table(folder, "plans");
    for (const auto& entry : all["cases"]) {
        const std::string name = "plan " + entry.dump().substr(0, 80);
        ModelSpec spec;
        spec.tile_px = entry["tile_px"];
        spec.halo_px = entry["halo_px"];
        spec.multiple_of = entry.value("multiple_of", 16);
        spec.minimum = entry.value("minimum", 16);
        spec.static_px = entry.value("static_px", 0);
        spec.maximum = entry.value("maximum", 0);
        const Axis axis = plan_axis(entry["length"], spec);
        checks.that(axis.tile == entry["tile"].get<std::int64_t>(), name + ": tile");
        checks.that(json(sample(axis)) == entry["sample"], name + ": sample");
        if (entry.contains("starts")) {
            checks.that(json(axis.starts) == entry["starts"], name + ": starts");
        } else {
            checks.that(axis.starts.size() == entry["count"].get<std::size_t>() &&
                            axis.starts.back() == entry["last"].get<std::int64_t>(),
                        name + ": starts");
        }
        if (entry.contains("weights")) {
            const auto weights = entry["weights"].get<std::vector<std::vector<float>>>();
            checks.that(axis.weights == weights, name + ": weights");
        }
    }
    for (const auto& entry : all["reflect"])
        checks.that(reflect(entry[0], entry[1]) == entry[2].get<std::int64_t>(), "reflect " + entry.dump());
}

// fix or strength as C takes it: lists and mappings become text.
std::string as_text(const json& value) {
    if (value.is_null()) return "";
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number()) return value.dump();
    std::string text;
    for (const auto& [key, part] : value.items()) {
        const std::string name = value.is_object() && !key.empty() ? key + "=" : "";
        text += (text.empty() ? "" : ",") + name + (part.is_string() ? part.get<std::string>() : part.dump());
    }
    return text;
}

void steering(const std::string& folder) {
    const json all = table(folder, "steering");
    for (const char* kind : {"good", "bad"}) {
        for (const auto& entry : all[kind]) {
            const std::string name = "steering '" + entry["name"].get<std::string>() + "'";
            if (entry["fix"].is_array() && entry["fix"].empty()) continue;  // an empty list has no text
            ModelSpec spec;
            spec.families = entry["families"].get<std::vector<std::string>>();
            spec.evidence_floors = entry.value("floors", std::vector<double>());
            Steering made;
            const int status = raised([&] { made = steer(spec, as_text(entry["fix"]), as_text(entry["strength"])); });
            if (std::strcmp(kind, "bad") == 0) {
                checks.that(status == CLUSIR_INVALID_ARGUMENT, name + " is refused");
                continue;
            }
            checks.that(status == 0 && made.permissions == entry["permissions"].get<std::vector<float>>() &&
                            made.blend == entry["blend"].get<float>(),
                        name);
        }
    }
    for (const auto& entry : all["rest"]) {
        ModelSpec spec;
        spec.families = {"noise", "jpeg", "haze", "low_light"};
        spec.evidence_thresholds = entry["thresholds"].get<std::vector<double>>();
        spec.evidence_floors = entry.value("floors", std::vector<double>());
        const bool rests = nothing_to_mend(entry["evidence"].get<std::vector<float>>(),
                                           entry["permissions"].get<std::vector<float>>(), spec);
        checks.that(rests == entry["rest"].get<bool>(), "at rest: " + entry.dump());
    }
    for (const char* text : {"0.5x", "0.5 0.5", "1e", "0.5%"})
        checks.that(raised([&] { steer(ModelSpec(), "", text); }) == CLUSIR_INVALID_ARGUMENT,
                    std::string("strength '") + text + "' is refused");
    for (const auto& entry : all["blends"]) {
        ModelSpec spec = ranged({{"low", 0}, {"high", 1}});
        float before[3], row[3], made[3] = {};
        std::fill(before, before + 3, entry["before"].get<float>());
        std::fill(row, row + 3, entry["restored"].get<float>());
        for (const std::uint32_t channels : {1U, 3U}) {
            const clusir_image in{before, 1, 1, channels, CLUSIR_F32, 0}, out{made, 1, 1, channels, CLUSIR_F32, 0};
            write_row(in, out, 0, row, spec, entry["strength"].get<float>());
            checks.that(std::fabs(made[0] - entry["gives"].get<float>()) <= 1e-7F, "blend " + entry.dump());
        }
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return std::printf("usage: clusir-tables FOLDER\n"), 2;
    try {
        specs(argv[1]);
        gates(argv[1]);
        pixels(argv[1]);
        plans(argv[1]);
        steering(argv[1]);
    } catch (const std::exception& error) {
        checks.that(false, error.what());
    }
    return checks.finish();
}
