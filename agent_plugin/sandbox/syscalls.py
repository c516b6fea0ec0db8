"""System calls by name: their numbers on each processor, and which of them a program may make.

The numbers are those of Linux's `asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64).
"""

from __future__ import annotations


def _parse(text: str) -> dict[str, int]:
    return {name: int(number) for name, _, number in (item.partition("=") for item in text.split())}


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = {
    "x86_64": _parse("""
        read=0 write=1 readv=19 writev=20 pread64=17 pwrite64=18 preadv=295 pwritev=296 preadv2=327 pwritev2=328
        close=3 close_range=436 stat=4 fstat=5 lstat=6 newfstatat=262 statx=332 lseek=8 mmap=9 mprotect=10 munmap=11
        mremap=25 madvise=28 brk=12 msync=26 mincore=27 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15
        rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130 sigaltstack=131 restart_syscall=219 pause=34
        access=21 faccessat=269 faccessat2=439 pipe=22 pipe2=293 select=23 pselect6=270 poll=7 ppoll=271
        epoll_create=213 epoll_create1=291 epoll_ctl=233 epoll_wait=232 epoll_pwait=281 eventfd2=290
        timerfd_create=283 timerfd_settime=286 timerfd_gettime=287 sched_yield=24 sched_getaffinity=204 dup=32
        dup2=33 dup3=292 nanosleep=35 clock_nanosleep=230 clock_gettime=228 clock_getres=229 gettimeofday=96
        time=201 times=100 getitimer=36 setitimer=38 alarm=37 getpid=39 gettid=186 getppid=110 getuid=102
        geteuid=107 getgid=104 getegid=108 getresuid=118 getresgid=120 getgroups=115 getpgrp=111 getpgid=121
        getsid=124 exit=60 exit_group=231 wait4=61 waitid=247 uname=63 sysinfo=99 getrusage=98 getcpu=309
        getrlimit=97 setrlimit=160 getcwd=79 chdir=80 fchdir=81 rename=82 renameat=264 renameat2=316 mkdir=83
        mkdirat=258 rmdir=84 unlink=87 unlinkat=263 ftruncate=77 fallocate=285 fsync=74 fdatasync=75 flock=73
        fadvise64=221 getdents=78 getdents64=217 readlink=89 readlinkat=267 umask=95 copy_file_range=326 sendfile=40
        statfs=137 fstatfs=138 futex=202 set_robust_list=273 rseq=334 set_tid_address=218 arch_prctl=158
        membarrier=324 getrandom=318 open=2 openat=257 creat=85 clone=56 clone3=435 ioctl=16 fcntl=72 prctl=157
        prlimit64=302 kill=62 tgkill=234 chmod=90 fchmod=91 fchmodat=268 utime=132 utimes=235 utimensat=280
        futimesat=261 execve=59 seccomp=317 fchmodat2=452
"""),
    "aarch64": _parse("""
        read=63 write=64 readv=65 writev=66 pread64=67 pwrite64=68 preadv=69 pwritev=70 preadv2=286 pwritev2=287
        close=57 close_range=436 fstat=80 newfstatat=79 statx=291 lseek=62 mmap=222 mprotect=226 munmap=215
        mremap=216 madvise=233 brk=214 msync=227 mincore=232 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139
        rt_sigpending=136 rt_sigtimedwait=137 rt_sigsuspend=133 sigaltstack=132 restart_syscall=128 faccessat=48
        faccessat2=439 pipe2=59 pselect6=72 ppoll=73 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 eventfd2=19
        timerfd_create=85 timerfd_settime=86 timerfd_gettime=87 sched_yield=124 sched_getaffinity=123 dup=23 dup3=24
        nanosleep=101 clock_nanosleep=115 clock_gettime=113 clock_getres=114 gettimeofday=169 times=153
        getitimer=102 setitimer=103 getpid=172 gettid=178 getppid=173 getuid=174 geteuid=175 getgid=176 getegid=177
        getresuid=148 getresgid=150 getgroups=158 getpgid=155 getsid=156 exit=93 exit_group=94 wait4=260 waitid=95
        uname=160 sysinfo=179 getrusage=165 getcpu=168 getrlimit=163 setrlimit=164 getcwd=17 chdir=49 fchdir=50
        renameat=38 renameat2=276 mkdirat=34 unlinkat=35 ftruncate=46 fallocate=47 fsync=82 fdatasync=83 flock=32
        fadvise64=223 getdents64=61 readlinkat=78 umask=166 copy_file_range=285 sendfile=71 statfs=43 fstatfs=44
        futex=98 set_robust_list=99 rseq=293 set_tid_address=96 membarrier=283 getrandom=278 openat=56 clone=220
        clone3=435 ioctl=29 fcntl=25 prctl=167 prlimit64=261 kill=129 tgkill=131 fchmod=52 fchmodat=53
        utimensat=88 execve=221 seccomp=277 fchmodat2=452

"""),
}

ALLOWED = _names("""
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range stat fstat lstat
    newfstatat statx lseek mmap mprotect munmap mremap madvise brk msync mincore rt_sigaction rt_sigprocmask
    rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall pause access faccessat
    faccessat2 pipe pipe2 select pselect6 poll ppoll epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
    eventfd2 timerfd_create timerfd_settime timerfd_gettime sched_yield sched_getaffinity dup dup2 dup3
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times getitimer setitimer alarm
    getpid gettid getppid getuid geteuid getgid getegid getresuid getresgid getgroups getpgrp getpgid getsid
    exit exit_group wait4 waitid uname sysinfo getrusage getcpu getrlimit setrlimit getcwd chdir fchdir rename
    renameat mkdir mkdirat rmdir unlink unlinkat ftruncate fallocate fsync fdatasync flock fadvise64 getdents
    getdents64 readlink readlinkat umask copy_file_range sendfile statfs fstatfs futex set_robust_list rseq
    set_tid_address arch_prctl membarrier getrandom
""")
"""What a program may do with any arguments: its own memory, files, signals, clocks and threads' locks.

Found by tracing numpy, matplotlib, Pillow, pandas and scipy; a program that draws needs fewer. Which files, is for the
other wall to say (mounts, or Landlock): a filter cannot read a path.
"""

PRETENDED = ("chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "utimensat", "futimesat")
"""What succeeds and does nothing: modes and times of files, which Landlock does not guard and copying programs set."""

COMPUTING = frozenset(
    _names("""
    read write lseek fstat newfstatat mmap mprotect munmap mremap madvise brk futex getrandom clock_gettime close getpid
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack sched_yield exit exit_group rseq
""")
)
"""What a process needs that computes on what it holds, and writes the outcome to a pipe."""
