//! Seccomp: profiles as data, and our own assembler from them to classic BPF.
//!
//! Reads no profile files; the runtime parses them and hands the rules in. Calls of
//! another architecture than ours (32-bit programs) are answered with ENOSYS.

use std::collections::BTreeMap;
use std::io;

use crate::caps::Set;
use crate::{check, syscalls};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Errno(u16),
    KillProcess,
    KillThread,
    Trap,
    Log,
    Trace(u16),
}

impl Action {
    fn value(self) -> u32 {
        match self {
            Self::KillProcess => 0x8000_0000,
            Self::KillThread => 0,
            Self::Trap => 0x0003_0000,
            Self::Errno(n) => 0x0005_0000 | u32::from(n),
            Self::Trace(n) => 0x7ff0_0000 | u32::from(n),
            Self::Log => 0x7ffc_0000,
            Self::Allow => 0x7fff_0000,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// `argument & mask == value`
    Masked(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0..=5
    pub argument: u8,
    pub compare: Compare,
    pub value: u64,
}

/// All conditions must hold. Of several rules for one call the first that holds wins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub default: Action,
    pub rules: Vec<Rule>,
}

/// One instruction of classic BPF, as the kernel wants it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

/// The kernel's bound (BPF_MAXINSNS).
pub const INSTRUCTIONS_MAX: usize = 4_096;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;
#[cfg(target_arch = "riscv64")]
const ARCHITECTURE: u32 = 0xc000_00f3;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;

const fn op(code: u16, jump_true: u8, jump_false: u8, operand: u32) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

/// Calls from `first` on (up to the next block's first) run `code`.
#[derive(Clone)]
struct Block {
    first: u32,
    code: Vec<Instruction>,
}

/// Turns a profile into a program. An error when it gets too long for the kernel.
pub fn assemble(profile: &Profile) -> io::Result<Vec<Instruction>> {
    let mut by_number: BTreeMap<u32, Vec<&Rule>> = BTreeMap::new();
    for rule in &profile.rules {
        for number in rule.names.iter().filter_map(|n| syscalls::number(n)) {
            by_number.entry(number).or_default().push(rule);
        }
    }
    let fallback = vec![op(RETURN, 0, 0, profile.default.value())];
    let mut blocks = vec![Block { first: 0, code: fallback.clone() }];
    let mut push = |first: u32, code: Vec<Instruction>| {
        let last = blocks.last_mut().expect("the list starts with one block");
        if last.first == first {
            last.code = code;
        } else if last.code != code {
            blocks.push(Block { first, code });
        }
    };
    for (number, rules) in by_number {
        push(number, call_code(&rules, profile.default)?);
        push(number + 1, fallback.clone());
    }
    let mut program = vec![
        op(LOAD, 0, 0, OFFSET_ARCHITECTURE),
        op(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        op(RETURN, 0, 0, Action::Errno(libc::ENOSYS as u16).value()),
        op(LOAD, 0, 0, OFFSET_NUMBER),
    ];
    // The x32 ABI of x86-64 marks its numbers with this bit.
    program.push(op(JUMP_GREATER_EQUAL, 0, 1, 0x4000_0000));
    program.push(op(RETURN, 0, 0, Action::Errno(libc::ENOSYS as u16).value()));
    program.extend(search(&blocks));
    if program.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("seccomp profile needs {} instructions, {INSTRUCTIONS_MAX} fit", program.len()),
        ));
    }
    Ok(program)
}

/// A binary search over the blocks; every path ends in a return.
fn search(blocks: &[Block]) -> Vec<Instruction> {
    if let [only] = blocks {
        return only.code.clone();
    }
    let (left, right) = blocks.split_at(blocks.len() / 2);
    let below = search(left);
    let mut code =
        vec![op(JUMP_GREATER_EQUAL, 0, 1, right[0].first), op(JUMP, 0, 0, below.len() as u32)];
    code.extend(below);
    code.extend(search(right));
    code
}

fn call_code(rules: &[&Rule], default: Action) -> io::Result<Vec<Instruction>> {
    let mut code = Vec::new();
    for rule in rules {
        if rule.conditions.is_empty() {
            code.push(op(RETURN, 0, 0, rule.action.value()));
            return Ok(code);
        }
        code.extend(conditional(rule)?);
    }
    code.push(op(RETURN, 0, 0, default.value()));
    Ok(code)
}

/// Where a test leads to; resolved once the rule's length is known.
enum Goal {
    Next,
    Fail,
    /// Past the present condition.
    Hold(usize),
}

fn conditional(rule: &Rule) -> io::Result<Vec<Instruction>> {
    let mut parts: Vec<(u16, u32, Goal, Goal)> = Vec::new();
    for condition in &rule.conditions {
        if condition.argument > 5 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("system calls have no argument {}", condition.argument),
            ));
        }
        let low = OFFSET_ARGUMENTS + 8 * u32::from(condition.argument);
        let high = low + 4;
        let (value_high, value_low) = ((condition.value >> 32) as u32, condition.value as u32);
        let start = parts.len();
        let load = |at: u32| (LOAD, at, Goal::Next, Goal::Next);
        match condition.compare {
            Compare::Equal => {
                parts.push(load(high));
                parts.push((JUMP_EQUAL, value_high, Goal::Next, Goal::Fail));
                parts.push(load(low));
                parts.push((JUMP_EQUAL, value_low, Goal::Next, Goal::Fail));
            }
            Compare::NotEqual => {
                parts.push(load(high));
                parts.push((JUMP_EQUAL, value_high, Goal::Next, Goal::Hold(start + 4)));
                parts.push(load(low));
                parts.push((JUMP_EQUAL, value_low, Goal::Fail, Goal::Next));
            }
            Compare::Masked(mask) => {
                parts.push(load(high));
                parts.push((AND, (mask >> 32) as u32, Goal::Next, Goal::Next));
                parts.push((JUMP_EQUAL, value_high, Goal::Next, Goal::Fail));
                parts.push(load(low));
                parts.push((AND, mask as u32, Goal::Next, Goal::Next));
                parts.push((JUMP_EQUAL, value_low, Goal::Next, Goal::Fail));
            }
            Compare::Greater | Compare::GreaterOrEqual => {
                let test = if condition.compare == Compare::Greater {
                    JUMP_GREATER
                } else {
                    JUMP_GREATER_EQUAL
                };
                parts.push(load(high));
                parts.push((JUMP_GREATER, value_high, Goal::Hold(start + 5), Goal::Next));
                parts.push((JUMP_EQUAL, value_high, Goal::Next, Goal::Fail));
                parts.push(load(low));
                parts.push((test, value_low, Goal::Next, Goal::Fail));
            }
            Compare::Less | Compare::LessOrEqual => {
                let test = if condition.compare == Compare::Less {
                    JUMP_GREATER_EQUAL
                } else {
                    JUMP_GREATER
                };
                parts.push(load(high));
                parts.push((JUMP_GREATER, value_high, Goal::Fail, Goal::Next));
                parts.push((JUMP_EQUAL, value_high, Goal::Next, Goal::Hold(start + 5)));
                parts.push(load(low));
                parts.push((test, value_low, Goal::Fail, Goal::Next));
            }
        }
    }
    // One return after the tests; failing jumps behind it. The next rule loads anew.
    let fail = parts.len() + 1;
    let mut code = Vec::with_capacity(fail);
    for (at, (opcode, operand, yes, no)) in parts.iter().enumerate() {
        let jump = |goal: &Goal| -> io::Result<u8> {
            let target = match goal {
                Goal::Next => at + 1,
                Goal::Fail => fail,
                Goal::Hold(position) => *position,
            };
            u8::try_from(target - at - 1).map_err(|_| {
                io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a seccomp rule has too many conditions",
                )
            })
        };
        code.push(op(*opcode, jump(yes)?, jump(no)?, *operand));
    }
    code.push(op(RETURN, 0, 0, rule.action.value()));
    Ok(code)
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Filters this process and its children from now on. Needs CAP_SYS_ADMIN or
/// no_new_privs.
pub fn load(program: &[Instruction]) -> io::Result<()> {
    if program.is_empty() || program.len() > INSTRUCTIONS_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let program = Program { length: program.len() as u16, instructions: program.as_ptr() };
    // SAFETY: SECCOMP_SET_MODE_FILTER takes a program that lives until the call returns.
    check(unsafe { libc::syscall(libc::SYS_seccomp, 1, 0, &raw const program) }).map(drop)
}

/// Calls that every container may make.
const ALLOWED: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown
clock_adjtime clock_getres clock_gettime clock_nanosleep close close_range connect
copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat
fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr
fsetxattr fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv
futex_wake futimesat getcpu getcwd getdents getdents64 getegid geteuid getgid getgroups
getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt
get_thread_area gettid gettimeofday getuid getxattr getxattrat inotify_add_watch
inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents
io_pgetevents ioprio_get ioprio_set io_setup io_submit kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen
listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise
map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat
mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive
mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
munmap name_to_handle_at nanosleep newfstatat open openat openat2 pause pidfd_open
pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64
preadv preadv2 prlimit64 process_mrelease pselect6 ptrace process_vm_readv
process_vm_writev pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv
recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat
renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
sched_getaffinity sched_getattr sched_getparam sched_get_priority_max
sched_get_priority_min sched_getscheduler sched_rr_get_interval sched_setaffinity
sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget
semop semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups
setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit
set_robust_list setsid setsockopt set_thread_area set_tid_address setuid setxattr
setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair
splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo
tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
timerfd_create timerfd_gettime timerfd_settime times tkill truncate umask uname unlink
unlinkat utime utimensat utimes vfork vmsplice wait4 waitid write writev arch_prctl
modify_ldt sync_file_range2 arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush
set_tls riscv_flush_icache";

/// Calls that come with a capability.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree \
         perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "iopl ioperm"),
    ("SYS_TIME", "settimeofday clock_settime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
];

/// Flags of clone that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile that a container has when nobody asks for another, which depends on its
/// capabilities: what other runtimes of containers allow, and EPERM for the rest.
pub fn runtime_default(capabilities: Set) -> Profile {
    let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let allow = |names: &str, conditions: Vec<Condition>| Rule {
        names: words(names),
        action: Action::Allow,
        conditions,
    };
    let when = |compare, value| vec![Condition { argument: 0, compare, value }];
    let mut rules = vec![allow(ALLOWED, Vec::new())];
    for value in PERSONALITIES {
        rules.push(allow("personality", when(Compare::Equal, value)));
    }
    rules.push(allow("socket", when(Compare::Less, AF_ALG)));
    rules.push(allow("socket", when(Compare::Equal, AF_ALG + 1)));
    rules.push(allow("socket", when(Compare::Greater, AF_VSOCK)));
    for (capability, names) in BY_CAPABILITY {
        if capabilities.has_name(capability) {
            rules.push(allow(names, Vec::new()));
        }
    }
    if capabilities.has_name("PERFMON") {
        rules.push(allow("perf_event_open", Vec::new()));
    }
    if !capabilities.has_name("SYS_ADMIN") {
        rules.push(allow("clone", when(Compare::Masked(NAMESPACE_FLAGS), 0)));
        // Its flags lie in memory that a filter cannot read; the C library then uses clone.
        rules.push(Rule {
            names: words("clone3"),
            action: Action::Errno(libc::ENOSYS as u16),
            conditions: Vec::new(),
        });
    }
    Profile { default: Action::Errno(libc::EPERM as u16), rules }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    fn run(program: &[Instruction], number: u32, arguments: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            OFFSET_NUMBER => number,
            OFFSET_ARCHITECTURE => ARCHITECTURE,
            _ => {
                let at = offset - OFFSET_ARGUMENTS;
                let argument = arguments[(at / 8) as usize];
                if at.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        };
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let i = program[at];
            let mut take = |yes: bool| {
                at += 1 + usize::from(if yes { i.jump_true } else { i.jump_false });
            };
            match i.code {
                LOAD => {
                    accumulator = word(i.operand);
                    at += 1;
                }
                AND => {
                    accumulator &= i.operand;
                    at += 1;
                }
                JUMP => at += 1 + i.operand as usize,
                JUMP_EQUAL => take(accumulator == i.operand),
                JUMP_GREATER => take(accumulator > i.operand),
                JUMP_GREATER_EQUAL => take(accumulator >= i.operand),
                RETURN => return i.operand,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn nr(name: &str) -> u32 {
        syscalls::number(name).unwrap()
    }

    #[test]
    fn the_default_profile_answers_as_others_do() {
        let allow = Action::Allow.value();
        let refuse = Action::Errno(libc::EPERM as u16).value();
        let plain = assemble(&runtime_default(Set::container_default())).unwrap();
        let admin = assemble(&runtime_default(Set::container_default().with(21))).unwrap();
        let one = |v: u64| [v, 0, 0, 0, 0, 0];
        for (name, arguments, wanted) in [
            ("read", one(0), allow),
            ("futex_waitv", one(0), allow),
            ("mount", one(0), refuse),
            ("unshare", one(0), refuse),
            ("keyctl", one(0), refuse),
            ("io_uring_setup", one(0), refuse),
            ("chroot", one(0), allow),
            ("reboot", one(0), refuse),
            ("clone", one(17), allow),
            ("clone", one(0x1000_0000), refuse),
            ("clone3", one(0), Action::Errno(libc::ENOSYS as u16).value()),
            ("socket", one(2), allow),
            ("socket", one(38), refuse),
            ("socket", one(40), refuse),
            ("socket", one(1 << 40), allow),
            ("personality", one(8), allow),
            ("personality", one(9), refuse),
        ] {
            assert_eq!(run(&plain, nr(name), arguments), wanted, "{name} {arguments:?}");
        }
        assert_eq!(run(&admin, nr("mount"), one(0)), allow);
        assert_eq!(run(&admin, nr("clone3"), one(0)), allow);
        assert_eq!(run(&plain, 100_000, one(0)), refuse);
        assert_eq!(run(&plain, 0x4000_0000, one(0)), Action::Errno(38).value());
    }

    #[test]
    fn comparisons_see_all_64_bits() {
        let cases: [(Compare, u64, u64, bool); 12] = [
            (Compare::Equal, 1 << 32, 1 << 32, true),
            (Compare::Equal, 1 << 32, 0, false),
            (Compare::NotEqual, 5, 5, false),
            (Compare::NotEqual, 5, 5 | 1 << 33, true),
            (Compare::Less, 1 << 33, 1 << 32, true),
            (Compare::Less, 7, 7, false),
            (Compare::LessOrEqual, 7, 7, true),
            (Compare::LessOrEqual, 7, 1 << 40, false),
            (Compare::Greater, 7, 1 << 40, true),
            (Compare::Greater, 7, 7, false),
            (Compare::GreaterOrEqual, 7, 7, true),
            (Compare::Masked(0xff00), 0x1200, 0x12ff, true),
        ];
        for (compare, value, argument, holds) in cases {
            let profile = Profile {
                default: Action::Allow,
                rules: vec![Rule {
                    names: vec!["read".into()],
                    action: Action::KillProcess,
                    conditions: vec![Condition { argument: 5, compare, value }],
                }],
            };
            let program = assemble(&profile).unwrap();
            let got = run(&program, nr("read"), [0, 0, 0, 0, 0, argument]);
            let wanted = if holds { Action::KillProcess } else { Action::Allow };
            assert_eq!(got, wanted.value(), "{compare:?} {value:#x} {argument:#x}");
        }
    }
}
