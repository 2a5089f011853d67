// JSON as RFC 8259 has it, in which a model's metadata is written.
#pragma once

#include <string>
#include <vector>

namespace clusir::detail {

struct Json {
    enum class Kind { null, boolean, number, text, list, object };

    Kind kind = Kind::null;
    bool truth = false;             // of a boolean
    double value = 0.0;             // of a number
    std::string characters;         // of a text, in UTF-8
    std::vector<Json> items;        // of a list; of an object, in the order of its keys
    std::vector<std::string> keys;  // of an object, each once: the last value of a key counts

    bool is_number() const { return kind == Kind::number; }
    bool is_text() const { return kind == Kind::text; }
    bool is_list() const { return kind == Kind::list; }
    bool is_object() const { return kind == Kind::object; }
    // Null where this is no object, or has no such key.
    const Json* find(const char* key) const;
};

// Whether `text` is one JSON value, and nothing but spaces around it: valid UTF-8 without a byte order mark, no number
// that is larger than a double, at most 64 lists and objects inside each other.
bool parse_json(const std::string& text, Json& into);

}  // namespace clusir::detail
