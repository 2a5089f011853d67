// An opened model: its tile graph, its router graph where it has one, and the loop that restores a picture with them.
#pragma once

#include <clusir/clusir.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "backends/backend.hpp"
#include "pixels.hpp"
#include "routing.hpp"
#include "spec.hpp"
#include "steering.hpp"
#include "tiling.hpp"

namespace clusir::detail {

class Model {
public:
    // Finds the files that belong together; see clusir_open.
    static std::unique_ptr<Model> from_file(const std::string& path, const std::string& backend,
                                            const BackendOptions& options);
    Model(const std::string& backend, const Source& graph, const Source* second, const BackendOptions& options);
    // A whole graph that is open already.
    Model(const std::string& backend, std::unique_ptr<Graph> graph);

    const ModelSpec& spec() const { return spec_; }
    const Metadata& metadata() const { return graph_->metadata(); }
    const std::string& backend() const { return backend_; }

    // `step(done, total)` returns false to stop; then Failure(CLUSIR_CANCELLED) is thrown. May be called by any number
    // of threads at once.
    // `exact`: of a network that pools over the whole picture, all of it is pooled, not windows.
    Routing restore(const Given& given, const clusir_image& out, const Steering& steering, bool exact,
                    const std::function<bool(std::uint32_t, std::uint32_t)>& step) const;

private:
    Routing route(const clusir_image& in, const Axis& rows, const Axis& columns,
                  const std::vector<float>& permissions) const;
    // `own`: where a whole graph, which routes every tile by itself, leaves its routing.
    void run_tile(std::vector<float>& planes, const std::vector<float>& numbers, const Routing& shared,
                  const Axis& rows, const Axis& columns, std::vector<float>& restored, RoutingMean& own) const;

    std::string backend_;
    std::unique_ptr<Graph> graph_, second_;  // the second one: the router graph, or the statistics graph
    ModelSpec spec_;
};

}  // namespace clusir::detail
