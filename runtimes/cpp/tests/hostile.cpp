// Wrong arguments, files that are no model, metadata that lies, cancelled runs, threads. Meant for the sanitizers:
//   clusir-hostile FOLDER BACKEND [ORT_LIBRARY]
// FOLDER holds standin.onnx (see tests.golden.make.standin) and bad/*.onnx: each of those must be refused, or fail,
// with a line.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <limits>
#include <thread>

#include "hostile.hpp"

namespace {

void arguments(clusir_model* model) {
    const std::uint32_t w = 60, h = 50;
    auto pixels = noise(std::size_t{w} * h * 4 * 4 + 64);
    std::vector<std::uint8_t> result(pixels.size());
    const clusir_image in{pixels.data(), w, h, 3, CLUSIR_U8, 0}, out{result.data(), w, h, 3, CLUSIR_U8, 0};
    const auto with = [&](const char* what, auto change, bool both = true) {
        clusir_image a = in, b = out;
        change(a);
        if (both) change(b);
        refused(clusir_restore(model, &a, &b, nullptr), CLUSIR_INVALID_ARGUMENT, what);
    };
    with("no data", [](clusir_image& i) { i.data = nullptr; });
    with("zero width", [](clusir_image& i) { i.width = 0; });
    with("zero height", [](clusir_image& i) { i.height = 0; });
    with("no channel", [](clusir_image& i) { i.channels = 0; });
    with("five channels", [](clusir_image& i) { i.channels = 5; });
    with("many channels", [](clusir_image& i) { i.channels = 0xFFFFFFFFU; });
    with("short stride", [](clusir_image& i) { i.stride_bytes = i.width * 3 - 1; });
    with("stride of one", [](clusir_image& i) { i.stride_bytes = 1; });
    with("huge stride", [](clusir_image& i) { i.stride_bytes = SIZE_MAX - 8; });
    with("odd stride of shorts", [](clusir_image& i) { i.type = CLUSIR_U16, i.stride_bytes = i.width * 6 + 1; });
    with("odd address of floats",
         [](clusir_image& i) { i.type = CLUSIR_F32, i.data = static_cast<char*>(i.data) + 1; });
    with("unknown type", [](clusir_image& i) {
        const int type = 3;
        std::memcpy(&i.type, &type, sizeof type);
    });
    with("another height", [](clusir_image& i) { i.height -= 1; }, false);
    with("another channel count", [](clusir_image& i) { i.channels = 4; }, false);
    with("in place", [&](clusir_image& i) { i.data = result.data(); });
    with("overlapping", [&](clusir_image& i) { i.data = result.data() + 100; }, false);
    refused(clusir_restore(nullptr, &in, &out, nullptr), CLUSIR_INVALID_ARGUMENT, "no model");
    refused(clusir_restore(model, nullptr, &out, nullptr), CLUSIR_INVALID_ARGUMENT, "no input");
    refused(clusir_restore(model, &in, nullptr, nullptr), CLUSIR_INVALID_ARGUMENT, "no output");
    clusir_run_options run{};
    refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT, "options without struct_size");
    run.struct_size = 4096;
    refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT, "options of a later header");
    // No other size than a whole one: half a pointer would be followed.
    run.progress = [](void*, std::uint32_t, std::uint32_t) { return 0; };
    for (std::size_t size = 0; size <= sizeof run + 8; ++size) {
        if (size == sizeof run || size == offsetof(clusir_run_options, fix) ||
            size == offsetof(clusir_run_options, exact_statistics) || size == offsetof(clusir_run_options, maps) || size == offsetof(clusir_run_options, numbers))
            continue;
        run.struct_size = size;
        refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT,
                "run options of " + std::to_string(size));
        auto open = options();
        open.struct_size = size;
        clusir_model* other = nullptr;
        if (size != sizeof open && size != offsetof(clusir_open_options, weights))
            refused(clusir_open((folder + "/standin.onnx").c_str(), &open, &other), CLUSIR_INVALID_ARGUMENT,
                    "open options of " + std::to_string(size));
    }
    run.fix = reinterpret_cast<const char*>(1);  // behind the end of the struct that is declared: never looked at
    run.struct_size = offsetof(clusir_run_options, fix);
    checks.that(clusir_restore(model, &in, &out, &run) == CLUSIR_OK, "run options of a header without fix");
    run.fix = nullptr;
    run.exact_statistics = 1;  // likewise
    run.struct_size = offsetof(clusir_run_options, exact_statistics);
    checks.that(clusir_restore(model, &in, &out, &run) == CLUSIR_OK, "run options without exact_statistics");
    run.struct_size = sizeof run;
    refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT, "exact statistics of a routed model");
    run.exact_statistics = 0;
    run.map_count = 1;
    refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT, "maps that are null");
    const clusir_map unknown{"mask", nullptr, 0.5F}, nameless{nullptr, nullptr, 0.5F};
    for (const clusir_map* map : {&unknown, &nameless}) {
        run.maps = map;
        refused(clusir_restore(model, &in, &out, &run), CLUSIR_INVALID_ARGUMENT, "a map that the model has not");
    }
    run.map_count = 0;
    refused(clusir_get_spec(model, nullptr), CLUSIR_INVALID_ARGUMENT, "no spec");
    struct {
        clusir_spec spec;
        std::uint8_t behind[64];
    } guarded;
    std::memset(&guarded, 0x5A, sizeof guarded);
    for (const std::size_t size : {std::size_t{0}, sizeof(std::size_t), sizeof guarded.spec - 1, sizeof guarded}) {
        guarded.spec.struct_size = size;
        refused(clusir_get_spec(model, &guarded.spec), CLUSIR_INVALID_ARGUMENT, "a spec of " + std::to_string(size));
    }
    guarded.spec.families = 99;
    guarded.spec.struct_size = offsetof(clusir_spec, scale);
    checks.that(
        clusir_get_spec(model, &guarded.spec) == CLUSIR_OK && guarded.spec.families == 99 && guarded.spec.tile_px == 48,
        "a spec of a header without scale and families");
    guarded.spec.maximum_px = 99;
    guarded.spec.struct_size = offsetof(clusir_spec, maximum_px);
    checks.that(clusir_get_spec(model, &guarded.spec) == CLUSIR_OK && guarded.spec.maximum_px == 99 &&
                    guarded.spec.families == 0,
                "a spec of a header without a maximum");
    guarded.spec.struct_size = sizeof guarded.spec;
    checks.that(clusir_get_spec(model, &guarded.spec) == CLUSIR_OK && guarded.behind[0] == 0x5A, "a spec and no more");
    checks.that(guarded.spec.channels == 3 && guarded.spec.tile_px == 48 && guarded.spec.static_px == 48 &&
                    guarded.spec.statistics == 8 && guarded.spec.families == 0 && guarded.spec.value_low == 0.0 &&
                    guarded.spec.value_high == 1.0 && guarded.spec.posterior_size == 7 &&
                    guarded.spec.minimum_px == 16 && guarded.spec.maximum_px == 0 &&
                    std::strlen(guarded.spec.checkpoint_sha256) == 64,
                "the spec's fields");
    checks.that(clusir_level_clusters(model, 99) == 0 && clusir_level_experts(nullptr, 0) == 0,
                "levels that are not there");
    checks.that(*clusir_cluster_label(model, 99, 99) == '\0' && clusir_metadata(model, "nothing") == nullptr,
                "labels that are not there");
    checks.that(std::strcmp(clusir_cluster_label(model, 0, 1), "jpeg") == 0, "a label");
    clusir_close(nullptr);
    clusir_cancel_free(nullptr);
    clusir_cancel_now(nullptr);
}

void absurd_samples(clusir_model* model) {
    std::vector<float> pixels(40 * 40 * 3, 0.5F), result(pixels.size());
    const float odd[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1e30F,
                         1e30F};
    for (std::size_t i = 0; i < pixels.size(); i += 100) pixels[i] = odd[i / 100 % 4];
    std::vector<std::uint8_t> bytes(pixels.size());
    const auto in = clusir::view(pixels.data(), 40, 40, 3);
    const auto floats = clusir::view(result.data(), 40, 40, 3), integers = clusir::view(bytes.data(), 40, 40, 3);
    refused(clusir_restore(model, &in, &floats, nullptr), CLUSIR_INVALID_ARGUMENT, "absurd samples to floats");
    refused(clusir_restore(model, &in, &integers, nullptr), CLUSIR_INVALID_ARGUMENT, "absurd samples to integers");
    for (const std::uint32_t channels : {2U, 4U}) {
        for (const float alpha : {odd[0], 2.0F, -1.0F, 1.0000001F}) {
            std::vector<float> floats_with(9 * channels, 0.5F), made(floats_with.size());
            floats_with[5 * channels - 1] = alpha;
            std::vector<std::uint8_t> low(floats_with.size());
            const auto with = clusir::view(floats_with.data(), 3, 3, channels);
            const auto same = clusir::view(made.data(), 3, 3, channels),
                       small = clusir::view(low.data(), 3, 3, channels);
            refused(clusir_restore(model, &with, &same, nullptr), CLUSIR_INVALID_ARGUMENT, "absurd alpha to floats");
            refused(clusir_restore(model, &with, &small, nullptr), CLUSIR_INVALID_ARGUMENT, "absurd alpha to integers");
        }
    }
}

void cancelling(clusir_model* model) {
    auto pixels = noise(200 * 150 * 3), result = pixels;
    const auto in = clusir::view(pixels.data(), 200, 150, 3), out = clusir::view(result.data(), 200, 150, 3);
    std::uint32_t stop_at = 0, calls = 0;
    struct State {
        std::uint32_t *stop_at, *calls;
    } state{&stop_at, &calls};
    clusir_run_options run{};
    run.struct_size = sizeof run;
    run.user = &state;
    run.progress = [](void* user, std::uint32_t done, std::uint32_t) {
        auto* s = static_cast<State*>(user);
        ++*s->calls;
        return done >= *s->stop_at ? 1 : 0;
    };
    for (stop_at = 0; stop_at < 7; stop_at += 3) {
        calls = 0;
        refused(clusir_restore(model, &in, &out, &run), CLUSIR_CANCELLED, "cancelled by the callback");
        checks.that(calls == stop_at + 1, "no tile after the callback said stop");
    }
    // After the last tile there is nothing left to stop: the picture is complete.
    std::vector<std::uint8_t> whole(pixels.size());
    const auto complete = clusir::view(whole.data(), 200, 150, 3);
    checks.that(clusir_restore(model, &in, &complete, nullptr) == CLUSIR_OK, "a run without a callback");
    struct Last {
        std::uint32_t calls = 0, total = 0;
    } last;
    run.user = &last;
    run.progress = [](void* user, std::uint32_t done, std::uint32_t total) {
        auto* l = static_cast<Last*>(user);
        ++l->calls;
        l->total = total;
        return done == total ? 1 : 0;
    };
    std::fill(result.begin(), result.end(), std::uint8_t{0});
    checks.that(clusir_restore(model, &in, &out, &run) == CLUSIR_OK && result == whole, "stopped after the last tile");
    checks.that(last.total > 4 && last.calls == last.total + 1, "one call before the first tile and one after each");
    clusir_cancel* cancel = clusir_cancel_new();
    run.progress = nullptr;
    run.cancel = cancel;
    std::thread other([&] { clusir_cancel_now(cancel); });
    other.join();
    refused(clusir_restore(model, &in, &out, &run), CLUSIR_CANCELLED, "cancelled by the token");
    clusir_cancel_free(cancel);
    checks.that(clusir_restore(model, &in, &out, nullptr) == CLUSIR_OK, "a cancelled model still works");
}

void sharing(clusir_model* model) {
    auto pixels = noise(130 * 90 * 3);
    auto expected = pixels;
    const auto in = clusir::view(pixels.data(), 130, 90, 3), first = clusir::view(expected.data(), 130, 90, 3);
    checks.that(clusir_restore(model, &in, &first, nullptr) == CLUSIR_OK, "the run to compare with");
    std::atomic<int> same{0}, errors{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&, t] {
            for (int round = 0; round < 3; ++round) {
                std::vector<std::uint8_t> result(pixels.size());
                const auto out = clusir::view(result.data(), 130, 90, 3);
                if (clusir_restore(model, &in, &out, nullptr) == CLUSIR_OK && result == expected) ++same;
                // Each thread has an error line of its own.
                if (t % 2 == 0 && clusir_restore(model, nullptr, &out, nullptr) == CLUSIR_INVALID_ARGUMENT) ++errors;
                if (t % 2 == 1 && *clusir_last_error() != '\0') errors += 100;
            }
        });
    }
    for (auto& thread : threads) thread.join();
    checks.that(same == 24, "8 threads x 3 runs of one model give the same bytes: " + std::to_string(same));
    checks.that(errors == 12, "errors stay in their thread");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return std::printf("usage: clusir-hostile FOLDER BACKEND [ORT_LIBRARY]\n"), 2;
    folder = argv[1], backend = argv[2], library = argc > 3 ? argv[3] : "";
    checks.that(*clusir_last_error() == '\0', "no error before the first");
    const auto right = options();
    clusir_model* model = nullptr;
    checks.that(clusir_open((folder + "/standin.onnx").c_str(), &right, &model) == CLUSIR_OK,
                std::string("opens: ") + clusir_last_error());
    if (model == nullptr) return checks.finish();
    sharing(model);
    arguments(model);
    absurd_samples(model);
    cancelling(model);
    shared_weights(model);
    clusir_close(model);
    opening();
    memory();
    return checks.finish();
}
