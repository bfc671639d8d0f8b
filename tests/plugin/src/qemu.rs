// SPDX-License-Identifier: GPL-2.0

//! The connection to QEMU: the part of its plugin interface that is used, in version 4 (QEMU 9.2
//! and later).
//!
//! Header: `include/plugins/qemu-plugin.h` of QEMU.
//!
//! QEMU translates code in blocks before it is executed for the first time, and keeps the result.
//! When a block is translated, a plugin registers the callbacks for its execution.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::instruction::LONGEST;
use crate::{LINE_LIMIT, MARK, Out};

type Id = u64;

#[repr(C)]
struct Score {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Tb {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Insn {
    _opaque: [u8; 0],
}
#[repr(C)]
struct Handle {
    _opaque: [u8; 0],
}
#[repr(C)]
struct HwAddr {
    _opaque: [u8; 0],
}

/// The handle of a scoreboard: a number for each CPU.
#[repr(C)]
#[derive(Clone, Copy)]
struct PerCpu {
    score: *mut Score,
    offset: usize,
}

#[repr(C)]
struct RegisterDescription {
    handle: *mut Handle,
    name: *const c_char,
    feature: *const c_char,
}

/// The public part of GLib's `GArray` and `GByteArray`.
#[repr(C)]
struct Array<T> {
    data: *mut T,
    len: c_uint,
}

/// The description of QEMU that a plugin gets when it is loaded; QEMU's struct has more fields.
#[repr(C)]
pub struct Info {
    target: *const c_char,
    min: c_int,
    current: c_int,
    system_emulation: bool,
    cpus: c_int,
}

type CpuCallback = extern "C" fn(Id, c_uint);
type SimpleCallback = extern "C" fn(Id);
type EndCallback = extern "C" fn(Id, *mut c_void);
type TranslateCallback = extern "C" fn(Id, *mut Tb);
type ExecuteCallback = extern "C" fn(c_uint, *mut c_void);
type MemoryCallback = extern "C" fn(c_uint, c_uint, u64, *mut c_void);

/// The callback needs no registers (`QEMU_PLUGIN_CB_NO_REGS`).
const NO_REGISTERS: c_int = 0;
/// The callback reads registers (`QEMU_PLUGIN_CB_R_REGS`).
const READS_REGISTERS: c_int = 1;
/// The callback runs unless the number is the one given (`QEMU_PLUGIN_COND_NE`).
const UNLESS_EQUAL: c_int = 3;
/// The callback is for stores (`QEMU_PLUGIN_MEM_W`).
const STORES: c_int = 2;

unsafe extern "C" {
    fn qemu_plugin_register_vcpu_init_cb(id: Id, callback: CpuCallback);
    fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: TranslateCallback);
    fn qemu_plugin_register_vcpu_tb_exec_cond_cb(
        tb: *mut Tb,
        callback: ExecuteCallback,
        flags: c_int,
        condition: c_int,
        entry: PerCpu,
        immediate: u64,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_insn_exec_cb(
        insn: *mut Insn,
        callback: ExecuteCallback,
        flags: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_vcpu_mem_cb(
        insn: *mut Insn,
        callback: MemoryCallback,
        flags: c_int,
        which: c_int,
        data: *mut c_void,
    );
    fn qemu_plugin_register_atexit_cb(id: Id, callback: EndCallback, data: *mut c_void);
    fn qemu_plugin_reset(id: Id, callback: SimpleCallback);
    fn qemu_plugin_tb_n_insns(tb: *const Tb) -> usize;
    fn qemu_plugin_tb_vaddr(tb: *const Tb) -> u64;
    fn qemu_plugin_tb_get_insn(tb: *const Tb, index: usize) -> *mut Insn;
    fn qemu_plugin_insn_data(insn: *const Insn, to: *mut c_void, len: usize) -> usize;
    fn qemu_plugin_insn_size(insn: *const Insn) -> usize;
    fn qemu_plugin_insn_vaddr(insn: *const Insn) -> u64;
    fn qemu_plugin_mem_size_shift(info: c_uint) -> c_uint;
    fn qemu_plugin_get_hwaddr(info: c_uint, address: u64) -> *mut HwAddr;
    fn qemu_plugin_hwaddr_is_io(address: *const HwAddr) -> bool;
    fn qemu_plugin_hwaddr_phys_addr(address: *const HwAddr) -> u64;
    fn qemu_plugin_scoreboard_new(size: usize) -> *mut Score;
    fn qemu_plugin_u64_set(entry: PerCpu, cpu: c_uint, value: u64);
    fn qemu_plugin_get_registers() -> *mut Array<RegisterDescription>;
    fn qemu_plugin_read_register(register: *mut Handle, to: *mut Array<u8>) -> c_int;
    fn qemu_plugin_read_memory_vaddr(address: u64, to: *mut Array<u8>, len: usize) -> bool;

    // From GLib, with which QEMU is linked.
    fn g_byte_array_new() -> *mut Array<u8>;
    fn g_byte_array_set_size(array: *mut Array<u8>, len: c_uint) -> *mut Array<u8>;
    fn g_array_unref(array: *mut c_void);
}

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

    /// The guest has sent a line to this plugin. An error is printed.
    fn received(&mut self, cpu: &Cpu<'_>, line: &str) -> Result<(), String>;

    /// The machine is off. An error is printed. This is not called if QEMU is killed.
    fn ending(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// A register of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// A general register, by its number in instructions.
    General(u8),
    /// The address of the page tables.
    Cr3,
}

impl Register {
    pub const RSP: Register = Register::General(4);
    pub const RSI: Register = Register::General(6);
    pub const RDI: Register = Register::General(7);
}

/// The names of general registers, by number.
const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

struct Registers {
    general: [*mut Handle; GENERAL.len()],
    cr3: *mut Handle,
}

/// The state that calls of QEMU need.
struct Connection {
    id: Id,
    name: &'static str,
    registers: Option<Registers>,
    /// A buffer for the results of QEMU; emptied before each use.
    scratch: *mut Array<u8>,
}

// SAFETY: The pointers are to objects of QEMU that live as long as it does; what is behind
// `scratch` is used only under the lock of `LOADED`.
unsafe impl Send for Connection {}

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
}

/// A store within one page: its physical address and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub physical: u64,
    pub len: u64,
}

/// The CPU that has called the plugin.
pub struct Cpu<'a> {
    index: c_uint,
    connection: &'a Connection,
}

impl Cpu<'_> {
    /// The contents of a register. Not available in callbacks for stores.
    pub fn register(&self, register: Register) -> Option<u64> {
        let registers = self.connection.registers.as_ref()?;
        let handle = match register {
            Register::General(number) => *registers.general.get(usize::from(number))?,
            Register::Cr3 => registers.cr3,
        };
        let bytes = self.connection.read(|scratch| {
            // SAFETY: The register was found by QEMU's own list.
            let len = unsafe { qemu_plugin_read_register(handle, scratch) };
            len >= 0
        })?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The contents of the guest's memory at a virtual address.
    pub fn memory(&self, address: u64, len: usize) -> Option<&[u8]> {
        self.connection.read(|scratch| {
            // SAFETY: QEMU makes the array long enough, and returns false if there is no such
            // memory.
            unsafe { qemu_plugin_read_memory_vaddr(address, scratch, len) }
        })
    }

    /// Makes QEMU translate all code again, so that the plugin can register other callbacks.
    pub fn retranslate(&self) {
        // SAFETY: The number is that of this plugin.
        unsafe { qemu_plugin_reset(self.connection.id, register) }
    }

    /// The line that the guest's registers point to.
    fn line(&self) -> Result<String, String> {
        let (Some(address), Some(len)) =
            (self.register(Register::RDI), self.register(Register::RSI))
        else {
            return Err("cannot read registers".to_owned());
        };
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len == 0 || len > LINE_LIMIT {
            return Err(format!("a line of {len} bytes"));
        }
        let line = self
            .memory(address, len)
            .ok_or_else(|| format!("cannot read the guest's memory at {address:#x}"))?;
        Ok(String::from_utf8_lossy(line).into_owned())
    }
}

impl Connection {
    /// Calls a function of QEMU that fills the buffer, and returns its contents unless it fails.
    fn read(&self, ask: impl FnOnce(*mut Array<u8>) -> bool) -> Option<&[u8]> {
        // SAFETY: `scratch` is a `GByteArray` that only this object uses.
        unsafe { g_byte_array_set_size(self.scratch, 0) };
        if !ask(self.scratch) {
            return None;
        }
        // SAFETY: The array has `len` initialised bytes at `data`.
        Some(unsafe {
            let array = &*self.scratch;
            std::slice::from_raw_parts(array.data, array.len as usize)
        })
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

/// A CPU exists: looks up its registers, which are the same for all CPUs.
extern "C" fn started(_: Id, _: c_uint) {
    // SAFETY: QEMU allows this call in this callback. The array has descriptions, whose names live
    // as long as QEMU.
    let registers = unsafe {
        let array = qemu_plugin_get_registers();
        let all = std::slice::from_raw_parts((*array).data, (*array).len as usize);
        let find = |name: &str| {
            let name = CString::new(name).ok()?;
            let found = all
                .iter()
                .find(|one| CStr::from_ptr(one.name) == name.as_c_str());
            found.map(|one| one.handle)
        };
        let registers = (|| {
            let mut general = [std::ptr::null_mut(); GENERAL.len()];
            for (register, name) in general.iter_mut().zip(GENERAL) {
                *register = find(name)?;
            }
            let cr3 = find("cr3")?;
            Some(Registers { general, cr3 })
        })();
        g_array_unref(array.cast());
        registers
    };
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
