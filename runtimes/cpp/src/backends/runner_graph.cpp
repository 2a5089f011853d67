// A graph that the caller runs: LiteRT, Core ML or anything else that takes one tile and gives one.
#include <mutex>

#include "../error.hpp"
#include "backend.hpp"

namespace clusir::detail {
namespace {

class RunnerGraph final : public Graph {
public:
    RunnerGraph(const std::string& description, const clusir_runner& runner)
        : metadata_(metadata_of_json(description, "the description")), runner_(runner) {
        const ModelSpec spec = ModelSpec::from_metadata(metadata_);
        if (spec.graph != "whole" || spec.routed() || spec.static_px == 0)
            bad_model("the description is not that of a whole graph of one size, without routing outside");
        if (!spec.numbers.empty() || !spec.maps.empty())
            bad_model("the description names maps or numbers; a runner of the caller's takes the picture alone");
        const std::int64_t side = spec.static_px, large = spec.upscale * side;
        inputs_.push_back({spec.input_name, {1, spec.channels, side, side}, true});
        outputs_.push_back({spec.output_name, {1, spec.channels, large, large}, true});
    }

    const Metadata& metadata() const override { return metadata_; }
    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }

    void run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) const override {
        const Feed& feed = feeds.at(0);
        const Fetch& fetch = fetches.at(0);
        const std::lock_guard<std::mutex> one(alone_);  // runtimes of phones take one tile at a time
        int status;
        if (runner_.channels_last == 0) {
            status = runner_.run(runner_.user, feed.data, fetch.data);
        } else {
            std::vector<float> in(static_cast<std::size_t>(element_count(feed.shape))),
                out(static_cast<std::size_t>(element_count(fetch.shape)));
            turn(feed.data, in.data(), feed.shape, true);
            status = runner_.run(runner_.user, in.data(), out.data());
            turn(out.data(), fetch.data, fetch.shape, false);
        }
        if (status != 0) throw Failure(CLUSIR_FAILED, "the caller's runtime failed, with " + std::to_string(status));
    }

private:
    // Between planes and pixels; `shape` is that of the planes.
    static void turn(const float* from, float* to, const Shape& shape, bool to_pixels) {
        const std::int64_t channels = shape[1], plane = shape[2] * shape[3];
        for (std::int64_t c = 0; c < channels; ++c) {
            for (std::int64_t i = 0; i < plane; ++i) {
                const std::int64_t pixel = i * channels + c, planar = c * plane + i;
                to[to_pixels ? pixel : planar] = from[to_pixels ? planar : pixel];
            }
        }
    }

    Metadata metadata_;
    clusir_runner runner_;
    std::vector<Port> inputs_, outputs_;
    mutable std::mutex alone_;
};

}  // namespace

std::unique_ptr<Graph> open_runner(const std::string& description, const clusir_runner& runner) {
    return std::make_unique<RunnerGraph>(description, runner);
}

}  // namespace clusir::detail
