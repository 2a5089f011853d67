#!/usr/bin/env bash
# Makes the folder that qemu-aarch64 -L needs to run programs linked with Debian's Arm libraries and ONNX Runtime's Arm build.
# The emulator shows a program the host's /proc and /sys; ONNX Runtime reads the processor's features there and stops at
# start when it finds those of an x86. Files below the -L folder come first.
# Usage: emulated_arm_root.sh FOLDER
set -euo pipefail
root=$1
mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
ln -sfn "$(realpath "$(dirname "$(aarch64-linux-gnu-g++ -print-file-name=libc.so.6)")")" "$root/lib"
for name in possible present; do echo 0-1 >"$root/sys/devices/system/cpu/$name"; done
echo 1 >"$root/sys/devices/system/cpu/kernel_max"
: >"$root/proc/cpuinfo"
for cpu in 0 1; do
    printf '%s\n' "processor : $cpu" "BogoMIPS : 48.00" \
        "Features : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
        "CPU implementer : 0x41" "CPU architecture: 8" "CPU variant : 0x3" "CPU part : 0xd0c" "CPU revision : 1" "" >>"$root/proc/cpuinfo"
done
echo "$root"
