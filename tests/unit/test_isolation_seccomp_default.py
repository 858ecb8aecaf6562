"""The profile beside the engine's own default: what it denies beyond that is listed here, and beyond that it allows nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).parents[2] / "sandbox" / "image" / "seccomp.json"

# System calls that Docker Engine 20.10.24 (Debian 12) allows without conditions to a container with no capabilities on amd64: read
# from the configuration that the engine handed to runc (`linux.seccomp` of the container's config.json), with its 32-bit names.
ENGINE_ALLOWS = """
_llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range
connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
fchmod fchmodat fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64
fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_time64 futex_waitv futimesat get_robust_list get_thread_area getcpu
getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp
getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid
gettimeofday getuid getuid32 getxattr inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents
io_pgetevents io_pgetevents_time64 io_setup io_submit io_uring_enter io_uring_register io_uring_setup ioctl ioprio_get ioprio_set ipc kill
landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr llistxattr
lremovexattr lseek lsetxattr lstat lstat64 madvise membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
mq_timedsend_time64 mq_unlink mremap msgctl msgget msgrcv msgsnd msync munlock munlockall munmap nanosleep newfstatat open openat openat2
pause pidfd_open pidfd_send_signal pipe pipe2 poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6
pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg
remap_file_pages removexattr rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min
sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32
setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32
setrlimit setsid setsockopt setuid setuid32 setxattr shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn
socket socketcall socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time
timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
""".split()
# In the same file: `clone` with these flags masked out, `clone3` answered with ENOSYS, and these values of `personality`.
ENGINE_CLONE_MASK = 0x7E020000
ENGINE_PERSONALITIES = {0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF}

# What we deny beyond it, and why. `NARROWED` below is denied in part.
DENIED_BEYOND = {
    "the 32-bit tables, which are closed as a whole": """
        _llseek _newselect chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64
        fadvise64_64 fchown32 fcntl64 fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32
        getgid32 getgroups32 getresgid32 getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 lstat64 mmap2
        mq_timedreceive_time64 mq_timedsend_time64 ppoll_time64 pselect6_time64 recv recvmmsg_time64
        rt_sigtimedwait_time64 sched_rr_get_interval_time64 semtimedop_time64 send sendfile64 setfsgid32 setfsuid32
        setgid32 setgroups32 setregid32 setresgid32 setresuid32 setreuid32 setuid32 sigprocmask sigreturn socketcall
        stat64 statfs64 timer_gettime64 timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit
        utimensat_time64 waitpid
    """,
    "kernel holes: long lists of them": "io_uring_enter io_uring_register io_uring_setup vmsplice splice tee",
    "reading and steering other processes": "ptrace process_mrelease",
    "filters and rules of its own, watching file systems": "seccomp landlock_add_rule landlock_create_ruleset landlock_restrict_self fanotify_mark",
    "the processor's old tables, memory hidden from the kernel": "modify_ldt memfd_secret remap_file_pages get_thread_area set_thread_area",
    "clocks, also when only asked for": "adjtimex clock_adjtime",
    "writing whole file systems out, the host's among them": "sync syncfs",
    "counted for the whole host": "io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit",
    "watching files that neighbours share": "inotify_add_watch inotify_init inotify_init1 inotify_rm_watch",
    "never used, or replaced": "epoll_ctl_old epoll_wait_old",
}
# These stay for listed values of their arguments.
NARROWED = set("fcntl ioctl memfd_create mmap prctl prlimit64 setrlimit setsockopt shmget socket socketpair".split())


def rules() -> list[dict[str, Any]]:
    return list(json.loads(PROFILE.read_text("utf-8"))["syscalls"])


def allowed(with_conditions: bool) -> set[str]:
    """Names that the profile allows always, or under conditions only."""
    return {
        name
        for rule in rules()
        if rule["action"] == "SCMP_ACT_ALLOW" and bool(rule.get("args")) == with_conditions
        for name in rule["names"]
    }


def test_nothing_is_allowed_beyond_the_engines_default() -> None:
    assert allowed(with_conditions=False) - set(ENGINE_ALLOWS) == set()
    assert allowed(with_conditions=True) == NARROWED | {"clone", "personality"}


def test_conditions_are_no_wider_than_the_engines() -> None:
    conditions = {name: [] for name in ("clone", "personality")}
    for rule in rules():
        for name in conditions.keys() & set(rule["names"]):
            conditions[name].append(rule["args"][0])
    assert {one["op"] for one in conditions["clone"]} == {"SCMP_CMP_MASKED_EQ"}
    for one in conditions["clone"]:
        assert one["value"] & ENGINE_CLONE_MASK == ENGINE_CLONE_MASK
        assert one["valueTwo"] & ENGINE_CLONE_MASK == 0
    assert {one["value"] for one in conditions["personality"]} < ENGINE_PERSONALITIES
    assert {one["op"] for one in conditions["personality"]} == {"SCMP_CMP_EQ"}


def test_what_is_denied_beyond_the_engines_default_is_listed() -> None:
    listed = [name for names in DENIED_BEYOND.values() for name in names.split()]
    assert len(listed) == len(set(listed))
    assert set(ENGINE_ALLOWS) - allowed(with_conditions=False) - NARROWED == set(listed)


def test_what_only_answers_that_it_is_not_there_is_listed_or_not_in_the_engines_default() -> None:
    absent = {name for rule in rules() if rule.get("errnoRet") == 38 for name in rule["names"]}
    listed = {name for names in DENIED_BEYOND.values() for name in names.split()}
    assert absent & set(ENGINE_ALLOWS) <= listed
