"""The readable source of ``seccomp.json``: every system call a sandbox may use, in groups, each group with its reason.

Write the profile anew with ``python sandbox/image/seccomp_profile.py > sandbox/image/seccomp.json``; a test fails when they differ.

What is absent is refused with EPERM. Absent on purpose: ptrace, process_vm_*, pidfd_getfd, kcmp (reading other processes);
io_uring_*, bpf, perf_event_open, userfaultfd, vmsplice, splice, tee (a long list of kernel holes); keyctl, add_key, request_key (not
namespaced); mount, umount2, pivot_root, chroot, the new mount calls, setns, unshare (no new namespaces at level ``container``);
open_by_handle_at, name_to_handle_at (escape bind mounts); modify_ldt, personality beyond a query; memory policy; fanotify; clocks;
modules, kexec, reboot, swap, quota, acct. Architectures are x86_64 and aarch64 alone: no 32-bit call table, no x32.
"""

from __future__ import annotations

import json
import sys
from typing import Any

ENOSYS = 38
# CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET
NAMESPACE_FLAGS = 0x7E020000
FAMILIES = {1: "AF_UNIX", 2: "AF_INET (loopback is all there is)", 10: "AF_INET6 (the same)"}
PERSONALITIES = {0x0: "PER_LINUX", 0xFFFFFFFF: "query"}

# Newer than the engine's own default: not there, rather than not allowed, so that libraries do it in the older way.
NEWER = "fchmodat2 futex_requeue futex_wait futex_wake pkey_alloc pkey_free pkey_mprotect"

# (reason, calls). Names that an architecture lacks are skipped there by the engine.
GROUPS: tuple[tuple[str, str], ...] = (
    (
        "open, read, write and describe files",
        "access chdir close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64 fallocate fchdir fcntl fdatasync "
        "flock fstat fstatfs fsync ftruncate getcwd getdents getdents64 ioctl lseek lstat newfstatat open openat openat2 pread64 preadv preadv2 "
        "pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv sendfile stat statfs statx sync_file_range syncfs truncate "
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
        "brk madvise membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap msync munlock munlockall munmap",
    ),
    (
        "processes and threads; clone itself is limited below, clone3 answers ENOSYS so that libraries fall back to it",
        "execve execveat exit exit_group fork gettid getpid getppid getpgid getpgrp getsid kill pidfd_open pidfd_send_signal set_robust_list "
        "get_robust_list set_tid_address setpgid setsid tgkill tkill vfork wait4 waitid",
    ),
    (
        "what glibc needs to start a thread",
        "arch_prctl futex futex_waitv prctl rseq",
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
        "getrandom getrlimit getrusage setrlimit sysinfo uname",
    ),
    (
        "waiting for many descriptors",
        "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 inotify_add_watch inotify_init inotify_init1 "
        "inotify_rm_watch pipe pipe2 poll ppoll pselect6 select",
    ),
    (
        "sockets that exist already; making one is limited below",
        "accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg sendmmsg sendmsg sendto setsockopt shutdown",
    ),
    (
        "System V and POSIX message passing inside the sandbox's own ipc namespace",
        "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat "
        "shmctl shmdt shmget",
    ),
    (
        "old asynchronous file I/O, used by some databases and file tools",
        "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    ),
)


def profile() -> dict[str, Any]:
    """The profile as the engine's ``seccomp=`` option takes it."""
    rules: list[dict[str, Any]] = [
        {"names": sorted(calls.split()), "action": "SCMP_ACT_ALLOW", "comment": reason} for reason, calls in GROUPS
    ]
    rules.append(
        {
            "names": ["clone"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": NAMESPACE_FLAGS, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            "comment": "threads and processes, without new namespaces",
        }
    )
    rules.append(
        {
            "names": ["clone3"],
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": ENOSYS,
            "comment": "its flags lie in memory where a filter cannot see them",
        }
    )
    rules.append(
        {
            "names": NEWER.split(),
            "action": "SCMP_ACT_ERRNO",
            "errnoRet": ENOSYS,
            "comment": "beyond the engine's own default, and libraries have another way",
        }
    )
    rules += [_equal(["socket"], family, f"socket({name})") for family, name in FAMILIES.items()]
    rules.append(_equal(["socketpair"], 1, "a pair within the sandbox"))
    rules.append(
        _equal(["prlimit64"], 0, "limits of one's own process; process 1 is the same user's, and has to outlive it")
    )
    rules += [_equal(["personality"], value, f"personality({name})") for value, name in PERSONALITIES.items()]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def _equal(names: list[str], value: int, reason: str) -> dict[str, Any]:
    condition = {"index": 0, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
    return {"names": names, "action": "SCMP_ACT_ALLOW", "args": [condition], "comment": reason}


def text() -> str:
    """The file's exact contents."""
    return json.dumps(profile(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
