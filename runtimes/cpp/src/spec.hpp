// ModelSpec: what the model file says of itself. Mirrors clusir/spec.py, field by field and refusal by refusal.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace clusir::detail {

// The file's metadata_props; clusir's keys begin with "clusir." and their values are JSON.
using Metadata = std::map<std::string, std::string>;

// The fields of Python's ModelSpec, in its order: clusir/spec.schema.json says what each may be.
constexpr const char* kSpecFields[] = {"name",
                                       "graph",
                                       "spec_version",
                                       "checkpoint_sha256",
                                       "layout",
                                       "colour_order",
                                       "value_range",
                                       "input_name",
                                       "output_name",
                                       "channels",
                                       "size",
                                       "tile_px",
                                       "halo_px",
                                       "precision",
                                       "router_form",
                                       "dft_form",
                                       "clusters",
                                       "experts",
                                       "top_k",
                                       "cluster_labels",
                                       "tolerances",
                                       "statistics",
                                       "scale",
                                       "families",
                                       "evidence_thresholds",
                                       "evidence_floors",
                                       "maps",
                                       "map_defaults",
                                       "numbers",
                                       "number_defaults",
                                       "number_ranges"};

// The map that is a picture's own alpha where nobody gives another.
inline constexpr const char* kOwnAlpha = "alpha";

struct ModelSpec {
    std::string name = "clusir";
    std::string graph = "whole";  // whole, tile, router, pooled or statistics
    std::string precision = "fp32";
    std::string checkpoint_sha256;
    std::string router_form = "dense", dft_form = "matmul";
    std::string input_name = "image";
    std::string output_name = "restored";
    int channels = 3;
    double low = 0.0, high = 1.0;       // value_range
    float offset = 0.0F, scale = 1.0F;  // the same as the model's numbers: offset + scale * (0..1)
    int multiple_of = 16, minimum = 16, static_px = 0, maximum = 0;  // maximum 0: there is none
    int tile_px = 256, halo_px = 16;
    std::vector<int> clusters, experts;  // per routed level
    int top_k = 1;
    int statistics = 0;                 // length of the pooled statistics that tiles share; 0: they compute their own
    int upscale = 1;                    // the field "scale": how many times as high and wide the output is
    std::vector<std::string> families;  // that may be mended or not, in the order of the router's permissions
    std::vector<double> evidence_thresholds;
    std::vector<double> evidence_floors;  // empty: the router takes no permissions below -1
    std::vector<std::string> maps;        // further planes of the input, behind the picture's channels
    std::vector<double> map_defaults;     // what fills a map that is not given
    std::vector<std::string> numbers;     // further inputs [1] of every graph
    std::vector<double> number_defaults;  // what is fed where nobody gives one
    std::vector<std::pair<double, double>> number_ranges;
    std::vector<std::vector<std::string>> cluster_labels;
    std::map<std::string, double> tolerances;

    int planes() const { return channels + static_cast<int>(maps.size()); }  // channels of the input
    bool routed() const { return !clusters.empty(); }
    // Whether tiles are given what a statistics graph pools over the whole picture.
    bool shares_statistics() const {
        return graph == "pooled" || graph == "statistics" || (graph == "tile" && statistics > 0 && !routed());
    }
    int posterior_size() const;
    int gate_size() const;

    // Throws Failure(CLUSIR_BAD_MODEL) where the metadata is absent, malformed or contradictory.
    static ModelSpec from_metadata(const Metadata& metadata);
};

// The metadata in a JSON object of texts, as clusir-export --target ncnn writes it; `path` names it in messages. Throws
// Failure(CLUSIR_BAD_MODEL) for any other text.
Metadata metadata_of_json(const std::string& text, const std::string& path);

}  // namespace clusir::detail
