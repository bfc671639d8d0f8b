// SPDX-License-Identifier: GPL-2.0

//! The declarations of QEMU's header, as far as they are used.

use std::ffi::{c_char, c_int, c_uint, c_void};

pub type Id = u64;

macro_rules! opaque {
    ($($name:ident)*) => {
        $(
            #[repr(C)]
            pub struct $name {
                _opaque: [u8; 0],
            }
        )*
    };
}

opaque!(Score Tb Insn Handle HwAddr);

/// The handle of a scoreboard: a number for each CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PerCpu {
    pub score: *mut Score,
    pub offset: usize,
}

#[repr(C)]
pub struct RegisterDescription {
    pub handle: *mut Handle,
    pub name: *const c_char,
    pub feature: *const c_char,
}

/// The public part of GLib's `GArray` and `GByteArray`.
#[repr(C)]
pub struct Array<T> {
    pub data: *mut T,
    pub len: c_uint,
}

/// The description of QEMU that a plugin gets when it is loaded; QEMU's struct has more fields.
#[repr(C)]
pub struct Info {
    pub(super) target: *const c_char,
    pub(super) min: c_int,
    pub(super) current: c_int,
    pub(super) system_emulation: bool,
    pub(super) cpus: c_int,
}

pub type CpuCallback = extern "C" fn(Id, c_uint);
pub type SimpleCallback = extern "C" fn(Id);
pub type EndCallback = extern "C" fn(Id, *mut c_void);
pub type TranslateCallback = extern "C" fn(Id, *mut Tb);
pub type ExecuteCallback = extern "C" fn(c_uint, *mut c_void);
pub type MemoryCallback = extern "C" fn(c_uint, c_uint, u64, *mut c_void);

/// The callback needs no registers (`QEMU_PLUGIN_CB_NO_REGS`).
pub const NO_REGISTERS: c_int = 0;
/// The callback reads registers (`QEMU_PLUGIN_CB_R_REGS`).
pub const READS_REGISTERS: c_int = 1;
/// The callback runs unless the number is the one given (`QEMU_PLUGIN_COND_NE`).
pub const UNLESS_EQUAL: c_int = 3;
/// The callback is for stores (`QEMU_PLUGIN_MEM_W`).
pub const STORES: c_int = 2;
/// The callback is for loads and stores (`QEMU_PLUGIN_MEM_RW`).
pub const LOADS_AND_STORES: c_int = 3;

unsafe extern "C" {
    pub fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: CpuCallback);
    pub fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: TranslateCallback);
    pub fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        tb: *mut Tb,
        callback: ExecuteCallback,
        flags: c_int,
        condition: c_int,
        entry: PerCpu,
        immediate: u64,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        callback: ExecuteCallback,
        flags: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut Insn,
        callback: MemoryCallback,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    pub fn qemu_plugin_register_atexit_cb(id: Id, callback: EndCallback, data: *mut c_void);
    pub fn qemu_plugin_reset(id: Id, callback: SimpleCallback);
    pub fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    pub fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    pub fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    pub fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, len: usize) -> usize;
    pub fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    pub fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    pub fn qemu_plugin_mem_size_shift(info: c_uint) -> c_uint;
    pub fn qemu_plugin_mem_is_store(info: c_uint) -> bool;
    pub fn qemu_plugin_get_hwaddr(info: c_uint, address: u64) -> *mut HwAddr;
    pub fn qemu_plugin_hwaddr_is_io(address: *const HwAddr) -> bool;
    pub fn qemu_plugin_hwaddr_phys_addr(address: *const HwAddr) -> u64;
    pub fn qemu_plugin_scoreboard_new(size: usize) -> *mut Score;
    pub fn qemu_plugin_u64_set(entry: PerCpu, cpu: c_uint, value: u64);
    pub fn qemu_plugin_get_registers() -> *mut Array<RegisterDescription>;
    pub fn qemu_plugin_read_register(register: *mut Handle, to: *mut Array<u8>) -> c_int;
    pub fn qemu_plugin_read_memory_vaddr(address: u64, to: *mut Array<u8>, len: usize) -> bool;

    // From GLib, with which QEMU is linked.
    pub fn g_byte_array_new() -> *mut Array<u8>;
    pub fn g_byte_array_set_size(array: *mut Array<u8>, len: c_uint) -> *mut Array<u8>;
    pub fn g_array_unref(array: *mut c_void);
}
