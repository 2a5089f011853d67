#include "routing.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"

namespace clusir::detail {

RoutingMean::RoutingMean(const ModelSpec& spec)
    : spec_(spec),
      posterior_(static_cast<std::size_t>(spec.posterior_size())),
      experts_(static_cast<std::size_t>(spec.gate_size())),
      evidence_(spec.families.size()) {}

void RoutingMean::add(const std::vector<float>& posterior, const std::vector<float>& experts,
                      const std::vector<float>& evidence) {
    check_finite(posterior.data(), posterior.size(), "posterior");
    check_finite(experts.data(), experts.size(), "gate or expert probability");
    check_finite(evidence.data(), evidence.size(), "evidence");
    for (std::size_t i = 0; i < posterior_.size(); ++i) posterior_[i] += static_cast<double>(posterior[i]);
    for (std::size_t i = 0; i < experts_.size(); ++i) experts_[i] += static_cast<double>(experts[i]);
    for (std::size_t i = 0; i < evidence_.size(); ++i) evidence_[i] += static_cast<double>(evidence[i]);
    ++count_;
}

Routing RoutingMean::average() const {
    Routing routing;
    for (const double sum : posterior_) routing.posterior.push_back(static_cast<float>(sum / count_));
    for (const double sum : experts_) routing.gate.push_back(static_cast<float>(sum / count_));
    for (const double sum : evidence_) routing.evidence.push_back(static_cast<float>(sum / count_));
    return routing;
}

Routing RoutingMean::result() const {
    Routing routing = average();
    const std::vector<float> probability = routing.gate;
    std::size_t at = 0;
    for (const int experts : spec_.experts) {
        top_k(probability.data() + at, experts, spec_.top_k, routing.gate.data() + at);
        at += static_cast<std::size_t>(experts);
    }
    return routing;
}

void check_finite(const float* values, std::size_t count, const std::string& what) {
    for (std::size_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[i]))
            throw Failure(CLUSIR_FAILED,
                          "the model returned NaN or infinity (" + what + "); its file is damaged or it overflowed");
    }
}

void top_k(const float* probability, int experts, int k, float* gate) {
    for (int e = 0; e < experts; ++e) {
        if (!std::isfinite(probability[e]) || probability[e] < 0.0F)
            throw Failure(CLUSIR_FAILED,
                          "the router returned a probability that is NaN, infinite or negative; its file is damaged");
    }
    std::fill(gate, gate + experts, 0.0F);
    std::vector<bool> chosen(static_cast<std::size_t>(experts));
    double sum = 0.0;
    for (int round = 0; round < k; ++round) {
        int best = -1;
        for (int e = 0; e < experts; ++e) {
            if (chosen[static_cast<std::size_t>(e)]) continue;
            if (best < 0 || probability[e] > probability[best]) best = e;
        }
        chosen[static_cast<std::size_t>(best)] = true;
        gate[best] = probability[best];
        sum += static_cast<double>(probability[best]);
    }
    if (k == 1 || !(sum > 0.0)) return;
    for (int e = 0; e < experts; ++e) gate[e] = static_cast<float>(static_cast<double>(gate[e]) / sum);
}

}  // namespace clusir::detail
