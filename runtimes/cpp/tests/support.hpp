// What the test programs share: reading files, and a check that counts instead of stopping.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

inline std::vector<std::uint8_t> read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be opened");
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

struct Checks {
    int passed = 0, failed = 0;

    void that(bool holds, const std::string& what) {
        ++(holds ? passed : failed);
        if (!holds) std::printf("FAILED: %s\n", what.c_str());
    }
    // The closing line; the exit status is 1 where a check failed or none was made.
    int finish() const {
        std::printf("%d passed, %d failed\n", passed, failed);
        return failed == 0 && passed > 0 ? 0 : 1;
    }
};

// AddressSanitizer refuses libraries opened with RTLD_DEEPBIND, which OpenVINO's thread library asks for. The test
// programs export this dlopen before the sanitizer's, and leave the flag out.
#ifdef __SANITIZE_ADDRESS__
#include <dlfcn.h>
extern "C" __attribute__((visibility("default"))) inline void* clusir_test_dlopen(const char* file,
                                                                                  int mode) __asm__("dlopen");
extern "C" __attribute__((used)) inline void* clusir_test_dlopen(const char* file, int mode) {
    using Open = void* (*)(const char*, int);
    static const auto next = reinterpret_cast<Open>(dlsym(RTLD_NEXT, "dlopen"));
    return next(file, mode & ~RTLD_DEEPBIND);
}
#endif
