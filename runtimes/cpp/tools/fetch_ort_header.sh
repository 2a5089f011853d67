#!/usr/bin/env bash
# Puts ONNX Runtime's C header (MIT licence, Microsoft; not part of this repository) into DEST, with its licence.
# It comes from Debian's package libonnxruntime-dev, which exists from release 13 (trixie) on; on an older Debian the
# package is downloaded with a private apt state, so that nothing of the machine's own apt set-up changes.
# Usage: fetch_ort_header.sh DEST      (prints the folder to give to CMake as -DORT_INCLUDE_DIR)
set -euo pipefail
dest=$(mkdir -p "$1" && cd "$1" && pwd)
[ -f "$dest/onnxruntime_c_api.h" ] && { echo "$dest"; exit 0; }
for found in /usr/include/onnxruntime /usr/include/onnxruntime/core/session /usr/local/include/onnxruntime; do
    [ -f "$found/onnxruntime_c_api.h" ] && { echo "$found"; exit 0; }
done
command -v apt-get >/dev/null || { echo "no apt-get here: give CMake -DORT_INCLUDE_DIR yourself" >&2; exit 3; }

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state"/{lists/partial,cache/archives/partial,parts}
# The mirror is the one this machine already uses.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -E '/debian/?$' | head -n1)
[ -n "$mirror" ] || { echo "no Debian mirror is set up here: give CMake -DORT_INCLUDE_DIR yourself" >&2; exit 3; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$state/sources.list"
options=(-o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts="$state/parts"
         -o Dir::State::lists="$state/lists" -o Dir::Cache="$state/cache" -o Acquire::Languages=none
         -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any)
apt-get "${options[@]}" -qq update >&2
(cd "$state" && apt-get "${options[@]}" -qq download libonnxruntime-dev >&2 && dpkg -x libonnxruntime-dev_*.deb tree)
header=$(find "$state/tree" -name onnxruntime_c_api.h | head -n1)
cp "$(dirname "$header")"/onnxruntime_c_api.h "$(dirname "$header")"/onnxruntime_ep_c_api.h "$dest" 2>/dev/null ||
    cp "$header" "$dest"
cp "$state"/tree/usr/share/doc/libonnxruntime-dev/copyright "$dest/onnxruntime-copyright" 2>/dev/null || true
echo "$dest"
