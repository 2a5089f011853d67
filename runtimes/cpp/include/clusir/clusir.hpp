// clusir for C++17: the C interface with destructors and exceptions. Header only; the library beneath is plain C.
//
//   clusir::Model model("tiny.onnx");
//   std::vector<std::uint8_t> out(pixels.size());
//   model.restore(clusir::view(pixels.data(), width, height, 3), clusir::view(out.data(), width, height, 3));
#pragma once

#include <clusir/clusir.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace clusir {

// Thrown by Model; what() is the library's one line, status() says which kind of failure it was.
class Error : public std::runtime_error {
public:
    Error(clusir_status status, const std::string& what) : std::runtime_error(what), status_(status) {}
    clusir_status status() const noexcept { return status_; }

private:
    clusir_status status_;
};

inline clusir_image view(std::uint8_t* data, std::uint32_t w, std::uint32_t h, std::uint32_t c,
                         std::size_t stride = 0) {
    return {data, w, h, c, CLUSIR_U8, stride};
}
inline clusir_image view(std::uint16_t* data, std::uint32_t w, std::uint32_t h, std::uint32_t c,
                         std::size_t stride = 0) {
    return {data, w, h, c, CLUSIR_U16, stride};
}
inline clusir_image view(float* data, std::uint32_t w, std::uint32_t h, std::uint32_t c, std::size_t stride = 0) {
    return {data, w, h, c, CLUSIR_F32, stride};
}

// Stops a run from another thread.
class Cancel {
public:
    Cancel() : handle_(clusir_cancel_new()) {
        if (!handle_) throw Error(CLUSIR_OUT_OF_MEMORY, "out of memory");
    }
    ~Cancel() { clusir_cancel_free(handle_); }
    Cancel(const Cancel&) = delete;
    Cancel& operator=(const Cancel&) = delete;
    void now() noexcept { clusir_cancel_now(handle_); }
    const clusir_cancel* get() const noexcept { return handle_; }

private:
    clusir_cancel* handle_;
};

// The routing that all tiles of a picture shared; empty for a model without routing. `evidence`: how likely each of the
// model's families of degradations is in the picture; empty for a model without families.
struct Routing {
    std::vector<float> posterior, gate, evidence;
};

// Which degradations may be mended, and how far, what is pooled, maps and numbers; see clusir_run_options. Empty: the
// default.
struct Steer {
    std::string fix, strength;
    bool exact_statistics = false;
    std::vector<clusir_map> maps = {};
    std::vector<clusir_number> numbers = {};
};

// How to open a model; see clusir_open_options.
struct Options {
    std::string backend = "auto", device = "cpu";
    std::int32_t threads = 0;
    std::string ort_library;
};

// An opened model; may be shared by threads.
class Model {
public:
    // Returns false to stop the run. Must not throw: it is called through C.
    using Progress = std::function<bool(std::uint32_t done, std::uint32_t total)>;

    Model(const std::string& path, const Options& options) {
        clusir_open_options given{};
        given.struct_size = sizeof given;
        given.backend = options.backend.c_str();
        given.device = options.device.c_str();
        given.threads = options.threads;
        given.ort_library = options.ort_library.empty() ? nullptr : options.ort_library.c_str();
        clusir_model* opened = nullptr;
        check(clusir_open(path.c_str(), &given, &opened));
        handle_.reset(opened);
        spec_.struct_size = sizeof spec_;
        check(clusir_get_spec(opened, &spec_));
    }
    explicit Model(const std::string& path, const std::string& backend = "auto", std::int32_t threads = 0,
                   const std::string& ort_library = "")
        : Model(path, Options{backend, "cpu", threads, ort_library}) {}

    const clusir_spec& spec() const noexcept { return spec_; }
    clusir_model* get() const noexcept { return handle_.get(); }

    Routing restore(const clusir_image& in, const clusir_image& out, const Progress& progress = nullptr,
                    const Cancel* cancel = nullptr, const Steer& steer = {}) const {
        Routing routing{std::vector<float>(spec_.posterior_size), std::vector<float>(spec_.gate_size),
                        std::vector<float>(spec_.families)};
        clusir_run_options options{};
        options.struct_size = sizeof options;
        if (progress) options.progress = &call;
        options.user = const_cast<Progress*>(&progress);
        options.cancel = cancel ? cancel->get() : nullptr;
        options.posterior = routing.posterior.empty() ? nullptr : routing.posterior.data();
        options.gate = routing.gate.empty() ? nullptr : routing.gate.data();
        options.evidence = routing.evidence.empty() ? nullptr : routing.evidence.data();
        options.fix = steer.fix.empty() ? nullptr : steer.fix.c_str();
        options.strength = steer.strength.empty() ? nullptr : steer.strength.c_str();
        options.exact_statistics = steer.exact_statistics ? 1 : 0;
        options.maps = steer.maps.data();
        options.map_count = steer.maps.size();
        options.numbers = steer.numbers.data();
        options.number_count = steer.numbers.size();
        check(clusir_restore(handle_.get(), &in, &out, &options));
        return routing;
    }

private:
    struct Close {
        void operator()(clusir_model* model) const noexcept { clusir_close(model); }
    };
    static int call(void* user, std::uint32_t done, std::uint32_t total) {
        return (*static_cast<Progress*>(user))(done, total) ? 0 : 1;
    }
    static void check(clusir_status status) {
        if (status != CLUSIR_OK) throw Error(status, clusir_last_error());
    }

    std::unique_ptr<clusir_model, Close> handle_;
    clusir_spec spec_{};
};

}  // namespace clusir
