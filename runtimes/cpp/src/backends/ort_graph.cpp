// The ONNX Runtime back end, over its C API only.
#include <cstring>
#include <filesystem>
#include <thread>

#include "../error.hpp"
#include "backend.hpp"
#include "onnx_file.hpp"
#include "onnx_weights.hpp"
#include "ort_library.hpp"

namespace clusir::detail {
namespace {

// Owns one ORT object; ORT's release functions are members of the API struct.
template <typename T>
class Owned {
public:
    explicit Owned(void(ORT_API_CALL* release)(T*)) : release_(release) {}
    ~Owned() {
        if (object_ != nullptr) release_(object_);
    }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;
    Owned(Owned&& other) noexcept : object_(other.object_), release_(other.release_) { other.object_ = nullptr; }
    T** operator&() { return &object_; }  // NOLINT: reads like the C calls it is for
    T* get() const { return object_; }

private:
    T* object_ = nullptr;
    void(ORT_API_CALL* release_)(T*);
};

class OrtGraph final : public Graph {
public:
    OrtGraph(const Source& source, const BackendOptions& options)
        : library_(ort_library(options.ort_library)),
          api_(library_.api),
          path_(source.path),
          session_(api_->ReleaseSession),
          memory_(api_->ReleaseMemoryInfo) {
        if (options.device != "cpu") {
            throw Failure(CLUSIR_NO_BACKEND,
                          "device '" + options.device + "' is not there: the ort back end of this library runs on cpu");
        }
        Owned<OrtSessionOptions> settings(api_->ReleaseSessionOptions);
        check(api_->CreateSessionOptions(&settings), CLUSIR_FAILED);
        if (options.threads > 0) check(api_->SetIntraOpNumThreads(settings.get(), options.threads), CLUSIR_FAILED);
        // Two threads that sleep while they wait are as fast as two that spin, and leave the processor to others.
        const unsigned threads =
            options.threads > 0 ? static_cast<unsigned>(options.threads) : std::thread::hardware_concurrency();
        if (threads <= 2)
            check(api_->AddSessionConfigEntry(settings.get(), "session.intra_op.allow_spinning", "0"), CLUSIR_FAILED);
        // The arena keeps the largest block of every shape it has seen: good for one static tile, a leak otherwise.
        if (!is_static(source)) check(api_->DisableCpuMemArena(settings.get()), CLUSIR_FAILED);
        check(api_->SetSessionLogSeverityLevel(settings.get(), ORT_LOGGING_LEVEL_FATAL), CLUSIR_FAILED);
        const std::string whole = onnx_metadata(source) ? with_weights(source, bytes_of(source)) : std::string();
        const void* bytes = whole.empty() ? source.bytes : whole.data();
        const std::size_t size = whole.empty() ? source.size : whole.size();
        check(bytes != nullptr ? api_->CreateSessionFromArray(library_.env, bytes, size, settings.get(), &session_)
                               : api_->CreateSession(library_.env, std::filesystem::u8path(source.path).c_str(),
                                                     settings.get(), &session_),
              CLUSIR_BAD_MODEL);
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_), CLUSIR_FAILED);
        read_metadata();
        read_ports(true, inputs_);
        read_ports(false, outputs_);
    }

    const Metadata& metadata() const override { return metadata_; }
    const std::vector<Port>& inputs() const override { return inputs_; }
    const std::vector<Port>& outputs() const override { return outputs_; }

    void run(const std::vector<Feed>& feeds, const std::vector<Fetch>& fetches) const override {
        std::vector<Owned<OrtValue>> owners;
        owners.reserve(feeds.size() + fetches.size());
        std::vector<const char*> in_names, out_names;
        std::vector<const OrtValue*> in_values;
        for (const auto& feed : feeds) {
            auto& value = owners.emplace_back(api_->ReleaseValue);
            // The API has one function for reading and writing; a graph never writes to its inputs.
            check(api_->CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<float*>(feed.data),
                                                       element_count(feed.shape) * sizeof(float), feed.shape.data(),
                                                       feed.shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value),
                  CLUSIR_FAILED);
            in_names.push_back(feed.name);
            in_values.push_back(value.get());
        }
        std::vector<OrtValue*> out_values(fetches.size(), nullptr);
        for (const auto& fetch : fetches) out_names.push_back(fetch.name);
        OrtStatus* status = api_->Run(session_.get(), nullptr, in_names.data(), in_values.data(), in_values.size(),
                                      out_names.data(), out_names.size(), out_values.data());
        for (OrtValue* value : out_values) *&owners.emplace_back(api_->ReleaseValue) = value;
        check(status, CLUSIR_FAILED);
        for (std::size_t i = 0; i < fetches.size(); ++i) copy(out_values[i], fetches[i]);
    }

private:
    static bool is_static(const Source& source) {
        const auto metadata = onnx_metadata(source);
        if (!metadata) return false;  // an .ort file, or none at all: ONNX Runtime says which
        try {
            return ModelSpec::from_metadata(*metadata).static_px > 0;
        } catch (const Failure&) {
            return false;  // refused below, with the name of the file
        }
    }

    void check(OrtStatus* status, clusir_status code) const { check_ort(api_, status, code, path_); }

    void copy(OrtValue* value, const Fetch& fetch) const {
        Owned<OrtTensorTypeAndShapeInfo> info(api_->ReleaseTensorTypeAndShapeInfo);
        check(api_->GetTensorTypeAndShape(value, &info), CLUSIR_FAILED);
        const Shape shape = shape_of(info.get());
        ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        check(api_->GetTensorElementType(info.get(), &type), CLUSIR_FAILED);
        if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || shape != fetch.shape) {
            bad_model(path_ + ": output '" + fetch.name + "' came out as " + to_string(shape) + ", not as float32 " +
                      to_string(fetch.shape));
        }
        void* data = nullptr;
        check(api_->GetTensorMutableData(value, &data), CLUSIR_FAILED);
        std::memcpy(fetch.data, data, element_count(shape) * sizeof(float));
    }

    Shape shape_of(const OrtTensorTypeAndShapeInfo* info) const {
        std::size_t rank = 0;
        check(api_->GetDimensionsCount(info, &rank), CLUSIR_FAILED);
        Shape shape(rank);
        check(api_->GetDimensions(info, shape.data(), rank), CLUSIR_FAILED);
        return shape;
    }

    void read_metadata() {
        OrtAllocator* allocator = nullptr;
        check(api_->GetAllocatorWithDefaultOptions(&allocator), CLUSIR_FAILED);
        Owned<OrtModelMetadata> metadata(api_->ReleaseModelMetadata);
        check(api_->SessionGetModelMetadata(session_.get(), &metadata), CLUSIR_BAD_MODEL);
        char** keys = nullptr;
        std::int64_t count = 0;
        check(api_->ModelMetadataGetCustomMetadataMapKeys(metadata.get(), allocator, &keys, &count), CLUSIR_BAD_MODEL);
        for (std::int64_t i = 0; i < count; ++i) {
            char* value = nullptr;
            OrtStatus* status = api_->ModelMetadataLookupCustomMetadataMap(metadata.get(), allocator, keys[i], &value);
            if (status == nullptr && value != nullptr) metadata_[keys[i]] = value;
            if (status != nullptr) api_->ReleaseStatus(status);
            allocator->Free(allocator, value);
            allocator->Free(allocator, keys[i]);
        }
        allocator->Free(allocator, keys);
    }

    void read_ports(bool input, std::vector<Port>& into) {
        OrtAllocator* allocator = nullptr;
        check(api_->GetAllocatorWithDefaultOptions(&allocator), CLUSIR_FAILED);
        std::size_t count = 0;
        check((input ? api_->SessionGetInputCount : api_->SessionGetOutputCount)(session_.get(), &count),
              CLUSIR_BAD_MODEL);
        for (std::size_t i = 0; i < count; ++i) {
            char* name = nullptr;
            check((input ? api_->SessionGetInputName : api_->SessionGetOutputName)(session_.get(), i, allocator, &name),
                  CLUSIR_BAD_MODEL);
            Port port{name, {}, false};
            allocator->Free(allocator, name);
            Owned<OrtTypeInfo> type(api_->ReleaseTypeInfo);
            check((input ? api_->SessionGetInputTypeInfo : api_->SessionGetOutputTypeInfo)(session_.get(), i, &type),
                  CLUSIR_BAD_MODEL);
            const OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by `type`; null for anything but a tensor
            check(api_->CastTypeInfoToTensorInfo(type.get(), &info), CLUSIR_BAD_MODEL);
            if (info != nullptr) {
                ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
                check(api_->GetTensorElementType(info, &element), CLUSIR_BAD_MODEL);
                port.is_float = element == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
                port.shape = shape_of(info);
            }
            into.push_back(std::move(port));
        }
    }

    const OrtLibrary& library_;
    const OrtApi* api_;
    std::string path_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    Metadata metadata_;
    std::vector<Port> inputs_, outputs_;
};

}  // namespace

std::unique_ptr<Graph> open_ort(const Source& source, const BackendOptions& options) {
    return std::make_unique<OrtGraph>(source, options);
}

}  // namespace clusir::detail
