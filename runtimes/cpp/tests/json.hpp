// JSON of the test programs: what the library reads, asked for as numbers, texts and lists. What is not there, or is of
// another kind, is thrown.
#pragma once

#include <map>
#include <utility>

#include "../src/json.hpp"
#include "support.hpp"

namespace clusir::detail {

struct View {
    const Json* at;

    View operator[](const char* key) const {
        const Json* found = at->find(key);
        if (found == nullptr) throw std::runtime_error(std::string("the JSON has no ") + key);
        return {found};
    }
    View operator[](std::size_t i) const { return {&at->items.at(i)}; }
    bool has(const char* key) const { return at->find(key) != nullptr; }
    std::size_t size() const { return at->items.size(); }
    const std::string& key(std::size_t i) const { return at->keys.at(i); }
    bool is_null() const { return at->kind == Json::Kind::null; }

    const std::string& text() const {
        if (!at->is_text()) throw std::runtime_error("the JSON has something else than a text");
        return at->characters;
    }
    std::string text(const char* key) const { return has(key) ? (*this)[key].text() : ""; }
    double number() const {
        if (!at->is_number()) throw std::runtime_error("the JSON has something else than a number");
        return at->value;
    }
    double number(const char* key, double otherwise) const { return has(key) ? (*this)[key].number() : otherwise; }
    template <typename T>
    T as() const {
        return static_cast<T>(number());
    }
    template <typename T>
    std::vector<T> list() const {
        std::vector<T> found;
        for (const View item : *this) found.push_back(item.as<T>());
        return found;
    }
    std::vector<std::string> texts() const {
        std::vector<std::string> found;
        for (const View item : *this) found.push_back(item.text());
        return found;
    }
    template <typename T>
    std::vector<T> list(const char* key) const {
        return has(key) ? (*this)[key].list<T>() : std::vector<T>();
    }

    struct Place {
        const Json* at;
        View operator*() const { return {at}; }
        Place& operator++() { return ++at, *this; }
        bool operator!=(const Place& other) const { return at != other.at; }
    };
    Place begin() const { return {at->items.data()}; }
    Place end() const { return {at->items.data() + at->items.size()}; }
};

inline Json read_json(const std::string& path) {
    const auto bytes = read_file(path);
    Json found;
    if (!parse_json(std::string(bytes.begin(), bytes.end()), found)) throw std::runtime_error(path + ": is no JSON");
    return found;
}

inline std::string json_of(const std::string& text) {
    std::string quoted = "\"";
    for (const char c : text) {
        char code[8];
        std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(c));
        quoted += static_cast<unsigned char>(c) < 0x20 || c == '"' || c == '\\' ? code : std::string(1, c);
    }
    return quoted + "\"";
}

inline std::string json_of(double number) {
    char text[32];
    std::snprintf(text, sizeof text, "%.17g", number);
    return text;
}

// One line; every number with all its digits.
inline std::string json_of(const Json& value) {
    switch (value.kind) {
        case Json::Kind::null: return "null";
        case Json::Kind::boolean: return value.truth ? "true" : "false";
        case Json::Kind::number: return json_of(value.value);
        case Json::Kind::text: return json_of(value.characters);
        default: break;
    }
    std::string text;
    for (std::size_t i = 0; i < value.items.size(); ++i) {
        if (i > 0) text += ", ";
        if (value.is_object()) text += json_of(value.keys[i]) + ": ";
        text += json_of(value.items[i]);
    }
    return value.is_object() ? "{" + text + "}" : "[" + text + "]";
}

inline std::string json_of(const std::pair<double, double>& bounds) {
    return "[" + json_of(bounds.first) + ", " + json_of(bounds.second) + "]";
}

template <typename T>
std::string json_of(const std::vector<T>& list) {
    std::string text;
    for (const T& item : list) text += (text.empty() ? "" : ", ") + json_of(item);
    return "[" + text + "]";
}

inline std::string json_of(const std::map<std::string, double>& bounds) {
    std::string text;
    for (const auto& [name, bound] : bounds)
        text += (text.empty() ? "" : ", ") + json_of(name) + ": " + json_of(bound);
    return "{" + text + "}";
}

// By value; objects whatever the order of their keys.
inline bool same(const Json& a, const Json& b) {
    if (a.kind != b.kind || a.truth != b.truth || a.value != b.value || a.characters != b.characters) return false;
    bool holds = a.items.size() == b.items.size();
    for (std::size_t i = 0; holds && i < a.items.size(); ++i) {
        const Json* other = a.is_object() ? b.find(a.keys[i].c_str()) : &b.items[i];
        holds = other != nullptr && same(a.items[i], *other);
    }
    return holds;
}

// Whether `text` is the JSON of the value.
inline bool same(const std::string& text, const View& value) {
    Json read;
    return parse_json(text, read) && same(read, *value.at);
}

}  // namespace clusir::detail
