// Restores one PNG: clusir-restore MODEL.onnx IN.png OUT.png [--backend ort|openvino] [--threads N] [--set NAME=NUMBER]
//
// Keeps the size, 8 or 16 bits, and alpha; grey and palette pictures come out as RGB.
#include <clusir/clusir.hpp>

#include <png.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace {

struct Picture {
    std::uint32_t width = 0, height = 0, channels = 3;
    int bits = 8;
    std::vector<std::uint8_t> bytes;  // rows without gaps; 16-bit samples in native byte order

    std::size_t row() const { return std::size_t{width} * channels * (bits / 8); }
    clusir_image image() { return {bytes.data(), width, height, channels, bits == 16 ? CLUSIR_U16 : CLUSIR_U8, row()}; }
    std::vector<png_bytep> rows() {
        std::vector<png_bytep> result(height);
        for (std::uint32_t y = 0; y < height; ++y) result[y] = bytes.data() + y * row();
        return result;
    }
};

struct CloseFile {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, CloseFile>;

// libpng reports through this; throwing through its C frames works because it is built with unwind tables on every
// platform that this example is for, and spares the setjmp that would skip destructors.
void raise(png_structp, png_const_charp what) { throw std::runtime_error(what); }
void ignore(png_structp, png_const_charp) {}

bool little_endian() {
    const std::uint16_t one = 1;
    return *reinterpret_cast<const unsigned char*>(&one) == 1;
}

Picture read(const std::string& path) {
    const File file(std::fopen(path.c_str(), "rb"));
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, nullptr, raise, ignore);
    png_infop info = png_create_info_struct(png);
    struct Free {
        png_structp* png;
        png_infop* info;
        ~Free() { png_destroy_read_struct(png, info, nullptr); }
    } const guard{&png, &info};
    png_init_io(png, file.get());
    png_read_info(png, info);
    png_set_expand(png);
    png_set_gray_to_rgb(png);
    if (little_endian()) png_set_swap(png);
    png_read_update_info(png, info);
    Picture picture;
    picture.width = png_get_image_width(png, info);
    picture.height = png_get_image_height(png, info);
    picture.channels = png_get_channels(png, info);
    picture.bits = png_get_bit_depth(png, info);
    picture.bytes.resize(picture.row() * picture.height);
    auto rows = picture.rows();
    png_read_image(png, rows.data());
    return picture;
}

// The picture to be: a file beside it that takes its name when all is written. Opened before the work, so that a folder
// that cannot be written to is known before it.
class Output {
public:
    explicit Output(const std::string& path)
        : path_(path), part_(path + ".part"), file_(std::fopen(part_.c_str(), "wb")) {
        if (!file_) throw std::runtime_error(path + ": cannot be written");
    }
    ~Output() {
        if (file_) std::remove(part_.c_str());
    }
    Output(const Output&) = delete;
    Output& operator=(const Output&) = delete;
    std::FILE* get() const { return file_.get(); }
    void finish() {
        const bool whole = std::fflush(file_.get()) == 0 && std::ferror(file_.get()) == 0;
        std::error_code failed;
        if (whole) std::filesystem::rename(part_, path_, failed);
        if (!whole || failed) throw std::runtime_error(path_ + ": cannot be written");
        file_.reset();
    }

private:
    std::string path_, part_;
    File file_;
};

void write(Output& file, Picture& picture) {
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, raise, ignore);
    png_infop info = png_create_info_struct(png);
    struct Free {
        png_structp* png;
        png_infop* info;
        ~Free() { png_destroy_write_struct(png, info); }
    } const guard{&png, &info};
    png_init_io(png, file.get());
    png_set_IHDR(png, info, picture.width, picture.height, picture.bits,
                 picture.channels == 4 ? PNG_COLOR_TYPE_RGB_ALPHA : PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_set_compression_level(png, 3);
    png_write_info(png, info);
    if (picture.bits == 16 && little_endian()) png_set_swap(png);
    auto rows = picture.rows();
    png_write_image(png, rows.data());
    png_write_end(png, info);
}

// NAME=NUMBER at the end of `settings`; false for other text.
bool setting(const std::string& text, std::vector<std::pair<std::string, double>>& settings) {
    const std::size_t equals = text.rfind('=');
    if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) return false;
    char* end = nullptr;
    const double number = std::strtod(text.c_str() + equals + 1, &end);
    if (*end != '\0') return false;
    settings.emplace_back(text.substr(0, equals), number);
    return true;
}

// The settings as numbers, or where the model has a map of the name as what fills it.
clusir::Steer steer_of(const clusir::Model& model, const std::vector<std::pair<std::string, double>>& settings) {
    const char* maps = clusir_metadata(model.get(), "maps");
    clusir::Steer steer;
    for (const auto& [name, number] : settings) {
        if (maps != nullptr && std::string(maps).find("\"" + name + "\"") != std::string::npos)
            steer.maps.push_back({name.c_str(), nullptr, static_cast<float>(number)});
        else
            steer.numbers.push_back({name.c_str(), number});
    }
    return steer;
}

int usage(std::ostream& out, int status) {
    out << "usage: clusir-restore MODEL.onnx IN.png OUT.png [--backend auto|ort|openvino] [--threads N] "
           "[--set NAME=NUMBER]\n";
    return status;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> names;
    std::string backend = "auto";
    int threads = 0;
    std::vector<std::pair<std::string, double>> settings;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--backend" && i + 1 < argc)
            backend = argv[++i];
        else if (argument == "--threads" && i + 1 < argc && std::isdigit(static_cast<unsigned char>(*argv[i + 1])))
            threads = std::atoi(argv[++i]);
        else if (argument == "--set" && i + 1 < argc && setting(argv[i + 1], settings))
            ++i;
        else if (argument == "--help" || argument == "-h")
            return usage(std::cout, 0);
        else if (argument.rfind("--", 0) == 0)
            return usage(std::cerr, CLUSIR_INVALID_ARGUMENT);
        else
            names.push_back(argument);
    }
    if (names.size() != 3) return usage(std::cerr, CLUSIR_INVALID_ARGUMENT);
    try {
        const clusir::Model model(names[0], backend, threads);
        Picture in = read(names[1]), out = in;
        Output file(names[2]);
        const auto told = [](std::uint32_t done, std::uint32_t total) {
            std::cerr << "\rtile " << done << " of " << total << (done == total ? "\n" : "") << std::flush;
            return true;
        };
        const auto routing = model.restore(in.image(), out.image(), told, nullptr, steer_of(model, settings));
        write(file, out);
        file.finish();
        std::uint32_t at = 0;
        for (std::uint32_t level = 0; level < model.spec().levels; ++level) {
            std::cout << "level " << level + 1 << ":";
            for (std::uint32_t c = 0; c < clusir_level_clusters(model.get(), level); ++c, ++at) {
                const std::string label = clusir_cluster_label(model.get(), level, c);
                std::printf(" %s=%.3f", label.empty() ? std::to_string(c).c_str() : label.c_str(),
                            routing.posterior[at]);
                std::fflush(stdout);
            }
            std::cout << std::endl;
        }
        return 0;
    } catch (const clusir::Error& error) {
        std::cerr << "error: " << error.what() << "\n";
        return error.status();
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << "\n";
        return 1;
    }
}
