// SPDX-License-Identifier: GPL-2.0

//! The connection to QEMU: the part of its plugin interface that is used, in version 4 (QEMU 9.2
//! and later).
//!
//! Header: `include/plugins/qemu-plugin.h` of QEMU.
//!
//! QEMU translates code in blocks before it is executed for the first time, and keeps the result.
//! When a block is translated, a plugin registers the callbacks for its execution.

mod bindings;
mod cpu;

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bindings::Info;
use bindings::*;
use cpu::{Connection, Registers};
pub use cpu::{Cpu, Register};

use crate::instruction::LONGEST;
use crate::{MARK, Out};

/// A plugin. It is called by one CPU at a time.
///
/// A `token` is the number with which the callback was registered.
pub trait Plugin: Send {
    /// A block is translated. Callbacks for it can be registered now.
    fn translated(&mut self, block: &Block<'_>);

    /// A block or an instruction is about to be executed.
    fn executed(&mut self, _cpu: &Cpu<'_>, _token: usize) {}

    /// An instruction has stored something.
    fn stored(&mut self, _piece: &Piece, _token: usize) {}

    /// An instruction has loaded or stored something.
    fn accessed(&mut self, _access: &Access) {}

    /// The guest has sent a line to this plugin. An error is printed.
    fn received(&mut self, cpu: &Cpu<'_>, line: &str) -> Result<(), String>;

    /// The machine is off. An error is printed. This is not called if QEMU is killed.
    fn ending(&mut self) -> Result<(), String> {
        Ok(())
    }
}

struct Loaded {
    connection: Connection,
    plugin: Box<dyn Plugin>,
}

/// Everything that callbacks share.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

fn loaded() -> MutexGuard<'static, Option<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number for each CPU, set by the plugin, which decides whether callbacks are called.
pub struct Switch(PerCpu);

// SAFETY: The pointer is to an object of QEMU that lives as long as it does, and may be used by all
// threads.
unsafe impl Send for Switch {}

impl Switch {
    /// Makes a switch, which is off. To be called while plugins are made.
    #[expect(
        clippy::new_without_default,
        reason = "it is not a value, but is made in QEMU"
    )]
    pub fn new() -> Switch {
        // SAFETY: The function may be called at any time.
        let score = unsafe { qemu_plugin_scoreboard_new(size_of::<u64>()) };
        Switch(PerCpu { score, offset: 0 })
    }

    /// Sets the switch for a CPU.
    pub fn set(&self, cpu: &Cpu<'_>, on: bool) {
        // SAFETY: The number was allocated as a scoreboard, with room for all CPUs.
        unsafe { qemu_plugin_u64_set(self.0, cpu.index, u64::from(on)) }
    }
}

/// A block that is being translated: instructions that are executed one after the other.
pub struct Block<'a> {
    tb: *mut Tb,
    _translation: PhantomData<&'a ()>,
}

impl Block<'_> {
    /// The address of the first instruction.
    pub fn start(&self) -> u64 {
        // SAFETY: The block is QEMU's, and exists during the callback.
        unsafe { qemu_plugin_tb_vaddr(self.tb) }
    }

    /// The instructions, at least one.
    pub fn instructions(&self) -> impl ExactSizeIterator<Item = Instruction<'_>> {
        // SAFETY: The block is QEMU's, and exists during the callback.
        let len = unsafe { qemu_plugin_tb_n_insns(self.tb) };
        (0..len).map(|index| Instruction {
            // SAFETY: `index` is less than the number of instructions.
            insn: unsafe { qemu_plugin_tb_get_insn(self.tb, index) },
            _block: PhantomData,
        })
    }

    /// Registers a callback for its executions while the switch is on.
    pub fn notify_if(&self, switch: &Switch, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_tb_exec_cond_cb(
                self.tb,
                executed,
                READS_REGISTERS,
                UNLESS_EQUAL,
                switch.0,
                0,
                token as *mut c_void,
            );
        }
    }
}

/// An instruction of such a block.
pub struct Instruction<'a> {
    insn: *mut Insn,
    _block: PhantomData<&'a ()>,
}

impl Instruction<'_> {
    /// Its address.
    pub fn address(&self) -> u64 {
        // SAFETY: The instruction is QEMU's, and exists during the callback.
        unsafe { qemu_plugin_insn_vaddr(self.insn) }
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; LONGEST];
        // SAFETY: The instruction is QEMU's, and exists during the callback. The buffer has the
        // length that is passed.
        let len = unsafe {
            let len = qemu_plugin_insn_size(self.insn).min(bytes.len());
            qemu_plugin_insn_data(self.insn, bytes.as_mut_ptr().cast(), len)
        };
        bytes.truncate(len);
        bytes
    }

    /// Registers a callback for its executions.
    pub fn notify(&self, token: usize) {
        self.call(executed, token);
    }

    fn call(&self, callback: ExecuteCallback, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_insn_exec_cb(
                self.insn,
                callback,
                READS_REGISTERS,
                token as *mut c_void,
            );
        }
    }

    /// Registers a callback for its stores.
    pub fn notify_stores(&self, token: usize) {
        // SAFETY: The callback gets what it expects, a number.
        unsafe {
            qemu_plugin_register_vcpu_mem_cb(
                self.insn,
                stored,
                NO_REGISTERS,
                STORES,
                token as *mut c_void,
            );
        }
    }

    /// Registers a callback for its loads and stores.
    pub fn notify_accesses(&self) {
        // SAFETY: The callback does not use the data.
        unsafe {
            qemu_plugin_register_vcpu_mem_cb(
                self.insn,
                accessed,
                NO_REGISTERS,
                LOADS_AND_STORES,
                std::ptr::null_mut(),
            );
        }
    }
}

/// A load or store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The virtual address.
    pub address: u64,
    pub len: u64,
    pub is_store: bool,
}

/// A store within one page: its physical address and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub physical: u64,
    pub len: u64,
}

impl Cpu<'_> {
    /// Makes QEMU translate all code again, so that the plugin can register other callbacks.
    pub fn retranslate(&self) {
        // SAFETY: The number is that of this plugin.
        unsafe { qemu_plugin_reset(self.connection.id, register) }
    }
}

/// Loads a plugin: called by the function that `export!` defines.
///
/// # Safety
///
/// The first four arguments must be as in QEMU's header for `qemu_plugin_install`.
pub unsafe fn install(
    id: Id,
    info: *const Info,
    argc: c_int,
    argv: *const *const c_char,
    name: &'static str,
    cpus: c_int,
    make: impl FnOnce(Out) -> Box<dyn Plugin>,
) -> c_int {
    // SAFETY: By the safety requirements the pointer is valid.
    let info = unsafe { &*info };
    // SAFETY: QEMU passes a string.
    let target = unsafe { CStr::from_ptr(info.target) };
    if target != c"x86_64" || !info.system_emulation || info.cpus > cpus {
        eprintln!("{name}: this is for an x86-64 machine with {cpus} CPUs at most (-smp {cpus})");
        return 1;
    }
    let mut out = None;
    for index in 0..argc as usize {
        // SAFETY: By the safety requirements there are `argc` strings.
        let argument = unsafe { CStr::from_ptr(*argv.add(index)) }.to_string_lossy();
        out = argument.strip_prefix("out=").map(str::to_owned);
    }
    let out = match out.as_deref().map(File::create) {
        Some(Ok(out)) => out,
        Some(Err(error)) => {
            eprintln!("{name}: cannot write the file that out= names: {error}");
            return 1;
        }
        None => {
            eprintln!("{name}: out=FILE says where results are written to, and is missing");
            return 1;
        }
    };
    *loaded() = Some(Loaded {
        connection: Connection {
            id,
            name,
            registers: None,
            // SAFETY: The function may be called at any time.
            scratch: unsafe { g_byte_array_new() },
        },
        plugin: make(Out(out)),
    });
    // SAFETY: The function takes a function of the right type.
    unsafe { qemu_plugin_register_vcpu_init_cb(id, started) };
    register(id);
    0
}

/// Registers the callbacks for translations and for the end.
extern "C" fn register(id: Id) {
    // SAFETY: The functions take functions of the right types, and the latter also user data, which
    // are not used.
    unsafe {
        qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
        qemu_plugin_register_atexit_cb(id, ended, std::ptr::null_mut());
    }
}

/// QEMU is about to end.
extern "C" fn ended(_: Id, _: *mut c_void) {
    if let Some(Loaded { connection, plugin }) = loaded().as_mut() {
        if let Err(error) = plugin.ending() {
            eprintln!("{}: {error}", connection.name);
        }
    }
}

/// A CPU exists.
extern "C" fn started(_: Id, _: c_uint) {
    let registers = Registers::find();
    if let Some(Loaded { connection, .. }) = loaded().as_mut() {
        if registers.is_none() {
            eprintln!("{}: QEMU does not show the registers", connection.name);
        }
        connection.registers = registers;
    }
}

/// A block was translated.
extern "C" fn translated(_: Id, tb: *mut Tb) {
    let mut loaded = loaded();
    let Some(loaded) = loaded.as_mut() else {
        return;
    };
    let block = Block {
        tb,
        _translation: PhantomData,
    };
    for instruction in block.instructions() {
        if instruction.bytes() == MARK {
            instruction.call(marked, 0);
        }
    }
    loaded.plugin.translated(&block);
}

/// A block or an instruction is about to be executed.
extern "C" fn executed(index: c_uint, token: *mut c_void) {
    if let Some(Loaded { connection, plugin }) = loaded().as_mut() {
        plugin.executed(&Cpu { index, connection }, token as usize);
    }
}

/// An instruction has loaded or stored something.
extern "C" fn accessed(_: c_uint, info: c_uint, address: u64, _: *mut c_void) {
    if let Some(Loaded { plugin, .. }) = loaded().as_mut() {
        // SAFETY: QEMU allows these calls in this callback.
        let (shift, is_store) = unsafe {
            (
                qemu_plugin_mem_size_shift(info),
                qemu_plugin_mem_is_store(info),
            )
        };
        plugin.accessed(&Access {
            address,
            len: 1 << shift,
            is_store,
        });
    }
}

/// An instruction has stored something.
extern "C" fn stored(_: c_uint, info: c_uint, address: u64, token: *mut c_void) {
    let mut loaded = loaded();
    let Some(loaded) = loaded.as_mut() else {
        return;
    };
    // SAFETY: QEMU allows this call in this callback.
    let len = 1 << unsafe { qemu_plugin_mem_size_shift(info) };
    for part in parts(address..address.saturating_add(len)) {
        // SAFETY: QEMU allows these calls in this callback. The result is valid until the next
        // call.
        let physical = unsafe {
            let found = qemu_plugin_get_hwaddr(info, part.start);
            if found.is_null() || qemu_plugin_hwaddr_is_io(found) {
                continue;
            }
            qemu_plugin_hwaddr_phys_addr(found)
        };
        let len = part.end - part.start;
        loaded
            .plugin
            .stored(&Piece { physical, len }, token as usize);
    }
}

/// Splits a range at a border between pages.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    const PAGE: u64 = 4096;
    let border = (range.end - 1) / PAGE * PAGE;
    let (first, second) = if border > range.start {
        (range.start..border, Some(border..range.end))
    } else {
        (range, None)
    };
    std::iter::once(first).chain(second)
}

/// The guest has sent a line.
extern "C" fn marked(index: c_uint, _: *mut c_void) {
    let mut loaded = loaded();
    let Some(Loaded { connection, plugin }) = loaded.as_mut() else {
        return;
    };
    let cpu = Cpu { index, connection };
    let told = cpu.line().and_then(|line| match line.split_once(' ') {
        Some((name, line)) if name == connection.name => plugin.received(&cpu, line),
        // It is for another plugin.
        _ => Ok(()),
    });
    if let Err(error) = told {
        eprintln!("{}: {error}", connection.name);
    }
}
