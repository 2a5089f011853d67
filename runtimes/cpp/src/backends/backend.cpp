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

std::string resolve_backend(const std::string& request, const std::string& path) {
    const std::string built = clusir_backends();
    const auto has = [&](const char* name) { return built.find(name) != std::string::npos; };
    if (request == "auto") {
        if (built.empty())
            throw Failure(CLUSIR_NO_BACKEND,
                          "this build of clusir has no back end; configure it with ONNX Runtime, OpenVINO or ncnn");
        const bool param = path.size() > 6 && path.compare(path.size() - 6, 6, ".param") == 0;
        if (has("ncnn") && (param || built == "ncnn")) return "ncnn";
        if (param) return resolve_backend("ncnn", path);
        return has("openvino") ? "openvino" : "ort";
    }
    if (request != "ort" && request != "openvino" && request != "ncnn") {
        throw Failure(CLUSIR_INVALID_ARGUMENT, "backend '" + request + "' is not auto, ort, openvino or ncnn");
    }
    if (!has(request.c_str())) {
        throw Failure(CLUSIR_NO_BACKEND, "backend '" + request +
                                             "' was not built in (there is: " + (built.empty() ? "none" : built) + ")");
    }
    return request;
}

std::unique_ptr<Graph> open_graph(const std::string& backend, const Source& source, const BackendOptions& options) {
#ifdef CLUSIR_WITH_ORT
    if (backend == "ort") return open_ort(source, options);
#endif
#ifdef CLUSIR_WITH_NCNN
    if (backend == "ncnn") return open_ncnn(source, options);
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
    return ""
#ifdef CLUSIR_WITH_OPENVINO
           "openvino"
#endif
#if defined(CLUSIR_WITH_OPENVINO) && (defined(CLUSIR_WITH_ORT) || defined(CLUSIR_WITH_NCNN))
           " "
#endif
#ifdef CLUSIR_WITH_ORT
           "ort"
#endif
#if defined(CLUSIR_WITH_ORT) && defined(CLUSIR_WITH_NCNN)
           " "
#endif
#ifdef CLUSIR_WITH_NCNN
           "ncnn"
#endif
        ;
}
