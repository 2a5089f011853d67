// Checks the golden cases: clusir-golden GOLDEN_FOLDER BACKEND [ORT_LIBRARY [PRECISION TOLERANCE]]
//
// Prints the largest difference of every case. With a PRECISION (for example int8) the cases whose model has such a
// variant beside it are run with that one, against the same float32 results, within TOLERANCE.
#include <clusir/clusir.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>

#include <nlohmann/json.hpp>

#include "support.hpp"

namespace {

using nlohmann::json;

struct Case {
    std::string name;
    std::uint32_t width, height, channels;
    clusir_type type;
    std::vector<std::uint8_t> input;
    std::vector<float> restored;  // height x width x colours
    std::vector<float> posterior, gate, evidence;
    double tolerance;
    clusir::Steer steer;

    std::uint32_t colours() const { return channels < 3 ? 1 : 3; }
    std::size_t row() const { return std::size_t{width} * channels * static_cast<std::size_t>(type); }
};

Case load(const std::string& folder, const json& from) {
    Case c{};
    c.name = from["name"];
    c.width = from["width"];
    c.height = from["height"];
    c.channels = from["channels"];
    c.type = from["type"] == "u8" ? CLUSIR_U8 : from["type"] == "u16" ? CLUSIR_U16 : CLUSIR_F32;
    c.tolerance = from["tolerance"];
    c.posterior = from["posterior"].get<std::vector<float>>();
    c.gate = from["gate"].get<std::vector<float>>();
    c.evidence = from.value("evidence", std::vector<float>{});
    c.steer = {from.value("fix", ""), from.value("strength", ""), from.value("statistics", "") == "exact"};
    c.input = read_file(folder + "/" + from["input"].get<std::string>());
    const auto bytes = read_file(folder + "/" + from["restored"].get<std::string>());
    c.restored.resize(bytes.size() / sizeof(float));
    std::memcpy(c.restored.data(), bytes.data(), bytes.size());
    return c;
}

// The same pixels with gaps between the rows, to see that strides are honoured and gaps left alone.
std::vector<std::uint8_t> with_gaps(const Case& c, std::size_t stride) {
    std::vector<std::uint8_t> rows(stride * c.height, 0xA5);
    for (std::size_t y = 0; y < c.height; ++y) std::memcpy(&rows[y * stride], &c.input[y * c.row()], c.row());
    return rows;
}

double largest(const float* a, const float* b, std::size_t count) {
    double worst = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        const double difference = std::fabs(double{a[i]} - double{b[i]});
        if (!(difference <= worst)) worst = difference;  // a NaN wins and stays
    }
    return worst;
}

void check_float(Checks& checks, const Case& c, const clusir::Model& model, double tolerance) {
    std::vector<float> out(std::size_t{c.width} * c.height * c.channels);
    auto input = c.input;
    const clusir_image in{input.data(), c.width, c.height, c.channels, c.type, 0};
    const auto routing =
        model.restore(in, clusir::view(out.data(), c.width, c.height, c.channels), nullptr, nullptr, c.steer);
    std::vector<float> colours;
    for (std::size_t i = 0; i < out.size(); ++i) {
        if (i % c.channels < c.colours()) colours.push_back(out[i]);
    }
    checks.that(colours.size() == c.restored.size(), c.name + ": the sizes differ");
    const double worst = largest(colours.data(), c.restored.data(), std::min(colours.size(), c.restored.size()));
    std::printf("%s %s: max abs difference %.3g\n", model.spec().backend, c.name.c_str(), worst);
    checks.that(worst <= tolerance, c.name + ": restored differs by more than the tolerance");
    checks.that(routing.posterior.size() == c.posterior.size() && routing.gate.size() == c.gate.size(),
                c.name + ": routing sizes");
    checks.that(largest(routing.posterior.data(), c.posterior.data(), c.posterior.size()) <= c.tolerance,
                c.name + ": posterior");
    checks.that(largest(routing.gate.data(), c.gate.data(), c.gate.size()) <= c.tolerance, c.name + ": gate");
    checks.that(routing.evidence.size() == c.evidence.size() &&
                    largest(routing.evidence.data(), c.evidence.data(), c.evidence.size()) <= c.tolerance,
                c.name + ": evidence");
    // Strength 0 gives back what went in, bit for bit, and no graph is run: there is no routing.
    std::vector<std::uint8_t> kept(c.input.size());
    const auto none =
        model.restore(in, {kept.data(), c.width, c.height, c.channels, c.type, 0}, nullptr, nullptr, {"", "0"});
    checks.that(kept == c.input, c.name + ": strength 0");
    checks.that(std::all_of(none.posterior.begin(), none.posterior.end(), [](float p) { return p == 0.0F; }),
                c.name + ": strength 0 runs nothing");
}

void check_integers(Checks& checks, const Case& c, const clusir::Model& model, double tolerance) {
    const auto size = static_cast<std::size_t>(c.type);
    const std::size_t stride = c.row() + 6 * size;
    auto input = with_gaps(c, stride);
    std::vector<std::uint8_t> out(input.size(), 0x5A);
    model.restore({input.data(), c.width, c.height, c.channels, c.type, stride},
                  {out.data(), c.width, c.height, c.channels, c.type, stride}, nullptr, nullptr, c.steer);
    const double top = size == 1 ? 255.0 : 65535.0, slack = std::max(1.0, tolerance * top + 1.0);
    double worst = 0.0;
    bool alpha_kept = true, gaps_kept = true;
    std::size_t colour = 0;
    for (std::size_t y = 0; y < c.height; ++y) {
        for (std::size_t i = 0; i < std::size_t{c.width} * c.channels; ++i) {
            const std::uint8_t* at = &out[y * stride + i * size];
            if (i % c.channels == c.colours()) {
                alpha_kept = alpha_kept && std::memcmp(at, &input[y * stride + i * size], size) == 0;
                continue;
            }
            std::uint16_t value = *at;
            if (size == 2) std::memcpy(&value, at, 2);
            const double expected = std::floor(std::clamp(double{c.restored[colour++]}, 0.0, 1.0) * top + 0.5);
            worst = std::max(worst, std::fabs(value - expected));
        }
        for (std::size_t i = c.row(); i < stride; ++i) gaps_kept = gaps_kept && out[y * stride + i] == 0x5A;
    }
    checks.that(worst <= slack && (size == 2 || tolerance > 1e-3 || worst <= 1.0),
                c.name + ": integers differ by " + std::to_string(worst) + " levels");
    checks.that(alpha_kept, c.name + ": alpha changed");
    checks.that(gaps_kept, c.name + ": bytes between the rows were written");
}

// A sample as 0..1, and 0..1 as a sample of a type: rounded half to even, as numpy rounds.
double unit_of(const std::uint8_t* at, clusir_type type) {
    if (type == CLUSIR_U8) return double{static_cast<float>(*at) / 255.0F};
    std::uint16_t shorter = 0;
    float longer = 0.0F;
    if (type == CLUSIR_U16) std::memcpy(&shorter, at, sizeof shorter);
    if (type == CLUSIR_F32) std::memcpy(&longer, at, sizeof longer);
    return type == CLUSIR_U16 ? double{static_cast<float>(shorter) / 65535.0F} : double{longer};
}

// Alpha in every type: scaled where the type changes, and in its own type bit for bit.
void check_alpha(Checks& checks, const Case& c, const clusir::Model& model) {
    if (c.channels == c.colours()) return;
    auto input = c.input;
    for (const clusir_type type : {CLUSIR_U8, CLUSIR_U16, CLUSIR_F32}) {
        const auto size = static_cast<std::size_t>(type), from = static_cast<std::size_t>(c.type);
        const std::size_t pixels = std::size_t{c.width} * c.height;
        std::vector<std::uint8_t> out(pixels * c.channels * size + 4);
        model.restore({input.data(), c.width, c.height, c.channels, c.type, 0},
                      {out.data(), c.width, c.height, c.channels, type, 0});
        const double top = type == CLUSIR_U8 ? 255.0 : type == CLUSIR_U16 ? 65535.0 : 1.0;
        bool right = true;
        for (std::size_t i = 0; i < pixels; ++i) {
            const std::size_t at = i * c.channels + c.colours();
            const double given = unit_of(&input[at * from], c.type), made = unit_of(&out[at * size], type);
            const double expected = type == CLUSIR_F32 ? given : std::nearbyint(given * top) / top;
            right = right && std::fabs(made - expected) < 0.3 / top * (type == CLUSIR_F32 ? 1e-6 : 1.0);
            if (type == c.type) right = right && std::memcmp(&input[at * from], &out[at * size], size) == 0;
        }
        checks.that(right, c.name + ": alpha of type " + std::to_string(c.type) + " as " + std::to_string(type));
    }
}

// Each is opened once, and restores pictures of many sizes and types.
class Models {
public:
    Models(const char* backend, const char* library) : backend_(backend), library_(library) {}

    const clusir::Model& at(const std::string& path) {
        auto& model = opened_[path];
        if (!model) model = std::make_unique<clusir::Model>(path, backend_, 2, library_);
        return *model;
    }

private:
    const std::string backend_, library_;
    std::map<std::string, std::unique_ptr<clusir::Model>> opened_;
};

void check_refused(Checks& checks, const json& entry, const clusir::Model& model) {
    const std::uint32_t width = entry["width"], height = entry["height"];
    std::vector<std::uint8_t> in(std::size_t{width} * height * 3), out(in.size());
    try {
        model.restore(clusir::view(in.data(), width, height, 3), clusir::view(out.data(), width, height, 3), nullptr,
                      nullptr, {entry.value("fix", ""), entry.value("strength", "")});
        checks.that(false, entry["name"].get<std::string>() + ": no error");
    } catch (const clusir::Error& error) {
        checks.that(std::strstr(error.what(), entry["says"].get<std::string>().c_str()) != nullptr &&
                        error.status() == (entry.contains("strength") ? CLUSIR_INVALID_ARGUMENT : CLUSIR_FAILED),
                    entry["name"].get<std::string>() + ": " + error.what());
    }
}

// A model that enlarges: all channels, alpha among them, in floats and in the picture's own type.
void check_enlarged(Checks& checks, const json& entry, const std::string& folder, const clusir::Model& model) {
    const std::string name = entry["name"];
    const std::uint32_t width = entry["width"], height = entry["height"], channels = entry["channels"],
                        scale = entry["scale"];
    const clusir_type type = entry["type"] == "u8" ? CLUSIR_U8 : CLUSIR_U16;
    auto input = read_file(folder + "/" + entry["input"].get<std::string>());
    const auto bytes = read_file(folder + "/" + entry["restored"].get<std::string>());
    std::vector<float> expected(bytes.size() / sizeof(float)), floats(expected.size());
    std::memcpy(expected.data(), bytes.data(), bytes.size());
    checks.that(model.spec().scale == scale, name + ": scale");
    const clusir_image in{input.data(), width, height, channels, type, 0};
    const json given = entry.value("maps", json::object());
    std::vector<std::vector<std::uint8_t>> samples;
    std::vector<clusir_image> pictures;
    std::vector<clusir_map> maps;
    samples.reserve(given.size()), pictures.reserve(given.size());
    for (const auto& [map, value] : given.items()) {
        if (value.is_number()) {
            maps.push_back({map.c_str(), nullptr, value.get<float>()});
            continue;
        }
        samples.push_back(read_file(folder + "/" + value["input"].get<std::string>()));
        const clusir_type kind = value["type"] == "u8" ? CLUSIR_U8 : value["type"] == "u16" ? CLUSIR_U16 : CLUSIR_F32;
        const std::size_t pixels = std::size_t{width} * height * static_cast<std::size_t>(kind);
        pictures.push_back({samples.back().data(), width, height,
                            static_cast<std::uint32_t>(samples.back().size() / pixels), kind, 0});
        maps.push_back({map.c_str(), &pictures.back(), 0.0F});
    }
    std::vector<clusir_number> numbers;
    const json told = entry.value("numbers", json::object());
    for (const auto& [number, value] : told.items()) numbers.push_back({number.c_str(), value.get<double>()});
    const clusir::Steer steer{"", "", false, maps, numbers};
    model.restore(in, clusir::view(floats.data(), scale * width, scale * height, channels), nullptr, nullptr, steer);
    checks.that(largest(floats.data(), expected.data(), expected.size()) <= entry["tolerance"].get<double>(),
                name + ": restored differs by more than the tolerance");
    std::vector<std::uint8_t> out(expected.size() * static_cast<std::size_t>(type));
    model.restore(in, {out.data(), scale * width, scale * height, channels, type, 0}, nullptr, nullptr, steer);
    const double top = type == CLUSIR_U8 ? 255.0 : 65535.0;
    double worst = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
        std::uint16_t value = out[i];
        if (type == CLUSIR_U16) std::memcpy(&value, &out[2 * i], 2);
        worst = std::max(worst, std::fabs(value - double{expected[i]} * top));
    }
    checks.that(worst <= 0.5 + entry["tolerance"].get<double>() * top, name + ": integers");
    std::vector<clusir_number> wrong{{"none", 0.0}};
    if (clusir_metadata(model.get(), "numbers") != nullptr) wrong.push_back({"sigma", 76.0});
    for (const auto& one : wrong) {
        try {
            const clusir::Steer steered{"", "", false, {}, {one}};
            model.restore(in, {out.data(), scale * width, scale * height, channels, type, 0}, nullptr, nullptr, steered);
            checks.that(false, name + ": a number that it does not take is taken");
        } catch (const clusir::Error& error) {
            const bool told = std::string(error.what()).find(one.name) != std::string::npos;
            checks.that(told && error.status() == CLUSIR_INVALID_ARGUMENT, name + ": " + error.what());
        }
    }
    try {  // a map of another name, or an output that is not as large as the model's
        const clusir_image small{out.data(), width, height, channels, type, 0};
        const clusir::Steer unknown{"", "", false, {{"none", nullptr, 0.0F}}, {}};
        model.restore(in, small, nullptr, nullptr, scale == 1 ? unknown : steer);
        checks.that(false, name + ": an unknown map, or an output of the input's size is taken");
    } catch (const clusir::Error& error) {
        checks.that(error.status() == CLUSIR_INVALID_ARGUMENT, name + ": " + error.what());
    }
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return std::printf("usage: clusir-golden FOLDER BACKEND [ORT_LIBRARY [PRECISION TOLERANCE]]\n"), 2;
    const std::string folder = argv[1], precision = argc > 5 ? argv[4] : "";
    Checks checks;
    Models models(argv[2], argc > 3 ? argv[3] : "");
    try {
        const auto text = read_file(folder + "/manifest.json");
        const json manifest = json::parse(text.begin(), text.end());
        for (const auto& entry : manifest["cases"]) {
            const Case c = load(folder, entry);
            std::string path = folder + "/" + entry["model"].get<std::string>();
            if (!precision.empty()) {
                path = path.substr(0, path.rfind(".onnx")) + "." + precision + ".onnx";
                const auto tile = path.substr(0, path.rfind(".onnx")) + ".tile.onnx";
                if (!std::filesystem::exists(tile)) continue;
            }
            const clusir::Model& model = models.at(path);
            const double tolerance = precision.empty() ? c.tolerance : std::atof(argv[5]);
            check_float(checks, c, model, tolerance);
            if (c.type != CLUSIR_F32) check_integers(checks, c, model, tolerance);
            if (precision.empty()) check_alpha(checks, c, model);
        }
        if (precision.empty()) {
            for (const auto& entry : manifest["enlarged"])
                check_enlarged(checks, entry, folder, models.at(folder + "/" + entry["model"].get<std::string>()));
            for (const auto& entry : manifest["refused"])
                check_refused(checks, entry, models.at(folder + "/" + entry["model"].get<std::string>()));
        }
    } catch (const std::exception& error) {
        checks.that(false, error.what());
    }
    return checks.finish();
}
