// The OpenVINO back end. OpenVINO throws; nothing of it leaves this file.
#include <cctype>
#include <cstring>
#include <mutex>

#include <openvino/openvino.hpp>

#include "../error.hpp"
#include "backend.hpp"
#include "onnx_file.hpp"
#include "onnx_weights.hpp"

namespace clusir::detail {
namespace {

std::string first_line(const std::string& text) {
    // OpenVINO puts the place in its own source first and the reason last: it is the last line that is not empty.
    std::string line, best;
    for (const char c : text + "\n") {
        if (c != '\n') {
            line += c;
            continue;
        }
        if (line.find_first_not_of(" \t") != std::string::npos) best = line;
        line.clear();
    }
    return best.substr(0, 300);
}

ov::Core& core() {
    static ov::Core instance;
    return instance;
}

Shape shape_of(const ov::PartialShape& shape) {
    if (shape.rank().is_dynamic()) return {};
    Shape result;
    for (const auto& length : shape) result.push_back(length.is_static() ? length.get_length() : -1);
    return result;
}

std::string onnx_bytes(const Source& source) {
    std::string bytes = bytes_of(source);
    if (!onnx_metadata({source.path, bytes.data(), bytes.size()}))
        bad_model(source.path + ": it is not an ONNX model, or not all of one");
    std::string whole = with_weights(source, bytes);
    return whole.empty() ? bytes : whole;
}

class OpenVinoGraph final : public Graph {
public:
    OpenVinoGraph(const Source& source, const BackendOptions& options) : path_(source.path) {
        std::shared_ptr<ov::Model> model;
        const std::string target = device(options);
        try {
            // An .xml has its weights in a file beside it. Everything else is read here and checked for being ONNX:
            // OpenVINO would try the file with every format that it knows, and follow paths to external data.
            const bool xml =
                source.bytes == nullptr && path_.size() > 4 && path_.compare(path_.size() - 4, 4, ".xml") == 0;
            model = xml ? core().read_model(path_) : core().read_model(onnx_bytes(source), ov::Tensor());
            read(*model);
        } catch (const Failure&) {
            throw;
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& error) {
            throw Failure(CLUSIR_BAD_MODEL, path_ + ": " + first_line(error.what()));
        }
        try {
            if (!takes_samples()) fix_batch(*model);
            compiled_ = core().compile_model(model, target, properties(options));
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& error) {
            throw Failure(CLUSIR_BAD_MODEL, path_ + ": OpenVINO cannot compile it: " + first_line(error.what()));
        }
    }

    const Metadata& metadata() const override { return metadata_; }
    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }

    void run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) const override {
        try {
            Lease request(*this);
            for (const auto& feed : feeds) {
                const ov::Shape shape(feed.shape.begin(), feed.shape.end());
                // A graph never writes to its inputs; the view is only read while infer() runs.
                request.get().set_tensor(feed.name, ov::Tensor(ov::element::f32, shape, const_cast<float*>(feed.data)));
            }
            request.get().infer();
            for (const auto& fetch : fetches) {
                const ov::Tensor tensor = request.get().get_tensor(fetch.name);
                const ov::Shape& shape = tensor.get_shape();
                const Shape given(shape.begin(), shape.end());
                if (tensor.get_element_type() != ov::element::f32 || given != fetch.shape) {
                    bad_model(path_ + ": output '" + fetch.name + "' came out as " + to_string(given) +
                              ", not as float32 " + to_string(fetch.shape));
                }
                std::memcpy(fetch.data, tensor.data<float>(), tensor.get_byte_size());
            }
        } catch (const Failure&) {
            throw;
        } catch (const std::bad_alloc&) {
            throw;
        } catch (const std::exception& error) {
            throw Failure(CLUSIR_FAILED, path_ + ": " + first_line(error.what()));
        }
    }

private:
    // An infer request belongs to one thread at a time; finished ones are kept for the next.
    class Lease {
    public:
        explicit Lease(const OpenVinoGraph& graph) : graph_(graph) {
            {
                const std::lock_guard<std::mutex> lock(graph_.mutex_);
                if (!graph_.idle_.empty()) {
                    request_ = std::move(graph_.idle_.back());
                    graph_.idle_.pop_back();
                    return;
                }
            }
            request_ = graph_.compiled_.create_infer_request();
        }
        ~Lease() {
            const std::lock_guard<std::mutex> lock(graph_.mutex_);
            graph_.idle_.push_back(std::move(request_));
        }
        Lease(const Lease&) = delete;
        Lease& operator=(const Lease&) = delete;
        ov::InferRequest& get() { return request_; }

    private:
        const OpenVinoGraph& graph_;
        ov::InferRequest request_;
    };

    static std::string device(const BackendOptions& options) {
        std::string name = options.device;
        for (char& c : name) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
        for (const auto& available : core().get_available_devices()) {
            if (available == name || name == "AUTO") return name;
        }
        throw Failure(CLUSIR_NO_BACKEND, "device '" + options.device + "' is not there for OpenVINO");
    }

    static ov::AnyMap properties(const BackendOptions& options) {
        // Float32 is asked for by name: on some machines OpenVINO would compute in bfloat16 on its own.
        ov::AnyMap result{{ov::hint::inference_precision.name(), ov::element::f32},
                          {ov::hint::performance_mode.name(), ov::hint::PerformanceMode::LATENCY}};
        if (options.threads > 0) result[ov::inference_num_threads.name()] = options.threads;
        return result;
    }

    void read(const ov::Model& model) {
        const auto& info = model.get_rt_info();
        const auto found = info.find("framework");  // where OpenVINO keeps the metadata_props of an ONNX file
        if (found != info.end() && found->second.is<ov::AnyMap>()) {
            for (const auto& [key, value] : found->second.as<ov::AnyMap>()) metadata_[key] = value.as<std::string>();
        }
        // An .xml of clusir-export --openvino has the same fields under "clusir"; they can only be asked for by name.
        for (const char* field : kSpecFields) {
            if (model.has_rt_info("clusir", field))
                metadata_[std::string("clusir.") + field] = model.get_rt_info<std::string>("clusir", field);
        }
        for (const auto& port : model.inputs()) inputs_.push_back(describe(port));
        for (const auto& port : model.outputs()) outputs_.push_back(describe(port));
    }

    template <typename Output>
    static Port describe(const Output& port) {
        return {port.get_any_name(), shape_of(port.get_partial_shape()), port.get_element_type() == ov::element::f32};
    }

    // A router with pooled statistics, and a statistics graph, are given several samples of a picture at once.
    bool takes_samples() const {
        const auto graph = metadata_.find("clusir.graph"), statistics = metadata_.find("clusir.statistics");
        return graph != metadata_.end() && (graph->second == "\"router\"" || graph->second == "\"statistics\"") &&
               statistics != metadata_.end() && statistics->second != "0";
    }

    // Tiles run one at a time: a graph of fixed size is compiled to faster code than one with an open batch.
    // Model::reshape would fold the integers of an INT8 file into floats, and with them its integer kernels.
    static void fix_batch(ov::Model& model) {
        for (const auto& parameter : model.get_parameters()) {
            ov::PartialShape shape = parameter->get_partial_shape();
            if (shape.rank().is_static() && shape.size() > 0) shape[0] = 1;
            parameter->set_partial_shape(shape);
        }
        model.validate_nodes_and_infer_types();
    }

    std::string path_;
    Metadata metadata_;
    std::vector<Port> inputs_, outputs_;
    mutable ov::CompiledModel compiled_;
    mutable std::mutex mutex_;
    mutable std::vector<ov::InferRequest> idle_;
};

}  // namespace

std::unique_ptr<Graph> open_openvino(const Source& source, const BackendOptions& options) {
    return std::make_unique<OpenVinoGraph>(source, options);
}

}  // namespace clusir::detail
