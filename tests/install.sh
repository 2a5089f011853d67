#!/usr/bin/env bash
# Installs what the tests of the C++ library and of the two web pages need, from Debian and npm, where this machine allows
# it: cmake, g++, two header packages, libtiff's tools, node, npm, Chromium, and the npm packages of runtimes/web. What is installed is
# said, and so is what cannot be had; the tests that need it are then skipped with a reason of tests/needs.py.
#   install.sh [--full]      --full: also a JDK, the cross compilers for Arm and Windows, an emulator and Wine
set -u
cd "$(dirname "$0")/.."
missing=()
need() { [ -e "$1" ] || missing+=("$2"); }
need /usr/include/nlohmann/json.hpp nlohmann-json3-dev
need /usr/include/png.h libpng-dev
need "$(command -v cmake || echo none)" cmake
need "$(command -v g++ || echo none)" g++
need "$(command -v tiffcp || echo none)" libtiff-tools
need "$(command -v chromium || command -v google-chrome || echo none)" chromium
need "$(command -v node || echo none)" nodejs
need "$(command -v npm || echo none)" npm
if [ "${1:-}" = --full ]; then
    need "$(command -v aarch64-linux-gnu-g++ || echo none)" g++-aarch64-linux-gnu
    need "$(command -v qemu-aarch64 || echo none)" qemu-user
    need "$(command -v x86_64-w64-mingw32-g++-posix || echo none)" g++-mingw-w64-x86-64-posix
    need "$(command -v wine || echo none)" wine
    need "$(command -v wine || echo none)" wine64
    need "$(command -v javac || echo none)" default-jdk-headless
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing from Debian: ${missing[*]}"
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
            echo "could not be installed: ${missing[*]}"
    else
        echo "not installed (needs root and apt-get): ${missing[*]}"
    fi
fi
if command -v npm >/dev/null; then
    [ -d runtimes/web/node_modules/playwright-core ] ||
        { echo "installing from npm: the packages of runtimes/web" && npm --prefix runtimes/web ci --ignore-scripts --no-audit --no-fund --loglevel=error; } ||
        echo "the npm packages of runtimes/web could not be installed"
else
    echo "no npm: the browser package is not tested"
fi
exit 0
