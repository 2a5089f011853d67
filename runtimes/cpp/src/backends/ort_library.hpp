// Finds ONNX Runtime's C API: linked in, or in a library opened at run time (one binary then runs on many versions).
#pragma once

#ifndef CLUSIR_ORT_LINKED
#define ORT_API_MANUAL_INIT
#endif
#include <clusir/clusir.h>
#if defined(_WIN32) && !defined(_MSC_VER)
#define _Return_type_success_( \
    condition)  // an annotation of Microsoft's that ORT's header defines for no other compiler
#endif
#include <onnxruntime_c_api.h>

#include <string>

namespace clusir::detail {

struct OrtLibrary {
    const OrtApi* api;
    OrtEnv* env;
};

// The API and the process's environment for the library named (empty: see clusir_open_options.ort_library).
// Thread-safe; kept until the process ends. Throws Failure(CLUSIR_NO_BACKEND).
const OrtLibrary& ort_library(const std::string& path);

// Throws Failure(code) with the status's message and frees the status; does nothing for nullptr.
void check_ort(const OrtApi* api, OrtStatus* status, clusir_status code, const std::string& what);

}  // namespace clusir::detail
