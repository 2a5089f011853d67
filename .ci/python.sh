#!/bin/sh
# Prints the Python that the environment is made with: python3, or the system's where that is of the same version and a
# tenth faster. One that was compiled without profile-guided optimisation, as pyenv does unless told, takes up to half as
# long again for plain code, and most of the tests' time is plain code.
#   python.sh [SYSTEM]
system=${1:-/usr/bin/python3}
# Version, and the least of twenty measurements in tenths of a millisecond; nothing where no environment can be made.
measure='
import ensurepip, sys, time, venv
class Node:
    def __init__(self, name): self.name, self.uses = name, []
    def add(self, use, **options): self.uses.append((use, options)); return self
def once():
    start, found = time.process_time(), {}
    for i in range(12_000):
        node = found.setdefault(i % 97, Node(str(i))).add(i, late=i)
        if isinstance(node, Node) and len(node.uses) > 50: node.uses = [use for use in node.uses if use[0] % 2]
    return time.process_time() - start
print(*sys.version_info[:2], round(1e4 * min(once() for _ in range(20))))'
first=$(python3 -c "$measure" 2>/dev/null) && other=$("$system" -c "$measure" 2>/dev/null) || { echo python3; exit 0; }
if [ "${first% *}" = "${other% *}" ] && [ $((${other##* } * 10)) -lt $((${first##* } * 9)) ]; then
    echo "$system is used, which is faster than python3 (${other##* } for ${first##* }); PYTHON=python3 keeps that" >&2
    echo "$system"
else
    echo python3
fi
