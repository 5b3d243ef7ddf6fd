# SPDX-License-Identifier: MIT
"""What the legs of a disk must hold: the disk's bytes put together from them, by the plainest rules.

    layout.py stripe CHUNK LEG...
    layout.py linear LEG[:OFFSET:SIZE]...
"""

import sys


def read(path):
    with open(path, "rb") as file:
        return file.read()


def stripe(chunk, *legs):
    legs = [read(leg) for leg in legs]
    each = min(map(len, legs)) // chunk
    return b"".join(leg[row * chunk:(row + 1) * chunk] for row in range(each) for leg in legs)


def linear(*legs):
    out = b""
    for leg in legs:
        path, offset, size = (leg.split(":") + ["0", "0"])[:3]
        data = read(path)[int(offset):]
        out += data[:int(size)] if int(size) else data
    return out


if sys.argv[1] == "stripe":
    sys.stdout.buffer.write(stripe(int(sys.argv[2]), *sys.argv[3:]))
else:
    sys.stdout.buffer.write(linear(*sys.argv[2:]))
