#include "ort_library.hpp"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <vector>

#ifndef CLUSIR_ORT_LINKED
#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#else
#include <dlfcn.h>
#endif
#endif

#include "../error.hpp"

namespace clusir::detail {
namespace {

// Every function used here is in ONNX Runtime 1.16; a newer library hands out an older API, an older one no newer.
constexpr std::uint32_t kApiVersion = 16;

#ifdef CLUSIR_ORT_LINKED
const OrtApiBase* api_base(const std::string&) { return OrtGetApiBase(); }
#else
using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();

#ifdef _WIN32
std::string variable(const wchar_t* name) {
    const wchar_t* value = _wgetenv(name);
    return value == nullptr ? "" : std::filesystem::path(value).u8string();
}
std::string library_variable() { return variable(L"CLUSIR_ORT_LIBRARY"); }

// The function, or null and the reason. The library stays open: its threads outlive any session.
GetApiBase find_api(const std::string& name, std::string& why) {
    const auto path = std::filesystem::u8path(name);
    // With a folder, that folder is where the library's own dependencies are looked for too.
    const DWORD flags = path.is_absolute() ? LOAD_WITH_ALTERED_SEARCH_PATH : 0;
    const HMODULE library = LoadLibraryExW(path.c_str(), nullptr, flags);
    if (library == nullptr) {
        why = name + ": error " + std::to_string(GetLastError());
        return nullptr;
    }
    const FARPROC found = GetProcAddress(library, "OrtGetApiBase");
    if (found == nullptr) {
        why = name + " has no OrtGetApiBase";
        FreeLibrary(library);
        return nullptr;
    }
    GetApiBase get = nullptr;
    static_assert(sizeof get == sizeof found);
    std::memcpy(&get, &found, sizeof get);
    return get;
}
#else
std::string library_variable() {
    const char* value = std::getenv("CLUSIR_ORT_LIBRARY");
    return value == nullptr ? "" : value;
}

// The function, or null and the reason. The library stays open: its threads outlive any session.
GetApiBase find_api(const std::string& name, std::string& why) {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        why = dlerror();
        return nullptr;
    }
    const auto get = reinterpret_cast<GetApiBase>(dlsym(library, "OrtGetApiBase"));
    if (get == nullptr) {
        why = name + " has no OrtGetApiBase";
        dlclose(library);
    }
    return get;
}
#endif

const OrtApiBase* api_base(const std::string& path) {
    std::vector<std::string> candidates;
    if (!path.empty()) {
        candidates = {path};
    } else if (const std::string named = library_variable(); !named.empty()) {
        candidates = {named};
    } else {
#ifdef CLUSIR_ORT_DEFAULT
        candidates.push_back(CLUSIR_ORT_DEFAULT);
#endif
#if defined(_WIN32)
        candidates.push_back("onnxruntime.dll");
#elif defined(__APPLE__)
        candidates.push_back("libonnxruntime.dylib");
#else
        candidates.insert(candidates.end(), {"libonnxruntime.so.1", "libonnxruntime.so"});
#endif
    }
    std::string why;
    for (const auto& candidate : candidates) {
        if (const GetApiBase get = find_api(candidate, why)) return get();
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
