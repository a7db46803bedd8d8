//! The device filter of cgroup v2: a small eBPF program per cgroup.
//!
//! On v1 the same rules are lines in `devices.allow`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use crate::{check, own};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    Character,
    Block,
}

/// One thing that a container may do; what no rule allows is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    pub kind: DeviceKind,
    /// None is every one.
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl DeviceRule {
    /// The line for `devices.allow`.
    pub fn line(&self) -> String {
        let number = |n: Option<u32>| n.map_or("*".to_string(), |n| n.to_string());
        let kind = match self.kind {
            DeviceKind::Character => 'c',
            DeviceKind::Block => 'b',
        };
        let mut access = String::new();
        for (on, letter) in [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')] {
            if on {
                access.push(letter);
            }
        }
        format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// code, destination | source << 4, offset, immediate: as in the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: dst | src << 4, offset, immediate }
}

const LOAD_WORD: u8 = 0x61;
const MOVE_IMM: u8 = 0xb7;
const MOVE32_REG: u8 = 0xbc;
const AND32_IMM: u8 = 0x54;
const SHIFT_RIGHT32_IMM: u8 = 0x74;
const JUMP_NOT_EQUAL_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

/// R2 is the kind, R3 the access, R4 the major and R5 the minor number.
fn assemble(rules: &[DeviceRule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE32_REG, 3, 2, 0, 0),
        op(AND32_IMM, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT32_IMM, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        let granted =
            i32::from(rule.mknod) | i32::from(rule.read) << 1 | i32::from(rule.write) << 2;
        // Each block ends by allowing; every test jumps over the rest of the block.
        let mut block = vec![
            op(JUMP_NOT_EQUAL_IMM, 2, 0, 0, kind),
            op(MOVE32_REG, 1, 3, 0, 0),
            op(AND32_IMM, 1, 0, 0, !granted & 7),
            op(JUMP_NOT_EQUAL_IMM, 1, 0, 0, 0),
        ];
        if let Some(major) = rule.major {
            block.push(op(JUMP_NOT_EQUAL_IMM, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            block.push(op(JUMP_NOT_EQUAL_IMM, 5, 0, 0, minor as i32));
        }
        block.push(op(MOVE_IMM, 0, 0, 0, 1));
        block.push(op(EXIT, 0, 0, 0, 0));
        let length = block.len();
        for (i, instruction) in block.iter_mut().enumerate() {
            if instruction.code == JUMP_NOT_EQUAL_IMM {
                instruction.offset = (length - i - 1) as i16;
            }
        }
        program.extend(block);
    }
    program.push(op(MOVE_IMM, 0, 0, 0, 0));
    program.push(op(EXIT, 0, 0, 0, 0));
    program
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROGRAM_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// Lets processes of the cgroup use only what the rules name. The filter stays until the
/// cgroup goes.
pub fn restrict_devices(cgroup: BorrowedFd<'_>, rules: &[DeviceRule]) -> io::Result<()> {
    let program = load(rules)?;
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure is ours and as long as we say.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_ATTACH,
            &raw const attributes,
            size_of::<AttachAttributes>(),
        )
    })
    .map(drop)
}

fn load(rules: &[DeviceRule]) -> io::Result<OwnedFd> {
    let program = assemble(rules);
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        kind: PROGRAM_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the structure points to buffers that live until the call returns.
    own(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_the_filter() {
        let null = DeviceRule {
            kind: DeviceKind::Character,
            major: Some(1),
            minor: Some(3),
            read: true,
            write: true,
            mknod: false,
        };
        let any = DeviceRule { major: None, minor: None, mknod: true, ..null };
        load(&[null, any]).unwrap();
        assert_eq!(null.line(), "c 1:3 rw");
        assert_eq!(any.line(), "c *:* rwm");
    }
}
