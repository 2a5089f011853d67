// The routing that all tiles of a picture share. Mirrors runtimes/restore/routing.py.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "spec.hpp"

namespace clusir::detail {

// `statistics` is empty where the model's tiles compute their own, `evidence` where it has no families.
struct Routing {
    std::vector<float> posterior, gate, statistics, evidence;
};

// Sums routing over tiles in double precision, then averages and takes the top k of each level.
class RoutingMean {
public:
    explicit RoutingMean(const ModelSpec& spec);
    // Throws Failure(CLUSIR_FAILED) where a graph returned NaN or infinity.
    void add(const std::vector<float>& posterior, const std::vector<float>& experts,
             const std::vector<float>& evidence);
    Routing result() const;   // of a router graph: averaged, then top k
    Routing average() const;  // of tiles that each routed themselves: averaged only

private:
    const ModelSpec& spec_;
    std::vector<double> posterior_, experts_, evidence_;
    int count_ = 0;
};

// The gate of one level: the k largest of `probability[0..experts)`, ties to the lowest index, zero elsewhere. For k =
// 1 the weight is the probability itself; for k > 1 the chosen ones are divided by their sum; where all are 0 the gate
// is 0. Throws Failure(CLUSIR_FAILED) for NaN, infinity and numbers below 0.
void top_k(const float* probability, int experts, int k, float* gate);

// Throws Failure(CLUSIR_FAILED) where the output `what` holds NaN or infinity.
void check_finite(const float* values, std::size_t count, const std::string& what);

}  // namespace clusir::detail
