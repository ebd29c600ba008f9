"""Give up, for good, all that code in this process could misuse: see `seal`.

Two layers, each of which the kernel enforces. Limits of resources (any Unix): no new file
descriptor, no byte written to a file, no new process, bounded memory. On Linux also a filter of
system calls (seccomp): all that is left is reading and writing what is open, memory, the clock and
ending. Opening, connecting, starting a program, deleting, renaming, sending signals and looking
into other processes then fail, whatever the user may do.

Numbers of system calls: arch/x86/entry/syscalls/syscall_64.tbl and
include/uapi/asm-generic/unistd.h of the Linux kernel; the filter's instructions: Documentation/
userspace-api/seccomp_filter.rst.
"""

import ctypes
import os
import platform
import struct
import sys

# name -> its number on x86-64 and on arm64 (None: it has no such call)
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "exit_group": (231, 94),
    "getrandom": (318, 278),
    "membarrier": (324, 283),
    "rseq": (334, 293),
}
PRLIMIT = (302, 261)  # allowed for this process itself, whose limit of time is set for each run
SECCOMP = (317, 277)
# platform.machine() -> column, and the kernel's name of the architecture (AUDIT_ARCH_...)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
PASS, REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO with EPERM
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def seal(memory: int) -> bool:
    """Give up what this process has no need of. True if system calls are filtered, too.

    memory: bytes that it may take from now on
    """
    limit_resources(memory)
    return filter_calls()


def limit_resources(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        "RLIMIT_NOFILE": 0,  # what is open stays open, and nothing can be opened in its place
        "RLIMIT_FSIZE": 0,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_SIGPENDING": 0,
        "RLIMIT_AS": address_space() + memory,
    }
    for name, limit in limits.items():
        if (which := getattr(resource, name, None)) is None:
            continue
        hard = resource.getrlimit(which)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        try:
            resource.setrlimit(which, (limit, limit))
        except (ValueError, OSError):  # macOS refuses some of them
            continue


def address_space() -> int:
    """Bytes of address space that this process has; a generous guess where nobody tells."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 2**33


def filter_calls() -> bool:
    """Have the kernel refuse all system calls but `ALLOWED`; False where that cannot be had."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    column, _ = MACHINES[platform.machine()]
    program = b"".join(struct.pack("HBBI", *line) for line in instructions(platform.machine()))
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    library = ctypes.CDLL(None, use_errno=True)
    sent = Program(len(program) // 8, ctypes.addressof(buffer))
    # PR_SET_NO_NEW_PRIVS, without which only root may filter; then SECCOMP_SET_MODE_FILTER with
    # SECCOMP_FILTER_FLAG_TSYNC, so that it holds for every thread.
    if library.prctl(38, 1, 0, 0, 0):
        return False
    return library.syscall(SECCOMP[column], 1, 1, ctypes.byref(sent)) == 0


def instructions(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter as (code, lines to skip if so, lines to skip if not, operand)."""
    column, architecture = MACHINES[machine]
    numbers = [pair[column] for pair in ALLOWED.values()]
    lines = [(LOAD, 0, 0, ARCHITECTURE), (JUMP_IF_EQUAL, 1, 0, architecture)]
    lines += [(RETURN, 0, 0, REFUSE), (LOAD, 0, 0, NUMBER)]
    for number in numbers:
        lines += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, PASS)]
    lines += [(JUMP_IF_EQUAL, 1, 0, PRLIMIT[column]), (RETURN, 0, 0, REFUSE)]
    # prlimit(0, ...) is of this process; any other number is of somebody else.
    lines += [(LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_IF_EQUAL, 0, 1, 0), (RETURN, 0, 0, PASS)]
    return [*lines, (RETURN, 0, 0, REFUSE)]
