#include "onnx_weights.hpp"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string_view>

#include "../error.hpp"

namespace clusir::detail {
namespace {

using Bytes = std::string_view;
namespace fs = std::filesystem;

// ModelProto.graph; GraphProto.initializer; TensorProto.raw_data, .external_data, .data_location; of an entry of
// external_data the key and the value.
constexpr std::uint64_t kGraph = 7, kInitializer = 5, kRawData = 9, kExternalData = 13, kLocation = 14, kKey = 1,
                        kValue = 2;
constexpr std::uint64_t kOutside = 1;  // TensorProto.DataLocation.EXTERNAL

struct Field {
    std::uint64_t number = 0, value = 0;  // value: of a field that is a number
    bool has_bytes = false;
    Bytes bytes, all;  // all: with what stands before
};

// The fields of a protobuf message, one after the other.
class MessageFields {
public:
    explicit MessageFields(Bytes message) : rest_(message) {}

    bool ended() const { return rest_.empty(); }
    // False where the bytes are no message.
    bool next(Field& field) {
        const Bytes before = rest_;
        std::uint64_t key = 0, length = 0;
        field = Field{};
        if (!varint(key)) return false;
        field.number = key >> 3U;
        switch (key & 7U) {
            case 0:
                if (!varint(field.value)) return false;
                break;
            case 1:
                length = 8;
                break;
            case 2:
                if (!varint(length)) return false;
                field.has_bytes = true;
                break;
            case 5:
                length = 4;
                break;
            default:
                return false;
        }
        if (length > rest_.size()) return false;
        field.bytes = rest_.substr(0, static_cast<std::size_t>(length));
        rest_.remove_prefix(static_cast<std::size_t>(length));
        field.all = before.substr(0, before.size() - rest_.size());
        return true;
    }

private:
    bool varint(std::uint64_t& value) {
        value = 0;
        for (unsigned shift = 0; shift < 64 && !rest_.empty(); shift += 7) {
            const auto byte = static_cast<unsigned char>(rest_.front());
            rest_.remove_prefix(1);
            value |= static_cast<std::uint64_t>(byte & 0x7FU) << shift;
            if (byte < 0x80U) return true;
        }
        return false;
    }

    Bytes rest_;
};

void append(std::string& out, std::uint64_t number, Bytes bytes) {
    const auto varint = [&](std::uint64_t value) {
        for (; value >= 0x80U; value >>= 7U) out += static_cast<char>((value & 0x7FU) | 0x80U);
        out += static_cast<char>(value);
    };
    varint(number << 3U | 2U);
    varint(bytes.size());
    out += bytes;
}

// FIPS 180-4, in hexadecimal. It tells files of two exports apart; it is no protection.
std::string sha1(Bytes data) {
    const auto rotated = [](std::uint32_t value, unsigned by) { return value << by | value >> (32U - by); };
    std::array<std::uint32_t, 5> state{0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    const auto block = [&](const unsigned char* bytes) {
        std::array<std::uint32_t, 80> words{};
        for (unsigned i = 0; i < 16; ++i)
            words[i] = std::uint32_t{bytes[4 * i]} << 24U | std::uint32_t{bytes[4 * i + 1]} << 16U |
                       std::uint32_t{bytes[4 * i + 2]} << 8U | bytes[4 * i + 3];
        for (unsigned i = 16; i < 80; ++i)
            words[i] = rotated(words[i - 3] ^ words[i - 8] ^ words[i - 14] ^ words[i - 16], 1);
        auto [a, b, c, d, e] = state;
        for (unsigned i = 0; i < 80; ++i) {
            const std::uint32_t mixed = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999U
                                        : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1U
                                        : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDCU
                                                 : (b ^ c ^ d) + 0xCA62C1D6U;
            const std::uint32_t next = rotated(a, 5) + mixed + e + words[i];
            e = d, d = c, c = rotated(b, 30), b = a, a = next;
        }
        const std::array<std::uint32_t, 5> added{a, b, c, d, e};
        for (unsigned i = 0; i < 5; ++i) state[i] += added[i];
    };
    const auto* bytes = reinterpret_cast<const unsigned char*>(data.data());
    const std::size_t whole = data.size() / 64 * 64;
    for (std::size_t at = 0; at < whole; at += 64) block(bytes + at);
    std::array<unsigned char, 128> last{};
    const std::size_t left = data.size() - whole, end = left < 56 ? 64 : 128;
    if (left > 0) std::memcpy(last.data(), bytes + whole, left);
    last[left] = 0x80;
    const std::uint64_t bits = std::uint64_t{data.size()} * 8;
    for (unsigned i = 0; i < 8; ++i) last[end - 1 - i] = static_cast<unsigned char>(bits >> 8U * i);
    for (std::size_t at = 0; at < end; at += 64) block(last.data() + at);
    std::string text;
    for (const std::uint32_t word : state)
        for (unsigned digit = 0; digit < 8; ++digit) text += "0123456789abcdef"[word >> (28U - 4U * digit) & 15U];
    return text;
}

// The files that one graph keeps its weights in.
class Weights {
public:
    explicit Weights(const Source& source) : source_(source) {}

    // The part of a file that the entries of a tensor's external_data name.
    Bytes part(const std::map<std::string, std::string>& entries) {
        const auto entry = [&](const char* key) {
            const auto found = entries.find(key);
            return found == entries.end() ? std::string() : found->second;
        };
        const Bytes data = file(entry("location"), entry("checksum"));
        const std::uint64_t offset = std::min<std::uint64_t>(number(entry("offset"), 0), data.size());
        const std::uint64_t length = number(entry("length"), data.size() - offset);
        if (length > data.size() - offset)
            bad_model(source_.path + ": a tensor is said to lie beyond the end of " + entry("location"));
        return data.substr(static_cast<std::size_t>(offset), static_cast<std::size_t>(length));
    }

private:
    std::uint64_t number(const std::string& text, std::uint64_t otherwise) const {
        std::uint64_t value = otherwise;
        const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        if (!text.empty() && (error != std::errc() || end != text.data() + text.size()))
            bad_model(source_.path + ": the place of a tensor is no number");
        return value;
    }

    Bytes file(const std::string& name, const std::string& checksum) {
        auto found = read_.find(name);
        if (found == read_.end()) {
            const Bytes content = source_.bytes == nullptr ? load(name) : given(name);
            found = read_.emplace(name, content).first;
        }
        const bool other = !checksum.empty() && sha1(found->second) != checksum;
        if (other) bad_model(source_.path + ": " + name + " holds the weights of another export (its SHA-1 differs)");
        return found->second;
    }

    Bytes given(const std::string& name) const {
        if (source_.weights == nullptr)
            bad_model(source_.path + ": it keeps its weights in " + name + ", and the options hold none");
        return {static_cast<const char*>(source_.weights), source_.weights_size};
    }

    Bytes load(const std::string& name) {
        std::error_code none;
        const auto control = [](unsigned char c) { return std::iscntrl(c) != 0; };
        const bool plain = !name.empty() && name != "." && name != ".." &&
                           name.find_first_of("/\\:") == std::string::npos &&
                           std::none_of(name.begin(), name.end(), control);
        const fs::path model = fs::u8path(source_.path);
        const fs::path folder = fs::canonical(model.has_parent_path() ? model.parent_path() : fs::path("."), none);
        const fs::path path = plain ? folder / fs::u8path(name) : folder;
        // Also what a link leads to has to lie there.
        if (!plain || (fs::exists(path, none) && fs::canonical(path, none).parent_path() != folder))
            bad_model(source_.path + ": it keeps weights in a file that is not beside it");
        if (!fs::is_regular_file(path, none))
            bad_model(source_.path + ": its weights are in " + name + ", which is not beside it; copy both");
        std::ifstream stream(path, std::ios::binary);
        std::string& content = owned_[name];
        content.assign(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
        if (!stream.good() && !stream.eof()) bad_model(source_.path + ": " + name + " cannot be read");
        return content;
    }

    const Source& source_;
    std::map<std::string, Bytes> read_;
    std::map<std::string, std::string> owned_;
};

// Each returns false where its bytes are no message.

bool put_tensor(Bytes tensor, Weights& weights, std::string& out, bool& moved) {
    std::map<std::string, std::string> entries;
    std::string kept;
    bool outside = false;
    Field field, part;
    for (MessageFields fields(tensor); !fields.ended();) {
        if (!fields.next(field)) return false;
        if (field.number == kLocation) {
            outside = field.value == kOutside;
        } else if (field.number == kExternalData) {
            std::string key, value;
            for (MessageFields parts(field.bytes); !parts.ended();) {
                if (!parts.next(part)) return false;
                if (part.number == kKey) key = part.bytes;
                if (part.number == kValue) value = part.bytes;
            }
            entries[key] = value;
        } else {
            kept += field.all;
        }
    }
    if (!outside) {
        append(out, kInitializer, tensor);
        return true;
    }
    append(kept, kRawData, weights.part(entries));
    append(out, kInitializer, kept);
    moved = true;
    return true;
}

bool put_graph(Bytes graph, Weights& weights, std::string& out, bool& moved) {
    std::string content;
    Field field;
    for (MessageFields fields(graph); !fields.ended();) {
        if (!fields.next(field)) return false;
        if (field.number != kInitializer || !field.has_bytes)
            content += field.all;
        else if (!put_tensor(field.bytes, weights, content, moved))
            return false;
    }
    append(out, kGraph, content);
    return true;
}

}  // namespace

std::string with_weights(const Source& source, const std::string& graph) {
    Weights weights(source);
    std::string out;
    bool moved = false;
    Field field;
    for (MessageFields fields(graph); !fields.ended();) {
        if (!fields.next(field)) return {};
        if (field.number != kGraph || !field.has_bytes)
            out += field.all;
        else if (!put_graph(field.bytes, weights, out, moved))
            return {};
    }
    return moved ? out : std::string();
}

}  // namespace clusir::detail
