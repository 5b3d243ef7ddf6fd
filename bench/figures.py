# SPDX-License-Identifier: MIT
"""What the benchmarks share: measuring in a guest (bench/inside), and tables."""

import functools
import json
import os
import signal
import statistics
import subprocess
import sys

from plot import short

TOP = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
MEASURES = {True: "I/Os per 10^9 instructions of the guest", False: "I/Os per second by the clock (median of interleaved rounds)"}


@functools.cache
def build():
    """The directory of the programs to measure."""
    done = subprocess.run([f"{TOP}/tests/lib/build", "gcc"], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout.strip()


def guest(kernel, driver, words, icount, take):
    """Runs bench/inside with these words; take gets each line that it prints."""
    if driver == "ours":
        subprocess.run([f"{TOP}/driver/build", kernel], check=True, stdout=subprocess.DEVNULL)
    command = [f"{TOP}/vm/run", "--kernel", kernel, "--timeout", "3000", *(["--icount"] if icount else []),
               *(["--driver", driver] if driver else []), "--mem", "2G", "--disk", "512M",
               "--", "sh", "-c", 'PATH=$0:$PATH; exec "$@"', f"{build()}/cli", f"{TOP}/bench/inside", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        # Whoever ends us ends the guest as well.
        signal.signal(signal.SIGTERM, lambda *_: (child.terminate(), sys.exit(143)))
        for line in child.stdout:
            take(line.rstrip("\n"))
    if child.returncode:
        sys.exit(f"bench: the {kernel} guest ended with status {child.returncode}")


def collect(kernel, driver, cases, icount, sizes, patterns, rounds):
    """{(case, pattern, size): [result, ...]}, by instructions or, in rounds, by the clock."""
    results = {}

    def take(line):
        try:
            r = json.loads(line)
        except json.JSONDecodeError:
            print(line, file=sys.stderr)
            return
        results.setdefault((r["case"], r["pattern"], r["size"]), []).append(r)
        print(f"  {kernel} {r['case']} {r['pattern']} {r['size']}: {r['iops']:.0f}", file=sys.stderr, flush=True)

    how = ["1", "counts"] if icount else [str(rounds)]
    guest(kernel, driver, [",".join(cases), ",".join(sizes), ",".join(patterns), "1", *how], icount, take)
    return results


def iops(results, case, pattern, size):
    return statistics.median(r["iops"] for r in results[case, pattern, size])


def table(title, results, reference):
    print(f"\n{title}\n")
    keys = list(dict.fromkeys((p, s) for _, p, s in results))
    print(f"{'':<28}" + "".join(f"{p + ' ' + s:>18}" for p, s in keys) + "   per I/O at the smallest: server SQEs CQEs enters")
    for case in dict.fromkeys(c for c, _, _ in results):
        if any((case, *key) not in results or (reference, *key) not in results for key in keys):
            print(f"{case:<28} incomplete, see above")
            continue
        line = f"{case:<28}"
        for p, s in keys:
            value, base = iops(results, case, p, s), iops(results, reference, p, s)
            line += f"{short(value):>10} ({value / base:4.2f}x)"
        first = results[(case, *keys[0])][0]
        if "server" in first:
            line += f"   {first['server']:7.0f} " + " ".join(f"{first.get(k, float('nan')):5.2f}" for k in ("sqes", "cqes", "enters"))
        print(line)
    sys.stdout.flush()
