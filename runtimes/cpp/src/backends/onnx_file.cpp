#include "onnx_file.hpp"

#include <filesystem>
#include <fstream>
#include <istream>
#include <streambuf>

namespace clusir::detail {
namespace {

constexpr std::uint64_t kMostMetadata = 4U << 20U;
// ModelProto: 7 = graph, 14 = metadata_props; StringStringEntryProto: 1 = key, 2 = value.
constexpr std::uint64_t kModelGraph = 7, kMetadata = 14;
enum Wire : std::uint64_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Reads from memory that belongs to somebody else.
class Memory : public std::streambuf {
public:
    Memory(const void* bytes, std::size_t size) {
        auto* begin = const_cast<char*>(static_cast<const char*>(bytes));  // a streambuf only reads its get area
        setg(begin, begin, begin + size);
    }

protected:
    pos_type seekoff(off_type by, std::ios_base::seekdir from, std::ios_base::openmode) override {
        off_type start = 0;
        if (from == std::ios_base::cur) start = gptr() - eback();
        if (from == std::ios_base::end) start = egptr() - eback();
        if (start + by < 0 || start + by > egptr() - eback()) return pos_type(off_type(-1));
        setg(eback(), eback() + start + by, egptr());
        return pos_type(start + by);
    }
    pos_type seekpos(pos_type to, std::ios_base::openmode mode) override {
        return seekoff(off_type(to), std::ios_base::beg, mode);
    }
};

class Message {
public:
    Message(std::istream& stream, std::uint64_t size) : stream_(stream), left_(size) {}

    bool ended() const { return left_ == 0; }
    std::uint64_t left() const { return left_; }

    bool varint(std::uint64_t& value) {
        value = 0;
        for (unsigned shift = 0; shift < 64 && left_ > 0; shift += 7) {
            const int byte = stream_.get();
            --left_;
            if (byte < 0) return false;
            value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80) return true;
        }
        return false;
    }
    bool skip(std::uint64_t count) {
        if (count > left_) return false;
        left_ -= count;
        return static_cast<bool>(stream_.seekg(static_cast<std::streamoff>(count), std::ios::cur));
    }
    // The bytes were read from the stream by somebody else.
    void read_elsewhere(std::uint64_t count) { left_ -= count; }
    bool take(std::uint64_t count, std::string& into) {
        if (count > left_) return false;
        left_ -= count;
        into.resize(static_cast<std::size_t>(count));
        return static_cast<bool>(stream_.read(into.data(), static_cast<std::streamsize>(count)));
    }

private:
    std::istream& stream_;
    std::uint64_t left_;
};

bool read_entry(std::istream& stream, std::uint64_t size, Metadata& metadata) {
    Message entry(stream, size);
    std::string texts[2];
    while (!entry.ended()) {
        std::uint64_t key = 0, length = 0;
        if (!entry.varint(key) || (key & 7U) != kBytes || !entry.varint(length)) return false;
        std::string text;
        if (!entry.take(length, text)) return false;
        if (key >> 3U == 1 || key >> 3U == 2) texts[(key >> 3U) - 1] = text;
    }
    metadata[texts[0]] = texts[1];
    return true;
}

std::optional<Metadata> read(std::istream& stream) {
    stream.seekg(0, std::ios::end);
    const auto size = static_cast<std::int64_t>(stream.tellg());
    if (!stream || size <= 0) return std::nullopt;
    stream.seekg(0);
    Message model(stream, static_cast<std::uint64_t>(size));
    Metadata metadata;
    std::uint64_t total = 0;
    bool graph = false;
    while (!model.ended()) {
        std::uint64_t key = 0, length = 0;
        if (!model.varint(key) || key >> 3U == 0) return std::nullopt;
        const std::uint64_t wire = key & 7U, field = key >> 3U;
        if (wire == kVarint) {
            if (!model.varint(length)) return std::nullopt;
            continue;
        }
        if (wire == kBytes) {
            if (!model.varint(length)) return std::nullopt;
        } else if (wire == kFixed64 || wire == kFixed32) {
            length = wire == kFixed64 ? 8 : 4;
        } else {
            return std::nullopt;
        }
        if (length > model.left()) return std::nullopt;
        if (wire == kBytes && field == kMetadata) {
            total += length;
            if (total > kMostMetadata || !read_entry(stream, length, metadata)) return std::nullopt;
            model.read_elsewhere(length);
            continue;
        }
        graph = graph || (wire == kBytes && field == kModelGraph);
        if (!model.skip(length)) return std::nullopt;
    }
    if (!graph) return std::nullopt;
    return metadata;
}

}  // namespace

std::optional<Metadata> onnx_metadata(const Source& source) {
    if (source.bytes != nullptr) {
        Memory memory(source.bytes, source.size);
        std::istream stream(&memory);
        return read(stream);
    }
    std::ifstream file(std::filesystem::u8path(source.path), std::ios::binary);
    return read(file);
}

}  // namespace clusir::detail
