#include "json.hpp"

#include <cstddef>
#include <cstdint>
#include <locale>
#include <map>
#include <sstream>

namespace clusir::detail {
namespace {

constexpr int kDeepest = 64;

class Reader {
public:
    explicit Reader(const std::string& text) : at_(text.data()), end_(text.data() + text.size()) {}

    bool whole(Json& into) {
        if (!value(into, 0)) return false;
        spaces();
        return at_ == end_;
    }

private:
    void spaces() {
        while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
    }

    // Goes past `c` where it is next.
    bool take(char c) {
        if (at_ == end_ || *at_ != c) return false;
        ++at_;
        return true;
    }

    bool take_after_spaces(char c) {
        spaces();
        return take(c);
    }

    bool word(const char* letters) {
        for (; *letters != '\0'; ++letters) {
            if (!take(*letters)) return false;
        }
        return true;
    }

    bool value(Json& into, int depth) {
        spaces();
        if (at_ == end_ || (depth == kDeepest && (*at_ == '[' || *at_ == '{'))) return false;
        switch (*at_) {
            case '{': into.kind = Json::Kind::object; return object(into, depth);
            case '[': into.kind = Json::Kind::list; return list(into, depth);
            case '"': into.kind = Json::Kind::text; return text(into.characters);
            case 't': into.kind = Json::Kind::boolean; into.truth = true; return word("true");
            case 'f': into.kind = Json::Kind::boolean; return word("false");
            case 'n': return word("null");
            default: into.kind = Json::Kind::number; return number(into.value);
        }
    }

    bool list(Json& into, int depth) {
        ++at_;
        if (take_after_spaces(']')) return true;
        do {
            if (!value(into.items.emplace_back(), depth + 1)) return false;
        } while (take_after_spaces(','));
        return take(']');
    }

    bool object(Json& into, int depth) {
        ++at_;
        if (take_after_spaces('}')) return true;
        std::map<std::string, std::size_t> places;
        do {
            std::string key;
            spaces();
            if (!text(key) || !take_after_spaces(':')) return false;
            const auto [place, is_new] = places.emplace(key, into.items.size());
            if (is_new) into.keys.push_back(key), into.items.emplace_back();
            Json& item = into.items[place->second];
            item = Json();
            if (!value(item, depth + 1)) return false;
        } while (take_after_spaces(','));
        return take('}');
    }

    bool digits() {
        const char* begin = at_;
        while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
        return at_ != begin;
    }

    bool number(double& into) {
        const char* begin = at_;
        take('-');
        if (!take('0') && !digits()) return false;
        if (take('.') && !digits()) return false;
        if (take('e') || take('E')) {
            if (!take('+')) take('-');
            if (!digits()) return false;
        }
        std::istringstream stream(std::string(begin, at_));
        stream.imbue(std::locale::classic());  // a point is a point, whatever the host speaks
        return static_cast<bool>(stream >> into);
    }

    bool text(std::string& into) {
        if (!take('"')) return false;
        while (at_ != end_ && *at_ != '"') {
            if (*at_ == '\\' ? !escape(into) : !character(into)) return false;
        }
        return take('"');
    }

    // One character of UTF-8, in its shortest form, and none of the halves that UTF-16 has.
    bool character(std::string& into) {
        const auto byte = [this](std::ptrdiff_t i) { return static_cast<unsigned char>(at_[i]); };
        const unsigned first = byte(0);
        const std::ptrdiff_t length = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
        if (first < 0x20 || (first >= 0x80 && first < 0xC2) || first > 0xF4 || end_ - at_ < length) return false;
        for (std::ptrdiff_t i = 1; i < length; ++i) {
            if ((byte(i) & 0xC0) != 0x80) return false;
        }
        if (length > 2) {
            const unsigned second = byte(1);
            if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F)) return false;
            if ((first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) return false;
        }
        into.append(at_, static_cast<std::size_t>(length));
        at_ += length;
        return true;
    }

    bool four_digits(std::uint32_t& into) {
        into = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            if (at_ == end_) return false;
            const char c = *at_;
            const int digit = c >= '0' && c <= '9'   ? c - '0'
                              : c >= 'a' && c <= 'f' ? c - 'a' + 10
                              : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (digit < 0) return false;
            into = into * 16 + static_cast<std::uint32_t>(digit);
        }
        return true;
    }

    bool escape(std::string& into) {
        ++at_;
        if (at_ == end_) return false;
        const char c = *at_++;
        static const std::string kNamed = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
        if (c != 'u') {
            const std::size_t found = kNamed.find(c);
            if (found != std::string::npos) into += kMeant[found];
            return found != std::string::npos;
        }
        std::uint32_t code = 0, low = 0;
        if (!four_digits(code)) return false;
        if (code >= 0xD800 && code <= 0xDFFF) {  // the first of two halves, or wrong
            if (code > 0xDBFF || !word("\\u") || !four_digits(low) || low < 0xDC00 || low > 0xDFFF) return false;
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append(code, into);
        return true;
    }

    static void append(std::uint32_t code, std::string& into) {
        const auto tail = [&](unsigned shift) { into += static_cast<char>(0x80 | ((code >> shift) & 0x3F)); };
        if (code < 0x80) {
            into += static_cast<char>(code);
        } else if (code < 0x800) {
            into += static_cast<char>(0xC0 | (code >> 6));
        } else if (code < 0x10000) {
            into += static_cast<char>(0xE0 | (code >> 12));
            tail(6);
        } else {
            into += static_cast<char>(0xF0 | (code >> 18));
            tail(12), tail(6);
        }
        if (code >= 0x80) tail(0);
    }

    const char* at_;
    const char* end_;
};

}  // namespace

const Json* Json::find(const char* key) const {
    for (std::size_t i = 0; i < keys.size(); ++i) {
        if (keys[i] == key) return &items[i];
    }
    return nullptr;
}

bool parse_json(const std::string& text, Json& into) {
    into = Json();
    return Reader(text).whole(into);
}

}  // namespace clusir::detail
