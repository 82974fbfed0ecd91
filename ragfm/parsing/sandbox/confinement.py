"""The privileges that a worker process gives up before it reads the first document; see docs/security.md.

Linux offers independent protections: resource limits, namespaces, Landlock, a filter of system calls. Where one is not
available (an old kernel, a container that forbids it), the others still hold, and the worker reports which are active.
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
from collections.abc import Callable, Sequence

SPARE_MEMORY = 192 << 20
"""Bytes that a process may allocate beyond its limit of resident memory: stacks, and memory that is never touched."""
_MAX_FILE_SIZE = 512 << 20  # bytes
_MAX_OPEN_FILES = 256

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_CAP_DAC_READ_SEARCH = 1 << 2

# Landlock, https://docs.kernel.org/userspace-api/landlock.html
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, the same on all machines
_READ = 0b1101  # execute, read files and folders
_WRITE_FILE = 0b10 | 1 << 14  # write and truncate files
_FILE_RIGHTS = 0b111 | 1 << 14 | 1 << 15  # rights that apply to files; all others apply to folders
_DEVICE_RIGHTS = 1 << 6 | 1 << 11  # create character and block devices
_RIGHTS_BY_VERSION = (13, 14, 15, 15, 16)  # number of file system rights in each version; 16 from the fifth on
_READABLE_SYSTEM_PATHS = (
    *("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/nix/store"),
    *("/proc", "/sys/fs/cgroup", "/sys/devices/system"),
    *("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/libreoffice", "/etc/localtime", "/etc/magic", "/etc/mime.types"),
    *("/var/cache/fontconfig", "/var/lib/libreoffice", "/var/spool/libreoffice"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)

# System calls that are refused: connections, and calls that reach into other processes or the kernel.
_REFUSED_CALLS = (
    *("socket", "connect", "ptrace", "process_vm_readv", "process_vm_writev", "mount", "umount2", "unshare"),
    *("setns", "bpf", "perf_event_open", "keyctl", "userfaultfd", "io_uring_setup", "pidfd_getfd"),
)
# By machine: its audit number, the numbers of the refused calls, and the number of `access` (or `faccessat`) with the
# offset of its `mode` argument in `struct seccomp_data`.
_MACHINES = {
    "x86_64": (0xC000003E, (41, 42, 101, 310, 311, 165, 166, 272, 308, 321, 298, 250, 323, 425, 438), (21, 24)),
    "aarch64": (0xC00000B7, (198, 203, 117, 270, 271, 40, 39, 97, 268, 280, 241, 219, 282, 425, 438), (48, 32)),
}
_AF_UNIX = 1
_W_OK = 2


def confine(folder: str, readable: Sequence[str], memory: int, parent: int) -> list[str]:
    """Give up all rights except reading `readable` paths and writing in `folder`. Returns the active protections.

    `memory` is the limit in bytes. The process ends with its parent process. It must not have other threads yet.
    """
    steps: dict[str, Callable[[], None]] = {
        "limits": lambda: _set_limits(memory),
        "namespaces": _leave_namespaces,
        "capabilities": _drop_capabilities,
        "landlock": lambda: _restrict_files(folder, readable),
        "seccomp": _filter_system_calls,
        "parent": lambda: _end_with_parent(parent),  # last: changes of credentials would reset it
    }
    active = []
    for name, step in steps.items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            step()
            active.append(name)
    return active


def limit_memory(max_bytes: int) -> None:
    """Make allocations fail beyond about this many bytes."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = max_bytes + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _set_limits(memory: int) -> None:
    limit_memory(memory)
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: _MAX_FILE_SIZE, resource.RLIMIT_NOFILE: _MAX_OPEN_FILES}
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (limit, limit) if hard == resource.RLIM_INFINITY else (min(limit, hard),) * 2)


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("not Linux")
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _leave_namespaces() -> None:
    """Enter an empty network namespace. Root needs no user namespace for that, and keeps access to its files."""
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare((_CLONE_NEWUSER if user else 0) | _CLONE_NEWNET | _CLONE_NEWIPC))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)


def _drop_capabilities() -> None:
    """Keep no capability of root, or of the user namespace, except reading files."""
    permitted = _CAP_DAC_READ_SEARCH if not os.geteuid() else 0
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    data = struct.pack("=6I", permitted, permitted, 0, 0, 0, 0)
    if _libc().capset(header, data) < 0:  # the process does not have the capability to keep
        _check(_libc().capset(header, bytes(24)))


def _restrict_files(folder: str, readable: Sequence[str]) -> None:
    libc = _libc()
    version = _check(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    all_rights = (1 << _RIGHTS_BY_VERSION[min(version, len(_RIGHTS_BY_VERSION)) - 1]) - 1
    # Rights on files, on TCP ports, and scopes (abstract sockets, signals); older kernels know a shorter structure.
    attributes = struct.pack("=3Q", all_rights, 0b11 if version >= 4 else 0, 0b11 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _check(libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0))
    rules = [
        *((path, _READ) for path in (*_READABLE_SYSTEM_PATHS, *readable)),
        ("/dev/null", _READ | _WRITE_FILE & all_rights),
        (folder, all_rights & ~_DEVICE_RIGHTS),
    ]
    try:
        for path, rights in rules:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    allowed = rights if os.path.isdir(path) else rights & _FILE_RIGHTS  # noqa: PTH112
                    _check(libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, descriptor), 0))
                finally:
                    os.close(descriptor)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _filter_system_calls() -> None:
    """Refuse `_REFUSED_CALLS` to this process and its children; Unix sockets may be created.

    `access` with W_OK is refused, too. Landlock does not filter it, so it would report /tmp as writable, and
    LibreOffice, which asks, would fail to create a socket there instead of using its own folder.
    """
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError("not supported on this machine")
    libc = _libc()
    machine, numbers, access = _MACHINES[platform.machine()]
    calls = dict(zip(_REFUSED_CALLS, numbers, strict=True))
    socket = calls.pop("socket")
    # BPF instructions over `struct seccomp_data`: call number at 0, machine at 4, arguments from 16 on.
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    instruction: Callable[..., bytes] = struct.Struct("=HBBI").pack  # operation, jump if true, jump if false, operand
    refuse = len(calls) + 6  # instructions from the first test to the refusal
    instructions = [
        instruction(load, 0, 0, 4),
        instruction(equal, 0, refuse + 2, machine),  # calls of another machine type
        instruction(load, 0, 0, 0),
        instruction(at_least, refuse, 0, 0x40000000),  # x32, a second set of call numbers
        *(instruction(equal, refuse - i - 1, 0, number) for i, number in enumerate(calls.values())),
        instruction(equal, 0, 2, socket),
        instruction(load, 0, 0, 16),
        instruction(equal, 4, 3, _AF_UNIX),
        instruction(equal, 0, 3, access[0]),
        instruction(load, 0, 0, access[1]),
        instruction(equal, 0, 1, _W_OK),
        instruction(give, 0, 0, 0x00050000 | 13),  # refuse: EACCES
        instruction(give, 0, 0, 0x7FFF0000),  # allow
    ]
    program = b"".join(instructions)
    code = ctypes.create_string_buffer(program, len(program))

    class FilterProgram(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    filter_program = FilterProgram(len(program) // 8, ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filter_program), 0, 0))


def _end_with_parent(parent: int) -> None:
    _check(_libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(0)
