# SPDX-License-Identifier: MIT
"""The differential test over combinations of the format's features, with QEMU as the other side."""

import os
import random
import shutil
import subprocess

MIB = 1 << 20

# Name, options of qemu-img create, extra arguments of the test program.
COMBINATIONS = [
    ("v2", "compat=0.10", "snapshots=yes resize=yes"),
    ("v3", "", "snapshots=yes resize=yes"),
    ("512", "cluster_size=512", "snapshots=yes resize=yes"),
    ("512-64bit", "cluster_size=512,refcount_bits=64", "snapshots=yes"),
    ("2M", "cluster_size=2M", "resize=yes"),
    ("2M-refs8", "cluster_size=2M,refcount_bits=8", "snapshots=yes resize=yes"),
    ("4K-refs1", "cluster_size=4K,refcount_bits=1", "resize=yes"),
    ("refs2", "refcount_bits=2", ""),
    ("refs4", "refcount_bits=4,cluster_size=1K", "snapshots=yes"),
    ("refs32", "refcount_bits=32", "snapshots=yes"),
    ("subclusters", "extended_l2=on,cluster_size=128K", "snapshots=yes resize=yes"),
    ("subclusters-16K", "extended_l2=on,cluster_size=16K", "snapshots=yes resize=yes"),
    ("lazy", "lazy_refcounts=on", "snapshots=yes"),
    ("metadata", "preallocation=metadata", "resize=yes snapshots=yes"),
    ("falloc", "preallocation=falloc", ""),
    ("full", "preallocation=full,cluster_size=8K", "snapshots=yes"),
    ("data-file", "data_file={dir}/data,data_file_raw=off", "resize=yes"),
    ("data-file-raw", "data_file={dir}/data,data_file_raw=on", "resize=yes"),
    ("data-file-sub", "data_file={dir}/data,extended_l2=on", ""),
    ("backing-v3", "", "backing snapshots=yes resize=yes"),
    ("backing-v2", "compat=0.10,cluster_size=4K", "backing resize=yes"),
    ("backing-sub", "extended_l2=on", "backing snapshots=yes"),
    ("backing-2M", "cluster_size=2M", "backing"),
    ("zlib", "", "packed snapshots=yes resize=yes"),
    ("zlib-2M", "cluster_size=2M", "packed"),
    ("zlib-512", "cluster_size=512", "packed snapshots=yes"),
    ("zstd", "compression_type=zstd", "packed snapshots=yes"),
    ("zstd-sub", "compression_type=zstd,extended_l2=on", "packed"),
    ("no-journal", "", "journal=off snapshots=yes"),
    ("no-direct", "", "direct=off snapshots=yes resize=yes"),
    ("small-cache", "cluster_size=1K", "cache=1M snapshots=yes"),
]


def run(*command, ok=(0,)):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode not in ok:
        raise AssertionError(f"{' '.join(command)}: status {done.returncode}: {done.stdout[-600:]}")
    return done.stdout


def qemu_io(image, raw, rng, size, count=12):
    """The same random writes to both, by qemu-io."""
    commands = []
    for _ in range(count):
        length = rng.randrange(1, 200) * 512
        offset = rng.randrange(0, (size - length) // 512) * 512
        kind = rng.choice(["write -P %d" % rng.randrange(1, 255), "write -P %d" % rng.randrange(1, 255), "write -z"])
        commands += ["-c", f"{kind} {offset} {length}"]
    run("qemu-io", "-f", "qcow2", *commands, image)
    run("qemu-io", "-f", "raw", *commands, raw)


def make_image(work, name, options, size, rng, backing, packed):
    """An image of that kind, and what is on it in DIR/raw."""
    image, raw = f"{work}/image", f"{work}/raw"
    arguments = ["qemu-img", "create", "-q", "-f", "qcow2"]
    if options:
        arguments += ["-o", options.format(dir=work)]
    base_size = size
    if backing:
        # Smaller than the overlay: a qcow2 on a raw image.
        base_size = size // 2 + 512 * rng.randrange(100)
        run("qemu-img", "create", "-q", "-f", "raw", f"{work}/base.raw", str(base_size // 2 // 512 * 512))
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", f"{work}/base", str(base_size))
        run("qemu-io", "-f", "raw", "-c", f"write -P 99 4096 {base_size // 4}", f"{work}/base.raw")
        run("qemu-io", "-f", "qcow2", "-c", "write -P 77 1M 2M", f"{work}/base")
        arguments += ["-b", "base", "-F", "qcow2"]
    run(*arguments, image, str(size))
    if packed:
        run("qemu-img", "create", "-q", "-f", "raw", f"{work}/source", str(size))
        for i in range(0, size - MIB, MIB):
            if rng.random() < 0.7:
                run("qemu-io", "-f", "raw", "-c", f"write -P {rng.randrange(256)} {i} 700K", f"{work}/source")
        with open(f"{work}/source", "r+b") as f:
            for _ in range(300):
                f.seek(rng.randrange(size - 9000))
                f.write(rng.randbytes(rng.randrange(9000)))
        extra = ["-o", options] if options else []
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *extra, f"{work}/source", image)
        os.unlink(f"{work}/source")
    run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw)
    return image, raw


def one(program, work, combination, operations, seed, rounds=2):
    """One combination: our operations and QEMU's by turns; raises AssertionError."""
    name, options, extra = combination
    rng = random.Random(f"{seed}-{name}")
    words = extra.split()
    backing, packed = "backing" in words, "packed" in words
    words = [w for w in words if "=" in w]
    if not any(w.startswith("journal=") for w in words):
        words.append(f"journal={work}/journal")
    shutil.rmtree(work, ignore_errors=True)
    os.makedirs(f"{work}/journal")
    size = 24 * MIB + 512 * rng.randrange(2000)
    if "refcount_bits=1" in options:
        size = 24 * MIB
    image, raw = make_image(work, name, options, size, rng, backing, packed)
    for turn in range(rounds):
        run(program, image, raw, str(rng.randrange(1 << 40)), str(operations // rounds), str(1 + turn % 4), *words)
        run("qemu-img", "check", "-q", "-f", "qcow2", image)
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", image, raw)
        check_snapshots(work, image)
        if "data_file_raw=on" in options:
            run("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", f"{work}/data", raw)
        qemu_io(image, raw, rng, os.path.getsize(raw))
        for word in ("s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9"):
            if os.path.exists(f"{raw}.{word}"):
                os.unlink(f"{raw}.{word}")
                run("qemu-img", "snapshot", "-d", word, image)
        for entry in os.listdir(work):
            if entry.startswith("raw.s"):
                run("qemu-img", "snapshot", "-d", entry[4:], image)
                os.unlink(f"{work}/{entry}")
    leftovers = os.listdir(f"{work}/journal")
    assert not leftovers, f"journals left behind: {leftovers}"
    shutil.rmtree(work)


def check_snapshots(work, image):
    for entry in os.listdir(work):
        if entry.startswith("raw.s"):
            run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", f"snapshot.name={entry[4:]}", image, f"{work}/snapshot")
            # QEMU gives it the size that the disk has now.
            size = min(os.path.getsize(f"{work}/snapshot"), os.path.getsize(f"{work}/{entry}"))
            run("cmp", "-n", str(size), f"{work}/snapshot", f"{work}/{entry}")
            os.unlink(f"{work}/snapshot")
