#include "ort_library.hpp"

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#ifndef CLUSIR_ORT_LINKED
#include <dlfcn.h>
#endif

#include "error.hpp"

namespace clusir::detail {
namespace {

// Every function used here is in ONNX Runtime 1.16; a newer library hands out an older API, an older one no newer.
constexpr std::uint32_t kApiVersion = 16;

#ifdef CLUSIR_ORT_LINKED
const OrtApiBase* api_base(const std::string&) { return OrtGetApiBase(); }
#else
const OrtApiBase* api_base(const std::string& path) {
    std::vector<std::string> candidates;
    const char* variable = std::getenv("CLUSIR_ORT_LIBRARY");
    if (!path.empty()) {
        candidates = {path};
    } else if (variable != nullptr && *variable != '\0') {
        candidates = {variable};
    } else {
#ifdef CLUSIR_ORT_DEFAULT
        candidates.push_back(CLUSIR_ORT_DEFAULT);
#endif
#ifdef __APPLE__
        candidates.push_back("libonnxruntime.dylib");
#else
        candidates.insert(candidates.end(), {"libonnxruntime.so.1", "libonnxruntime.so"});
#endif
    }
    std::string why;
    for (const auto& candidate : candidates) {
        void* library = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (library == nullptr) {
            why = dlerror();
            continue;
        }
        using GetApiBase = const OrtApiBase* (*)();
        const auto get = reinterpret_cast<GetApiBase>(dlsym(library, "OrtGetApiBase"));
        if (get != nullptr) return get();  // the library stays open: its threads outlive any session
        why = candidate + " has no OrtGetApiBase";
        dlclose(library);
    }
    throw Failure(CLUSIR_NO_BACKEND,
                  "ONNX Runtime could not be loaded (" + why + "); give ort_library or set CLUSIR_ORT_LIBRARY");
}
#endif

}  // namespace

void check_ort(const OrtApi* api, OrtStatus* status, clusir_status code, const std::string& what) {
    if (status == nullptr) return;
    std::string message = api->GetErrorMessage(status);
    const OrtErrorCode kind = api->GetErrorCode(status);
    api->ReleaseStatus(status);
    message = message.substr(0, message.find('\n'));
    if (message.find("bad allocation") != std::string::npos ||
        message.find("Failed to allocate") != std::string::npos) {
        code = CLUSIR_OUT_OF_MEMORY;
    }
    throw Failure(code, what + ": " + message + " (ONNX Runtime error " + std::to_string(kind) + ")");
}

const OrtLibrary& ort_library(const std::string& path) {
    static std::mutex mutex;
    static std::map<std::string, OrtLibrary> libraries;
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = libraries.find(path);
    if (found != libraries.end()) return found->second;
    const OrtApiBase* base = api_base(path);
    const OrtApi* api = base->GetApi(kApiVersion);
    if (api == nullptr) {
        throw Failure(CLUSIR_NO_BACKEND,
                      std::string("ONNX Runtime ") + base->GetVersionString() + " is older than 1.16");
    }
    OrtEnv* env = nullptr;
    check_ort(api, api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "clusir", &env), CLUSIR_NO_BACKEND,
              "ONNX Runtime does not start");
    return libraries.emplace(path, OrtLibrary{api, env}).first->second;
}

}  // namespace clusir::detail
