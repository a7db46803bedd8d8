//! System calls by name: the kernel's table of this architecture, for seccomp profiles.
//!
//! Names that this architecture does not have are unknown here, and profiles skip them.

macro_rules! named {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), numbers::$name as u32)),*]
    };
}

/// The numbers under the plain names.
mod numbers {
    #![allow(non_upper_case_globals)]
    pub use libc::SYS_accept as accept;
    pub use libc::SYS_accept4 as accept4;
    pub use libc::SYS_acct as acct;
    pub use libc::SYS_add_key as add_key;
    pub use libc::SYS_adjtimex as adjtimex;
    pub use libc::SYS_bind as bind;
    pub use libc::SYS_bpf as bpf;
    pub use libc::SYS_brk as brk;
    pub use libc::SYS_capget as capget;
    pub use libc::SYS_capset as capset;
    pub use libc::SYS_chdir as chdir;
    pub use libc::SYS_chroot as chroot;
    pub use libc::SYS_clock_adjtime as clock_adjtime;
    pub use libc::SYS_clock_getres as clock_getres;
    pub use libc::SYS_clock_gettime as clock_gettime;
    pub use libc::SYS_clock_nanosleep as clock_nanosleep;
    pub use libc::SYS_clock_settime as clock_settime;
    pub use libc::SYS_clone as clone;
    pub use libc::SYS_close as close;
    pub use libc::SYS_connect as connect;
    pub use libc::SYS_copy_file_range as copy_file_range;
    pub use libc::SYS_delete_module as delete_module;
    pub use libc::SYS_dup as dup;
    pub use libc::SYS_dup3 as dup3;
    pub use libc::SYS_epoll_create1 as epoll_create1;
    pub use libc::SYS_epoll_ctl as epoll_ctl;
    pub use libc::SYS_epoll_pwait as epoll_pwait;
    pub use libc::SYS_eventfd2 as eventfd2;
    pub use libc::SYS_execve as execve;
    pub use libc::SYS_execveat as execveat;
    pub use libc::SYS_exit as exit;
    pub use libc::SYS_exit_group as exit_group;
    pub use libc::SYS_faccessat as faccessat;
    pub use libc::SYS_fadvise64 as fadvise64;
    pub use libc::SYS_fallocate as fallocate;
    pub use libc::SYS_fanotify_init as fanotify_init;
    pub use libc::SYS_fanotify_mark as fanotify_mark;
    pub use libc::SYS_fchdir as fchdir;
    pub use libc::SYS_fchmod as fchmod;
    pub use libc::SYS_fchmodat as fchmodat;
    pub use libc::SYS_fchown as fchown;
    pub use libc::SYS_fchownat as fchownat;
    pub use libc::SYS_fcntl as fcntl;
    pub use libc::SYS_fdatasync as fdatasync;
    pub use libc::SYS_fgetxattr as fgetxattr;
    pub use libc::SYS_finit_module as finit_module;
    pub use libc::SYS_flistxattr as flistxattr;
    pub use libc::SYS_flock as flock;
    pub use libc::SYS_fremovexattr as fremovexattr;
    pub use libc::SYS_fsetxattr as fsetxattr;
    pub use libc::SYS_fstat as fstat;
    pub use libc::SYS_fstatfs as fstatfs;
    pub use libc::SYS_fsync as fsync;
    pub use libc::SYS_ftruncate as ftruncate;
    pub use libc::SYS_futex as futex;
    pub use libc::SYS_get_mempolicy as get_mempolicy;
    pub use libc::SYS_get_robust_list as get_robust_list;
    pub use libc::SYS_getcpu as getcpu;
    pub use libc::SYS_getcwd as getcwd;
    pub use libc::SYS_getdents64 as getdents64;
    pub use libc::SYS_getegid as getegid;
    pub use libc::SYS_geteuid as geteuid;
    pub use libc::SYS_getgid as getgid;
    pub use libc::SYS_getgroups as getgroups;
    pub use libc::SYS_getitimer as getitimer;
    pub use libc::SYS_getpeername as getpeername;
    pub use libc::SYS_getpgid as getpgid;
    pub use libc::SYS_getpid as getpid;
    pub use libc::SYS_getppid as getppid;
    pub use libc::SYS_getpriority as getpriority;
    pub use libc::SYS_getrandom as getrandom;
    pub use libc::SYS_getresgid as getresgid;
    pub use libc::SYS_getresuid as getresuid;
    pub use libc::SYS_getrlimit as getrlimit;
    pub use libc::SYS_getrusage as getrusage;
    pub use libc::SYS_getsid as getsid;
    pub use libc::SYS_getsockname as getsockname;
    pub use libc::SYS_getsockopt as getsockopt;
    pub use libc::SYS_gettid as gettid;
    pub use libc::SYS_gettimeofday as gettimeofday;
    pub use libc::SYS_getuid as getuid;
    pub use libc::SYS_getxattr as getxattr;
    pub use libc::SYS_init_module as init_module;
    pub use libc::SYS_inotify_add_watch as inotify_add_watch;
    pub use libc::SYS_inotify_init1 as inotify_init1;
    pub use libc::SYS_inotify_rm_watch as inotify_rm_watch;
    pub use libc::SYS_io_cancel as io_cancel;
    pub use libc::SYS_io_destroy as io_destroy;
    pub use libc::SYS_io_getevents as io_getevents;
    pub use libc::SYS_io_setup as io_setup;
    pub use libc::SYS_io_submit as io_submit;
    pub use libc::SYS_ioctl as ioctl;
    pub use libc::SYS_ioprio_get as ioprio_get;
    pub use libc::SYS_ioprio_set as ioprio_set;
    pub use libc::SYS_kcmp as kcmp;
    pub use libc::SYS_kexec_load as kexec_load;
    pub use libc::SYS_keyctl as keyctl;
    pub use libc::SYS_kill as kill;
    pub use libc::SYS_lgetxattr as lgetxattr;
    pub use libc::SYS_linkat as linkat;
    pub use libc::SYS_listen as listen;
    pub use libc::SYS_listxattr as listxattr;
    pub use libc::SYS_llistxattr as llistxattr;
    pub use libc::SYS_lookup_dcookie as lookup_dcookie;
    pub use libc::SYS_lremovexattr as lremovexattr;
    pub use libc::SYS_lseek as lseek;
    pub use libc::SYS_lsetxattr as lsetxattr;
    pub use libc::SYS_madvise as madvise;
    pub use libc::SYS_mbind as mbind;
    pub use libc::SYS_membarrier as membarrier;
    pub use libc::SYS_memfd_create as memfd_create;
    pub use libc::SYS_migrate_pages as migrate_pages;
    pub use libc::SYS_mincore as mincore;
    pub use libc::SYS_mkdirat as mkdirat;
    pub use libc::SYS_mknodat as mknodat;
    pub use libc::SYS_mlock as mlock;
    pub use libc::SYS_mlock2 as mlock2;
    pub use libc::SYS_mlockall as mlockall;
    pub use libc::SYS_mmap as mmap;
    pub use libc::SYS_mount as mount;
    pub use libc::SYS_move_pages as move_pages;
    pub use libc::SYS_mprotect as mprotect;
    pub use libc::SYS_mq_getsetattr as mq_getsetattr;
    pub use libc::SYS_mq_notify as mq_notify;
    pub use libc::SYS_mq_open as mq_open;
    pub use libc::SYS_mq_timedreceive as mq_timedreceive;
    pub use libc::SYS_mq_timedsend as mq_timedsend;
    pub use libc::SYS_mq_unlink as mq_unlink;
    pub use libc::SYS_mremap as mremap;
    pub use libc::SYS_msgctl as msgctl;
    pub use libc::SYS_msgget as msgget;
    pub use libc::SYS_msgrcv as msgrcv;
    pub use libc::SYS_msgsnd as msgsnd;
    pub use libc::SYS_msync as msync;
    pub use libc::SYS_munlock as munlock;
    pub use libc::SYS_munlockall as munlockall;
    pub use libc::SYS_munmap as munmap;
    pub use libc::SYS_name_to_handle_at as name_to_handle_at;
    pub use libc::SYS_nanosleep as nanosleep;
    pub use libc::SYS_newfstatat as newfstatat;
    pub use libc::SYS_open_by_handle_at as open_by_handle_at;
    pub use libc::SYS_openat as openat;
    pub use libc::SYS_perf_event_open as perf_event_open;
    pub use libc::SYS_personality as personality;
    pub use libc::SYS_pipe2 as pipe2;
    pub use libc::SYS_pivot_root as pivot_root;
    pub use libc::SYS_pkey_alloc as pkey_alloc;
    pub use libc::SYS_pkey_free as pkey_free;
    pub use libc::SYS_pkey_mprotect as pkey_mprotect;
    pub use libc::SYS_ppoll as ppoll;
    pub use libc::SYS_prctl as prctl;
    pub use libc::SYS_pread64 as pread64;
    pub use libc::SYS_preadv as preadv;
    pub use libc::SYS_preadv2 as preadv2;
    pub use libc::SYS_prlimit64 as prlimit64;
    pub use libc::SYS_process_vm_readv as process_vm_readv;
    pub use libc::SYS_process_vm_writev as process_vm_writev;
    pub use libc::SYS_pselect6 as pselect6;
    pub use libc::SYS_ptrace as ptrace;
    pub use libc::SYS_pwrite64 as pwrite64;
    pub use libc::SYS_pwritev as pwritev;
    pub use libc::SYS_pwritev2 as pwritev2;
    pub use libc::SYS_quotactl as quotactl;
    pub use libc::SYS_read as read;
    pub use libc::SYS_readahead as readahead;
    pub use libc::SYS_readlinkat as readlinkat;
    pub use libc::SYS_readv as readv;
    pub use libc::SYS_reboot as reboot;
    pub use libc::SYS_recvfrom as recvfrom;
    pub use libc::SYS_recvmmsg as recvmmsg;
    pub use libc::SYS_recvmsg as recvmsg;
    pub use libc::SYS_remap_file_pages as remap_file_pages;
    pub use libc::SYS_removexattr as removexattr;
    pub use libc::SYS_renameat as renameat;
    pub use libc::SYS_renameat2 as renameat2;
    pub use libc::SYS_request_key as request_key;
    pub use libc::SYS_restart_syscall as restart_syscall;
    pub use libc::SYS_rseq as rseq;
    pub use libc::SYS_rt_sigaction as rt_sigaction;
    pub use libc::SYS_rt_sigpending as rt_sigpending;
    pub use libc::SYS_rt_sigprocmask as rt_sigprocmask;
    pub use libc::SYS_rt_sigqueueinfo as rt_sigqueueinfo;
    pub use libc::SYS_rt_sigreturn as rt_sigreturn;
    pub use libc::SYS_rt_sigsuspend as rt_sigsuspend;
    pub use libc::SYS_rt_sigtimedwait as rt_sigtimedwait;
    pub use libc::SYS_rt_tgsigqueueinfo as rt_tgsigqueueinfo;
    pub use libc::SYS_sched_get_priority_max as sched_get_priority_max;
    pub use libc::SYS_sched_get_priority_min as sched_get_priority_min;
    pub use libc::SYS_sched_getaffinity as sched_getaffinity;
    pub use libc::SYS_sched_getattr as sched_getattr;
    pub use libc::SYS_sched_getparam as sched_getparam;
    pub use libc::SYS_sched_getscheduler as sched_getscheduler;
    pub use libc::SYS_sched_rr_get_interval as sched_rr_get_interval;
    pub use libc::SYS_sched_setaffinity as sched_setaffinity;
    pub use libc::SYS_sched_setattr as sched_setattr;
    pub use libc::SYS_sched_setparam as sched_setparam;
    pub use libc::SYS_sched_setscheduler as sched_setscheduler;
    pub use libc::SYS_sched_yield as sched_yield;
    pub use libc::SYS_seccomp as seccomp;
    pub use libc::SYS_semctl as semctl;
    pub use libc::SYS_semget as semget;
    pub use libc::SYS_semop as semop;
    pub use libc::SYS_semtimedop as semtimedop;
    pub use libc::SYS_sendfile as sendfile;
    pub use libc::SYS_sendmmsg as sendmmsg;
    pub use libc::SYS_sendmsg as sendmsg;
    pub use libc::SYS_sendto as sendto;
    pub use libc::SYS_set_mempolicy as set_mempolicy;
    pub use libc::SYS_set_robust_list as set_robust_list;
    pub use libc::SYS_set_tid_address as set_tid_address;
    pub use libc::SYS_setdomainname as setdomainname;
    pub use libc::SYS_setfsgid as setfsgid;
    pub use libc::SYS_setfsuid as setfsuid;
    pub use libc::SYS_setgid as setgid;
    pub use libc::SYS_setgroups as setgroups;
    pub use libc::SYS_sethostname as sethostname;
    pub use libc::SYS_setitimer as setitimer;
    pub use libc::SYS_setns as setns;
    pub use libc::SYS_setpgid as setpgid;
    pub use libc::SYS_setpriority as setpriority;
    pub use libc::SYS_setregid as setregid;
    pub use libc::SYS_setresgid as setresgid;
    pub use libc::SYS_setresuid as setresuid;
    pub use libc::SYS_setreuid as setreuid;
    pub use libc::SYS_setrlimit as setrlimit;
    pub use libc::SYS_setsid as setsid;
    pub use libc::SYS_setsockopt as setsockopt;
    pub use libc::SYS_settimeofday as settimeofday;
    pub use libc::SYS_setuid as setuid;
    pub use libc::SYS_setxattr as setxattr;
    pub use libc::SYS_shmat as shmat;
    pub use libc::SYS_shmctl as shmctl;
    pub use libc::SYS_shmdt as shmdt;
    pub use libc::SYS_shmget as shmget;
    pub use libc::SYS_shutdown as shutdown;
    pub use libc::SYS_sigaltstack as sigaltstack;
    pub use libc::SYS_signalfd4 as signalfd4;
    pub use libc::SYS_socket as socket;
    pub use libc::SYS_socketpair as socketpair;
    pub use libc::SYS_splice as splice;
    pub use libc::SYS_statfs as statfs;
    pub use libc::SYS_statx as statx;
    pub use libc::SYS_swapoff as swapoff;
    pub use libc::SYS_swapon as swapon;
    pub use libc::SYS_symlinkat as symlinkat;
    pub use libc::SYS_sync as sync;
    pub use libc::SYS_sync_file_range as sync_file_range;
    pub use libc::SYS_syncfs as syncfs;
    pub use libc::SYS_sysinfo as sysinfo;
    pub use libc::SYS_syslog as syslog;
    pub use libc::SYS_tee as tee;
    pub use libc::SYS_tgkill as tgkill;
    pub use libc::SYS_timer_create as timer_create;
    pub use libc::SYS_timer_delete as timer_delete;
    pub use libc::SYS_timer_getoverrun as timer_getoverrun;
    pub use libc::SYS_timer_gettime as timer_gettime;
    pub use libc::SYS_timer_settime as timer_settime;
    pub use libc::SYS_timerfd_create as timerfd_create;
    pub use libc::SYS_timerfd_gettime as timerfd_gettime;
    pub use libc::SYS_timerfd_settime as timerfd_settime;
    pub use libc::SYS_times as times;
    pub use libc::SYS_tkill as tkill;
    pub use libc::SYS_truncate as truncate;
    pub use libc::SYS_umask as umask;
    pub use libc::SYS_umount2 as umount2;
    pub use libc::SYS_uname as uname;
    pub use libc::SYS_unlinkat as unlinkat;
    pub use libc::SYS_unshare as unshare;
    pub use libc::SYS_userfaultfd as userfaultfd;
    pub use libc::SYS_utimensat as utimensat;
    pub use libc::SYS_vhangup as vhangup;
    pub use libc::SYS_vmsplice as vmsplice;
    pub use libc::SYS_wait4 as wait4;
    pub use libc::SYS_waitid as waitid;
    pub use libc::SYS_write as write;
    pub use libc::SYS_writev as writev;
    #[cfg(target_arch = "x86_64")]
    pub use x86::*;
    #[cfg(target_arch = "x86_64")]
    mod x86 {
        pub use libc::SYS__sysctl as _sysctl;
        pub use libc::SYS_access as access;
        pub use libc::SYS_alarm as alarm;
        pub use libc::SYS_arch_prctl as arch_prctl;
        pub use libc::SYS_chmod as chmod;
        pub use libc::SYS_chown as chown;
        pub use libc::SYS_creat as creat;
        pub use libc::SYS_dup2 as dup2;
        pub use libc::SYS_epoll_create as epoll_create;
        pub use libc::SYS_epoll_ctl_old as epoll_ctl_old;
        pub use libc::SYS_epoll_wait as epoll_wait;
        pub use libc::SYS_epoll_wait_old as epoll_wait_old;
        pub use libc::SYS_eventfd as eventfd;
        pub use libc::SYS_fork as fork;
        pub use libc::SYS_futimesat as futimesat;
        pub use libc::SYS_get_thread_area as get_thread_area;
        pub use libc::SYS_getdents as getdents;
        pub use libc::SYS_getpgrp as getpgrp;
        pub use libc::SYS_inotify_init as inotify_init;
        pub use libc::SYS_ioperm as ioperm;
        pub use libc::SYS_iopl as iopl;
        pub use libc::SYS_lchown as lchown;
        pub use libc::SYS_link as link;
        pub use libc::SYS_lstat as lstat;
        pub use libc::SYS_mkdir as mkdir;
        pub use libc::SYS_mknod as mknod;
        pub use libc::SYS_modify_ldt as modify_ldt;
        pub use libc::SYS_open as open;
        pub use libc::SYS_pause as pause;
        pub use libc::SYS_pipe as pipe;
        pub use libc::SYS_poll as poll;
        pub use libc::SYS_readlink as readlink;
        pub use libc::SYS_rename as rename;
        pub use libc::SYS_rmdir as rmdir;
        pub use libc::SYS_select as select;
        pub use libc::SYS_set_thread_area as set_thread_area;
        pub use libc::SYS_signalfd as signalfd;
        pub use libc::SYS_stat as stat;
        pub use libc::SYS_symlink as symlink;
        pub use libc::SYS_sysfs as sysfs;
        pub use libc::SYS_time as time;
        pub use libc::SYS_unlink as unlink;
        pub use libc::SYS_uselib as uselib;
        pub use libc::SYS_ustat as ustat;
        pub use libc::SYS_utime as utime;
        pub use libc::SYS_utimes as utimes;
        pub use libc::SYS_vfork as vfork;
    }
}

#[rustfmt::skip]
const COMMON: &[(&str, u32)] = named![
    accept, accept4, acct, adjtimex, bind, bpf, brk, capget, capset, chdir, chroot, clock_adjtime,
    clock_getres, clock_gettime, clock_nanosleep, clock_settime, clone, close, connect,
    copy_file_range, delete_module, dup, dup3, epoll_create1, epoll_ctl, epoll_pwait, eventfd2,
    execve, execveat, exit, exit_group, faccessat, fadvise64, fallocate, fanotify_init,
    fanotify_mark, fchdir, fchmod, fchmodat, fchown, fchownat, fcntl, fdatasync, fgetxattr,
    finit_module, flistxattr, flock, fremovexattr, fsetxattr, fstat, fstatfs, fsync, ftruncate,
    futex, getcpu, getcwd, getdents64, getegid, geteuid, getgid, getgroups, getitimer,
    getpeername, getpgid, getpid, getppid, getpriority, getrandom, getresgid, getresuid,
    getrlimit, get_mempolicy, get_robust_list, getrusage, getsid, getsockname, getsockopt, gettid,
    gettimeofday, getuid, getxattr, init_module, inotify_add_watch, inotify_init1,
    inotify_rm_watch, io_cancel, io_destroy, io_getevents, io_setup, io_submit, ioctl, ioprio_get,
    ioprio_set, kcmp, kexec_load, keyctl, add_key, request_key, kill, lgetxattr, linkat, listen,
    listxattr, llistxattr, lookup_dcookie, lremovexattr, lseek, lsetxattr, madvise, mbind,
    membarrier, memfd_create, migrate_pages, mincore, mkdirat, mknodat, mlock, mlock2, mlockall,
    mmap, mount, move_pages, mprotect, mq_getsetattr, mq_notify, mq_open, mq_timedreceive,
    mq_timedsend, mq_unlink, mremap, msgctl, msgget, msgrcv, msgsnd, msync, munlock, munlockall,
    munmap, name_to_handle_at, nanosleep, open_by_handle_at, openat, perf_event_open, personality,
    pipe2, pivot_root, pkey_alloc, pkey_free, pkey_mprotect, ppoll, prctl, pread64, preadv,
    preadv2, prlimit64, process_vm_readv, process_vm_writev, pselect6, ptrace, pwrite64, pwritev,
    pwritev2, quotactl, read, readahead, readlinkat, readv, reboot, recvfrom, recvmmsg, recvmsg,
    remap_file_pages, removexattr, renameat, renameat2, restart_syscall, rseq, rt_sigaction,
    rt_sigpending, rt_sigprocmask, rt_sigqueueinfo, rt_sigreturn, rt_sigsuspend, rt_sigtimedwait,
    rt_tgsigqueueinfo, sched_get_priority_max, sched_get_priority_min, sched_getaffinity,
    sched_getattr, sched_getparam, sched_getscheduler, sched_rr_get_interval, sched_setaffinity,
    sched_setattr, sched_setparam, sched_setscheduler, sched_yield, seccomp, semctl, semget,
    semop, semtimedop, sendfile, sendmmsg, sendmsg, sendto, set_mempolicy, set_robust_list,
    set_tid_address, setdomainname, setfsgid, setfsuid, setgid, setgroups, sethostname, setitimer,
    setns, setpgid, setpriority, setregid, setresgid, setresuid, setreuid, setrlimit, setsid,
    setsockopt, settimeofday, setuid, setxattr, shmat, shmctl, shmdt, shmget, shutdown,
    sigaltstack, signalfd4, socket, socketpair, splice, statfs, statx, swapoff, swapon, symlinkat,
    sync, sync_file_range, syncfs, sysinfo, syslog, tee, tgkill, timer_create, timer_delete,
    timer_getoverrun, timer_gettime, timer_settime, timerfd_create, timerfd_gettime,
    timerfd_settime, times, tkill, truncate, umask, umount2, uname, unlinkat, unshare,
    userfaultfd, utimensat, vhangup, vmsplice, wait4, waitid, write, writev, newfstatat,
];

/// Known to the kernel and not to the library of bindings.
#[cfg(target_arch = "x86_64")]
const UNBOUND: &[(&str, u32)] = &[("io_pgetevents", 333)];
#[cfg(not(target_arch = "x86_64"))]
const UNBOUND: &[(&str, u32)] = &[("io_pgetevents", 292)];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const LEGACY: &[(&str, u32)] = named![
    access, alarm, arch_prctl, chmod, chown, creat, dup2, epoll_create, epoll_ctl_old, epoll_wait,
    epoll_wait_old, eventfd, fork, futimesat, get_thread_area, getdents, getpgrp, inotify_init,
    ioperm, iopl, lchown, link, lstat, mkdir, mknod, modify_ldt, open, pause, pipe, poll,
    readlink, rename, rmdir, select, set_thread_area, signalfd, stat, symlink, sysfs, time,
    unlink, ustat, utime, utimes, vfork, _sysctl, uselib,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[(&str, u32)] = &[];

/// Since Linux 5.1 a new call has the same number everywhere.
#[rustfmt::skip]
const SHARED: &[(&str, u32)] = &[
    ("pidfd_send_signal", 424),
    ("io_uring_setup", 425),
    ("io_uring_enter", 426),
    ("io_uring_register", 427),
    ("open_tree", 428),
    ("move_mount", 429),
    ("fsopen", 430),
    ("fsconfig", 431),
    ("fsmount", 432),
    ("fspick", 433),
    ("pidfd_open", 434),
    ("clone3", 435),
    ("close_range", 436),
    ("openat2", 437),
    ("pidfd_getfd", 438),
    ("faccessat2", 439),
    ("process_madvise", 440),
    ("epoll_pwait2", 441),
    ("mount_setattr", 442),
    ("quotactl_fd", 443),
    ("landlock_create_ruleset", 444),
    ("landlock_add_rule", 445),
    ("landlock_restrict_self", 446),
    ("memfd_secret", 447),
    ("process_mrelease", 448),
    ("futex_waitv", 449),
    ("set_mempolicy_home_node", 450),
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
];

/// The number of a system call.
pub fn number(name: &str) -> Option<u32> {
    [COMMON, LEGACY, UNBOUND, SHARED]
        .into_iter()
        .flatten()
        .find(|(n, _)| *n == name)
        .map(|(_, nr)| *nr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_has_two_names() {
        let mut all: Vec<u32> =
            [COMMON, LEGACY, UNBOUND, SHARED].into_iter().flatten().map(|(_, nr)| *nr).collect();
        let before = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), before);
    }
}
