"""The readable source of ``seccomp.json``: every system call a sandbox may use, in groups, each group with its reason.

Write the profile anew with ``python sandbox/image/seccomp_profile.py > sandbox/image/seccomp.json``; a test fails when they differ.

What is absent is refused with EPERM. Absent on purpose: ptrace, process_vm_*, pidfd_getfd, kcmp (reading other processes);
io_uring_*, bpf, perf_event_open, userfaultfd, vmsplice, splice, tee (a long list of kernel holes); keyctl, add_key, request_key (not
namespaced); mount, umount2, pivot_root, chroot, the new mount calls, setns, unshare (no new namespaces at level ``container``);
open_by_handle_at, name_to_handle_at (escape bind mounts); modify_ldt, personality beyond a query; memory policy; fanotify; clocks;
modules, kexec, reboot, swap, quota, acct. Architectures are x86_64 and aarch64 alone: no 32-bit call table, no x32.

Calls with many operations (prctl, setsockopt, fcntl, ioctl) are allowed by the operation's value, so that a new kernel's new operations stay
closed. Nobody in a sandbox installs a filter, by whichever of these calls: a few thousand socket filters, freed at once, bring a kernel
to a stop. Comparisons are exact, one value each (libseccomp 2.5 miscompiles a masked one beside other arguments).
"""

from __future__ import annotations

import json
import sys
from typing import Any

ENOSYS = 38
# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
NAMESPACE_FLAGS = 0x7E020000
# A table of descriptors is a process's own: record locks are counted by process, and would outlive one that shares its table.
CLONE_FILES, CLONE_THREAD = 0x400, 0x10000
OWN_FLAGS = NAMESPACE_FLAGS | CLONE_FILES | CLONE_THREAD
FAMILIES = {1: "AF_UNIX", 2: "AF_INET (loopback is all there is)", 10: "AF_INET6 (the same)"}
PERSONALITIES = {0x0: "PER_LINUX", 0xFFFFFFFF: "query"}

# Allowed values of calls that do many things. Absent: PR_SET_SECCOMP, PR_SET_PTRACER, PR_SET_MM, PR_SET_VMA (names that no limit counts),
# PR_SCHED_CORE, PR_SET_TSC, PR_SET_SYSCALL_USER_DISPATCH and what only root may.
PRCTL = {
    1: "SET_PDEATHSIG", 2: "GET_PDEATHSIG", 3: "GET_DUMPABLE", 4: "SET_DUMPABLE", 7: "GET_KEEPCAPS", 15: "SET_NAME", 16: "GET_NAME",
    21: "GET_SECCOMP", 23: "CAPBSET_READ", 27: "GET_SECUREBITS", 29: "SET_TIMERSLACK", 30: "GET_TIMERSLACK", 36: "SET_CHILD_SUBREAPER",
    37: "GET_CHILD_SUBREAPER", 38: "SET_NO_NEW_PRIVS", 39: "GET_NO_NEW_PRIVS", 40: "GET_TID_ADDRESS", 41: "SET_THP_DISABLE",
    42: "GET_THP_DISABLE",
}  # fmt: skip
# (level, option). Absent: filters (SO_ATTACH_*, SO_LOCK_FILTER), TCP_ULP and TCP_CONGESTION (load modules), TCP_MD5SIG, TCP_REPAIR, zero copy,
# multicast, IP options, and what only root may.
SOCKET_OPTIONS = {
    "SOL_SOCKET": (1, {
        2: "REUSEADDR", 5: "DONTROUTE", 6: "BROADCAST", 7: "SNDBUF", 8: "RCVBUF", 9: "KEEPALIVE", 10: "OOBINLINE", 12: "PRIORITY", 13: "LINGER",
        15: "REUSEPORT", 16: "PASSCRED", 18: "RCVLOWAT", 20: "RCVTIMEO", 21: "SNDTIMEO", 29: "TIMESTAMP", 35: "TIMESTAMPNS", 66: "RCVTIMEO_NEW",
        67: "SNDTIMEO_NEW",
    }),
    "IPPROTO_IP": (0, {1: "TOS", 2: "TTL", 8: "PKTINFO", 10: "MTU_DISCOVER", 11: "RECVERR", 24: "BIND_ADDRESS_NO_PORT"}),
    "IPPROTO_TCP": (6, {
        1: "NODELAY", 2: "MAXSEG", 3: "CORK", 4: "KEEPIDLE", 5: "KEEPINTVL", 6: "KEEPCNT", 7: "SYNCNT", 8: "LINGER2", 9: "DEFER_ACCEPT",
        10: "WINDOW_CLAMP", 12: "QUICKACK", 18: "USER_TIMEOUT", 23: "FASTOPEN", 25: "NOTSENT_LOWAT", 30: "FASTOPEN_CONNECT",
    }),
    "IPPROTO_IPV6": (41, {16: "UNICAST_HOPS", 23: "MTU_DISCOVER", 25: "RECVERR", 26: "V6ONLY", 49: "RECVPKTINFO", 67: "TCLASS"}),
}  # fmt: skip
# Absent: locks of an open file (F_OFD_*: they name no process, so that nobody can say whose they are), leases, F_NOTIFY, write hints.
FCNTL = {
    0: "DUPFD", 1: "GETFD", 2: "SETFD", 3: "GETFL", 4: "SETFL", 5: "GETLK", 6: "SETLK", 7: "SETLKW", 8: "SETOWN", 9: "GETOWN", 10: "SETSIG",
    11: "GETSIG", 16: "GETOWN_EX", 1030: "DUPFD_CLOEXEC", 1031: "SETPIPE_SZ", 1032: "GETPIPE_SZ", 1033: "ADD_SEALS", 1034: "GET_SEALS",
}  # fmt: skip
# What a file, pipe, socket or the question "is this a terminal" needs. Absent: file systems' own (flags, cloning, defragmenting, encryption),
# terminals beyond that question, block and network devices.
IOCTL = {
    0x5401: "TCGETS", 0x540F: "TIOCGPGRP", 0x5411: "TIOCOUTQ", 0x5413: "TIOCGWINSZ", 0x541B: "FIONREAD", 0x5421: "FIONBIO", 0x5450: "FIONCLEX",
    0x5451: "FIOCLEX", 0x5452: "FIOASYNC", 0x5460: "FIOQSIZE", 0x8905: "SIOCATMARK", 0x8910: "SIOCGIFNAME", 0x8912: "SIOCGIFCONF",
    0x8913: "SIOCGIFFLAGS", 0x8915: "SIOCGIFADDR", 0x891B: "SIOCGIFNETMASK", 0x8921: "SIOCGIFMTU", 0x8927: "SIOCGIFHWADDR",
    0x8933: "SIOCGIFINDEX",
}  # fmt: skip
RLIMITS = range(16)
RLIMIT_CORE = 4
MAP_HUGETLB, MFD_HUGETLB, SHM_HUGETLB = 0x40000, 0x4, 0x800

# Not there, rather than not allowed: libraries have another way. Asynchronous I/O takes contexts of which the whole host has a fixed number;
# a watch sees when neighbours open the files they share with us (those of the plugin).
GONE = "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit"

# Newer than the engine's own default: not there, rather than not allowed, so that libraries do it in the older way.
NEWER = "fchmodat2 futex_requeue futex_wait futex_wake pkey_alloc pkey_free pkey_mprotect"

# (reason, calls). Names that an architecture lacks are skipped there by the engine.
GROUPS: tuple[tuple[str, str], ...] = (
    (
        "open, read, write and describe files",
        "access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir fdatasync "
        "flock fstat fstatfs fsync ftruncate getcwd getdents getdents64 lseek lstat newfstatat open openat openat2 pread64 preadv preadv2 "
        "pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv sendfile stat statfs statx sync_file_range truncate "
        "umask write writev",
    ),
    (
        "make, name and remove files; device nodes still need a capability nobody has",
        "chmod chown fchmod fchmodat fchown fchownat futimesat lchown link linkat mkdir mkdirat mknod mknodat rename renameat renameat2 "
        "rmdir symlink symlinkat unlink unlinkat utime utimensat utimes",
    ),
    (
        "extended attributes, asked for by copying tools",
        "fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr lsetxattr removexattr setxattr",
    ),
    (
        "memory of one's own; counted by the memory limit",
        "brk madvise membarrier mincore mlock mlock2 mlockall mprotect mremap msync munlock munlockall munmap",
    ),
    (
        "processes and threads; clone itself is limited below, clone3 answers ENOSYS so that libraries fall back to it",
        "execve execveat exit exit_group fork gettid getpid getppid getpgid getpgrp getsid kill pidfd_open pidfd_send_signal set_robust_list "
        "get_robust_list set_tid_address setpgid setsid tgkill tkill vfork wait4 waitid",
    ),
    (
        "what glibc needs to start a thread",
        "arch_prctl futex futex_waitv rseq",
    ),
    (
        "ids: reading them, and changes that fail without a capability",
        "capget capset getegid geteuid getgid getgroups getresgid getresuid getuid setfsgid setfsuid setgid setgroups setregid setresgid setresuid "
        "setreuid setuid",
    ),
    (
        "signals",
        "pause restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait "
        "rt_tgsigqueueinfo sigaltstack signalfd signalfd4",
    ),
    (
        "time: reading and waiting, never setting",
        "alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep setitimer time timer_create timer_delete "
        "timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times",
    ),
    (
        "scheduling of one's own threads",
        "getcpu getpriority ioprio_get ioprio_set sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam "
        "sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield setpriority",
    ),
    (
        "limits, usage and facts about the machine",
        "getrandom getrlimit getrusage sysinfo uname",
    ),
    (
        "waiting for many descriptors",
        "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 pipe pipe2 poll ppoll pselect6 select",
    ),
    (
        "sockets that exist already; making one is limited below",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto shutdown",
    ),
    (
        "System V and POSIX message passing inside the sandbox's own ipc namespace",
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat "
        "shmctl shmdt",
    ),
)


def profile() -> dict[str, Any]:
    """The profile as the engine's ``seccomp=`` option takes it."""
    rules: list[dict[str, Any]] = [
        {"names": sorted(calls.split()), "action": "SCMP_ACT_ALLOW", "comment": reason} for reason, calls in GROUPS
    ]
    rules += _processes()
    rules.append(
        {
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": ENOSYS,
            "comment": "its flags lie in memory where a filter cannot see them",
        }
    )
    rules.append(_absent(NEWER, "beyond the engine's own default, and libraries have another way"))
    rules.append(_absent(GONE, "counted for the whole host, or showing what neighbours do; libraries have another way"))
    rules += [_allow("socket", f"socket({name})", (0, family)) for family, name in FAMILIES.items()]
    rules.append(_allow("socketpair", "a pair within the sandbox", (0, 1)))
    rules += _memory()
    rules += _limits()
    rules += [_allow("personality", f"personality({name})", (0, value)) for value, name in PERSONALITIES.items()]
    rules += [_allow("prctl", f"PR_{name}", (0, value)) for value, name in PRCTL.items()]
    rules += [
        _allow("setsockopt", f"{level_name} {name}", (1, level), (2, value))
        for level_name, (level, options) in SOCKET_OPTIONS.items()
        for value, name in options.items()
    ]
    rules += [_allow("fcntl", f"F_{name}", (1, value)) for value, name in FCNTL.items()]
    rules += [_allow("ioctl", name, (1, value)) for value, name in IOCTL.items()]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def _processes() -> list[dict[str, Any]]:
    """``clone``: threads share their table of descriptors, processes do not, and neither gets new namespaces."""
    kinds = {"processes, without new namespaces": 0, "threads": CLONE_FILES | CLONE_THREAD}
    return [_masked("clone", 0, OWN_FLAGS, value, reason) for reason, value in kinds.items()]


def _memory() -> list[dict[str, Any]]:
    """Never from the host's pool of huge pages, which no limit of a container counts."""
    places = (("mmap", 3, MAP_HUGETLB), ("memfd_create", 1, MFD_HUGETLB), ("shmget", 2, SHM_HUGETLB))
    return [_masked(name, index, flag, 0, "memory, but no huge pages of the host's") for name, index, flag in places]


def _limits() -> list[dict[str, Any]]:
    """Limits of one's own process: process 1 is the same user's, and has to outlive it.

    All may be lowered but the core's: it stands at one byte, which alone keeps the kernel from starting the host's core handler as root.
    """
    reason = "limits of one's own process"
    others = [number for number in RLIMITS if number != RLIMIT_CORE]
    return [
        *(_allow("prlimit64", reason, (0, 0), (1, number)) for number in others),
        _allow("prlimit64", "reading the core's", (0, 0), (1, RLIMIT_CORE), (2, 0)),
        *(_allow("setrlimit", reason, (0, number)) for number in others),
    ]


def _allow(name: str, reason: str, *values: tuple[int, int]) -> dict[str, Any]:
    """Allowed when each of these arguments (by index) has exactly this value."""
    conditions = [{"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"} for index, value in values]
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": conditions, "comment": reason}


def _masked(name: str, index: int, mask: int, value: int, reason: str) -> dict[str, Any]:
    condition = {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [condition], "comment": reason}


def _absent(names: str, reason: str) -> dict[str, Any]:
    return {"names": names.split(), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS, "comment": reason}


def text() -> str:
    """The file's exact contents."""
    return json.dumps(profile(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
