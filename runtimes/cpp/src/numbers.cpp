#include "numbers.hpp"

#include <algorithm>
#include <sstream>

#include "error.hpp"

namespace clusir::detail {

std::vector<float> read_numbers(const clusir_number* given, std::size_t count, const ModelSpec& spec) {
    std::vector<float> numbers(spec.number_defaults.begin(), spec.number_defaults.end());
    for (std::size_t i = 0; i < count; ++i) {
        if (given[i].name == nullptr) throw Failure(CLUSIR_INVALID_ARGUMENT, "options: a number has no name");
        const std::string name = given[i].name;
        const auto found = std::find(spec.numbers.begin(), spec.numbers.end(), name);
        if (found == spec.numbers.end()) {
            std::string has;
            for (const auto& one : spec.numbers) has += (has.empty() ? "; it has " : ", ") + one;
            throw Failure(CLUSIR_INVALID_ARGUMENT, "options: the model takes no number '" + name + "'" + has);
        }
        const auto at = static_cast<std::size_t>(found - spec.numbers.begin());
        const auto& [low, high] = spec.number_ranges[at];
        if (!(given[i].value >= low && given[i].value <= high)) {
            std::ostringstream text;
            text << "number '" << name << "' is " << given[i].value << ", not within " << low << ".." << high;
            throw Failure(CLUSIR_INVALID_ARGUMENT, text.str());
        }
        numbers[at] = static_cast<float>(given[i].value);
    }
    return numbers;
}

void feed_numbers(const Graph& graph, const ModelSpec& spec, const std::vector<float>& numbers,
                  std::vector<Feed>& feeds) {
    for (const auto& port : graph.inputs()) {
        const auto found = std::find(spec.numbers.begin(), spec.numbers.end(), port.name);
        if (found != spec.numbers.end()) feeds.push_back({found->c_str(), {1}, &numbers[found - spec.numbers.begin()]});
    }
}

}  // namespace clusir::detail
