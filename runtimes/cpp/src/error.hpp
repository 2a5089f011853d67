// The one exception of the library's inside; api.cpp turns it into a status and a line.
#pragma once

#include <clusir/clusir.h>

#include <stdexcept>
#include <string>

namespace clusir::detail {

struct Failure : std::runtime_error {
    Failure(clusir_status kind, const std::string& what) : std::runtime_error(what), status(kind) {}
    clusir_status status;
};

[[noreturn]] inline void bad_model(const std::string& what) {
    throw Failure(CLUSIR_BAD_MODEL, what + "; export the model again with clusir-export");
}

}  // namespace clusir::detail
