# SPDX-License-Identifier: MIT
"""Finds in a kernel log what no passing run may print."""

import re

SPLAT = re.compile(
    r"\bBUG:|\bWARNING:|\bOops\b|\bKASAN\b.*:|\bUBSAN:|\bKCSAN:|kernel BUG at|Kernel panic"
    r"|possible circular locking|possible recursive locking|inconsistent lock state"
    r"|possible irq lock inversion|suspicious RCU usage|bad unlock balance|held lock freed"
    r"|blocked for more than|blocked in I/O wait for more than|self-detected stall"
    r"|detected stalls on|detected expedited stalls|soft lockup|hard LOCKUP"
    r"|scheduling while atomic|sleeping function called from invalid context"
    r"|general protection fault|unable to handle|refcount_t:|list_(add|del) corruption"
    r"|new suspected memory leaks|workqueue lockup|page allocation failure|segfault at .* in kernel"
)

# Things that look like one and are not about the code under test.
KNOWN_FALSE = re.compile(
    r"kasan: KernelAddressSanitizer initialized"
    # 7.2 prints this at every registered buffer; the array is a counted one.
    r"|UBSAN: array-index-out-of-bounds in .*io_uring/rsrc\.c"
    # 7.2's swap when there is no memory for a table of slots: the page is not swapped out this time.
    r"|page allocation failure: .*__GFP_NOMEMALLOC"
)

CONTEXT = 60


class Scanner:
    """Is fed the log line by line; keeps the splats with the lines after them."""

    def __init__(self):
        self.lines = []
        self.count = 0
        self._left = 0

    def feed(self, line):
        if SPLAT.search(line) and not KNOWN_FALSE.search(line):
            self.count += 1
            self._left = CONTEXT
        if self._left and len(self.lines) < 1000:
            self.lines.append(line)
            self._left -= 1
            if "---[ end trace" in line:
                self._left = 0
