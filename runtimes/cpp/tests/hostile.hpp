// What the two halves of clusir-hostile share.
#pragma once

#include <clusir/clusir.hpp>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "support.hpp"

inline std::string folder, backend, library;
inline Checks checks;

inline clusir_open_options options() {
    clusir_open_options result{};
    result.struct_size = sizeof result;
    result.backend = backend.c_str();
    result.threads = 1;
    result.ort_library = library.empty() ? nullptr : library.c_str();
    return result;
}

inline std::vector<std::uint8_t> noise(std::size_t bytes) {
    std::mt19937 random(7);
    std::vector<std::uint8_t> result(bytes);
    for (auto& value : result) value = static_cast<std::uint8_t>(random());
    return result;
}

inline void refused(clusir_status status, clusir_status expected, const std::string& what) {
    const bool line = std::strlen(clusir_last_error()) > 0 && std::strchr(clusir_last_error(), '\n') == nullptr;
    checks.that(status == expected && line,
                what + ": status " + std::to_string(status) + ", '" + clusir_last_error() + "'");
}

// hostile_files.cpp
void opening();
void memory();
void shared_weights(clusir_model* model);
