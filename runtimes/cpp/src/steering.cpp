#include "steering.hpp"

#include <algorithm>
#include <cctype>
#include <locale>
#include <map>
#include <sstream>

#include "error.hpp"

namespace clusir::detail {
namespace {

[[noreturn]] void refuse(const std::string& why) { throw Failure(CLUSIR_INVALID_ARGUMENT, why); }

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> parts;
    std::size_t at = 0;
    for (std::size_t comma = text.find(','); comma != std::string::npos; comma = text.find(',', at)) {
        parts.push_back(text.substr(at, comma - at));
        at = comma + 1;
    }
    parts.push_back(text.substr(at));
    return parts;
}

// Without spaces around it.
std::string trimmed(const std::string& text) {
    const auto space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
    const auto begin = std::find_if_not(text.begin(), text.end(), space);
    const auto end = std::find_if_not(text.rbegin(), std::string::const_reverse_iterator(begin), space).base();
    return {begin, end};
}

// The name of a family: in lower case, dashes as underscores.
std::string name_of(const std::string& text) {
    std::string name = trimmed(text);
    for (char& c : name) c = c == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return name;
}

float share_of(const std::string& text) {
    std::istringstream stream(trimmed(text));
    stream.imbue(std::locale::classic());  // a point is a point, whatever the host speaks
    double share = -1.0;
    if (!(stream >> share) || !stream.eof() || !(share >= 0.0 && share <= 1.0))
        refuse("strength '" + text + "' is not a number from 0 to 1, for example 0.5 or noise=0.6");
    return static_cast<float>(share);
}

// The strengths by name; the overall one has none.
std::map<std::string, float> read_strength(const std::string& strength) {
    std::map<std::string, float> found;
    if (strength.empty()) return found;
    for (const auto& part : split(strength)) {
        const std::size_t equals = part.rfind('=');
        const std::string name = equals == std::string::npos ? "" : name_of(part.substr(0, equals));
        if (equals != std::string::npos && name.empty())
            refuse("strength '" + part + "' names no family before the '='");
        const float share = share_of(equals == std::string::npos ? part : part.substr(equals + 1));
        if (!found.emplace(name, share).second)
            refuse("strength says " + (name.empty() ? std::string("the overall one") : name) + " twice");
    }
    return found;
}

}  // namespace

bool Steering::plain() const {
    return std::all_of(permissions.begin(), permissions.end(), [](float p) { return p == -1.0F; });
}

bool nothing_to_mend(const std::vector<float>& evidence, const std::vector<float>& permissions, const ModelSpec& spec) {
    if (spec.families.empty() || spec.upscale != 1) return false;
    for (std::size_t i = 0; i < spec.families.size(); ++i) {
        const bool anything = permissions[i] < -1.0F && !spec.evidence_floors.empty();
        const double least = anything ? spec.evidence_floors[i] : spec.evidence_thresholds[i];
        const bool sure = evidence[i] >= static_cast<float>(least);
        if (permissions[i] < 0.0F ? sure : permissions[i] > 0.0F) return false;
    }
    return true;
}

Steering steer(const ModelSpec& spec, const std::string& fix, const std::string& strength) {
    auto own = read_strength(strength);
    Steering steering;
    if (const auto overall = own.find(""); overall != own.end()) {
        steering.blend = overall->second;
        own.erase(overall);
    }
    if (spec.families.empty() && (!fix.empty() || !own.empty())) {
        refuse((fix.empty() ? "strengths of families" : "fix '" + fix + "'") +
               ": the model takes no permissions and mends everything it knows at once; an overall strength works with "
               "any model");
    }
    if (spec.upscale != 1 && steering.blend != 1.0F)
        refuse("strength: an enlarged picture cannot be blended with what went in");
    const auto known = [&](const std::string& name) {
        return std::find(spec.families.begin(), spec.families.end(), name) != spec.families.end();
    };
    std::vector<std::string> words;
    for (const auto& part : split(fix.empty() ? "auto" : fix)) {
        const std::string word = name_of(part);
        if (word.empty()) refuse("fix '" + fix + "': name families, for example noise,jpeg, or auto or all");
        if (word != "auto" && word != "all" && !known(word)) refuse("the model knows no family '" + word + "'");
        if (std::find(words.begin(), words.end(), word) == words.end()) words.push_back(word);
    }
    const auto named = [&](const std::string& word) {
        return std::find(words.begin(), words.end(), word) != words.end();
    };
    if (words.size() > 1 && (named("auto") || named("all"))) refuse("fix '" + fix + "': auto and all stand alone");
    for (const auto& [name, share] : own) {
        if (!known(name)) refuse("the model knows no family '" + name + "'");
    }
    const auto& families = spec.families;
    const bool all = named("all") || (words.size() > 1 && std::all_of(families.begin(), families.end(), named));
    for (const auto& family : spec.families) {
        const auto found = own.find(family);
        const float share = found == own.end() ? 1.0F : found->second;
        if (all && share > 0.0F && !spec.evidence_floors.empty())
            steering.permissions.push_back(-1.0F - share);
        else if (named("auto"))
            steering.permissions.push_back(share == 0.0F ? 0.0F : -share);
        else
            steering.permissions.push_back(all || named(family) ? share : 0.0F);
    }
    return steering;
}

}  // namespace clusir::detail
