// One opened graph, whatever runs it: named float tensors in, named float tensors out.
#pragma once

#include <clusir/clusir.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../spec.hpp"

namespace clusir::detail {

using Shape = std::vector<std::int64_t>;  // -1: any length

struct Port {
    std::string name;
    Shape shape;
    bool is_float = false;
};

struct Feed {
    const char* name;
    Shape shape;
    const float* data;
};

// `data` has room for the product of `shape`; a graph that returns another shape is refused.
struct Fetch {
    const char* name;
    Shape shape;
    float* data;
};

// A model in a file (bytes == nullptr) or in memory (then `path` only names it in messages, and `weights` is the file
// that the graph keeps its weights in, or null).
struct Source {
    std::string path;
    const void* bytes = nullptr;
    std::size_t size = 0;
    const void* weights = nullptr;
    std::size_t weights_size = 0;
};

// The bytes of a source's file, or in memory. Throws Failure where the file cannot be read.
std::string bytes_of(const Source& source);

struct BackendOptions {
    std::string device = "cpu";
    int threads = 0;
    std::string ort_library;
};

class Graph {
public:
    virtual ~Graph() = default;
    virtual const Metadata& metadata() const = 0;
    virtual const std::vector<Port>& inputs() const = 0;
    virtual const std::vector<Port>& outputs() const = 0;
    // Any number of threads may call it at once. Throws Failure.
    virtual void run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) const = 0;
};

inline std::int64_t element_count(const Shape& shape) {
    std::int64_t count = 1;
    for (const auto length : shape) count *= length;
    return count;
}

std::string to_string(const Shape& shape);

// The name of the back end for a request ("auto", "ort", "openvino", "ncnn"); Failure(CLUSIR_NO_BACKEND) where it is not
// there. `path`: the model's file, or empty.
std::string resolve_backend(const std::string& request, const std::string& path);
std::unique_ptr<Graph> open_graph(const std::string& backend, const Source& source, const BackendOptions& options);

// `description`: the text of a file model.json. `runner` is copied; what its `user` points to is the caller's.
std::unique_ptr<Graph> open_runner(const std::string& description, const clusir_runner& runner);

#ifdef CLUSIR_WITH_ORT
std::unique_ptr<Graph> open_ort(const Source& source, const BackendOptions& options);
#endif
#ifdef CLUSIR_WITH_NCNN
std::unique_ptr<Graph> open_ncnn(const Source& source, const BackendOptions& options);
#endif
#ifdef CLUSIR_WITH_OPENVINO
std::unique_ptr<Graph> open_openvino(const Source& source, const BackendOptions& options);
#endif

}  // namespace clusir::detail
