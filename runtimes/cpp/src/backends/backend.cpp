#include "backend.hpp"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "../error.hpp"

namespace clusir::detail {

std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (const auto length : shape) text += (text.size() > 1 ? ", " : "") + (length < 0 ? "?" : std::to_string(length));
    return text + "]";
}

std::string bytes_of(const Source& source) {
    if (source.bytes != nullptr) return {static_cast<const char*>(source.bytes), source.size};
    std::ifstream file(std::filesystem::u8path(source.path), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file.good() && !file.eof()) bad_model(source.path + ": cannot be read");
    return bytes;
}

std::string resolve_backend(const std::string& request) {
    const std::string built = clusir_backends();
    if (request == "auto") {
        if (built.empty())
            throw Failure(CLUSIR_NO_BACKEND,
                          "this build of clusir has no back end; configure it with ONNX Runtime or OpenVINO");
        return built.find("openvino") != std::string::npos ? "openvino" : "ort";
    }
    if (request != "ort" && request != "openvino") {
        throw Failure(CLUSIR_INVALID_ARGUMENT, "backend '" + request + "' is not auto, ort or openvino");
    }
    if (built.find(request) == std::string::npos) {
        throw Failure(CLUSIR_NO_BACKEND, "backend '" + request +
                                             "' was not built in (there is: " + (built.empty() ? "none" : built) + ")");
    }
    return request;
}

std::unique_ptr<Graph> open_graph(const std::string& backend, const Source& source, const BackendOptions& options) {
#ifdef CLUSIR_WITH_ORT
    if (backend == "ort") return open_ort(source, options);
#endif
#ifdef CLUSIR_WITH_OPENVINO
    if (backend == "openvino") return open_openvino(source, options);
#endif
    (void)source;
    (void)options;
    throw Failure(CLUSIR_NO_BACKEND, "backend '" + backend + "' was not built in");
}

}  // namespace clusir::detail

extern "C" const char* clusir_backends(void) {
#if defined(CLUSIR_WITH_ORT) && defined(CLUSIR_WITH_OPENVINO)
    return "openvino ort";
#elif defined(CLUSIR_WITH_OPENVINO)
    return "openvino";
#elif defined(CLUSIR_WITH_ORT)
    return "ort";
#else
    return "";
#endif
}
