// The tables that Python and JavaScript answer too: clusir-tables FOLDER (tests/golden/tables). Compiled with the
// library's own sources: what is asked lies behind its interface.
//
// clusir-tables - FILE: what is read of each JSON in FILE, a line each, or "no". Each comes after its length, 4 bytes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "../src/error.hpp"
#include "../src/pixels.hpp"
#include "../src/routing.hpp"
#include "../src/spec.hpp"
#include "../src/steering.hpp"
#include "../src/tiling.hpp"
#include "json.hpp"

namespace {

using namespace clusir::detail;

Checks checks;

Json table(const std::string& folder, const std::string& name) { return read_json(folder + "/" + name + ".json"); }

double number(const View& value) {
    if (value.at->is_number()) return value.number();
    if (value.text() == "NaN") return std::numeric_limits<double>::quiet_NaN();
    return value.text() == "Infinity" ? std::numeric_limits<double>::infinity()
                                      : -std::numeric_limits<double>::infinity();
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

ModelSpec read_spec(const View& entry) {
    Metadata metadata;
    const View given = entry["metadata"];
    for (std::size_t i = 0; i < given.size(); ++i) metadata["clusir." + given.key(i)] = given[i].text();
    return ModelSpec::from_metadata(metadata);
}

// Each field that is read, as JSON.
std::map<std::string, std::string> fields_of(const ModelSpec& spec) {
    const int older = !spec.numbers.empty() ? 4 : !spec.maps.empty() ? 3 : spec.upscale == 1 ? 1 : 2;
    const int version = spec.maximum ? 5 : older;
    const std::map<std::string, double> size = {{"multiple_of", spec.multiple_of},
                                                {"minimum", spec.minimum},
                                                {"static_px", spec.static_px},
                                                {"maximum", spec.maximum}};
    return {{"name", json_of(spec.name)},
            {"graph", json_of(spec.graph)},
            {"spec_version", json_of(version)},
            {"checkpoint_sha256", json_of(spec.checkpoint_sha256)},
            {"layout", json_of("NCHW")},
            {"colour_order", json_of("RGB")},
            {"value_range", json_of(std::pair(spec.low, spec.high))},
            {"input_name", json_of(spec.input_name)},
            {"output_name", json_of(spec.output_name)},
            {"channels", json_of(spec.channels)},
            {"size", json_of(size)},
            {"tile_px", json_of(spec.tile_px)},
            {"halo_px", json_of(spec.halo_px)},
            {"precision", json_of(spec.precision)},
            {"router_form", json_of(spec.router_form)},
            {"dft_form", json_of(spec.dft_form)},
            {"clusters", json_of(spec.clusters)},
            {"experts", json_of(spec.experts)},
            {"top_k", json_of(spec.top_k)},
            {"cluster_labels", json_of(spec.cluster_labels)},
            {"tolerances", json_of(spec.tolerances)},
            {"statistics", json_of(spec.statistics)},
            {"scale", json_of(spec.upscale)},
            {"families", json_of(spec.families)},
            {"evidence_thresholds", json_of(spec.evidence_thresholds)},
            {"evidence_floors", json_of(spec.evidence_floors)},
            {"maps", json_of(spec.maps)},
            {"map_defaults", json_of(spec.map_defaults)},
            {"numbers", json_of(spec.numbers)},
            {"number_defaults", json_of(spec.number_defaults)},
            {"number_ranges", json_of(spec.number_ranges)}};
}

void specs(const std::string& folder) {
    const Json read = table(folder, "specs");
    const View all{&read};
    for (const View entry : all["good"]) {
        const std::string name = "good spec '" + entry["name"].text() + "'";
        try {
            const auto found = fields_of(read_spec(entry));
            const View wanted = entry["reads"];
            for (std::size_t i = 0; i < wanted.size(); ++i) {
                const std::string& is = found.at(wanted.key(i));
                checks.that(same(is, wanted[i]), name + ": " + wanted.key(i) + " is " + is);
            }
        } catch (const Failure& failure) {
            checks.that(false, name + ": " + failure.what());
        }
    }
    for (const View entry : all["bad"]) {
        checks.that(raised([&] { read_spec(entry); }) == CLUSIR_BAD_MODEL,
                    "bad spec '" + entry["name"].text() + "' is read");
    }
    // The field list is that of the schema, which is that of Python's dataclass.
    const auto described = fields_of(ModelSpec{});
    checks.that(described.size() == std::size(kSpecFields), "as many fields are listed as are read");
    for (const char* field : kSpecFields) {
        checks.that(described.count(field) == 1, std::string("the field ") + field + " is read");
        std::printf("field %s\n", field);
    }
}

void gates(const std::string& folder) {
    const Json read = table(folder, "gates");
    const View all{&read};
    for (const View entry : all["cases"]) {
        const std::string name = "gate '" + entry["name"].text() + "'";
        std::vector<float> probability, gate(entry["probability"].size(), -1.0F);
        for (const View value : entry["probability"]) probability.push_back(static_cast<float>(number(value)));
        const int status = raised([&] {
            top_k(probability.data(), static_cast<int>(probability.size()), entry["k"].as<int>(), gate.data());
        });
        if (entry["gate"].is_null()) {
            checks.that(status == CLUSIR_FAILED, name + " is an error");
            continue;
        }
        checks.that(status == 0, name + " is no error");
        for (std::size_t i = 0; i < gate.size(); ++i) {
            const double expected = entry["gate"][i].number();
            checks.that(std::fabs(gate[i] - expected) <= 1e-6 && (gate[i] > 0) == (expected > 0), name);
        }
    }
}

clusir_type type_of(const View& entry) {
    return entry["type"].text() == "u8" ? CLUSIR_U8 : entry["type"].text() == "u16" ? CLUSIR_U16 : CLUSIR_F32;
}

ModelSpec ranged(double low, double high) {
    ModelSpec spec;
    spec.multiple_of = spec.minimum = 1;
    spec.tile_px = 1;
    spec.halo_px = 0;
    spec.low = low;
    spec.high = high;
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
    const Json read = table(folder, "pixels");
    const View all{&read};
    for (const View entry : all["written"]) {
        const std::string name =
            "written " + entry["type"].text() + " '" + entry["name"].text() + "'";
        const ModelSpec spec = ranged(entry["low"].number(), entry["high"].number());
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
            checks.that(status == 0 && stored == double{static_cast<float>(entry["gives"].number())},
                        name + ": " + std::to_string(stored));
        }
    }
    for (const View entry : all["read"]) {
        const std::string name = "read " + json_of(*entry.at);
        alignas(4) unsigned char bytes[12] = {};
        const double sample = number(entry["sample"]);
        for (std::size_t c = 0; c < 3; ++c) {
            const clusir_type type = type_of(entry);
            if (type == CLUSIR_U8) bytes[c] = static_cast<unsigned char>(sample);
            if (type == CLUSIR_U16) reinterpret_cast<std::uint16_t*>(bytes)[c] = static_cast<std::uint16_t>(sample);
            if (type == CLUSIR_F32) reinterpret_cast<float*>(bytes)[c] = static_cast<float>(sample);
        }
        const ModelSpec spec = ranged(entry["low"].number(), entry["high"].number());
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
            const double expected = entry["gives"].number();
            for (const float value : planes)
                checks.that(status == 0 && std::fabs(value - expected) <= 2e-7 * std::fabs(expected) + 1e-7, name);
        }
    }
}

void plans(const std::string& folder) {
    const Json read = table(folder, "plans");
    const View all{&read};
    for (const View entry : all["cases"]) {
        const std::string name = "plan " + json_of(*entry.at).substr(0, 80);
        ModelSpec spec;
        spec.tile_px = entry["tile_px"].as<int>();
        spec.halo_px = entry["halo_px"].as<int>();
        spec.multiple_of = static_cast<int>(entry.number("multiple_of", 16));
        spec.minimum = static_cast<int>(entry.number("minimum", 16));
        spec.static_px = static_cast<int>(entry.number("static_px", 0));
        spec.maximum = static_cast<int>(entry.number("maximum", 0));
        const Axis axis = plan_axis(entry["length"].as<std::int64_t>(), spec);
        checks.that(axis.tile == entry["tile"].as<std::int64_t>(), name + ": tile");
        checks.that(sample(axis) == entry["sample"].list<std::int64_t>(), name + ": sample");
        if (entry.has("starts")) {
            checks.that(axis.starts == entry["starts"].list<std::int64_t>(), name + ": starts");
        } else {
            checks.that(axis.starts.size() == entry["count"].as<std::size_t>() &&
                            axis.starts.back() == entry["last"].as<std::int64_t>(),
                        name + ": starts");
        }
        if (entry.has("weights")) {
            std::vector<std::vector<float>> weights;
            for (const View row : entry["weights"]) weights.push_back(row.list<float>());
            checks.that(axis.weights == weights, name + ": weights");
        }
    }
    for (const View entry : all["reflect"]) {
        const auto asked = entry.list<std::int64_t>();
        checks.that(asked.size() == 3 && reflect(asked[0], asked[1]) == asked[2], "reflect " + json_of(*entry.at));
    }
}

// fix or strength as C takes it: lists and mappings become text.
std::string as_text(const View& value) {
    if (value.is_null()) return "";
    if (value.at->is_text()) return value.text();
    if (value.at->is_number()) return json_of(*value.at);
    std::string text;
    for (std::size_t i = 0; i < value.size(); ++i) {
        const View part = value[i];
        const std::string name = value.at->is_object() && !value.key(i).empty() ? value.key(i) + "=" : "";
        text += (text.empty() ? "" : ",") + name + (part.at->is_text() ? part.text() : json_of(*part.at));
    }
    return text;
}

void steering(const std::string& folder) {
    const Json read = table(folder, "steering");
    const View all{&read};
    for (const char* kind : {"good", "bad"}) {
        for (const View entry : all[kind]) {
            const std::string name = "steering '" + entry["name"].text() + "'";
            if (entry["fix"].at->is_list() && entry["fix"].size() == 0) continue;  // an empty list has no text
            ModelSpec spec;
            spec.families = entry["families"].texts();
            spec.evidence_floors = entry.list<double>("floors");
            Steering made;
            const int status = raised([&] { made = steer(spec, as_text(entry["fix"]), as_text(entry["strength"])); });
            if (std::strcmp(kind, "bad") == 0) {
                checks.that(status == CLUSIR_INVALID_ARGUMENT, name + " is refused");
                continue;
            }
            checks.that(status == 0 && made.permissions == entry["permissions"].list<float>() &&
                            made.blend == entry["blend"].as<float>(),
                        name);
        }
    }
    for (const View entry : all["rest"]) {
        ModelSpec spec;
        spec.families = {"noise", "jpeg", "haze", "low_light"};
        spec.evidence_thresholds = entry["thresholds"].list<double>();
        spec.evidence_floors = entry.list<double>("floors");
        const bool rests = nothing_to_mend(entry["evidence"].list<float>(),
                                           entry["permissions"].list<float>(), spec);
        checks.that(rests == entry["rest"].at->truth, "at rest: " + json_of(*entry.at));
    }
    for (const char* text : {"0.5x", "0.5 0.5", "1e", "0.5%"})
        checks.that(raised([&] { steer(ModelSpec(), "", text); }) == CLUSIR_INVALID_ARGUMENT,
                    std::string("strength '") + text + "' is refused");
    for (const View entry : all["blends"]) {
        ModelSpec spec = ranged(0, 1);
        float before[3], row[3], made[3] = {};
        std::fill(before, before + 3, entry["before"].as<float>());
        std::fill(row, row + 3, entry["restored"].as<float>());
        for (const std::uint32_t channels : {1U, 3U}) {
            const clusir_image in{before, 1, 1, channels, CLUSIR_F32, 0}, out{made, 1, 1, channels, CLUSIR_F32, 0};
            write_row(in, out, 0, row, spec, entry["strength"].as<float>());
            checks.that(std::fabs(made[0] - entry["gives"].as<float>()) <= 1e-7F, "blend " + json_of(*entry.at));
        }
    }
}

void print_json(const std::string& path) {
    const auto bytes = read_file(path);
    for (std::size_t at = 0; at + 4 <= bytes.size();) {
        std::uint32_t length = 0;
        std::memcpy(&length, &bytes[at], 4);
        at += 4;
        const std::string text(bytes.data() + at, bytes.data() + std::min(at + length, bytes.size()));
        at += length;
        Json read;
        std::printf("%s\n", parse_json(text, read) ? json_of(read).c_str() : "no");
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return std::printf("usage: clusir-tables FOLDER\n"), 2;
    try {
        if (argc > 2) return print_json(argv[2]), 0;
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
