// Restores a raw picture (8-bit RGB, no header) and says how long it took and how much memory:
//   clusir-raw MODEL BACKEND ORT_LIBRARY|- THREADS WIDTH HEIGHT IN.rgb OUT (OUT.f32: floats; any other name: 8 bit)
//   [REPEATS]
#include <clusir/clusir.hpp>

#include <chrono>
#include <cstdlib>
#include <cstring>

#include "support.hpp"

namespace {

// Peak resident memory in MiB, from the kernel's own count; 0 where there is no /proc.
double peak_mib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        if (line.rfind("VmHWM:", 0) == 0) return std::atof(line.c_str() + 6) / 1024.0;
    }
    return 0.0;
}

template <typename Sample>
double run(const clusir::Model& model, std::vector<std::uint8_t>& input, std::uint32_t width, std::uint32_t height,
           const std::string& path, int repeats) {
    std::vector<Sample> out(input.size());
    double best = 1e300;
    for (int i = 0; i < repeats; ++i) {
        const auto start = std::chrono::steady_clock::now();
        model.restore(clusir::view(input.data(), width, height, 3), clusir::view(out.data(), width, height, 3));
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(Sample)));
    return best;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 9)
        return std::printf("usage: clusir-raw MODEL BACKEND ORT_LIBRARY|- THREADS WIDTH HEIGHT IN OUT [REPEATS]\n"), 2;
    try {
        const std::string library = std::strcmp(argv[3], "-") == 0 ? "" : argv[3], path = argv[8];
        const auto width = static_cast<std::uint32_t>(std::atol(argv[5])),
                   height = static_cast<std::uint32_t>(std::atol(argv[6]));
        const int repeats = argc > 9 ? std::atoi(argv[9]) : 1;
        auto input = read_file(argv[7]);
        if (input.size() != std::size_t{width} * height * 3)
            throw std::runtime_error("the file does not hold width x height x 3 bytes");
        const clusir::Model model(argv[1], argv[2], std::atoi(argv[4]), library);
        const bool floats = path.size() > 4 && path.compare(path.size() - 4, 4, ".f32") == 0;
        const double seconds = floats ? run<float>(model, input, width, height, path, repeats)
                                      : run<std::uint8_t>(model, input, width, height, path, repeats);
        std::printf("{\"seconds\": %.4f, \"peak_mib\": %.1f, \"backend\": \"%s\"}\n", seconds, peak_mib(),
                    model.spec().backend);
        return 0;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 1;
    }
}
