# SPDX-License-Identifier: MIT
"""The initrd of a guest: a cached part per kernel (busybox and the modules that
reach the root) and a part per run (the job), which the kernel reads as one."""

import hashlib
import lzma
import os
import subprocess
import tempfile

# What has to be loaded before the host's root is there.
BOOT_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p")
BUSYBOX = "/bin/busybox"


class Missing(Exception):
    """Something on this machine is not there; the text says what to do."""


class Cpio:
    """Writes a cpio archive in the newc format."""

    def __init__(self):
        self.parts = []
        self.inode = 0

    def _entry(self, name, mode, data, rdev=(0, 0)):
        self.inode += 1
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % f for f in fields) + name.encode() + b"\0"
        self.parts += [head, b"\0" * (-len(head) % 4), data, b"\0" * (-len(data) % 4)]

    def directory(self, name):
        self._entry(name, 0o40755, b"")

    def file(self, name, data, mode=0o644):
        self._entry(name, 0o100000 | mode, data)

    def device(self, name, major, minor):
        self._entry(name, 0o20600, b"", (major, minor))

    def finish(self):
        self._entry("TRAILER!!!", 0, b"")
        data = b"".join(self.parts)
        return data + b"\0" * (-len(data) % 512)


def module_closure(tree, names):
    """Paths of the modules and all they depend on, in the order to load them."""
    depends, paths = {}, {}
    with open(f"{tree}/modules.dep", encoding="ascii") as dep:
        for line in dep:
            path, _, needs = line.partition(":")
            depends[path] = needs.split()
            paths[os.path.basename(path).split(".ko")[0].replace("-", "_")] = path
    with open(f"{tree}/modules.builtin", encoding="ascii") as text:
        builtin = {os.path.basename(l.strip())[:-3].replace("-", "_") for l in text}
    order = []
    for name in names:
        if name in builtin:
            continue
        if name not in paths:
            raise Missing(f"{tree} has no module {name}")
        # modules.dep lists what is needed last first.
        for path in [*reversed(depends[paths[name]]), paths[name]]:
            if path not in order:
                order.append(path)
    return order


def read_module(path):
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        return lzma.decompress(data)
    if path.endswith(".zst"):
        return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data


def build_base(kernel, release):
    if not os.path.exists(BUSYBOX):
        raise Missing(f"{BUSYBOX} is missing: run vm/setup")
    tree = f"{kernel}/lib/modules/{release}"
    cpio = Cpio()
    for name in ("bin", "dev", "proc", "sys", "root", "modules"):
        cpio.directory(name)
    cpio.device("dev/console", 5, 1)
    with open(BUSYBOX, "rb") as file:
        cpio.file("bin/busybox", file.read(), 0o755)
    order = module_closure(tree, BOOT_MODULES)
    for path in order:
        name = os.path.basename(path).split(".ko")[0] + ".ko"
        cpio.file(f"modules/{name}", read_module(f"{tree}/{path}"))
    names = [os.path.basename(p).split(".ko")[0] + ".ko" for p in order]
    cpio.file("modules/order", "".join(f"{n}\n" for n in names).encode())
    return cpio.finish()


def base(cache, kernel, release):
    """The cached part, built when there is none for this kernel and this code."""
    stamp = hashlib.sha256()
    with open(__file__, "rb") as file:
        stamp.update(file.read())
    for path in (f"{kernel}/vmlinuz", f"{kernel}/lib/modules/{release}/modules.dep", BUSYBOX):
        try:
            info = os.stat(path)
        except OSError as error:
            raise Missing(f"{path}: {error.strerror}; run vm/setup and vm/fetch") from error
        stamp.update(f"{info.st_size} {info.st_mtime_ns}\n".encode())
    path = f"{cache}/initrd/{release}-{stamp.hexdigest()[:16]}.cpio"
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        pass
    os.makedirs(f"{cache}/initrd", exist_ok=True)
    data = build_base(kernel, release)
    for old in os.listdir(f"{cache}/initrd"):
        if old.startswith(f"{release}-"):
            os.unlink(f"{cache}/initrd/{old}")
    with tempfile.NamedTemporaryFile(dir=f"{cache}/initrd", delete=False) as file:
        file.write(data)
    os.rename(file.name, path)
    return data
