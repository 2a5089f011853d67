// What may be mended, and how far. Mirrors runtimes/restore/permissions.py; docs/permissions.md is the contract.
#pragma once

#include <string>
#include <vector>

#include "spec.hpp"

namespace clusir::detail {

struct Steering {
    std::vector<float> permissions;  // as the router takes them, one for each of the model's families
    float blend = 1.0F;              // of the result with the picture that went in

    // Whether a router would do the same untold, so that a whole graph may answer alone.
    bool plain() const;
};

// Whether no family may be mended, so that the picture comes back as it went in; never for a model without families,
// nor for one that enlarges.
bool nothing_to_mend(const std::vector<float>& evidence, const std::vector<float>& permissions, const ModelSpec& spec);

// `fix`: "" or "auto", "all", or families with commas between; `strength`: "" (1) or numbers in 0..1, an overall one
// and those of families: "0.8,noise=0.6". Throws Failure(CLUSIR_INVALID_ARGUMENT).
Steering steer(const ModelSpec& spec, const std::string& fix, const std::string& strength);

}  // namespace clusir::detail
