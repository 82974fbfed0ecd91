"""The privileges that a worker process gives up before it reads the first document; see docs/security.md.

Linux offers independent protections: resource limits, namespaces, Landlock, a filter of system calls. Where one is not
available (an old kernel, a container that forbids it), the others still hold, and the worker reports which are active.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable, Sequence

from ragfm.parsing.sandbox.supervisor import supervise

SPARE_MEMORY = 192 << 20
"""Bytes that a process may allocate beyond its limit of resident memory: stacks, and memory that is never touched."""
_MAX_FILE_SIZE = 512 << 20  # bytes
_MAX_OPEN_FILES = 256

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x20000000, 0x40000000, 0x08000000
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
    *("/sys/fs/cgroup", "/sys/devices/system"),
    *("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
    *("/etc/libreoffice", "/etc/localtime", "/etc/magic", "/etc/mime.types"),
    *("/var/cache/fontconfig", "/var/lib/libreoffice", "/var/spool/libreoffice"),
    *("/dev/urandom", "/dev/random", "/dev/zero"),
)
# Not those of other processes: a command line may have a password.
_READABLE_PROC_PATHS = tuple(
    f"/proc/{name}" for name in "self cpuinfo filesystems loadavg meminfo stat sys uptime version".split()
)

# Numbers of system calls on x86-64 and ARM64.
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # their audit numbers
_REFUSED_CALLS = {
    # connections, other processes, and the kernel
    "connect": (42, 203),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "pidfd_getfd": (438, 438),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    # attributes of files, which Landlock does not protect
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "lchown": (94, None),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "open_by_handle_at": (304, 265),
    # memory that no process has mapped, so that it counts for none
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
}
# Calls that change the process whose id is their first argument: only 0, the calling thread, is allowed.
_OWN_PROCESS_CALLS = {
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
_SOCKET_CALLS = {"socket": (41, 198), "socketpair": (53, 199)}
_IOCTL = (16, 29)
_ACCESS = ((21, 1), (48, 2))  # `access` or `faccessat`, and the index of its `mode`
_AF_UNIX, _SOCK_STREAM = 1, 1
_TERMINAL_IOCTLS = 0x5400  # of terminals, pipes and descriptors
_W_OK = 2
_ARGUMENTS = (16, 24, 32)  # offsets of the lower halves of a call's first arguments in `struct seccomp_data`


def confine(folder: str, readable: Sequence[str], memory: int, parent: int) -> list[str]:
    """Give up all rights except reading `readable` paths and writing in `folder`. Returns the active protections.

    `memory` is the limit in bytes. The process continues as a child of itself, see `supervisor`. It ends with its
    parent process. It must not have other threads yet.
    """
    active: list[str] = []
    steps: dict[str, Callable[[], None]] = {
        "limits": lambda: _set_limits(memory),
        "namespaces": _leave_namespaces,
        "supervisor": lambda: supervise(parent, has_namespace="namespaces" in active),
        "capabilities": _drop_capabilities,
        "landlock": lambda: _restrict_files(folder, readable),
        "seccomp": _filter_system_calls,
    }
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
    """Enter an empty network namespace; children get a namespace of processes.

    Root needs no user namespace for that, and keeps access to its files.
    """
    user, group = os.geteuid(), os.getegid()
    _check(_libc().unshare((_CLONE_NEWUSER if user else 0) | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC))
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
        *((path, _READ) for path in (*_READABLE_SYSTEM_PATHS, *_READABLE_PROC_PATHS, *readable)),
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
                    # A rule is lost if the kernel forgets a path of /proc, which it does not while it is open.
                    if path not in _READABLE_PROC_PATHS:
                        os.close(descriptor)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(libc.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)


def _filter_system_calls() -> None:
    """Refuse system calls, some by their arguments, to this process and its children.

    - Sockets: only stream sockets between processes of this machine. They need `connect`, which is refused, but other
      sockets can send to a path without it.
    - `ioctl`: only requests of terminals, pipes and descriptors. Others change attributes of files.
    - `access` with W_OK. Landlock does not filter it, so it would report /tmp as writable, and LibreOffice, which asks,
      would fail to create a socket there instead of using its own folder.
    """
    if platform.machine() not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError("not supported on this machine")
    libc = _libc()
    column = list(_MACHINES).index(platform.machine())
    # BPF instructions over `struct seccomp_data`: call number at 0, machine at 4, arguments from 16 on.
    load, mask, equal, at_least, give = 0x20, 0x54, 0x15, 0x35, 0x06
    refuse, allow = -1, -2  # targets of jumps
    instructions: list[tuple[int, int, int, int]] = [  # operation, jump if true, jump if false, operand
        (load, 0, 0, 4),
        (equal, 0, refuse, _MACHINES[platform.machine()]),  # calls of another machine type
        (load, 0, 0, 0),
        (at_least, refuse, 0, 0x40000000),  # x32, a second set of call numbers
    ]
    refused = (numbers[column] for numbers in _REFUSED_CALLS.values())
    instructions += [(equal, refuse, 0, number) for number in refused if number is not None]
    access, mode = _ACCESS[column]
    socket_tests = [
        (load, 0, 0, _ARGUMENTS[0]),
        (equal, 0, refuse, _AF_UNIX),
        (load, 0, 0, _ARGUMENTS[1]),
        (mask, 0, 0, 0xF),
        (equal, allow, refuse, _SOCK_STREAM),
    ]
    own_tests = [(load, 0, 0, _ARGUMENTS[0]), (equal, allow, refuse, 0)]
    ioctl_tests = [(load, 0, 0, _ARGUMENTS[1]), (mask, 0, 0, 0xFFFFFF00), (equal, allow, refuse, _TERMINAL_IOCTLS)]
    for number, tests in (
        *((numbers[column], socket_tests) for numbers in _SOCKET_CALLS.values()),
        *((numbers[column], own_tests) for numbers in _OWN_PROCESS_CALLS.values()),
        (_IOCTL[column], ioctl_tests),
        (access, [(load, 0, 0, _ARGUMENTS[mode]), (equal, refuse, allow, _W_OK)]),
    ):
        instructions += [(equal, 0, len(tests), number), *tests]
    targets = {allow: len(instructions), refuse: len(instructions) + 1}
    instructions += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050000 | errno.EACCES)]
    program = b"".join(
        struct.pack("=HBBI", operation, *(targets[jump] - index - 1 if jump < 0 else jump for jump in jumps), operand)
        for index, (operation, *jumps, operand) in enumerate(instructions)
    )
    code = ctypes.create_string_buffer(program, len(program))

    class FilterProgram(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    filter_program = FilterProgram(len(program) // 8, ctypes.addressof(code))
    _check(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(filter_program), 0, 0))
