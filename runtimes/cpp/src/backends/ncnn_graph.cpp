// The ncnn back end, over its C API: a folder of clusir-export --target ncnn. ncnn's files say nothing of the model, so
// that its description lies beside them (model.json).
#include <c_api.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "../error.hpp"
#include "backend.hpp"

namespace clusir::detail {
namespace {

namespace fs = std::filesystem;

std::string without_end(const std::string& text, const std::string& end) {
    const bool has = text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
    return has ? text.substr(0, text.size() - end.size()) : text;
}

struct Mat {
    explicit Mat(ncnn_mat_t made) : mat(made) {
        if (mat == nullptr) throw std::bad_alloc();
    }
    ~Mat() { ncnn_mat_destroy(mat); }
    Mat(const Mat&) = delete;
    Mat& operator=(const Mat&) = delete;
    ncnn_mat_t mat;
};

class NcnnGraph final : public Graph {
public:
    NcnnGraph(const Source& source, const BackendOptions& options) : path_(source.path) {
        if (options.device != "cpu") {
            throw Failure(CLUSIR_NO_BACKEND,
                          "device '" + options.device + "' is not there: the ncnn back end of this library runs on cpu");
        }
        const std::string stem = without_end(path_, ".param");
        if (source.bytes != nullptr || stem == path_)
            bad_model(path_ + ": the ncnn back end opens the file model.param of clusir-export --target ncnn");
        metadata_ = described(without_end(stem, "_int8") + ".json");
        const ModelSpec spec = ModelSpec::from_metadata(metadata_);
        if (spec.graph != "whole" || spec.routed() || spec.static_px == 0)
            bad_model(path_ + ": its description is not that of a whole graph of one size, without routing outside");
        net_.net = ncnn_net_create();
        ncnn_option_t settings = ncnn_net_get_option(net_.net);
        ncnn_option_set_num_threads(settings, options.threads > 0 ? options.threads : 1);
        ncnn_option_set_use_vulkan_compute(settings, 0);
        // Without these ncnn keeps what lies between two layers in float16 or bfloat16 where the processor has it.
        ncnn_option_set_use_fp16_packed(settings, 0);
        ncnn_option_set_use_fp16_storage(settings, 0);
        ncnn_option_set_use_fp16_arithmetic(settings, 0);
        ncnn_option_set_use_bf16_storage(settings, 0);
        if (ncnn_net_load_param(net_.net, path_.c_str()) != 0 || ncnn_net_load_model(net_.net, (stem + ".bin").c_str()) != 0)
            bad_model(path_ + ": ncnn cannot load it, or " + stem + ".bin");
        const std::int64_t side = spec.static_px, large = spec.upscale * side;
        for (int i = 0; i < ncnn_net_get_input_count(net_.net); ++i)
            inputs_.push_back({ncnn_net_get_input_name(net_.net, i), {1, spec.channels, side, side}, true});
        for (int i = 0; i < ncnn_net_get_output_count(net_.net); ++i)
            outputs_.push_back({ncnn_net_get_output_name(net_.net, i), {1, spec.channels, large, large}, true});
    }

    const Metadata& metadata() const override { return metadata_; }
    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }

    void run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) const override {
        Extractor extractor{ncnn_extractor_create(net_.net)};
        for (const auto& feed : feeds) {
            const auto channels = static_cast<int>(feed.shape[1]), height = static_cast<int>(feed.shape[2]),
                       width = static_cast<int>(feed.shape[3]);
            const Mat mat(ncnn_mat_create_3d(width, height, channels, nullptr));
            const std::size_t plane = std::size_t(width) * height;
            for (int c = 0; c < channels; ++c)  // ncnn leaves room between two planes
                std::memcpy(ncnn_mat_get_channel_data(mat.mat, c), feed.data + c * plane, plane * sizeof(float));
            if (ncnn_extractor_input(extractor.extractor, feed.name, mat.mat) != 0)
                bad_model(path_ + ": it has no input '" + feed.name + "'");
        }
        for (const auto& fetch : fetches) {
            ncnn_mat_t found = nullptr;
            if (ncnn_extractor_extract(extractor.extractor, fetch.name, &found) != 0 || found == nullptr)
                throw Failure(CLUSIR_FAILED, path_ + ": ncnn gives no '" + fetch.name + "'");
            const Mat mat(found);
            const Shape given{1, ncnn_mat_get_c(found), ncnn_mat_get_h(found), ncnn_mat_get_w(found)};
            if (given != fetch.shape || ncnn_mat_get_elemsize(found) != sizeof(float)) {
                bad_model(path_ + ": output '" + fetch.name + "' came out as " + to_string(given) +
                          ", not as float32 " + to_string(fetch.shape));
            }
            const std::size_t plane = std::size_t(given[2]) * given[3];
            for (int c = 0; c < given[1]; ++c)
                std::memcpy(fetch.data + c * plane, ncnn_mat_get_channel_data(found, c), plane * sizeof(float));
        }
    }

private:
    struct Net {
        Net() = default;
        ~Net() {
            if (net != nullptr) ncnn_net_destroy(net);
        }
        Net(const Net&) = delete;
        Net& operator=(const Net&) = delete;
        ncnn_net_t net = nullptr;
    };
    struct Extractor {
        ~Extractor() { ncnn_extractor_destroy(extractor); }
        ncnn_extractor_t extractor;
    };

    static Metadata described(const std::string& path) {
        std::ifstream file(fs::u8path(path), std::ios::binary);
        const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
        if (!file.good() && !file.eof()) bad_model(path + ": cannot be read; it describes the model beside it");
        return metadata_of_json(text, path);
    }

    std::string path_;
    Metadata metadata_;
    std::vector<Port> inputs_, outputs_;
    Net net_;
};

}  // namespace

std::unique_ptr<Graph> open_ncnn(const Source& source, const BackendOptions& options) {
    return std::make_unique<NcnnGraph>(source, options);
}

}  // namespace clusir::detail
