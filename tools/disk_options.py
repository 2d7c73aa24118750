#!/usr/bin/env python3
"""What a disk's ways of writing and syncing cost, side by side, for the choices that the log makes.

  disk_options.py DIR [--rounds 5] [--mib 256] [--loop]

Everything is measured in alternating rounds on the same directory; medians (least - most). --loop repeats all of it on an
ext4 and an xfs image mounted in DIR (root, mkfs.ext4, mkfs.xfs). Linux only. At most 2 GiB of disk at a time.
"""

import argparse
import contextlib
import ctypes
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

MIB = 1 << 20
POPULATE_WRITE = 23
SYNC_FILE_RANGE_WRITE = 2
libc = ctypes.CDLL(None, use_errno=True)


class Stopwatch:
    """Wall and CPU seconds of a block."""

    def __enter__(self):
        self.begun = time.perf_counter(), cpu()
        return self

    def __exit__(self, *_):
        self.wall, self.cpu = time.perf_counter() - self.begun[0], cpu() - self.begun[1]


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def write_blocks(fd, size, block):
    for position in range(0, size, len(block)):
        written = os.pwrite(fd, block, position)
        assert written == len(block), written


@contextlib.contextmanager
def opened(path, flags=os.O_RDWR | os.O_CREAT):
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def fresh(path, size, _block):
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def reserved(path, size, _block):
    fd = fresh(path, size, None)
    os.posix_fallocate(fd, 0, size)
    return fd


def zeroed(path, size, _block):
    fd = fresh(path, size, None)
    write_blocks(fd, size, bytes(MIB))
    os.fdatasync(fd)
    return fd


def recycled(path, size, _block):
    fd = fresh(path, size, None)
    write_blocks(fd, size, os.urandom(MIB))
    os.fdatasync(fd)
    return fd


def recycled_cold(path, size, block):
    fd = recycled(path, size, block)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


def by_pwrite(fd, size, block):
    write_blocks(fd, size, block)


def by_pwrite_reserving(fd, size, block):
    """As the log does: space is reserved in steps that double from 64 KiB to 16 MiB."""
    reserved_to, step = 0, 64 << 10
    for position in range(0, size, len(block)):
        if position + len(block) > reserved_to:
            ahead = position + len(block) + step
            os.posix_fallocate(fd, reserved_to, ahead - reserved_to)
            reserved_to, step = ahead, min(step * 2, 16 * MIB)
        os.pwrite(fd, block, position)


def by_map(fd, size, block):
    with mmap.mmap(fd, size) as mapped:
        for position in range(0, size, len(block)):
            mapped[position : position + len(block)] = block


def by_populated_map(fd, size, block):
    with mmap.mmap(fd, size) as mapped:
        mapped.madvise(POPULATE_WRITE)
        for position in range(0, size, len(block)):
            mapped[position : position + len(block)] = block


WRITES = [
    ("pwrite, growing file", fresh, by_pwrite),
    ("pwrite, reserved in steps (the log)", fresh, by_pwrite_reserving),
    ("pwrite, reserved at once, unwritten", reserved, by_pwrite),
    ("pwrite over zeros written before", zeroed, by_pwrite),
    ("pwrite over a used file, cached", recycled, by_pwrite),
    ("pwrite over a used file, not cached", recycled_cold, by_pwrite),
    ("map, reserved at once", reserved, by_map),
    ("map, reserved and populated", reserved, by_populated_map),
    ("map of a used file, cached", recycled, by_map),
]


def measure_writes(directory, args):
    for block_bytes in (16 << 10, MIB):
        block = os.urandom(block_bytes)
        size = args.mib * MIB
        found = {name: [] for name, _, _ in WRITES}
        for _ in range(args.rounds):
            for name, prepare, write in WRITES:
                # Fresh page-cache pages are dear or cheap by what the machine did before: the same before each.
                warm(directory, size)
                path = os.path.join(directory, "file")
                fd = prepare(path, size, block)
                with Stopwatch() as writing:
                    write(fd, size, block)
                with Stopwatch() as syncing:
                    os.fdatasync(fd)
                os.close(fd)
                os.unlink(path)
                found[name].append((writing, syncing))
        print(f"\nwriting {args.mib} MiB in blocks of {block_bytes >> 10} KiB, then one fdatasync")
        print(f"  {'':38} {'write GB/s':>22} {'CPU s/GB':>16} {'sync CPU s/GB':>14} {'both GB/s':>10}")
        for name, _, _ in WRITES:
            gigabytes = size / 1e9
            rates = [gigabytes / writing.wall for writing, _ in found[name]]
            cpus = [writing.cpu / gigabytes for writing, _ in found[name]]
            sync_cpus = [syncing.cpu / gigabytes for _, syncing in found[name]]
            both = [gigabytes / (writing.wall + syncing.wall) for writing, syncing in found[name]]
            print(
                f"  {name:38} {spread(rates):>22} {spread(cpus):>16}"
                f" {statistics.median(sync_cpus):>14.2f} {statistics.median(both):>10.2f}"
            )


def warm(directory, size):
    path = os.path.join(directory, "warm")
    with opened(path) as fd:
        write_blocks(fd, size, bytes(MIB))
    os.unlink(path)


def measure_appends(directory, args):
    """One block and one fdatasync at a time: what a lone producer with acks=all waits for."""
    prepared = [("growing", fresh), ("reserved, unwritten", reserved), ("zeros written before", zeroed), ("used", recycled)]
    print("\none block, one fdatasync, us a time: p50 (p99)")
    print("  " + " ".join(f"{name:>22}" for name, _ in prepared))
    for block_bytes in (4 << 10, 64 << 10, MIB):
        count = max(20, min(300, (64 * MIB) // block_bytes))
        times = {name: [] for name, _ in prepared}
        for _ in range(args.rounds):
            for name, prepare in prepared:
                path = os.path.join(directory, "file")
                block = os.urandom(block_bytes)
                fd = prepare(path, count * block_bytes, block)
                os.fsync(fd)
                for n in range(count):
                    begun = time.perf_counter()
                    os.pwrite(fd, block, n * block_bytes)
                    os.fdatasync(fd)
                    times[name].append((time.perf_counter() - begun) * 1e6)
                os.close(fd)
                os.unlink(path)
        row = []
        for name, _ in prepared:
            ordered = sorted(times[name])
            row.append(f"{ordered[len(ordered) // 2]:.0f} ({ordered[len(ordered) * 99 // 100]:.0f})")
        print(f"  {block_bytes >> 10:>5} KiB " + " ".join(f"{cell:>20}" for cell in row))


def sync_serial(fds):
    for fd in fds:
        os.fdatasync(fd)


def sync_parallel(threads):
    def sync(fds):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(os.fdatasync, fds))

    return sync


def sync_started_first(fds):
    """Write-back is started on all files before the first is waited for."""
    for fd in fds:
        if libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE) != 0:
            raise OSError(ctypes.get_errno(), "sync_file_range")
    sync_serial(fds)


def sync_whole(fds):
    if libc.syncfs(fds[0]) != 0:
        raise OSError(ctypes.get_errno(), "syncfs")


SYNCS = [
    ("fdatasync, one by one", sync_serial),
    ("fdatasync, 2 threads", sync_parallel(2)),
    ("fdatasync, 4 threads", sync_parallel(4)),
    ("fdatasync, 16 threads", sync_parallel(16)),
    ("sync_file_range all, then fdatasync", sync_started_first),
    ("syncfs once", sync_whole),
]


def measure_group_commit(directory, args):
    print("\nmaking N files durable of which each got 16 KiB: ms for all, median (least - most)")
    counts = (1, 10, 100, 1000)
    print("  " + " " * 36 + " ".join(f"{f'{count} files':>22}" for count in counts))
    cells = {name: [] for name, _ in SYNCS}
    block = os.urandom(16 << 10)
    for count in counts:
        folder = tempfile.mkdtemp(dir=directory)
        fds = [os.open(os.path.join(folder, str(n)), os.O_RDWR | os.O_CREAT, 0o600) for n in range(count)]
        for fd in fds:
            os.posix_fallocate(fd, 0, 4 * MIB if count <= 100 else MIB)
            os.fsync(fd)
        times, position = {name: [] for name, _ in SYNCS}, 0
        for _ in range(args.rounds * 2):
            for name, sync in SYNCS:
                for fd in fds:
                    os.pwrite(fd, block, position)
                position += len(block)
                with Stopwatch() as syncing:
                    sync(fds)
                times[name].append(syncing.wall * 1e3)
        for name, _ in SYNCS:
            cells[name].append(spread(times[name]))
        for fd in fds:
            os.close(fd)
        shutil.rmtree(folder)
    for name, _ in SYNCS:
        print(f"  {name:36}" + " ".join(f"{cell:>22}" for cell in cells[name]))


def spread(values):
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def measure(directory, args, what):
    print(f"\n== {what}")
    measure_writes(directory, args)
    measure_appends(directory, args)
    measure_group_commit(directory, args)


@contextlib.contextmanager
def mounted(directory, kind):
    image, point = os.path.join(directory, f"{kind}.img"), os.path.join(directory, kind)
    os.mkdir(point)
    with open(image, "wb") as file:
        file.truncate(3 << 30)
    try:
        subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, point], check=True)
        yield point
    finally:
        subprocess.run(["umount", point], check=False)
        os.unlink(image)
        os.rmdir(point)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", help="a directory on the disk to measure; what is made in it is removed")
    parser.add_argument("--rounds", type=int, default=5, help="1 to 100 (default 5)")
    parser.add_argument("--mib", type=int, default=256, help="MiB a run, 16 to 1024 (default 256)")
    parser.add_argument("--loop", action="store_true", help="also on ext4 and xfs images")
    args = parser.parse_args()
    if not 1 <= args.rounds <= 100 or not 16 <= args.mib <= 1024:
        parser.error(f"--rounds is {args.rounds}, allowed are 1 to 100; --mib is {args.mib}, allowed are 16 to 1024")
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        mount = subprocess.run(["findmnt", "-no", "FSTYPE,OPTIONS", "-T", directory], capture_output=True, text=True)
        measure(directory, args, f"{args.dir}: {mount.stdout.strip()}")
        for kind in ("ext4", "xfs") if args.loop else ():
            if os.geteuid() != 0 or not shutil.which(f"mkfs.{kind}"):
                print(f"SKIP: {kind} image: needs root and mkfs.{kind}")
                continue
            with mounted(directory, kind) as point:
                measure(point, args, f"{kind} on a loop device over that")


if __name__ == "__main__":
    sys.exit(main())
