// Files that are no model, models in memory, weights in a file of their own.
#include <cstddef>
#include <filesystem>

#include "hostile.hpp"

void opening() {
    clusir_model* model = nullptr;
    const auto right = options();
    refused(clusir_open(nullptr, &right, &model), CLUSIR_INVALID_ARGUMENT, "null path");
    refused(clusir_open("", &right, &model), CLUSIR_INVALID_ARGUMENT, "empty path");
    refused(clusir_open((folder + "/none.onnx").c_str(), &right, &model), CLUSIR_BAD_MODEL, "no file");
    refused(clusir_open(folder.c_str(), &right, &model), CLUSIR_BAD_MODEL, "a folder");
    refused(clusir_open((folder + "/standin.onnx").c_str(), &right, nullptr), CLUSIR_INVALID_ARGUMENT,
            "nowhere to put the model");
    refused(clusir_open((folder + "/standin.router.onnx").c_str(), &right, &model), CLUSIR_BAD_MODEL,
            "the router alone");
    auto wrong = options();
    wrong.backend = "abacus";
    refused(clusir_open((folder + "/standin.onnx").c_str(), &wrong, &model), CLUSIR_INVALID_ARGUMENT,
            "unknown backend");
    wrong = options();
    wrong.device = "toaster";
    refused(clusir_open((folder + "/standin.onnx").c_str(), &wrong, &model), CLUSIR_NO_BACKEND, "unknown device");
    wrong = options();
    wrong.threads = -1;
    refused(clusir_open((folder + "/standin.onnx").c_str(), &wrong, &model), CLUSIR_INVALID_ARGUMENT,
            "negative threads");
    // Names of files are UTF-8, also where the system's own are not.
    const std::string odd =
        "d\xC3\xBC"
        "nn \xE7\x85\xA7";
    for (const char* part : {".onnx", ".tile.onnx", ".router.onnx"})
        std::filesystem::copy_file(std::filesystem::u8path(folder + "/standin" + part),
                                   std::filesystem::u8path(folder + "/" + odd + part),
                                   std::filesystem::copy_options::overwrite_existing);
    checks.that(clusir_open((folder + "/" + odd + ".onnx").c_str(), &right, &model) == CLUSIR_OK,
                std::string("a name in UTF-8: ") + clusir_last_error());
    clusir_spec spec{};
    spec.struct_size = sizeof spec;
    checks.that(clusir_get_spec(model, &spec) == CLUSIR_OK && spec.statistics == 8, "with what lies beside it");
    clusir_close(model);
    wrong = options();
    wrong.device = "CPU";
    checks.that(clusir_open((folder + "/standin.onnx").c_str(), &wrong, &model) == CLUSIR_OK,
                "the device CPU, in capitals");
    clusir_close(model);
    clusir::Options named;
    named.backend = backend, named.device = "toaster", named.ort_library = library;
    try {
        const clusir::Model on_toaster(folder + "/standin.onnx", named);
        checks.that(false, "clusir.hpp: an unknown device");
    } catch (const clusir::Error& error) {
        checks.that(error.status() == CLUSIR_NO_BACKEND, "clusir.hpp: an unknown device");
    }
    if (backend == "ort") {
        wrong = options();
        wrong.ort_library = "/nowhere/libonnxruntime.so";
        refused(clusir_open((folder + "/standin.onnx").c_str(), &wrong, &model), CLUSIR_NO_BACKEND, "no ONNX Runtime");
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder + "/bad")) {
        const std::string path = entry.path().u8string();
        if (path.find(".router.") != std::string::npos) continue;
        const clusir_status status = clusir_open(path.c_str(), &right, &model);
        if (status != CLUSIR_OK) {
            std::printf("refused %s: %s\n", entry.path().filename().u8string().c_str(), clusir_last_error());
            refused(status, CLUSIR_BAD_MODEL, path);
            continue;
        }
        // What can only be seen when it runs must fail there.
        auto pixels = noise(60 * 60 * 3), result = pixels;
        const auto in = clusir::view(pixels.data(), 60, 60, 3), out = clusir::view(result.data(), 60, 60, 3);
        const clusir_status ran = clusir_restore(model, &in, &out, nullptr);
        std::printf("failed %s: %s\n", entry.path().filename().u8string().c_str(), clusir_last_error());
        checks.that(ran == CLUSIR_BAD_MODEL || ran == CLUSIR_FAILED, path + ": ran");
        clusir_close(model);
        model = nullptr;
    }
}

void memory() {
    const auto tile = read_file(folder + "/standin.tile.onnx"), router = read_file(folder + "/standin.router.onnx");
    const auto right = options();
    clusir_model* model = nullptr;
    checks.that(clusir_open_memory(tile.data(), tile.size(), router.data(), router.size(), &right, &model) == CLUSIR_OK,
                "opens from memory");
    clusir_close(model);
    refused(clusir_open_memory(tile.data(), tile.size(), nullptr, 0, &right, &model), CLUSIR_BAD_MODEL,
            "a tile graph without its router");
    refused(clusir_open_memory(tile.data(), tile.size(), nullptr, 9, &right, &model), CLUSIR_INVALID_ARGUMENT,
            "a size without bytes");
    refused(clusir_open_memory(router.data(), router.size(), tile.data(), tile.size(), &right, &model),
            CLUSIR_BAD_MODEL, "swapped graphs");
    refused(clusir_open_memory(nullptr, 10, nullptr, 0, &right, &model), CLUSIR_INVALID_ARGUMENT, "no bytes");
    const auto junk = noise(5000);
    refused(clusir_open_memory(junk.data(), junk.size(), nullptr, 0, &right, &model), CLUSIR_BAD_MODEL, "noise");
    for (std::size_t cut = 1; cut < tile.size(); cut += tile.size() / 11) {
        const clusir_status status = clusir_open_memory(tile.data(), cut, router.data(), router.size(), &right, &model);
        refused(status, CLUSIR_BAD_MODEL, "cut to " + std::to_string(cut) + " bytes");
    }
    // Flipped bytes may leave a model that opens; then it must run or fail, not crash.
    std::mt19937 random(11);
    const int rounds = backend == "openvino" ? 12 : 60;  // OpenVINO compiles every one of them
    for (int round = 0; round < rounds; ++round) {
        auto flipped = tile;
        for (int i = 0; i < 3; ++i)
            flipped[random() % flipped.size()] ^= static_cast<std::uint8_t>(1U << (random() % 8));
        if (clusir_open_memory(flipped.data(), flipped.size(), router.data(), router.size(), &right, &model) !=
            CLUSIR_OK)
            continue;
        auto pixels = noise(50 * 50 * 3), result = pixels;
        const auto in = clusir::view(pixels.data(), 50, 50, 3), out = clusir::view(result.data(), 50, 50, 3);
        clusir_restore(model, &in, &out, nullptr);
        clusir_close(model);
        model = nullptr;
    }
}

// Graphs that keep their weights in a file of their own: from the folder and from memory, the same pixels as otherwise.
void shared_weights(clusir_model* model) {
    auto pixels = noise(60 * 50 * 3);
    auto expected = pixels;
    const auto in = clusir::view(pixels.data(), 60, 50, 3);
    const auto same = [&](clusir_model* other, const char* what) {
        std::vector<std::uint8_t> result(pixels.size());
        const auto out = clusir::view(result.data(), 60, 50, 3);
        const bool ran = other != nullptr && clusir_restore(other, &in, &out, nullptr) == CLUSIR_OK;
        checks.that(ran && result == expected, what);
        clusir_close(other);
    };
    const auto first = clusir::view(expected.data(), 60, 50, 3);
    checks.that(clusir_restore(model, &in, &first, nullptr) == CLUSIR_OK, "the run to compare with");
    const std::string from = folder + "/shared/standin";
    const auto tile = read_file(from + ".tile.onnx"), router = read_file(from + ".router.onnx"),
               weights = read_file(from + ".onnx.data");
    auto given = options();
    clusir_model* opened = nullptr;
    clusir_open((from + ".onnx").c_str(), &given, &opened);
    same(opened, "weights from beside the graphs");
    refused(clusir_open_memory(tile.data(), tile.size(), router.data(), router.size(), &given, &opened),
            CLUSIR_BAD_MODEL, "graphs in memory without their weights");
    given.weights = weights.data(), given.weights_bytes = weights.size();
    clusir_open_memory(tile.data(), tile.size(), router.data(), router.size(), &given, &opened);
    same(opened, "weights from memory");
    refused(clusir_open((from + ".onnx").c_str(), &given, &opened), CLUSIR_INVALID_ARGUMENT, "weights beside a file");
    given.weights_bytes = 0;
    refused(clusir_open_memory(tile.data(), tile.size(), router.data(), router.size(), &given, &opened),
            CLUSIR_INVALID_ARGUMENT, "weights without a size");
    auto spoilt = weights;
    spoilt.front() ^= 1U;
    given.weights = spoilt.data(), given.weights_bytes = spoilt.size();
    refused(clusir_open_memory(tile.data(), tile.size(), router.data(), router.size(), &given, &opened),
            CLUSIR_BAD_MODEL, "weights of another export");
    given.struct_size = offsetof(clusir_open_options, weights);  // as in a header without them
    clusir_open((folder + "/standin.onnx").c_str(), &given, &opened);
    same(opened, "options without weights");
}
