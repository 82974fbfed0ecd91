"""What a process that reads other people's files gives up before it reads the first one; see docs/security.md.

Linux has the means, each its own: limits of resources, namespaces, Landlock, a filter of system calls. Where one is
missing (an old kernel, a container that forbids it) the others still hold, and the worker tells which do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterable, Sequence

SPARE = 192 << 20
"""Bytes that a process may ask for beyond its limit of resident memory: stacks, and what is asked for and not used."""
_LARGEST_FILE = 512 << 20
_FILES = 256

_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS = 1, 22, 38  # prctl
_NEWUSER, _NEWNET, _NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CAPABILITIES, _READ_ANY = 0x20080522, 1 << 2  # _LINUX_CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH

# Landlock, https://docs.kernel.org/userspace-api/landlock.html
_CREATE, _ADD, _RESTRICT = 444, 445, 446  # system calls, the same on all machines
_READ, _WRITE_FILE = 0b1101, 0b10 | 1 << 14  # execute, read files and folders; write and cut files
_FILE_RIGHTS = 0b111 | 1 << 14 | 1 << 15
_FS_RIGHTS = (13, 14, 15, 15, 16)  # how many rights there are in each version; 16 from the fifth on
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store", "/proc", "/sys/fs/cgroup",
           "/sys/devices/system", "/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf",
           "/etc/ld.so.conf.d", "/etc/libreoffice", "/etc/localtime", "/etc/magic", "/etc/mime.types",
           "/var/cache/fontconfig", "/var/lib/libreoffice", "/var/spool/libreoffice",
           "/dev/urandom", "/dev/random", "/dev/zero")  # fmt: skip

# Refused to a worker: connections, and what reaches into other processes or the kernel.
_CALLS = ("socket", "connect", "ptrace", "process_vm_readv", "process_vm_writev", "mount", "umount2", "unshare",
          "setns", "bpf", "perf_event_open", "keyctl", "userfaultfd", "io_uring_setup", "pidfd_getfd")  # fmt: skip
# By machine: its number, those of the calls, and of `access` where its argument is that says what is asked for.
_MACHINES = {
    "x86_64": (0xC000003E, (41, 42, 101, 310, 311, 165, 166, 272, 308, 321, 298, 250, 323, 425, 438), (21, 24)),
    "aarch64": (0xC00000B7, (198, 203, 117, 270, 271, 40, 39, 97, 268, 280, 241, 219, 282, 425, 438), (48, 32)),
}
_UNIX = 1  # AF_UNIX
_MAY_WRITE = 2  # W_OK


def confine(folder: str, readable: Sequence[str], memory: int, parent: int) -> list[str]:
    """Give up all but reading what is `readable` and writing in `folder`; gives the means that worked.

    The process ends with its parent. There must be no other thread in it yet.
    """
    steps: dict[str, Callable[[], None]] = {
        "limits": lambda: _limit(memory),
        "namespaces": _leave_namespaces,
        "capabilities": _drop_capabilities,
        "landlock": lambda: _lock_files(folder, readable),
        "seccomp": _filter_calls,
        "parent": lambda: _die_with(parent),  # after all that changes credentials, which would undo it
    }
    done = []
    for name, step in steps.items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            step()
            done.append(name)
    return done


def limit_memory(bytes_: int) -> None:
    """Let memory run out at about so many bytes."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    most = bytes_ + SPARE
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def limit_seconds(seconds: float) -> None:
    """Let the process be ended once it has used so many more seconds of its processors."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds * (os.cpu_count() or 1)) + 1
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit(memory: int) -> None:
    limit_memory(memory)
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _LARGEST_FILE),
        (resource.RLIMIT_NOFILE, _FILES),
    ):
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most, most) if hard == resource.RLIM_INFINITY else (min(most, hard),) * 2)


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("no Linux")
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _leave_namespaces() -> None:
    """A network without a way out. Root needs no namespace of users for it, and keeps its files readable without."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare((_NEWUSER if user else 0) | _NEWNET | _NEWIPC))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)


def _drop_capabilities() -> None:
    """Of root's powers, or those in a namespace of its own, only the reading of files is kept."""
    permitted = _READ_ANY if not os.geteuid() else 0
    header, data = struct.pack("=Ii", _CAPABILITIES, 0), struct.pack("=6I", permitted, permitted, 0, 0, 0, 0)
    if _libc().capset(header, data) < 0:  # what isn't had can't be kept
        _check(_libc().capset(header, bytes(24)))


def _lock_files(folder: str, readable: Sequence[str]) -> None:
    libc = _libc()
    version = _check(libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1))
    every = (1 << _FS_RIGHTS[min(version, len(_FS_RIGHTS)) - 1]) - 1
    attributes = struct.pack("=3Q", every, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = _check(libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), 0))
    try:
        for path, rights in _rights(folder, readable, every):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                _allow(libc, rules, path, rights)
        _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(libc.syscall(_RESTRICT, rules, 0))
    finally:
        os.close(rules)


def _rights(folder: str, readable: Iterable[str], every: int) -> list[tuple[str, int]]:
    own = every & ~(1 << 6 | 1 << 11)  # no devices
    return [
        *((path, _READ) for path in (*_SYSTEM, *readable)),
        ("/dev/null", _READ | _WRITE_FILE & every),
        (folder, own),
    ]


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = rights if os.path.isdir(path) else rights & _FILE_RIGHTS  # noqa: PTH112
        _check(libc.syscall(_ADD, rules, 1, struct.pack("=Qi", allowed, at), 0))
    finally:
        os.close(at)


def _filter_calls() -> None:
    """Refuse the calls in `_CALLS` to this process and its children; sockets within the machine may be made."""
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError("not on this machine")
    libc = _libc()
    program = b"".join(_program(*_MACHINES[platform.machine()]))
    code = ctypes.create_string_buffer(program, len(program))

    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    _check(libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(_SECCOMP, 2, ctypes.byref(Filter(len(program) // 8, ctypes.addressof(code))), 0, 0))


def _program(machine: int, numbers: Sequence[int], access: tuple[int, int]) -> list[bytes]:
    """Instructions of BPF over `struct seccomp_data`: number at 0, machine at 4, arguments from 16 on.

    To the question whether something may be written the answer is no. Landlock would let it be yes for /tmp, and
    LibreOffice, which asks, would then fail to make a socket there instead of taking its own folder.
    """
    calls = dict(zip(_CALLS, numbers, strict=True))
    socket = calls.pop("socket")
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    instruction: Callable[..., bytes] = struct.Struct("=HBBI").pack
    others = list(calls.values())
    refuse = len(others) + 6  # instructions from the first of `others` to the refusal
    tests = [instruction(equal, refuse - at - 1, 0, number) for at, number in enumerate(others)]
    return [
        instruction(load, 0, 0, 4),
        instruction(equal, 0, refuse + 2, machine),  # another kind of call than this machine's
        instruction(load, 0, 0, 0),
        instruction(above, refuse, 0, 0x40000000),  # x32, a second set of numbers
        *tests,
        instruction(equal, 0, 2, socket),
        instruction(load, 0, 0, 16),
        instruction(equal, 4, 3, _UNIX),
        instruction(equal, 0, 3, access[0]),
        instruction(load, 0, 0, access[1]),
        instruction(equal, 0, 1, _MAY_WRITE),
        instruction(give, 0, 0, 0x00050000 | 13),  # EACCES
        instruction(give, 0, 0, 0x7FFF0000),
    ]


def _die_with(parent: int) -> None:
    _check(_libc().prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(0)
