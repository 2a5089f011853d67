#!/usr/bin/env bash
# Installs what the tests of the C++ library, the browser package and the Arm build need, from Debian and npm, where this
# machine allows it. What cannot be had is said; the tests that need it are then skipped with a reason.
#   install.sh [--full]      --full: also the Arm cross compiler and its emulator
set -u
cd "$(dirname "$0")/../.."
missing=()
need() { [ -e "$1" ] || missing+=("$2"); }
need /usr/include/nlohmann/json.hpp nlohmann-json3-dev
need /usr/include/png.h libpng-dev
need "$(command -v cmake || echo none)" cmake
need "$(command -v g++ || echo none)" g++
need /usr/bin/chromium chromium
if [ "${1:-}" = --full ]; then
    need "$(command -v aarch64-linux-gnu-g++ || echo none)" g++-aarch64-linux-gnu
    need "$(command -v qemu-aarch64 || echo none)" qemu-user
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null ||
            echo "could not be installed: ${missing[*]}"
    else
        echo "not installed (needs root and apt-get): ${missing[*]}"
    fi
fi
if command -v npm >/dev/null; then
    [ -d runtimes/web/node_modules/onnxruntime-web ] ||
        npm --prefix runtimes/web ci --ignore-scripts --no-audit --no-fund --loglevel=error ||
        echo "the npm packages of runtimes/web could not be installed"
else
    echo "no npm: the browser package is not tested"
fi
exit 0
