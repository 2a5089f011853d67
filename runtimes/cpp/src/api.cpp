// The C interface: every entry catches everything, so that no exception crosses the border.
#include <clusir/clusir.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstddef>
#include <cstring>
#include <new>

#include "error.hpp"
#include "model.hpp"
#include "numbers.hpp"
#include "pixels.hpp"
#include "steering.hpp"

using clusir::detail::BackendOptions;
using clusir::detail::Failure;
using clusir::detail::Model;
using clusir::detail::Source;

struct clusir_model {
    std::unique_ptr<Model> model;
};

struct clusir_cancel {
    std::atomic<bool> now{false};
};

namespace {

// A fixed buffer: reporting that memory is out must not need memory.
thread_local char last_error[512] = "";

clusir_status fail(clusir_status status, const char* what) noexcept {
    std::strncpy(last_error, what, sizeof last_error - 1);
    for (char* c = last_error; *c != '\0'; ++c) {
        if (*c == '\n' || *c == '\r') *c = ' ';
    }
    return status;
}

template <typename Body>
clusir_status guarded(const Body& body) noexcept {
    try {
        body();
        return CLUSIR_OK;
    } catch (const Failure& failure) {
        return fail(failure.status, failure.what());
    } catch (const std::bad_alloc&) {
        return fail(CLUSIR_OUT_OF_MEMORY, "out of memory");
    } catch (const std::length_error&) {
        return fail(CLUSIR_OUT_OF_MEMORY, "the picture needs more memory than can be addressed");
    } catch (const std::exception& error) {
        return fail(CLUSIR_FAILED, error.what());
    } catch (...) {
        return fail(CLUSIR_FAILED, "an unknown failure");
    }
}

void require(bool condition, const char* what) {
    if (!condition) throw Failure(CLUSIR_INVALID_ARGUMENT, what);
}

// Structs grow at their end, and only the sizes that some header declared are taken: any other would cut a field in
// two. One list per struct, oldest first; a caller built against an older header leaves the rest zero.
constexpr std::size_t kOpenOptionsSizes[] = {offsetof(clusir_open_options, weights), sizeof(clusir_open_options)};
constexpr std::size_t kRunOptionsSizes[] = {offsetof(clusir_run_options, fix),
                                            offsetof(clusir_run_options, exact_statistics),
                                            offsetof(clusir_run_options, maps),
                                            offsetof(clusir_run_options, numbers), sizeof(clusir_run_options)};
constexpr std::size_t kRunnerSizes[] = {sizeof(clusir_runner)};
constexpr std::size_t kSpecSizes[] = {offsetof(clusir_spec, scale), offsetof(clusir_spec, maximum_px),
                                      sizeof(clusir_spec)};

template <std::size_t N>
void require_size(std::size_t size, const std::size_t (&known)[N]) {
    require(std::find(known, known + N, size) != known + N,
            "struct_size is not the size of the struct; set it to sizeof");
}

template <typename Options, std::size_t N>
Options copied(const Options* given, const std::size_t (&known)[N]) {
    Options options{};
    if (given == nullptr) return options;
    require_size(given->struct_size, known);
    std::memcpy(&options, given, given->struct_size);
    return options;
}

BackendOptions backend_options(const clusir_open_options& options) {
    BackendOptions result;
    if (options.device != nullptr && *options.device != '\0') result.device = options.device;
    for (char& c : result.device) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    require(options.threads >= 0 && options.threads <= 1024, "options: threads is not within 0..1024");
    result.threads = options.threads;
    if (options.ort_library != nullptr) result.ort_library = options.ort_library;
    return result;
}

std::string backend_name(const clusir_open_options& options, const char* path = "") {
    const bool named = options.backend != nullptr && *options.backend != '\0';
    return clusir::detail::resolve_backend(named ? options.backend : "auto", path);
}

}  // namespace

extern "C" {

clusir_status clusir_open(const char* path, const clusir_open_options* given, clusir_model** model) {
    return guarded([&] {
        require(model != nullptr, "model is null");
        *model = nullptr;
        require(path != nullptr && *path != '\0', "path is null or empty");
        const auto options = copied(given, kOpenOptionsSizes);
        require(options.weights == nullptr && options.router_weights == nullptr,
                "options: weights are for clusir_open_memory; the graphs of a file name theirs");
        auto opened = Model::from_file(path, backend_name(options, path), backend_options(options));
        *model = new clusir_model{std::move(opened)};
    });
}

clusir_status clusir_open_memory(const void* graph, size_t graph_bytes, const void* router, size_t router_bytes,
                                 const clusir_open_options* given, clusir_model** model) {
    return guarded([&] {
        require(model != nullptr, "model is null");
        *model = nullptr;
        require(graph != nullptr && graph_bytes > 0, "graph is null or empty");
        require((router == nullptr) == (router_bytes == 0), "router is null with a size, or has no bytes");
        const auto options = copied(given, kOpenOptionsSizes);
        require((options.weights == nullptr) == (options.weights_bytes == 0) &&
                    (options.router_weights == nullptr) == (options.router_weights_bytes == 0),
                "options: weights are null with a size, or have no bytes");
        const bool own = options.router_weights != nullptr;
        const Source first{"graph in memory", graph, graph_bytes, options.weights, options.weights_bytes};
        const Source second{"second graph in memory", router, router_bytes,
                            own ? options.router_weights : options.weights,
                            own ? options.router_weights_bytes : options.weights_bytes};
        auto opened =
            std::make_unique<Model>(backend_name(options), first, router ? &second : nullptr, backend_options(options));
        *model = new clusir_model{std::move(opened)};
    });
}

clusir_status clusir_open_runner(const char* description, const clusir_runner* given, clusir_model** model) {
    return guarded([&] {
        require(model != nullptr, "model is null");
        *model = nullptr;
        require(description != nullptr && *description != '\0', "description is null or empty");
        require(given != nullptr, "runner is null");
        const auto runner = copied(given, kRunnerSizes);
        require(runner.run != nullptr, "runner: run is null");
        auto opened = std::make_unique<Model>("runner", clusir::detail::open_runner(description, runner));
        *model = new clusir_model{std::move(opened)};
    });
}

void clusir_close(clusir_model* model) { delete model; }

clusir_status clusir_get_spec(const clusir_model* model, clusir_spec* spec) {
    return guarded([&] {
        require(model != nullptr && spec != nullptr, "model or spec is null");
        require_size(spec->struct_size, kSpecSizes);
        const auto& from = model->model->spec();
        const clusir_spec full{spec->struct_size,
                               from.name.c_str(),
                               from.precision.c_str(),
                               model->model->backend().c_str(),
                               static_cast<uint32_t>(from.channels),
                               static_cast<uint32_t>(from.tile_px),
                               static_cast<uint32_t>(from.halo_px),
                               static_cast<uint32_t>(from.clusters.size()),
                               static_cast<uint32_t>(from.posterior_size()),
                               static_cast<uint32_t>(from.gate_size()),
                               static_cast<uint32_t>(from.top_k),
                               static_cast<uint32_t>(from.statistics),
                               static_cast<uint32_t>(from.static_px),
                               static_cast<uint32_t>(from.multiple_of),
                               static_cast<uint32_t>(from.minimum),
                               from.low,
                               from.high,
                               from.checkpoint_sha256.c_str(),
                               static_cast<uint32_t>(from.upscale),
                               static_cast<uint32_t>(from.families.size()),
                               static_cast<uint32_t>(from.maximum)};
        std::memcpy(spec, &full, spec->struct_size);
    });
}

uint32_t clusir_level_clusters(const clusir_model* model, uint32_t level) {
    if (model == nullptr || level >= model->model->spec().clusters.size()) return 0;
    return static_cast<uint32_t>(model->model->spec().clusters[level]);
}

uint32_t clusir_level_experts(const clusir_model* model, uint32_t level) {
    if (model == nullptr || level >= model->model->spec().experts.size()) return 0;
    return static_cast<uint32_t>(model->model->spec().experts[level]);
}

const char* clusir_cluster_label(const clusir_model* model, uint32_t level, uint32_t cluster) {
    if (model == nullptr) return "";
    const auto& labels = model->model->spec().cluster_labels;
    return level < labels.size() && cluster < labels[level].size() ? labels[level][cluster].c_str() : "";
}

const char* clusir_family(const clusir_model* model, uint32_t family) {
    if (model == nullptr || family >= model->model->spec().families.size()) return "";
    return model->model->spec().families[family].c_str();
}

double clusir_family_threshold(const clusir_model* model, uint32_t family) {
    if (model == nullptr || family >= model->model->spec().families.size()) return 0.0;
    return model->model->spec().evidence_thresholds[family];
}

const char* clusir_metadata(const clusir_model* model, const char* field) {
    const char* value = nullptr;
    guarded([&] {
        require(model != nullptr && field != nullptr, "model or field is null");
        const auto& metadata = model->model->metadata();
        const auto found = metadata.find(std::string("clusir.") + field);
        if (found != metadata.end()) value = found->second.c_str();
    });
    return value;
}

clusir_status clusir_restore(clusir_model* model, const clusir_image* in, const clusir_image* out,
                             const clusir_run_options* given) {
    return guarded([&] {
        require(model != nullptr, "model is null");
        const auto options = copied(given, kRunOptionsSizes);
        const auto& spec = model->model->spec();
        const clusir_image from = clusir::detail::check_image(in, "in", spec),
                           to = clusir::detail::check_image(out, "out", spec);
        clusir::detail::check_pair(from, to, spec);
        clusir::detail::check_samples(from);
        require(options.maps != nullptr || options.map_count == 0, "options: maps is null with a count");
        const auto maps = clusir::detail::read_maps(options.maps, options.map_count, spec, from);
        require(options.numbers != nullptr || options.number_count == 0, "options: numbers is null with a count");
        const auto numbers = clusir::detail::read_numbers(options.numbers, options.number_count, spec);
        const auto text = [](const char* given_text) { return std::string(given_text == nullptr ? "" : given_text); };
        const auto steering = clusir::detail::steer(spec, text(options.fix), text(options.strength));
        const auto step = [&](uint32_t done, uint32_t total) {
            if (options.cancel != nullptr && options.cancel->now.load(std::memory_order_relaxed)) return false;
            return options.progress == nullptr || options.progress(options.user, done, total) == 0;
        };
        const bool exact = options.exact_statistics != 0;
        const auto routing = model->model->restore({from, maps, numbers}, to, steering, exact, step);
        if (options.posterior != nullptr)
            std::copy(routing.posterior.begin(), routing.posterior.end(), options.posterior);
        if (options.gate != nullptr) std::copy(routing.gate.begin(), routing.gate.end(), options.gate);
        if (options.evidence != nullptr) std::copy(routing.evidence.begin(), routing.evidence.end(), options.evidence);
    });
}

clusir_cancel* clusir_cancel_new(void) { return new (std::nothrow) clusir_cancel; }
void clusir_cancel_now(clusir_cancel* cancel) {
    if (cancel != nullptr) cancel->now.store(true, std::memory_order_relaxed);
}
void clusir_cancel_free(clusir_cancel* cancel) { delete cancel; }

const char* clusir_last_error(void) { return last_error; }

}  // extern "C"
