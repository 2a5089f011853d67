// C++: the same picture as main.c, through the header-only wrapper. consumer_cpp MODEL.onnx BACKEND
#include <clusir/clusir.hpp>

#include <iostream>

int main(int argc, char** argv) try {
    if (argc < 3) return 2;
    constexpr std::uint32_t width = 100, height = 80;
    std::vector<std::uint8_t> pixels(width * height * 3), result(pixels.size());
    for (std::size_t i = 0; i < pixels.size(); ++i)
        pixels[i] = static_cast<std::uint8_t>(i / 3 % width + i / 3 / width);
    const clusir::Model model(argv[1], argv[2]);
    model.restore(clusir::view(pixels.data(), width, height, 3), clusir::view(result.data(), width, height, 3));
    const std::uint8_t* middle = &result[(40 * width + 50) * 3];
    std::cout << +middle[0] << ' ' << +middle[1] << ' ' << +middle[2] << '\n';
    return 0;
} catch (const clusir::Error& error) {
    std::cerr << "error: " << error.what() << '\n';
    return error.status();
}
