#include "model.hpp"

#include <algorithm>
#include <filesystem>
#include <tuple>
#include <utility>

#include "error.hpp"
#include "numbers.hpp"
#include "pixels.hpp"
#include "statistics.hpp"

namespace clusir::detail {
namespace {

namespace fs = std::filesystem;

bool ends_with(const std::string& text, const std::string& end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string without(const std::string& text, const std::string& end) {
    return ends_with(text, end) ? text.substr(0, text.size() - end.size()) : text;
}

const Port& port(const std::vector<Port>& ports, const std::string& name, const char* what) {
    for (const auto& found : ports) {
        if (found.name == name) return found;
    }
    bad_model(std::string("the graph has no ") + what + " '" + name + "'");
}

// A declared shape agrees where it has the same rank and every fixed length is the one that will be used.
void expect(const Port& port, const Shape& shape) {
    bool agrees = port.is_float && port.shape.size() == shape.size();
    for (std::size_t i = 0; agrees && i < shape.size(); ++i)
        agrees = port.shape[i] < 0 || shape[i] < 0 || port.shape[i] == shape[i];
    if (!agrees) {
        bad_model("'" + port.name + "' is declared as " + (port.is_float ? "float32 " : "another type than float32, ") +
                  to_string(port.shape) + ", the metadata says float32 " + to_string(shape));
    }
}

// Each number is an input [1]; OpenVINO drops those that nothing reads of a file in memory.
void check_numbers(const Graph& graph, const ModelSpec& spec) {
    for (const auto& found : graph.inputs()) {
        if (std::find(spec.numbers.begin(), spec.numbers.end(), found.name) != spec.numbers.end()) expect(found, {1});
    }
}

void check_tile_graph(const Graph& graph, const ModelSpec& spec) {
    const std::int64_t side = spec.static_px ? spec.static_px : -1;
    const Shape image{1, spec.planes(), side, side};
    expect(port(graph.inputs(), spec.input_name, "input"), image);
    const std::int64_t large = side < 0 ? side : spec.upscale * side;
    expect(port(graph.outputs(), spec.output_name, "output"), {1, spec.channels, large, large});
    const bool given = spec.graph == "tile";
    check_numbers(graph, spec);
    if (given && spec.statistics) expect(port(graph.inputs(), "statistics", "input"), {1, spec.statistics});
    if (!spec.routed()) return;
    const auto& ports = given ? graph.inputs() : graph.outputs();
    expect(port(ports, "posterior", given ? "input" : "output"), {1, spec.posterior_size()});
    expect(port(ports, "gate", given ? "input" : "output"), {1, spec.gate_size()});
    if (!given && !spec.families.empty())
        expect(port(ports, "evidence", "output"), {1, static_cast<std::int64_t>(spec.families.size())});
    if (given && !spec.statistics && ports.size() > 3)
        bad_model("the graph takes more inputs than a picture and its routing, and the metadata names no statistics");
}

// Whether the second file of a model is a `kind` graph (router, statistics), and of the same model as the tile graph.
void check_together(const ModelSpec& spec, const ModelSpec& second, const std::string& kind) {
    if (second.graph != kind) bad_model("the " + kind + " file says that it is a " + second.graph + " graph");
    const auto form = [](const ModelSpec& of) {
        return std::tie(of.checkpoint_sha256, of.clusters, of.experts, of.top_k, of.channels, of.low, of.high,
                        of.input_name, of.tile_px, of.static_px, of.multiple_of, of.minimum, of.maximum, of.statistics,
                        of.families, of.evidence_thresholds, of.evidence_floors, of.maps, of.map_defaults,
                        of.numbers, of.number_defaults, of.number_ranges);
    };
    if (form(second) != form(spec))
        bad_model("the tile graph and the " + kind + " graph are of two different models");
}

void check_statistics_graph(const Graph& graph, const ModelSpec& spec) {
    const Shape image = port(graph.inputs(), spec.input_name, "input").shape;
    if (image.size() != 4 || image[0] > 1) bad_model("the statistics graph takes no single windows");
    expect(port(graph.inputs(), spec.input_name, "input"), {-1, spec.planes(), -1, -1});
    expect(port(graph.inputs(), "weight", "input"), {-1, 1, -1, -1});
    check_numbers(graph, spec);
    for (const char* name : {"given", "known"}) expect(port(graph.inputs(), name, "input"), {1, spec.statistics});
    expect(port(graph.outputs(), "statistics", "output"), {1, spec.statistics});
    for (const char* name : {"level", "largest"}) expect(port(graph.outputs(), name, "output"), {spec.statistics});
}

void check_router_graph(const Graph& graph, const ModelSpec& spec) {
    const std::int64_t side = spec.static_px ? spec.static_px : -1;
    expect(port(graph.inputs(), spec.input_name, "input"), {1, spec.channels, side, side});
    expect(port(graph.outputs(), "posterior", "output"), {1, spec.posterior_size()});
    expect(port(graph.outputs(), "expert_probability", "output"), {1, spec.gate_size()});
    if (!spec.families.empty()) {
        const auto families = static_cast<std::int64_t>(spec.families.size());
        expect(port(graph.inputs(), "permissions", "input"), {1, families});
        expect(port(graph.outputs(), "evidence", "output"), {1, families});
    }
    if (!spec.statistics) return;
    expect(port(graph.outputs(), "statistics", "output"), {1, spec.statistics});
    // It is given several samples of a picture at once.
    if (port(graph.inputs(), spec.input_name, "input").shape[0] >= 0) bad_model("the router graph fixes its batch");
}

}  // namespace

std::unique_ptr<Model> Model::from_file(const std::string& path, const std::string& backend,
                                        const BackendOptions& options) {
    // Paths are UTF-8, on Windows too.
    const auto there = [](const std::string& name) {
        std::error_code none;
        return fs::is_regular_file(fs::u8path(name), none);
    };
    if (!there(path)) throw Failure(CLUSIR_BAD_MODEL, path + ": there is no such file");
    const std::string suffix = ends_with(path, ".ort") ? ".ort" : ends_with(path, ".xml") ? ".xml" : ".onnx";
    const std::string stem = without(without(path, suffix), ".tile");
    std::string base = stem;
    for (const char* precision : {".int8", ".fp16", ".fp32"}) base = without(base, precision);
    const Source tile{stem + ".tile" + suffix, nullptr, 0};
    for (const char* kind : {".router", ".statistics"}) {
        const Source second{base + kind + suffix, nullptr, 0};
        if (there(tile.path) && there(second.path) && path != second.path)
            return std::make_unique<Model>(backend, tile, &second, options);
    }
    return std::make_unique<Model>(backend, Source{path, nullptr, 0}, nullptr, options);
}

Model::Model(const std::string& backend, const Source& graph, const Source* second, const BackendOptions& options)
    : backend_(backend), graph_(open_graph(backend, graph, options)) {
    try {
        spec_ = ModelSpec::from_metadata(graph_->metadata());
        if (spec_.graph == "router" || spec_.graph == "statistics")
            bad_model("this is a " + spec_.graph + " graph; open the model it belongs to");
        if ((spec_.graph == "tile") != (second != nullptr))
            bad_model("a tile graph needs its router or statistics graph, and only a tile graph does");
        if (spec_.graph == "tile" && !spec_.routed() && !spec_.statistics)
            bad_model("a tile graph has routed levels or statistics, and this one names none");
        check_tile_graph(*graph_, spec_);
        if (second == nullptr) return;
        second_ = open_graph(backend, *second, options);
        check_together(spec_, ModelSpec::from_metadata(second_->metadata()), spec_.routed() ? "router" : "statistics");
        spec_.routed() ? check_router_graph(*second_, spec_) : check_statistics_graph(*second_, spec_);
    } catch (const Failure& failure) {
        const bool named = std::string(failure.what()).rfind(graph.path, 0) == 0 ||
                           (second && std::string(failure.what()).rfind(second->path, 0) == 0);
        if (named) throw;
        throw Failure(failure.status, graph.path + ": " + failure.what());
    }
}

Model::Model(const std::string& backend, std::unique_ptr<Graph> graph)
    : backend_(backend), graph_(std::move(graph)), spec_(ModelSpec::from_metadata(graph_->metadata())) {
    check_tile_graph(*graph_, spec_);
}

Routing Model::route(const clusir_image& in, const Axis& rows, const Axis& columns,
                     const std::vector<float>& permissions) const {
    RoutingMean mean(spec_);
    const auto one = static_cast<std::size_t>(spec_.channels * rows.tile * columns.tile);
    std::vector<float> planes(one), samples;
    std::vector<float> posterior(static_cast<std::size_t>(spec_.posterior_size())),
        probability(static_cast<std::size_t>(spec_.gate_size())),
        statistics(static_cast<std::size_t>(spec_.statistics));
    std::vector<float> evidence(spec_.families.size());
    const auto run = [&](const std::vector<float>& images) {
        const auto batch = static_cast<std::int64_t>(images.size() / one);
        std::vector<Fetch> fetches{{"posterior", {1, spec_.posterior_size()}, posterior.data()},
                                   {"expert_probability", {1, spec_.gate_size()}, probability.data()}};
        if (spec_.statistics) fetches.push_back({"statistics", {1, spec_.statistics}, statistics.data()});
        std::vector<Feed> feeds{
            {spec_.input_name.c_str(), {batch, spec_.channels, rows.tile, columns.tile}, images.data()}};
        const auto families = static_cast<std::int64_t>(spec_.families.size());
        if (families) {
            feeds.push_back({"permissions", {1, families}, permissions.data()});
            fetches.push_back({"evidence", {1, families}, evidence.data()});
        }
        second_->run(feeds, fetches);
        mean.add(posterior, probability, evidence);
        check_finite(statistics.data(), statistics.size(), "statistics");
    };
    for (const std::int64_t top : sample(rows)) {
        for (const std::int64_t left : sample(columns)) {
            gather(in, {}, spec_, rows, columns, top, left, planes);
            // A router with statistics takes all samples for one picture; one without looks at each alone.
            if (spec_.statistics)
                samples.insert(samples.end(), planes.begin(), planes.end());
            else
                run(planes);
        }
    }
    if (spec_.statistics) run(samples);
    Routing routing = mean.result();
    routing.statistics = std::move(statistics);
    return routing;
}

void Model::run_tile(std::vector<float>& planes, const std::vector<float>& numbers, const Routing& shared,
                     const Axis& rows, const Axis& columns, std::vector<float>& restored, RoutingMean& own) const {
    const Shape shape{1, spec_.planes(), rows.tile, columns.tile}, clusters{1, spec_.posterior_size()},
        experts{1, spec_.gate_size()};
    std::vector<Feed> feeds{{spec_.input_name.c_str(), shape, planes.data()}};
    feed_numbers(*graph_, spec_, numbers, feeds);
    const Shape large{1, spec_.channels, spec_.upscale * rows.tile, spec_.upscale * columns.tile};
    std::vector<Fetch> fetches{{spec_.output_name.c_str(), large, restored.data()}};
    std::vector<float> posterior(static_cast<std::size_t>(spec_.posterior_size())),
        gate(static_cast<std::size_t>(spec_.gate_size())), evidence(spec_.families.size());
    if (second_) {
        if (spec_.routed()) {
            feeds.push_back({"posterior", clusters, shared.posterior.data()});
            feeds.push_back({"gate", experts, shared.gate.data()});
        }
        if (spec_.statistics) feeds.push_back({"statistics", {1, spec_.statistics}, shared.statistics.data()});
    } else if (spec_.routed()) {
        fetches.push_back({"posterior", clusters, posterior.data()});
        fetches.push_back({"gate", experts, gate.data()});
        if (!evidence.empty())
            fetches.push_back({"evidence", {1, static_cast<std::int64_t>(evidence.size())}, evidence.data()});
    }
    graph_->run(feeds, fetches);
    check_finite(restored.data(), restored.size(), spec_.output_name);
    if (!second_ && spec_.routed()) own.add(posterior, gate, evidence);
    // A whole graph answers as if told -1 for every family.
    if (!second_ && nothing_to_mend(evidence, std::vector<float>(evidence.size(), -1.0F), spec_)) restored = planes;
}

Routing Model::restore(const Given& given, const clusir_image& out, const Steering& steering, bool exact,
                       const std::function<bool(std::uint32_t, std::uint32_t)>& step) const {
    const auto& [in, maps, numbers] = given;
    if (second_ == nullptr && !steering.plain())
        throw Failure(
            CLUSIR_INVALID_ARGUMENT,
            "fix and strengths of families need the model's tile and router graphs; strength 0..1 works without");
    if (exact && !spec_.shares_statistics())
        throw Failure(CLUSIR_INVALID_ARGUMENT, "exact statistics: the model pools nothing over the picture");
    const Axis rows = plan_axis(in.height, spec_), columns = plan_axis(in.width, spec_);
    const std::size_t tiles = rows.starts.size() * columns.starts.size();
    if (tiles > UINT32_MAX) throw Failure(CLUSIR_INVALID_ARGUMENT, "the picture has more tiles than can be counted");
    const auto total = static_cast<std::uint32_t>(tiles);
    if (spec_.graph == "pooled" && total > 1)
        throw Failure(CLUSIR_INVALID_ARGUMENT, "the picture takes " + std::to_string(total) +
                                                   " tiles, which share what the model pools over it: open NAME.onnx "
                                                   "with NAME.tile.onnx and NAME.statistics.onnx beside it");
    const auto go = [&](std::uint32_t done) {
        if (!step(done, total))
            throw Failure(CLUSIR_CANCELLED,
                          "cancelled after " + std::to_string(done) + " of " + std::to_string(total) + " tiles");
    };
    go(0);
    Routing routing;
    if (steering.blend == 0.0F) {  // what went in comes out: nothing is run
        for (std::uint32_t y = 0; y < in.height; ++y) copy_row(in, out, y);
        step(total, total);
        routing.posterior.resize(static_cast<std::size_t>(spec_.posterior_size()));
        routing.gate.resize(static_cast<std::size_t>(spec_.gate_size()));
        routing.evidence.resize(spec_.families.size());
        return routing;
    }
    RoutingMean own(spec_);
    if (second_ && spec_.routed()) routing = route(in, rows, columns, steering.permissions);
    if (second_ && !spec_.routed()) routing.statistics = pool(*second_, given, spec_, exact);
    if (second_ && nothing_to_mend(routing.evidence, steering.permissions, spec_)) {
        for (std::uint32_t y = 0; y < in.height; ++y) copy_row(in, out, y);
        step(total, total);
        return routing;
    }

    // From here on all lengths are those of the picture that comes out, unless a name says otherwise.
    const Axis large_rows = enlarged(rows, spec_.upscale, spec_.halo_px),
               large_columns = enlarged(columns, spec_.upscale, spec_.halo_px);
    const auto channels = static_cast<std::size_t>(spec_.channels), row = std::size_t{out.width} * channels;
    const auto tile_h = static_cast<std::size_t>(large_rows.tile),
               tile_w = static_cast<std::size_t>(large_columns.tile);
    std::vector<float> planes(static_cast<std::size_t>(spec_.planes() * rows.tile * columns.tile)),
        restored(channels * tile_h * tile_w);
    // Sums of the rows that tiles still reach: row y of the picture lives at y % tile_h, whatever the picture's height.
    std::vector<float> band(row * std::min<std::size_t>(tile_h, out.height));
    const std::size_t band_rows = band.size() / row;
    std::uint32_t done = 0;
    for (std::size_t ty = 0; ty < rows.starts.size(); ++ty) {
        const auto top = static_cast<std::size_t>(large_rows.starts[ty]);
        const std::size_t bottom = std::min<std::size_t>(top + tile_h, out.height);
        for (std::size_t tx = 0; tx < columns.starts.size(); ++tx) {
            const auto left = static_cast<std::size_t>(large_columns.starts[tx]);
            const std::size_t width = std::min<std::size_t>(tile_w, out.width - left);
            gather(in, maps, spec_, rows, columns, rows.starts[ty], columns.starts[tx], planes);
            run_tile(planes, numbers, routing, rows, columns, restored, own);
            for (std::size_t y = top; y < bottom; ++y) {
                const float weight = large_rows.weights[ty][y - top];
                if (weight == 0.0F) continue;
                float* sums = band.data() + (y % band_rows) * row + left * channels;
                const float* weights = large_columns.weights[tx].data();
                for (std::size_t c = 0; c < channels; ++c) {
                    const float* values = restored.data() + (c * tile_h + (y - top)) * tile_w;
                    for (std::size_t x = 0; x < width; ++x) sums[x * channels + c] += values[x] * (weight * weights[x]);
                }
            }
            if (++done < total) go(done);
        }
        const bool last = ty + 1 == rows.starts.size();
        const std::size_t finished = last ? out.height : static_cast<std::size_t>(large_rows.starts[ty + 1]);
        for (std::size_t y = top; y < finished; ++y) {
            float* sums = band.data() + (y % band_rows) * row;
            write_row(in, out, static_cast<std::uint32_t>(y), sums, spec_, steering.blend);
            std::fill(sums, sums + row, 0.0F);
        }
    }
    step(total, total);  // the picture is complete: there is nothing left to stop
    return second_ ? routing : own.average();
}

}  // namespace clusir::detail
